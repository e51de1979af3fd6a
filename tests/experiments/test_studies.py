"""AIM's studies: verdicts follow from numbers, data are what they are said to be, programs run and refuse."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.quiver import Quiver

from experiments.studies import document_claims, figures, fitting, original_problems, policy_figures, problems
from experiments.studies.command import StudyConfig
from experiments.studies.published_aim import PublishedAIM
from experiments.studies.report import Claim, Report, Table, judge, lower, p_in_words
from experiments.studies.reports import sabotage
from experiments.studies.sabotage import SabotageConfig
from experiments.supervised.data import Samples
from mtrl.gradients import TaskGradients

STUDIES = ("interference", "static_heuristics", "sabotage", "mixed_signals", "original")
FIGURES = {
    "interference": {"gradient_arrows", "learning_curves", "transfer"},
    "static_heuristics": {"learning_curves", "valley_paths", "tau", "tau_curves"},
    "sabotage": {"learning_curves", "tau", "tau_curves"},
    "mixed_signals": {"learning_curves", "tau", "tau_curves", "feature_use"},
    "original": {"learning_curves", "memorised", "tau", "tau_curves"},
}
NOTEBOOK = Path(__file__).parents[2] / "experiments/studies/walkthrough.ipynb"
RESULTS = NOTEBOOK.parents[2] / "results/studies"


def run(study, *argv):
    return importlib.import_module(f"experiments.studies.{study}").main(list(argv))


# ------------------------------------------------------------------------------------------------------- verdicts


def report(verdicts):
    return Report("title", "setting", {}, [], verdicts, {})


def outcomes(*margins, robustness=True):
    claims = [Claim(f"claim {i}", dict(enumerate(values)), robustness) for i, values in enumerate(margins)]
    return judge(claims)


def test_a_claim_holds_or_its_opposite_or_nothing_is_shown():
    sure = 1 + 0.1 * np.random.default_rng(0).normal(size=10)
    verdicts = outcomes(sure, -sure, sure - sure.mean())
    assert [verdict.outcome for verdict in verdicts] == ["held", "the opposite held", "not shown"]
    assert "held in part (1 of 3 claims)" in report(verdicts).robustness
    assert report(outcomes(sure, sure)).robustness.endswith("(claims marked *): held.")
    assert "did not hold" in report(outcomes(-sure)).robustness


def test_one_seed_tells_nothing():
    (verdict,) = outcomes([1.0])
    assert verdict.outcome == "one seed: cannot tell"
    assert not verdict.held
    assert "cannot tell" in report([verdict]).robustness


def test_more_claims_ask_for_more():
    """A margin that is just significant alone is not among ten claims: Holm's correction is over the whole study."""
    weak = np.random.default_rng(7).normal(0.75, 1.0, 10)
    (alone,) = outcomes(weak)
    assert alone.outcome == "held"
    assert outcomes(weak, *np.random.default_rng(1).normal(size=(9, 10)))[0].outcome == "not shown"


def test_lower_takes_the_margin_from_the_worse_to_the_better():
    assert lower("x", {3: 0.2, 4: 0.5}, {4: 0.4, 3: 0.5}).margins == {3: pytest.approx(0.3), 4: pytest.approx(-0.1)}


def test_robustness_is_told_for_each_kind_of_aim():
    sure = dict(enumerate(1 + 0.1 * np.random.default_rng(0).normal(size=10)))
    claims = [Claim("static", sure, True), Claim("old", {s: -m for s, m in sure.items()}, True, method="old")]
    text = report(judge([*claims, Claim("new", sure, True, method="new")])).robustness
    assert text.endswith("old: held in part (1 of 2 claims); new: held.")


def test_a_tiny_p_is_not_printed_as_zero():
    assert [p_in_words(p) for p in (0.00001, 0.001, 0.0444, None)] == ["< 0.001", "0.001", "0.044", "-"]


def test_a_table_leaves_out_what_is_not_known():
    table = Table("t", ("error", "noise"), {"naive": {0: [1.0, math.nan], 1: [3.0, math.nan]}})
    assert table.markdown.splitlines()[-1].startswith("| naive | 2.000 [")
    assert table.markdown.endswith("| - |")


