"""What a comparison computes, writes and draws, on run folders made by formula."""

import csv
import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from envs import TASKS
from experiments import analyze_results
from experiments.analysis.analyze_results import command
from experiments.analysis.comparison import analyse, told_apart
from experiments.analysis.config import AnalyzeConfig
from experiments.analysis.figures import FIGURES
from experiments.analysis.intervals import summarise
from experiments.analysis.looks import COLOURS, GREY, looks_of
from experiments.analysis.marl_eval import to_marl_eval
from experiments.analysis.parameters import count_parameters
from experiments.analysis.plots import SUFFIXES, draw
from experiments.analysis.plots.style import NOTE, RC
from experiments.analysis.replicates import as_methods, in_bins, over_seeds
from experiments.analysis.runs import load_runs
from experiments.analysis.significance import compare, holm
from experiments.analysis.tables import CSV_COLUMNS, markdown, to_csv
from experiments.program.flags import parse
from experiments.program.random_policy import random_returns

NAMES = ("Standard", "Windy", "Heavy")
STEPS = 60_000
REFERENCE_RUNS = Path(__file__).parents[2] / "results" / "reference"


def make_run(folder, name, seed, score=200.0, *, tasks=NAMES, spread=10.0, lines=30, extra=(), **settings):
    """A run folder as training leaves it, but for the model; its returns rise in a line to `score` and some noise."""
    rng = np.random.default_rng([seed, *name.encode()])
    own = score + spread * rng.normal(size=len(tasks)) + 2 * spread * rng.normal()
    results = {}
    for task, mean in zip(tasks, own, strict=True):
        returns = mean + 5 * rng.normal(size=20)
        rate = float((returns >= 200).mean())
        results[task] = {"returns": returns.tolist(), "mean": float(returns.mean()), "success_rate": rate}
    worst = min(results, key=lambda task: results[task]["mean"])
    mean = float(np.mean([result["mean"] for result in results.values()]))
    evaluation = {"tasks": results, "mean": mean, "worst_task": {"name": worst, "mean": results[worst]["mean"]}}
    defaults = {"embedding_dim": 8, "hidden_dims": [256, 128], "layer_norm": True, "total_steps": STEPS}
    variant = "blind" if name.endswith("_blind") else "aware"
    config = {
        "run": name,
        "agent": "IndependentDQN" if name == "independent_dqn" else "MultiTaskDQN",
        "base_environment": "LunarLander-v3",
        "settings": {"seed": seed, "variant": variant, "tasks": list(tasks), **defaults, **settings},
    }
    metrics = []
    for index in range(1, lines + 1):
        step = STEPS * index // lines
        line = {"env_step": step, "time/time_elapsed": step // 1000 + seed, "time/steps_per_s": 900.0 + seed}
        line["train/updates"] = step // 6
        if index % 3 == 0:
            line |= {f"eval/{task}/return": float(end * step / STEPS) for task, end in zip(tasks, own, strict=True)}
        elif name != "independent_dqn":
            flat = name.startswith("shared_dqn")
            line |= {f"balancer/{task}/weight": 1.0 if flat else 1 + 0.1 * rng.normal() for task in tasks}
            line |= {f"balancer/cosine/{a}_{b}": 0.1 for i, a in enumerate(tasks) for b in tasks[i + 1 :]}
            if name.startswith("aim"):
                line |= {f"balancer/tau/{a}_{b}": index / lines for a in tasks for b in tasks if a != b}
            if name.startswith("rgb"):
                line |= {f"balancer/{task}/angle": 0.5 for task in tasks}
        metrics.append(line)
    place = folder / name / f"seed_{seed}"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config))
    (place / "evaluation.json").write_text(json.dumps(evaluation))
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*metrics, *extra]))
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Several seeds of most methods, in both variants, and one of `rgb_blind`."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(8):
        for name, score in (
            *(("shared_dqn", 120), ("rgb", 240), ("aim", 130), ("aim_blind", 220)),
            *(("independent_dqn", 200), ("shared_dqn_blind", 110)),
        ):
            make_run(root, name, seed, score)
    make_run(root, "rgb_blind", 3)
    return root


