"""The learned task weights of finished runs, after the fact."""

import json

import pytest
from PIL import Image

from experiments.compare_weights import main

TASKS = ("Standard", "Windy")


def write_run(results, name, seed, keys=TASKS):
    """A finished run of 40 lines, every other of which has weights."""
    folder = results / name / f"seed_{seed}"
    folder.mkdir(parents=True)
    method = name.removesuffix("_blind")
    settings = {"seed": seed, "variant": "blind" if name != method else "aware", "alpha": 1.5}
    result = {"returns": [200.0, 100.0], "mean": 150.0, "standard_deviation": 70.7, "success_rate": 0.5}
    evaluation = {
        "tasks": dict.fromkeys(TASKS, result),
        "mean": 150.0,
        "worst_task": {"name": "Windy", "mean": 150.0},
    }
    lines = []
    for number in range(1, 41):
        line = {"env_step": 1000 * number, "train/Windy/loss": 0.5}
        if number % 2:
            line |= {f"balancer/{task}/weight": 1 + 0.1 * seed + place / number for place, task in enumerate(keys)}
        lines.append(line)
    (folder / "config.json").write_text(json.dumps({"run": name, "method": method, "settings": settings}))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def results(tmp_path):
    """Runs of three names, two seeds each."""
    for name in ("gradnorm", "gradnorm_blind", "rgb"):
        for seed in (0, 1):
            write_run(tmp_path / "runs", name, seed)
    return tmp_path / "runs"


def compare(results, *arguments):
    output = results.parent / "out"
    assert main(["--results-dir", str(results), "--output-dir", str(output), *arguments]) == 0
    return output


def test_wandb_has_the_weights_of_every_run_under_the_same_keys(results, wandb_runs, capsys):
    output = compare(results, "--methods", "gradnorm", "gradnorm_blind", "rgb", "--wandb", "offline")
    shown = wandb_runs(output)
    names = [f"{name}-seed_{seed}" for name in ("gradnorm", "gradnorm_blind", "rgb") for seed in (0, 1)]
    assert [run.run.display_name for run in shown] == names
    for run in shown:
        name, seed = run.run.display_name.split("-seed_")
        assert (run.run.run_group, run.run.job_type, run.run.project) == (name, "analyze", "mtrl")
        assert run.axes == {"env_step": "", "*": "env_step"}
        assert run.exit_code == 0
        assert run.config.items() >= {"run": name, "seed": int(seed), "alpha": 1.5}.items()
        weights = [f"balancer/{task}/weight" for task in TASKS]
        text = (results / name / f"seed_{seed}" / "metrics.jsonl").read_text()
        with_weights = [line for line in map(json.loads, text.splitlines()) if weights[0] in line]
        assert run.lines == [{key: line[key] for key in ("env_step", *weights)} for line in with_weights]
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"wandb sync {output}/wandb/offline-run-*" in printed.out


def test_the_picture_is_written_without_wandb(results):
    output = compare(results, "--methods", "rgb", "gradnorm")
    assert {path.name for path in output.iterdir()} == {
        f"{name}.{kind}" for name in ("task_weights", "weight_profile") for kind in ("png", "svg")
    }
    with Image.open(output / "task_weights.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_variants_and_seeds_choose(results, wandb_runs):
    output = compare(
        results, "--methods", "gradnorm", "--variants", "blind", "aware", "--seeds", "1", "--wandb", "offline"
    )
    names = [run.run.display_name for run in wandb_runs(output)]
    assert names == ["gradnorm_blind-seed_1", "gradnorm-seed_1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "gradnrom"], "no finished runs of 'gradnrom' in "),
        (["--methods", "gradnrom"], "there are brc, gradnorm, gradnorm_blind, rgb"),
        (["--methods", "rgb", "--variants", "blind"], "no finished runs of 'rgb_blind'"),
        (["--methods", "rgb", "--seeds", "0-2"], "no finished run of 'rgb' with seed 2; there are seeds 0, 1"),
        (["--methods", "rgb", "--seeds", "one"], "'one' is neither a seed such as 3 nor a range such as 0-9"),
        (["--methods", "rgb", "brc"], "has no task weights: brc does not weigh tasks"),
        (["--methods"], "methods: there are none"),
        ([], "missing argument --methods"),
        (["--methods", "rgb", "--wandb", "on"], "invalid choice 'on'; choose from disabled, offline, online"),
        (["--methods", "rgb", "--wandb-project", "a/b"], "wandb_project is 'a/b'"),
        (["--methods", "rgb", "--wandb", "online"], "not logged in to W&B"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_trace(arguments, message, results, wandb_runs, capsys):
    write_run(results, "brc", 0, keys=())
    output = results.parent / "out"
    with pytest.raises(SystemExit) as stop:
        main(["--results-dir", str(results), "--output-dir", str(output), *arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not output.exists()


def test_a_file_in_the_way_is_left_alone(results, capsys):
    output = results.parent / "out"
    output.write_text("mine")
    with pytest.raises(SystemExit):
        compare(results, "--methods", "rgb")
    assert "is a file; pictures need a folder" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_broken_runs_are_one_line_each(results, capsys):
    (results / "rgb" / "seed_1" / "metrics.jsonl").write_text("{")
    compare(results, "--methods", "rgb")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped ")
