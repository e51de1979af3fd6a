"""Views of a run show what its metrics.jsonl holds, and change nothing in it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections import deque
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from experiments.aim import train as aim_train
from experiments.shared_dqn import train as shared_train
from experiments.training.tracking.tensorboard import CHARTS, TensorBoardView, heat_map, pair_matrix

TASKS = ("Standard", "Windy", "Heavy")
SMALL = (
    *("--total-steps", "1500", "--envs-per-task", "2", "--learning-starts", "100", "--batch-size", "8"),
    *("--eval-interval", "600", "--eval-episodes", "1", "--final-episodes", "2", "--log-interval", "1"),
    *("--conflict-interval", "20", "--quiet"),
)
HOSTILE = {  # what a user's environment may hold; the flags say what happens
    "WANDB_MODE": "disabled",
    "WANDB_DISABLED": "true",
    "WANDB_RUN_ID": "taken",
    "WANDB_RESUME": "must",
    "WANDB_NAME": "other",
    "WANDB_RUN_GROUP": "other",
    "WANDB_JOB_TYPE": "other",
    "WANDB_PROJECT": "other",
    "WANDB_TAGS": "other",
    "WANDB_NOTES": "other",
    "WANDB_DIR": "/nonexistent",
    "WANDB_CONSOLE": "redirect",
}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(lines):
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def children():
    """Command lines of this process's children. Threads and children may end while they are looked at."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in (task / "children").read_text().split():
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return found


def services():
    return [pid for pid, words in children().items() if words[0].endswith("wandb-core")]


def events(folder):
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def train_in_process(program, *arguments):
    """The exit status of a training in a process of its own; its output is added to that of the test."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with the default outputs."""
    results = tmp_path_factory.mktemp("plain")
    assert aim_train.main([*SMALL, "--results-dir", str(results)]) == 0
    return results / "aim" / "seed_0"


@pytest.fixture
def offline(wandb_runs, tmp_path, monkeypatch):
    """The same with W&B, in an environment that is set against it."""
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    arguments = [*SMALL, "--results-dir", str(tmp_path), "--wandb", "offline", "--wandb-project", "mine"]
    assert aim_train.main(arguments) == 0
    assert dict(os.environ) == before
    return tmp_path / "aim" / "seed_0"


# ------------------------------------------------------------------------------------------------ no W&B


def test_disabled_is_no_import_no_process_no_network_and_no_folder(tmp_path):
    program = """
        import os, sys
        from pathlib import Path
        connections, processes = [], []
        sys.addaudithook(lambda event, args: connections.append(args) if event == "socket.connect" else None)
        sys.addaudithook(lambda event, args: processes.append(args) if event == "subprocess.Popen" else None)
        sys.path[0] = os.getcwd()  # the empty string there would follow the change of folder
        os.chdir(sys.argv[1])
        from experiments.shared_dqn.train import main
        before = set(Path("/proc/self/task").iterdir())
        assert main([*sys.argv[2:], "--results-dir", "runs"]) == 0
        assert "wandb" not in sys.modules
        assert not connections and not processes, (connections, processes)
        assert {path.name for path in Path().iterdir()} == {"runs"}, list(Path().iterdir())
        names = {path.name for path in Path("runs/shared_dqn/seed_0").iterdir()}
        assert names == {"config.json", "metrics.jsonl", "model.zip", "evaluation.json", "tensorboard"}, names
    """
    assert train_in_process(program, tmp_path, *SMALL) == 0