@pytest.fixture(scope="module")
def methods(folder):
    runs, broken = load_runs(folder)
    assert not broken
    return as_methods(runs)


@pytest.fixture(scope="module")
def analysis(methods):
    return analyse(list(methods.values()), random=dict.fromkeys(NAMES, -200.0))


def of(analysis, name):
    return next(result for result in analysis.results if result.method.name == name)


# Reading


def test_a_curve_pairs_the_lines_that_have_both_and_leaves_out_what_is_not_finite(tmp_path):
    lines = [
        {"env_step": 70_000, "x": 1},
        {"x": 2},
        {"env_step": 80_000, "x": float("nan")},
        {"env_step": 90_000, "x": 4},
    ]
    make_run(tmp_path, "gradnorm", 0, extra=lines)
    (run,) = load_runs(tmp_path)[0]["gradnorm"]
    steps, values = run.curve("x")
    assert steps.tolist() == [70_000, 90_000]
    assert values.tolist() == [1, 4]
    assert [len(axis) for axis in run.curve("no such key")] == [0, 0]
    assert run.columns["x"][0].tolist() == [30, 31, 33]


def test_what_is_no_run_and_no_replicate_is_an_error_in_one_line(tmp_path):
    make_run(tmp_path, "gradnorm", 0)
    make_run(tmp_path, "gradnorm", 1, tasks=("Standard", "Heavy"))
    make_run(tmp_path / "elsewhere", "gradnorm", 0)
    (tmp_path / "elsewhere/gradnorm/seed_0").rename(tmp_path / "gradnorm/seed_5")  # a copy says what it is a copy of
    (tmp_path / "gradnorm/seed_6").mkdir()
    for seed, (file, content) in enumerate(
        [
            ("metrics.jsonl", '{"env_step": 5}\n{"env_step": 4}\n'),
            ("metrics.jsonl", '{"env_step": 5}\n{"env_st'),
            (
                "evaluation.json",
                '{"tasks": {"A": {"mean": NaN, "success_rate": 0}}, "mean": 0, "worst_task": {"mean": 0}}',
            ),
            (
                "evaluation.json",
                '{"tasks": {"A": {"mean": 1, "success_rate": 7}}, "mean": 0, "worst_task": {"mean": 0}}',
            ),
        ],
        10,
    ):
        (make_run(tmp_path, "pcgrad", seed) / file).write_text(content)
    runs, errors = load_runs(tmp_path)
    assert [(name, len(found)) for name, found in runs.items()] == [("gradnorm", 1)]
    assert len(errors) == 7
    for error, part in zip(
        errors,
        [
            *("tasks are Standard, Heavy", "config.json is missing", "go backwards", "line 2: Unterminated"),
            *("mean of A is nan; it must be a number", "success_rate of A is 7; it must be a number from 0 to 1"),
            "as does",
        ],
        strict=True,
    ):
        assert part in str(error)
        assert "\n" not in str(error)


# Curves


def test_curves_on_the_same_steps_are_averaged_point_by_point():
    x, y = np.arange(5.0), np.random.default_rng(0).normal(size=(6, 5))
    curve = over_seeds([(x, row) for row in y])
    assert curve.x == pytest.approx(x)
    assert curve.mean == pytest.approx(y.mean(0))
    for i in range(5):  # up to six seeds a table's interval is Student's, as a curve's always is
        assert (curve.low[i], curve.high[i]) == pytest.approx(summarise(y[:, [i]]).overall.interval)


def test_curves_on_other_steps_are_averaged_where_all_of_them_are():
    line = [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([4.0, 6.0, 20.0]), np.array([4.0, 6.0, 20.0]))]
    curve = over_seeds(line)
    assert (curve.x[0], curve.x[-1]) == (4, 10)
    assert curve.mean == pytest.approx(curve.x)
    assert over_seeds([line[0], (np.array([11.0]), np.array([0.0]))]) is None
    assert over_seeds([(np.empty(0), np.empty(0))]) is None
    assert over_seeds(line[:1]).low is None