# --------------------------------------------------------------------------------------------------------- problems


def test_every_method_is_given_the_same_rows_and_only_aim_holds_some_out():
    """The naive gradient is of train and guidance rows; AIM's own is of train rows alone."""
    phase = problems.related_tasks(0, tasks=2, input_dim=6, relatedness=1.0, train=20, guidance=10, steps=1)
    seen = {}

    def train(method, given):
        model = fitting.seeded(lambda: problems.regressions(("a", "b"), 6, [], 2), 0)
        rows = []

        def losses(samples):
            rows.append(samples.features)
            return fitting.task_losses(model(samples.features), samples.targets)

        fitting.fit(
            losses,
            model.encoder.parameters(),
            model.parameters(),
            [given],
            method,
            learning_rate=0.01,
            policy_lr=0.01,
        )
        seen[method] = {len(features) for features in rows}
        return rows

    train("naive", phase)
    train("AIM", phase)
    assert 30 in seen["naive"]
    assert 10 not in seen["naive"]
    assert 30 not in seen["AIM"]
    assert {10, 20} <= seen["AIM"]
    assert len(fitting.without_guidance(phase).guidance) == 0


def test_a_training_is_reproducible_and_leaves_global_randomness_alone():
    phase = problems.related_tasks(1, tasks=2, input_dim=6, relatedness=0.5, train=20, guidance=10, steps=15)
    state = torch.random.get_rng_state()

    def errors():
        model = fitting.seeded(lambda: problems.regressions(("a", "b"), 6, [4], 2), 1)
        return fitting.fit_model(model, [phase], "AIM", learning_rate=0.01, policy_lr=0.01).errors

    first = errors()
    assert np.array_equal(first, errors())
    assert first[-1].sum() < first[0].sum()
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_noise_task_has_nothing_to_do_with_the_inputs():
    clean = problems.related_tasks(0, tasks=4, input_dim=10, relatedness=0.9, train=2000, guidance=2, steps=1)
    phase = problems.with_noise_task(clean, 0)
    inputs, noise = phase.train.features, phase.train.targets[-1]
    assert len(phase.train.targets) == 5
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    assert float((inputs * noise[:, None]).mean(0).abs().max()) < 0.1
    for task in range(4):
        assert torch.equal(phase.train.targets[task], clean.train.targets[task])


def test_drifting_tasks_agree_first_and_are_apart_later():
    before, after = problems.drifting_tasks(0, input_dim=8, degrees=60.0, train=4000, guidance=2, steps=1)

    def correlation(samples: Samples) -> float:
        return float(torch.corrcoef(torch.stack(samples.targets))[0, 1])

    assert correlation(before.train) == pytest.approx(1 / 1.01, abs=0.01)
    assert correlation(after.train) == pytest.approx(0.5 / 1.01, abs=0.05)


def test_opposed_pairs_are_as_opposed_as_said():
    for one, other in problems.opposed_pairs(0, 50, dimensions=10):
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert -0.9 <= cosine <= -0.3
        assert 1 <= np.linalg.norm(other) <= 30


def test_the_valleys_gradients_are_those_of_finite_differences_of_its_map():
    noise = torch.zeros(1, 2, dtype=torch.float64)
    theta = torch.tensor([-2.0, 0.7], dtype=torch.float64)
    grid = theta[:, None] + torch.tensor([[1e-6, -1e-6, 0, 0], [0, 0, 1e-6, -1e-6]], dtype=torch.float64)
    heights = problems.valley(grid, noise).sum(0)
    expected = torch.stack([heights[0] - heights[1], heights[2] - heights[3]]) / 2e-6
    theta.requires_grad_()
    problems.valley(theta, noise).sum().backward()
    torch.testing.assert_close(theta.grad, expected, rtol=1e-4, atol=1e-4)