def test_a_missing_package_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as stop:
        shared_train.main([*SMALL, "--results-dir", str(tmp_path), "--wandb", "offline"])
    assert stop.value.code == 2
    message = "--wandb offline needs the package wandb: pip install 'mtrl-balance[wandb]'"
    assert capsys.readouterr().err == f"experiments.shared_dqn.train: {message}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "not logged in to W&B: run `wandb login` or set WANDB_API_KEY"),
        ({"WANDB_MODE": "offline"}, "not logged in to W&B"),
        ({"WANDB_API_KEY": "short"}, "cannot log in to W&B: WANDB_API_KEY invalid"),
    ],
)
def test_online_without_a_login_is_one_line_and_leaves_no_trace(
    variables, message, wandb_runs, tmp_path, monkeypatch, capsys
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        shared_train.main([*SMALL, "--results-dir", str(tmp_path / "runs"), "--wandb", "online"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--wandb offline" in line
    assert not (tmp_path / "runs").exists()
    assert services() == []


@pytest.mark.parametrize("project", ["", "a/b", "x" * 129])
def test_a_bad_project_is_one_line(project, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        shared_train.main(["--results-dir", str(tmp_path), f"--wandb-project={project}"])
    assert stop.value.code == 2
    assert "wandb_project is " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ W&B


def test_an_offline_run_shows_the_metrics_and_changes_nothing(offline, plain, wandb_runs, capsys):
    for name in ("model.zip", "evaluation.json"):
        assert (offline / name).read_bytes() == (plain / name).read_bytes()
    assert untimed(lines_of(offline)) == untimed(lines_of(plain))
    assert services() == []
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")

    (shown,) = wandb_runs(offline)
    run = shown.run
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("mine", "aim", "train", "aim-seed_0")
    assert set(run.tags) == {"aim", "aware"}
    assert run.run_id != "taken"
    assert run.notes == ""
    assert shown.exit_code == 0
    assert shown.axes == {"env_step": "", "*": "env_step"}
    *lines, tables = shown.lines
    assert lines == lines_of(offline)
    config = json.loads((offline / "config.json").read_text())
    assert shown.config.items() >= config["settings"].items()
    assert shown.config["versions"] == config["versions"]

    evaluation = json.loads((offline / "evaluation.json").read_text())
    for task, result in evaluation["tasks"].items():
        assert shown.summary[f"final/{task}/return"] == result["mean"]
        assert shown.summary[f"final/{task}/success_rate"] == result["success_rate"]
    assert shown.summary["final/mean_return"] == evaluation["mean"]
    assert shown.summary["final/worst_task"] == evaluation["worst_task"]["name"]
    assert shown.summary["final/worst_task_return"] == evaluation["worst_task"]["mean"]

    (model,) = (artifact for artifact in shown.artifacts if artifact.type == "model")
    assert model.name == "aim-seed_0"
    files = {entry.path: Path(entry.local_path) for entry in model.manifest.contents}
    assert files == {name: offline / name for name in ("model.zip", "evaluation.json")}

    def table(name):
        (path,) = offline.glob(f"wandb/offline-run-*/files/{tables[f'{name}/path']}")
        return json.loads(path.read_text())

    assert table("evaluation")["data"] == [
        [task, result["mean"], result["standard_deviation"], result["success_rate"]]
        for task, result in evaluation["tasks"].items()
    ]
    episodes = table("episodes")
    assert episodes["columns"] == ["task", "episode", "env_step", "return", "length"]
    assert_episodes_of(episodes["data"], lines_of(offline))


def assert_episodes_of(episodes, lines):
    """The episodes are those that the training statistics of the last line are taken over."""
    assert [row[1] for row in episodes] == list(range(1, len(episodes) + 1))
    assert sorted(row[2] for row in episodes) == [row[2] for row in episodes]
    assert len(episodes) == lines[-1]["time/episodes"]
    for task in TASKS:
        last = [row for row in episodes if row[0] == task][-20:]
        assert lines[-1][f"train/{task}/return"] == pytest.approx(np.mean([row[3] for row in last]))
        assert lines[-1][f"train/{task}/length"] == pytest.approx(np.mean([row[4] for row in last]))


def test_everything_offline_is_below_the_runs_folder(offline, tmp_path):
    assert {path.name for path in tmp_path.iterdir()} <= {"aim", "home"}
    outside = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert all(path.suffix == ".log" for path in outside)  # W&B's own diagnostics
    assert not Path("wandb").exists()


WITHOUT_SERVICE = """
    import os, signal, sys
    from pathlib import Path
    from experiments.training import tracking
    from experiments.aim.train import main
    write = tracking.WandbView.write

    def kill_and_write(view, *arguments):
        for task in Path("/proc/self/task").iterdir():
            for pid in (task / "children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        write(view, *arguments)

    tracking.WandbView.write = kill_and_write
    sys.exit(main(sys.argv[1:]))
"""


def test_the_run_goes_on_where_wandb_fails(wandb_runs, plain, tmp_path, capsys):
    arguments = [*SMALL, "--results-dir", str(tmp_path), "--wandb", "offline", "--checkpoint-interval", "0"]
    assert train_in_process(WITHOUT_SERVICE, *arguments) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: W&B failed, the run goes on without it (")
    folder = tmp_path / "aim" / "seed_0"
    assert (folder / "model.zip").read_bytes() == (plain / "model.zip").read_bytes()
    assert untimed(lines_of(folder)) == untimed(lines_of(plain))


KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv.pop(1))
    from conftest import wandb_records
    from experiments.program import run_folder
    from experiments.training import tracking
    from experiments.aim.train import main
    run_folder.LARGEST_SHARE = 1.0  # a small run: the interval alone decides
    settle, write, lines = tracking.Views.settle, tracking.Views.write, []

    def written():
        (path,) = Path(sys.argv[sys.argv.index("--results-dir") + 1]).glob("aim/seed_0/wandb/offline-run-*/run-*.wandb")
        return sum(record.WhichOneof("record_type") == "history" for record in wandb_records(path))

    def settle_and_wait(views):
        settle(views)
        if len(lines) > 4 and not isinstance(lines[-1], str):
            while written() < len(lines):
                time.sleep(0.1)
            lines.append("and now one that no checkpoint has")

    def write_and_die(views, *arguments):
        write(views, *arguments)
        if lines and isinstance(lines[-1], str):
            os.kill(os.getpid(), signal.SIGKILL)
        lines.append(arguments)

    tracking.Views.settle, tracking.Views.write = settle_and_wait, write_and_die
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_continued_run_goes_on_in_a_new_run_of_the_same_group(wandb_runs, plain, tmp_path):
    arguments = [*SMALL, "--results-dir", str(tmp_path), "--wandb", "offline", "--checkpoint-interval", "0.05"]
    assert train_in_process(KILLED, Path(__file__).parent, *arguments) == -signal.SIGKILL
    folder = tmp_path / "aim" / "seed_0"
    (first,) = wandb_runs(folder)
    lost = lines_of(folder)[-1]["env_step"]
    assert lost not in [line["env_step"] for line in first.lines]
    assert lost in [event.step for event in events(folder).Scalars("rollout/exploration_rate")]

    # Where and whether a run is shown are no settings of the training.
    assert aim_train.main([*arguments, "--wandb-project", "elsewhere", "--checkpoint-interval", "0"]) == 0
    assert untimed(lines_of(folder)) == untimed(lines_of(plain))
    first, second = wandb_runs(folder)
    assert first.exit_code is None
    assert second.exit_code == 0
    for attribute in ("run_group", "job_type", "display_name"):
        assert getattr(first.run, attribute) == getattr(second.run, attribute)
    continued_at = second.config["continued_at"]
    assert second.run.notes == f"Continues an earlier run of this name from env_step {continued_at}."
    assert "continued" in second.run.tags
    assert first.lines[-1]["env_step"] <= continued_at < second.lines[0]["env_step"]
    *lines, tables = second.lines
    assert len(first.lines) > 4
    assert first.lines + lines == lines_of(folder)
    # The table has the episodes of both.
    (path,) = folder.glob(f"wandb/offline-run-*/files/{tables['episodes/path']}")
    assert_episodes_of(json.loads(path.read_text())["data"], lines_of(folder))
    assert_scalars_are_those_of(folder)


def test_overwriting_a_run_leaves_no_stale_views(tmp_path):
    folder = tmp_path / "shared_dqn" / "seed_0"
    arguments = [*SMALL, "--total-steps", "120", "--results-dir", str(tmp_path), "--overwrite"]
    shared_train.main(arguments)
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    shared_train.main(arguments)
    assert len(list((folder / "tensorboard").iterdir())) == 1
    shared_train.main([*arguments, "--no-tensorboard"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.jsonl", "model.zip", "evaluation.json"}


# ------------------------------------------------------------------------------------------------ TensorBoard


def assert_scalars_are_those_of(folder):
    """Event files have the metrics of metrics.jsonl, each line once, with the environment step as their axis."""
    lines, shown = lines_of(folder), events(folder)
    excluded = {"env_step", "train/updates", "time/episodes", "time/time_elapsed", "time/total_timesteps"}
    tags = set(shown.Tags()["scalars"])
    assert tags == {key for line in lines for key in line} - excluded
    for tag in tags:
        expected = [(line["env_step"], line[tag]) for line in lines if tag in line]
        values = [(event.step, event.value) for event in shown.Scalars(tag)]
        assert [step for step, _ in values] == [step for step, _ in expected]
        np.testing.assert_allclose([value for _, value in values], [value for _, value in expected], rtol=1e-6)


def test_event_files_have_the_metrics(plain):
    assert_scalars_are_those_of(plain)


def test_charts_show_all_tasks_and_every_line_of_theirs_has_values(plain):
    shown = events(plain)
    layout = Layout.FromString(shown.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (tasks,) = layout.category
    assert [chart.title for chart in tasks.chart] == list(CHARTS)
    for chart in tasks.chart:
        found = [[tag for tag in shown.Tags()["scalars"] if re.search(line, tag)] for line in chart.multiline.tag]
        assert [len(tags) for tags in found] == [1] * len(TASKS), chart.title


def test_heat_maps_are_among_the_images(plain, tmp_path):
    shown, lines = events(plain), lines_of(plain)
    assert set(shown.Tags()["images"]) == {"balancer/cosine", "balancer/tau"}
    for name in ("cosine", "tau"):
        images = shown.Images(f"balancer/{name}")
        with_matrix = [line for line in lines if pair_matrix(line, name, TASKS) is not None]
        assert [image.step for image in images] == [line["env_step"] for line in with_matrix[::10]]
        for image, line in zip(images, with_matrix[::10], strict=True):
            (tmp_path / "image.png").write_bytes(image.encoded_image_string)
            with Image.open(tmp_path / "image.png") as picture:
                np.testing.assert_array_equal(picture, heat_map(pair_matrix(line, name, TASKS), TASKS))


@pytest.mark.slow
def test_the_server_shows_a_run(plain):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", plain.parents[1], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = next(match[0] for line in server.stderr if (match := re.search(r"http://localhost:\d+/", line)))

            def get(path):
                with urllib.request.urlopen(f"{url}data/plugin/{path}", timeout=600) as answer:
                    return json.load(answer)

            name, tag = "aim/seed_0/tensorboard", "balancer/Windy/weight"
            while not (tags := get("scalars/tags")):  # it is still reading
                pass
            assert tag in tags[name]
            shown = {step: value for _, step, value in get(f"scalars/scalars?run={name}&tag={tag}")}
            # Of several lines at one step, which episodes that end together make, the server shows one.
            expected = {line["env_step"]: line[tag] for line in lines_of(plain) if tag in line}
            np.testing.assert_allclose(list(shown.items()), list(expected.items()), rtol=1e-6)
            assert "balancer/tau" in get("images/tags")[name]
        finally:
            server.kill()  # it may not answer a polite request


def test_a_matrix_over_pairs_of_tasks():
    line = {"balancer/cosine/a_b": 0.5, "balancer/tau/a_b": 0.25, "balancer/tau/b_a": -0.25, "balancer/x": 1.0}
    np.testing.assert_equal(pair_matrix(line, "cosine", "ab"), [[math.nan, 0.5], [0.5, math.nan]])
    np.testing.assert_equal(pair_matrix(line, "tau", "ab"), [[math.nan, 0.25], [-0.25, math.nan]])
    assert pair_matrix(line, "x", "ab") is None


@pytest.mark.parametrize("tasks", [("a",), TASKS, tuple(f"a task of a long name {i}" for i in range(12))])
def test_a_heat_map_is_blue_above_zero_red_below_and_grey_without_a_value(tasks):
    size = len(tasks)
    for value, brightest in ((1.0, 2), (-1.0, 0), (7.0, 2)):
        image = heat_map(np.full((size, size), value), tasks).astype(int)
        corner = image[-4, -4]  # of the last cell, below its number
        assert corner.argmax() == brightest
        assert corner.max() - corner.min() > 100
    for value in (0.0, math.nan):
        corner = heat_map(np.full((size, size), value), tasks)[-4, -4]
        assert len(set(corner.tolist())) == 1
    assert image.shape[0] >= 56 * size
    assert image.shape[1] >= 56 * size


def test_tensorboard_writes_nothing_into_a_folder_that_took_the_place_of_its_own(tmp_path, capsys):
    view = TensorBoardView(tmp_path / "run", TASKS)
    view.write({"train/loss": 1.0}, {"train/loss": ()}, 0)
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run/tensorboard").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has been moved or replaced"):
        view.write({"train/loss": 1.0}, {"train/loss": ()}, 1)
    view.end(finished=False)
    assert not list((tmp_path / "run/tensorboard").iterdir())
    assert capsys.readouterr().err == ""


def test_what_ends_the_thread_of_tensorboard_is_said_once(tmp_path, capsys):
    view = TensorBoardView(tmp_path, TASKS)
    view.writer.file_writer.event_writer._async_writer._writer._writer = None  # so that its next write fails
    with pytest.raises(AttributeError):
        deque(view.write({"train/loss": 1.0}, {"train/loss": ()}, step) for step in count())
    with pytest.raises(AttributeError):
        view.end(finished=False)
    assert capsys.readouterr().err == ""