def test_bins_keep_the_average():
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.uniform(0, 1000, 300)), rng.normal(size=300)
    middles, means = in_bins((x, y), 10)
    counts = np.histogram(x, np.linspace(0, x[-1], 11))[0]
    assert np.average(means, weights=counts) == pytest.approx(y.mean())
    assert np.average(middles, weights=counts) == pytest.approx(x.mean())
    assert [len(axis) for axis in in_bins((np.empty(0), np.empty(0)))] == [0, 0]


def test_curves_of_a_method(methods):
    rgb = methods["rgb"]
    curve = rgb.learning_curve("Windy")
    assert curve.x[-1] == STEPS == rgb.last_step
    assert curve.seeds.mean(0) == pytest.approx(curve.mean)
    assert rgb.learning_curve("no such task") is None
    assert rgb.learns_weights
    assert not methods["shared_dqn"].learns_weights
    assert rgb.angle_curve("Heavy").mean == pytest.approx(0.5)
    assert methods["aim"].angle_curve("Heavy") is None


def test_pairs_of_tasks(methods, tmp_path):
    cosines = methods["aim"].mean_cosines()
    assert np.array_equal(cosines, cosines.T)
    assert cosines[0].tolist() == pytest.approx([1, 0.1, 0.1])
    assert methods["independent_dqn"].mean_cosines() is None
    tau = methods["aim"].thresholds()  # the last that were logged
    assert np.isnan(np.diag(tau)).all()
    assert tau[~np.eye(3, dtype=bool)] == pytest.approx(29 / 30)
    assert methods["rgb"].thresholds() is None

    gates = {f"balancer/{task}/gate_tau": 0.5 for task in TASKS}
    make_run(tmp_path / "gated", "aim", 0, extra=[{"env_step": STEPS, **gates}])
    gated = as_methods(load_runs(tmp_path / "gated")[0])
    assert gated["aim"].thresholds().diagonal().tolist() == [0.5, 0.5, 0.5]
    note = "On the diagonal are the gates"
    assert note in FIGURES["aim_thresholds"](analyse(list(gated.values()))).note
    assert note not in FIGURES["aim_thresholds"](analyse([methods["aim"]])).note

    make_run(tmp_path, "shared_dqn", 0, extra=[{"env_step": STEPS, "balancer/tau": 0.25}])  # one for all pairs
    tau = as_methods(load_runs(tmp_path)[0])["shared_dqn"].thresholds()
    assert tau[0].tolist() == pytest.approx([np.nan, 0.25, 0.25], nan_ok=True)


# Numbers


def test_each_variant_is_compared_with_its_own_baseline_and_holm_covers_both(methods, analysis):
    blind = compare({"aim_blind": methods["aim_blind"].rows()}, methods["shared_dqn_blind"].rows())["aim_blind"]
    assert of(analysis, "aim_blind").baseline == "shared_dqn_blind"
    assert of(analysis, "aim_blind").comparison.difference == blind.difference
    tested = [result for result in analysis.results if result.comparison and result.comparison.p is not None]
    assert [result.method.name for result in tested] == ["aim", "aim_blind", "independent_dqn", "rgb"]
    assert analysis.comparisons == 4
    adjusted = holm([result.comparison.p for result in tested])
    assert [result.comparison.p_holm for result in tested] == pytest.approx(adjusted)
    assert told_apart(of(analysis, "rgb"))
    assert not told_apart(of(analysis, "aim"))
    for result in tested:  # after the correction it takes more
        assert result.detectable > result.comparison.detectable


def test_the_baseline_has_no_baseline_and_one_seed_no_test(analysis):
    assert of(analysis, "shared_dqn").baseline is None
    one = of(analysis, "rgb_blind")
    assert one.comparison.p is None
    assert one.improvement.interval is None
    assert one.mean.overall.interval is None
    assert one.detectable is None