def test_messages_have_disjoint_words_and_tone_follows_kind_only_where_it_is_trained():
    data = problems.messages(0, train=3000, guidance=100, steps=1)
    sentiment, spam = data.lanes
    assert set(sentiment + spam) == {1.0}  # each word tells of exactly one task
    assert sentiment[data.words.index("lovely")] == 1
    assert spam[data.words.index("prize")] == 1
    assert "the" not in data.words
    agree = [
        float((part.targets[0] == part.targets[1]).double().mean())
        for part in (data.phase.train, data.phase.validation)
    ]
    assert agree[0] == pytest.approx(problems.OWN_TONE, abs=0.03)
    assert agree[1] == pytest.approx(0.5, abs=0.08)


def test_word_use_is_that_of_a_model_which_looks_at_one_word():
    model = problems.classifications(("sentiment", "spam"), [0, 1], 5, [], 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.encoder[0].weight[0, 3] = 2.0  # feature 0 is word 3
        model.heads[1].weight[1, 0] = -0.5  # spam goes by it
    use = problems.word_use(model, torch.randn(7, 5))
    assert use.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1.0, 0]]


def test_static_never_harms_one_of_two_opposed_tasks_and_the_plain_sum_does():
    pairs = problems.opposed_pairs(3, 20, dimensions=10)
    assert not any(fitting.harms(pair, "static", 1) for pair in pairs)
    assert any(fitting.harms(pair, "naive", 1) for pair in pairs)
    assert fitting.harms(np.array([[1.0, 0.0], [-2.0, 1.0]]), "naive", 1)
    assert not fitting.harms(np.array([[1.0, 0.0], [1.0, 1.0]]), "naive", 1)


# ------------------------------------------------------------------------------------------------ AIM as published