def test_another_baseline(methods):
    found = analyse(list(methods.values()), baseline="aim")
    baselines = {result.method.name: result.baseline for result in found.results}
    assert (baselines["rgb"], baselines["rgb_blind"], baselines["aim"]) == ("aim", "aim_blind", None)
    assert analyse(list(methods.values()), baseline="none").comparisons == 0


def test_a_difference_beyond_all_doubt_is_told(methods):
    """With p = 0: every seed is better by as much."""
    rgb = methods["rgb"]
    better = tuple(dataclasses.replace(run, evaluation=json.loads(json.dumps(run.evaluation))) for run in rgb.runs)
    for run in better:
        for result in run.evaluation["tasks"].values():
            result["mean"] = round(result["mean"]) + 64.0
    same = tuple(dataclasses.replace(run, evaluation=json.loads(json.dumps(run.evaluation))) for run in rgb.runs)
    for run in same:
        for result in run.evaluation["tasks"].values():
            result["mean"] = float(round(result["mean"]))
    found = analyse(
        [dataclasses.replace(rgb, runs=better)], {"shared_dqn": dataclasses.replace(rgb, name="shared_dqn", runs=same)}
    ).results[0]
    assert found.comparison.p_holm == 0
    assert told_apart(found)


def test_a_method_without_a_baseline_is_named(methods):
    found = analyse([methods["rgb"], methods["rgb_blind"], methods["shared_dqn_blind"]])
    (warning,) = [text for text in found.warnings if "no finished runs" in text]
    assert warning == "There are no finished runs of shared_dqn on the same tasks to compare rgb with."


def test_nothing_is_compared_across_tasks_or_without_common_seeds(tmp_path):
    make_run(tmp_path, "shared_dqn", 0)
    make_run(tmp_path, "gradnorm", 1)
    make_run(tmp_path, "rgb", 0, tasks=("Standard", "Heavy"))
    found = analyse(list(as_methods(load_runs(tmp_path)[0]).values()))
    assert of(found, "gradnorm").comparison is None
    assert of(found, "gradnorm").improvement is not None
    assert of(found, "rgb").baseline is None
    assert "cannot tell" in markdown(found)


def test_normalised_scores_are_1_for_the_independent_agents(methods, analysis):
    independent = of(analysis, "independent_dqn").normalised_mean
    assert [estimate.value for estimate in independent.tasks] == pytest.approx([1, 1, 1])
    half = {task: mean - 100 for task, mean in zip(NAMES, methods["rgb"].scores.mean(0), strict=True)}
    ends = methods["independent_dqn"].scores.mean(0)
    rgb = of(analyse(list(methods.values()), random=half), "rgb").normalised_mean
    for task, end, estimate in zip(NAMES, ends, rgb.tasks, strict=True):
        assert estimate.value == pytest.approx(100 / (end - half[task]))
    # Without them, 1 is the return that counts as solved.
    alone = of(analyse([methods["rgb"]], random=half), "rgb").normalised_mean
    for task, mean, estimate in zip(NAMES, methods["rgb"].scores.mean(0), alone.tasks, strict=True):
        assert estimate.value == pytest.approx((mean - half[task]) / (200 - half[task]))
    above = dict.fromkeys(NAMES, 1e6)
    assert analyse(list(methods.values()), random=above).scale is None  # worse than random: no scale


def test_steps_to_a_return(analysis):
    shared = of(analysis, "shared_dqn")  # a line to about 120: to 50 in somewhat under half the steps
    assert 10_000 < shared.steps_to[50].median.value < 40_000
    assert shared.steps_to[200].median.value == np.inf
    assert shared.steps_to[200].reached == 0


def test_a_method_that_is_evaluated_more_often_does_not_seem_faster(tmp_path):
    for name, every in (("aim", 2), ("rgb", 1)):
        folder = make_run(tmp_path, name, 0, lines=12)
        returns = range(0, 240, 20)  # to 50 at the fourth of twelve lines, which is the second of six
        lines = [
            {"env_step": 5000 * place}
            | ({f"eval/{task}/return": value for task in NAMES} if place % every == 0 else {})
            for place, value in enumerate(returns, 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    methods = as_methods(load_runs(tmp_path)[0])
    for goal, steps in ((50, 20_000), (100, 30_000), (150, 50_000)):  # 150 is reached at 45,000 steps
        for name in ("aim", "rgb"):
            assert of(analyse(list(methods.values())), name).steps_to[goal].median.value == steps
    assert of(analyse([methods["rgb"]]), "rgb").steps_to[150].median.value == 45_000


def test_many_methods_are_few_words_and_few_colours_and_stay_at_their_size(tmp_path):
    names = ["shared_dqn", *(f"rgb-variant{place}" for place in range(14))]
    for name in names:
        for seed in range(2):
            make_run(tmp_path, name, seed, lines=3)
    analysis = analyse(list(as_methods(load_runs(tmp_path)[0]).values()))
    assert "better: none; worse: none; not told apart: all 14 others." in markdown(analysis)
    (panel,) = FIGURES["parameter_efficiency"](analysis).panels
    places = sorted(point.place for point in panel.points)
    assert len(set(places)) == len(names)
    assert places[-1] - places[0] < 1
    (profiles,) = FIGURES["performance_profiles"](analysis).panels
    coloured = [line.key.name for line in profiles.lines if line.key.look.colour != GREY]
    assert len(coloured) == 6
    assert "shared_dqn" in coloured


def test_settings_that_differ_are_named(tmp_path):
    make_run(tmp_path, "gradnorm", 0, gamma=0.9, results_dir="a")
    make_run(tmp_path, "gradnorm", 1, gamma=0.8, results_dir="b")
    make_run(tmp_path, "shared_dqn", 0, gamma=0.9)
    assert analyse(list(as_methods(load_runs(tmp_path)[0]).values())).warnings == (
        "The seeds of gradnorm differ in gamma.",
    )
    make_run(tmp_path, "rgb", 0, total_steps=7)
    warnings = analyse(list(as_methods(load_runs(tmp_path)[0]).values())).warnings
    assert warnings[1] == "The methods differ in total_steps: 60000 for gradnorm, shared_dqn; 7 for rgb."
    make_run(tmp_path / "later", "aim", 0)
    make_run(tmp_path / "later", "aim", 1, gate=False)  # by a release that knows the setting
    warnings = analyse(list(as_methods(load_runs(tmp_path / "later")[0]).values())).warnings
    assert warnings[-1] == "Seeds 0 of aim were run before there was gate."


def test_parameters_are_those_that_the_networks_state():
    counts = {
        name: count_parameters(json.loads((REFERENCE_RUNS / name / "seed_0/config.json").read_text()))
        for name in ("shared_dqn", "shared_dqn_blind", "independent_dqn", "brc", "brc_blind")
    }
    assert (counts["shared_dqn"], counts["shared_dqn_blind"]) == (37_788, 35_716)
    assert counts["independent_dqn"] == 3 * 35_716
    # Embedding 3 x 32 joins 8 values; two blocks of two layers 128 x 128 with norms; 4 x 101 logits.
    body = 2 * 2 * (128 * 129 + 2 * 128) + 129 * 404 + 128 + 2 * 128
    assert (counts["brc"], counts["brc_blind"]) == (body + 3 * 32 + 40 * 128, body + 8 * 128)


@pytest.mark.parametrize("config", [{}, {"agent": "Other", "settings": {"tasks": [], "variant": "blind"}}])
def test_parameters_of_a_stranger_s_run_are_unknown(config):
    assert count_parameters(config) is None


def test_parameters_of_a_network_that_would_take_all_the_memory_are_unknown():
    sizes = {"embedding_dim": 8, "hidden_dims": [10**9], "layer_norm": True}
    assert count_parameters({"agent": "MultiTaskDQN", "settings": {"tasks": [], "variant": "blind", **sizes}}) is None


def test_random_play_is_repeatable_and_bad():
    both = random_returns(["Windy", "Heavy"], episodes=5)
    assert random_returns(["Heavy"], episodes=5)["Heavy"] == both["Heavy"]
    assert random_returns(["Heavy"], episodes=2, seed=30_001)["Heavy"] == both["Heavy"][1:3]
    assert -500 < np.mean(both["Windy"]) < -50
    assert set(both) <= set(TASKS)


# Texts


def test_every_number_of_the_csv_is_that_of_the_analysis(analysis):
    rows = list(csv.DictReader(io.StringIO(to_csv(analysis))))
    assert tuple(rows[0]) == CSV_COLUMNS

    def value(method, quantity, task="all", statistic=None):
        (row,) = [
            row
            for row in rows
            if (row["method"], row["quantity"], row["task"]) == (method, quantity, task)
            and statistic in (None, row["statistic"])
        ]
        return row

    rgb = of(analysis, "rgb")
    row = value("rgb", "return", "Windy", "iqm")
    assert float(row["value"]) == rgb.iqm.tasks[1].value
    assert (float(row["low"]), float(row["high"])) == rgb.iqm.tasks[1].interval
    assert (row["unit"], row["seeds"], row["interval"], row["variant"]) == ("points", "8", "bootstrap", "aware")
    assert float(value("rgb", "p holm")["value"]) == rgb.comparison.p_holm
    assert value("aim_blind", "difference")["baseline"] == "shared_dqn_blind"
    assert value("rgb_blind", "return", "worst", "mean")["low"] == ""
    assert float(value("shared_dqn", "steps to 200")["value"]) == np.inf
    assert int(value("rgb", "parameters")["value"]) == 37_788
    assert float(value("rgb", "steps per s")["value"]) == pytest.approx(903.5)
    keys = [(row["method"], row["quantity"], row["task"], row["statistic"]) for row in rows]
    assert len(set(keys)) == len(keys)


def test_the_table_says_what_it_cannot_tell(analysis):
    text = markdown(analysis)
    assert "One seed only of rgb_blind" in text
    verdict = next(line for line in text.splitlines() if line.startswith("Against shared_dqn,"))
    assert "better: independent_dqn, rgb; worse: none; not told apart: aim." in verdict
    low, high = map(int, re.search(r"has to be (\d+) to (\d+) points", verdict).groups())
    found = [of(analysis, name).detectable for name in ("aim", "independent_dqn", "rgb")]
    assert (low, high) == (round(min(found)), round(max(found)))
    assert "corrected for 4 comparisons" in text
    for line in text.splitlines():  # tables are tables
        if line.startswith("| rgb_blind"):
            assert "[" not in line  # no interval from one seed


def test_marl_eval_s_form_holds_every_evaluation(methods):
    data = json.loads(json.dumps(to_marl_eval(methods.values())))
    assert list(data) == ["lunarlander-v3"]
    assert set(data["lunarlander-v3"]) == {"standard", "windy", "heavy"}
    windy = data["lunarlander-v3"]["windy"]
    assert set(windy) == set(methods)
    for name, method in methods.items():
        assert list(windy[name]) == [f"seed_{seed}" for seed in method.seeds]
        for run in method.runs:
            steps = dict(windy[name][f"seed_{run.seed}"])
            assert steps.pop("absolute_metrics")["return"] == run.evaluation["tasks"]["Windy"]["returns"]
            assert list(steps) == [f"step_{index}" for index in range(10)]
            x, y = run.curve("eval/Windy/return")
            assert [step["step_count"] for step in steps.values()] == x.tolist()
            assert [step["return"] for step in steps.values()] == [[value] for value in y]


# Figures


def drawn(methods):
    """Each figure that has something to show, by name."""
    found = analyse(methods)
    with mpl.rc_context(RC):
        return {name: draw(data) for name, make in FIGURES.items() if (data := make(found)) is not None}


def captions(methods):
    """The caption of each figure, by name."""
    return {
        name: text.get_text().replace("\n", " ")
        for name, figure in drawn(methods).items()
        for text in figure.texts
        if text.get_gid() == NOTE
    }


def test_every_caption_says_how_many_seeds(methods):
    names = list(methods)
    several = captions([methods[name] for name in names if name != "rgb_blind"])
    assert set(several) == set(FIGURES)
    assert all("8 seeds" in title for title in several.values())
    one = captions([methods["rgb_blind"]])
    assert set(one) == set(FIGURES) - {"aim_thresholds"}
    assert all(
        "one seed" in title.lower() and "seeds" not in title.replace("Share of seeds", "") for title in one.values()
    )
    mixed = captions(list(methods.values()))
    assert {name for name, title in mixed.items() if "some methods one seed" not in title} == {"aim_thresholds"}


def test_a_method_has_one_colour_and_methods_have_different_ones():
    known = looks_of(COLOURS)
    assert len({look.colour for look in known.values()}) == len(COLOURS)
    others = looks_of(["mine", "rgb", "yours", "rgb-slow", "rgb-fast", "theirs", "hers", "his"])
    assert len(set(others.values())) == len(others)
    assert {others[name].colour for name in ("rgb", "rgb-slow", "rgb-fast")} == {COLOURS["rgb"]}
    assert others["mine"] == looks_of(["mine"])["mine"]


def test_a_learning_curve_ends_with_the_value_of_the_table_and_no_interval_stretches_its_axis(tmp_path):
    for seed in range(3):
        make_run(tmp_path, "rgb", seed, 100 + 100 * seed, spread=1)  # Student's interval reaches from 0 to 500
    methods = as_methods(load_runs(tmp_path)[0]).values()
    figure = drawn(list(methods))["learning_curves"]
    (method,) = methods
    for axes, mean in zip(figure.axes, method.scores.mean(0), strict=True):
        (end,) = (line for line in axes.lines if line.get_marker() == ">")
        assert end.get_ydata() == pytest.approx([mean])
        assert axes.get_ylim()[1] < 350
        assert len([line for line in axes.lines if len(line.get_xdata()) > 2]) == 4  # the mean and three seeds
        assert axes.get_xticks()[-1] == STEPS


def test_at_most_six_learning_curves_have_a_colour(tmp_path):
    names = ["shared_dqn", *(f"method{index}" for index in range(9))]
    for index, name in enumerate(names):
        make_run(tmp_path, name, 0, 100 + 10 * index, spread=1)
    data = FIGURES["learning_curves"](analyse(list(as_methods(load_runs(tmp_path)[0]).values())))
    for panel in data.panels:
        coloured = {line.key.name for line in panel.lines if line.key.look.colour != GREY}
        assert coloured == {"shared_dqn", *names[-5:]}
        assert {line.label for line in panel.lines if line.key.name not in coloured} == {"others"}


def test_rows_are_ranked_and_the_baseline_is_a_line(analysis):
    data = FIGURES["final_returns"](analysis)
    ranked = sorted(analysis.results, key=lambda result: -result.mean.overall.value)
    assert data.rows == list(dict.fromkeys(result.method.family for result in ranked))
    for panel in data.panels:
        expected = {
            variant: of(analysis, name).returns(panel.title)[0].value
            for variant, name in (("aware", "shared_dqn"), ("blind", "shared_dqn_blind"))
        }
        assert panel.baselines == expected


def test_heat_maps_of_cosines_have_one_scale(analysis):
    with mpl.rc_context(RC):
        for name in ("conflicts", "aim_thresholds"):
            figure = draw(FIGURES[name](analysis))
            assert {image.get_clim() for axes in figure.axes for image in axes.images} == {(-1, 1)}
    assert "is below the threshold in" in FIGURES["aim_thresholds"](analysis).note


def test_the_profile_of_weights_is_that_of_the_runs(tmp_path):
    for seed in range(2):
        folder = make_run(tmp_path, "gradnorm", seed)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for index, line in enumerate(lines):
            weights = (3.0, 2.0, 1.0 + seed * (-1) ** index)
            line |= {f"balancer/{task}/weight": weight for task, weight in zip(NAMES, weights, strict=True)}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    profile = as_methods(load_runs(tmp_path)[0])["gradnorm"].weight_profile()
    assert profile.relative == pytest.approx(np.array([[1.5, 1, 0.5]] * 2), rel=0.01)
    assert profile.deviation == pytest.approx(np.array([[0, 0, 0], [0, 0, 0.5]]), abs=0.01)
    assert profile.size == pytest.approx(np.full((2, 1), 2), rel=0.01)


def test_networks_of_one_size_stand_at_one_place(analysis):
    data = FIGURES["parameter_efficiency"](analysis)
    sizes = {result.method.name: result.parameters for result in analysis.results}
    for panel in data.panels:
        for point in panel.points:
            assert data.sizes[round(point.place)] == sizes[point.key.name]
            assert abs(point.place - round(point.place)) < 0.5


def test_the_command_writes_every_file_and_takes_away_what_has_no_data_any_more(folder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--results-dir", str(folder), "--output-dir", str(output)]
    assert analyze_results.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    figures = {f"{name}{suffix}" for name in FIGURES for suffix in SUFFIXES}
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(first) == {"table.md", "table.csv", "runs.json", *figures}
    assert "## Normalised returns" in (output / "table.md").read_text()  # random play was measured
    assert all(f"| {name} |" in printed.out for name in ("rgb", "aim_blind"))

    (output / "mine.png").write_text("mine")
    (output / "report.html").write_text("of an earlier analysis")
    assert analyze_results.main([*arguments, "--method", "all"]) == 0
    assert all((output / name).read_bytes() == content for name, content in first.items())  # as before, bit by bit

    assert analyze_results.main([*arguments, "--method", "rgb"]) == 0
    left = {path.name for path in output.iterdir()}
    assert left == {"mine.png", *first} - {"aim_thresholds.png", "aim_thresholds.svg"}  # nor the report of before
    assert "Against shared_dqn" in (output / "table.md").read_text()  # which is not reported on itself
    assert "aim" not in (output / "table.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "rgb", "rgbb"], "'rgbb'"),
        (["--method"], "method: there are none"),
        (["--baseline", "rgbb"], "no finished runs of baseline 'rgbb'"),
        (["--output-dir", "taken"], "'taken/conflicts.svg' is a folder"),
        (["--output-dir", "file"], "'file' is a file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_trace(folder, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken" / "conflicts.svg").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        analyze_results.main(["--results-dir", str(folder), *arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_report_states_a_command_that_makes_it_again():
    config = AnalyzeConfig(method=("rgb", "my run"), output_dir=Path("o"), html=True)
    words = shlex.split(command(config))
    assert words[:3] == ["python", "-m", "experiments.analyze_results"]
    assert parse(AnalyzeConfig, words[3:], prog="") == config


def test_help_loads_none_of_the_heavy_packages():
    code = "import sys; from experiments.analyze_results import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "print([m for m in ('matplotlib', 'scipy', 'torch', 'gymnasium') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
def test_140_runs_take_less_than_1_gb(tmp_path):
    methods = [*("gradnorm", "pcgrad", "rgb", "aim", "shared_dqn", "brc"), "gradnorm_pcgrad"]
    for name in (*methods, *(f"{name}_blind" for name in methods)):
        for seed in range(10):
            make_run(tmp_path / "runs", name, seed, lines=240)
    code = (
        "import sys; from benchmarks.common import peak_memory; from experiments.analyze_results import main;"
        "main(sys.argv[1:]); print(peak_memory(), file=sys.stderr)"
    )
    words = ["--results-dir", str(tmp_path / "runs"), "--output-dir", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=environment
    )
    assert int(done.stderr) < 1e9  # bytes