def test_the_published_policy_is_that_of_autograd_and_its_guidance_has_no_effect():
    """The public code's policy loss in full dimension, with its guidance loss, on ten updates."""
    generator = torch.Generator().manual_seed(0)
    aim, weights = PublishedAIM(3), torch.randn(7, generator=generator, dtype=torch.float64)
    tau = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([tau], lr=0.01)
    for _ in range(10):
        rows = torch.randn(3, 7, generator=generator, dtype=torch.float64)
        losses = torch.rand(3, generator=generator, dtype=torch.float64)
        direction = torch.zeros(7, dtype=torch.float64)
        for i in range(3):
            direction = direction + rows[i]
            for j in range(3):
                if i != j:
                    w = torch.sigmoid(10 * (tau[i, j] - torch.cosine_similarity(rows[i], rows[j], 0)))
                    direction = direction - w * (rows[i] @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        torch.testing.assert_close(aim.combine(rows, losses), direction.detach())
        guidance = (weights - 1).square().sum()  # at the present weights
        length = rows.norm(dim=1).sum()
        loss = guidance + 0.01 * (direction.norm() - length) ** 2
        loss = loss - 0.1 * (losses / losses.sum()) @ (rows @ direction)
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.testing.assert_close(aim.tau.detach(), tau.detach(), rtol=1e-6, atol=1e-8)
    assert tau.detach().abs().max() > 0.05


def test_no_thresholds_of_pairs_bring_a_coefficient_beyond_its_reach():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    gramian = rows @ rows.T
    ends = []
    for w in (torch.rand(4, 4, generator=generator), (gramian > 0).double(), (gramian < 0).double()):
        aim = fitting.make_balancer("aim", 4, k=1e6)
        aim.tau.copy_(torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T + 2 * w - 1)
        answer = aim(TaskGradients(rows), torch.ones(4))
        ratio = gramian / gramian.diagonal()
        answer = replace(answer, diagnostics={**answer.diagnostics, "ratio": ratio})
        reach = fitting.reach_of(answer)
        beta = answer.coefficients.numpy()
        assert (reach[:, 0] - 1e-9 <= beta).all()
        assert (beta <= reach[:, 1] + 1e-9).all()
        ends.append(beta)
    np.testing.assert_allclose(np.stack(ends[1:], 1), reach, atol=1e-9)  # and both ends are reached


def test_right_and_wrong_gatings_are_counted_by_seed():
    def fit(*removed):
        return fitting.Fit(np.zeros(1), np.zeros((1, 5)), np.ones(5), np.zeros((5, 5)), np.diag(removed))

    fits = {0: fit(0, 0, 0, 0, 0.9), 1: fit(0, 0.6, 0.7, 0, 0.9), 2: fit(0, 0, 0, 0.6, 0.4), 3: fit(0, 0, 0, 0, 0)}
    text = sabotage.gatings(fits)
    assert "the noise task out on 2 of 4 seeds, and wrongly a real task on 2 of 4" in text


def test_thresholds_are_drawn_on_one_scale_with_their_deviation_and_gates():
    matrices = [np.array([[0.5, 0.2], [-0.4, 1.7]]), np.array([[0.7, 0.4], [-0.4, 1.9]])]
    steps = np.array([0.0, 5.0])
    fits = [fitting.Fit(steps, np.ones((2, 2)), np.ones(2), m, m, np.stack([m, m])) for m in matrices]
    plain = [fitting.Fit(steps, np.ones((2, 2)), np.ones(2), np.fliplr(np.diag([0.1, 0.2])), None)]
    figure = policy_figures.thresholds({"gate": fits, "none": plain}, ("a", "noise"), "title")
    gate, none, bar = figure.axes
    assert [axes.images[0].get_clim() for axes in (gate, none)] == [(-1, 1), (-1, 1)]
    assert [text.get_text() for text in gate.texts] == ["0.60\n±0.14", "0.30\n±0.14", "-0.40\n±0.00", "1.80\n±0.14"]
    assert len(none.texts) == 2
    assert [label.get_text() for label in gate.get_xticklabels()] == ["a", "noise"]
    assert "tau" in bar.get_ylabel()
    (curves,) = policy_figures.threshold_curves({"gate": fits}, ("a", "noise"), "title").axes
    assert sorted(line.get_linewidth() for line in curves.lines) == [0.8, 0.8, 0.8, 2.4, 2.4]


def test_no_arrow_of_a_panel_hides_another():
    same = np.array([[1.0, 0.0], [0.0, 1.0]])
    figure = figures.gradient_arrows({"case": (same, np.ones(2), {"naive": same[0], "static": same[1]})})
    for axes in figure.subfigs[0].axes:
        broad, *thin = [part for part in axes.collections if isinstance(part, Quiver)]
        assert len(thin) == 2
        assert all(arrow.width < broad.width / 3 for arrow in thin)  # and they lie above it
        assert broad.get_alpha() < 1


# ------------------------------------------------------------------------------------------------------- original


def test_the_originals_data_are_as_described():
    phase = original_problems.sabotage(0, 5)
    assert (len(phase.train), len(phase.guidance), phase.steps) == (160, 40, 5)
    features, targets = (part - part.mean(0) for part in (phase.train.features, torch.stack(phase.train.targets, 1)))
    torch.testing.assert_close(targets.square().mean(0), torch.ones(4, dtype=torch.float64))
    fit = torch.linalg.lstsq(features, targets).solution
    explained = 1 - (targets - features @ fit).var(0) / targets.var(0)
    assert (explained[:3] > 0.999).all()
    assert explained[3] < 0.35
    assert int((fit[:, 0].abs() > 0.01).sum()) == original_problems.INFORMATIVE
    mixed, lanes = original_problems.mixed_signals(0, 5)
    solution = torch.linalg.lstsq(mixed.train.features, torch.stack(mixed.train.targets, 1)).solution.T.numpy()
    for weights, lane in zip(np.abs(solution), lanes, strict=True):
        assert weights @ lane > 0.95 * weights.sum()


def test_the_documents_claims_need_results(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        document_claims.main(["--studies-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "holds no results of interference" in capsys.readouterr().err
    (tmp_path / "sabotage").mkdir()
    (tmp_path / "sabotage" / "results.json").write_text('{"verdicts": {"a claim": "held"}}')
    with pytest.raises(SystemExit) as stop:
        document_claims.main(["--studies-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "is no result of a study" in capsys.readouterr().err


def test_every_claim_of_the_document_has_a_line_among_the_results_of_the_project(capsys):
    assert document_claims.main(["--studies-dir", str(RESULTS)]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {said} |" in printed for said in document_claims.CLAIMS.values())


def test_the_same_seed_gives_the_same_numbers_again():
    config = SabotageConfig(steps=15)
    one, two = (sabotage.train(config, fitting.GATED, 3) for _ in range(2))
    for name in ("errors", "weights", "tau", "intervention", "taus", "reach"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_the_static_rule_gets_stuck_where_the_relation_changes():
    """The failure itself, at full length on one seed: a fixed projection holds on to the feature of before."""
    phases = problems.drifting_tasks(1, input_dim=8, degrees=60.0, train=192, guidance=32, steps=300)

    def changing(method):
        model = fitting.seeded(lambda: problems.regressions(("constant", "changing"), 8, [], 1), 1)
        return fitting.fit_model(model, phases, method, learning_rate=0.01, policy_lr=0.01).final[1]

    assert changing("static") > 1.3 * changing("naive")


# --------------------------------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("study", STUDIES)
def test_a_quick_run_writes_its_report_figures_and_numbers_and_will_not_replace_them(study, tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ("--quick", "--steps", "12", "--output-dir", str(folder))
    assert run(study, *arguments) == 0
    printed = capsys.readouterr().out
    text = (folder / "report.md").read_text()
    assert text.strip() in printed
    assert ("Robustness naive low, static medium, AIM high" in text) == (study != "original")
    assert {path.name for path in folder.iterdir()} == {
        "report.md",
        "results.json",
        *(f"{name}.png" for name in FIGURES[study]),
    }
    results = json.loads((folder / "results.json").read_text())
    for methods in results["numbers"].values():
        for by_seed in methods.values():
            assert list(by_seed) == ["0", "1"]
    for method in ("naive", "static", *fitting.JUDGED):
        assert f"| {method} |" in text
    tested = {verdict["document"] for verdict in results["verdicts"]}
    assert tested <= {"", *document_claims.CLAIMS}
    assert f"({study})" in document_claims.table_of({study: results})

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(SystemExit) as stop:
        run(study, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--overwrite" in error
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "9-0"], "9-0"),
        (["--steps", "0"], "steps is 0; it must be between 1 and 1000000"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--policy-lr", "-1"], "policy_lr is -1.0"),
        (["--train", "0"], "train is 0; it must be between 1 and 100000"),
        (["--sedes", "1"], "did you mean --seeds"),
        (["--output-dir", "{file}/deeper"], "is a file; results need a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        run("sabotage", *(argument.format(file=tmp_path / "file") for argument in arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_training_that_blows_up_is_one_line_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ("--quick", "--quiet", "--learning-rate", "1e300", "--output-dir", str(folder))
    assert run("mixed_signals", *arguments) == 1
    error = capsys.readouterr().err
    assert "not finite; a lower --learning-rate may help" in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_by_default_there_are_ten_seeds_and_thirty_of_sabotage():
    assert StudyConfig().seed_numbers == list(range(10))
    assert SabotageConfig().seed_numbers == list(range(30))


@pytest.mark.parametrize("study", STUDIES)
def test_help_loads_nothing_heavy(study):
    """What takes its time to import does so only when there is something to train."""
    code = (
        f"import sys; from experiments.studies.{study} import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "    sys.exit(stop.code or ' '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--policy-lr" in done.stdout


# --------------------------------------------------------------------------------------------------------- notebook


def words_of(notebook):
    """Tables and printed lines among a notebook's outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.get("text") or output["data"].get("text/markdown") for output in outputs]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own dependencies
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_walkthrough_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook, committed = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    root = NOTEBOOK.parents[2]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(root)}}).execute()
    pictures = sum(
        "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert pictures == sum(len(names) for names in FIGURES.values())
    assert words_of(notebook) == words_of(committed)  # else the reports are newer than the notebook: run it again


def test_the_walkthrough_is_committed_with_its_outputs_and_without_traces_of_a_machine():
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert "error" not in {output["output_type"] for cell in code for output in cell["outputs"]}
    assert "image/png" in outputs
    text = NOTEBOOK.read_text()
    assert len(text) < 1_000_000
    assert not any(trace in text for trace in ("/home/", "/root/", "/work/", "/tmp/", "/usr/"))
