"""Whatever is typed after a command, it succeeds, or says in one line what is wrong and leaves every file as it was."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import benchmarks.logging_cost
import benchmarks.soak
import experiments.analysis.compare_weights
import experiments.analysis.plots
import experiments.analysis.plots.recording
import experiments.analyze_results
import experiments.compare_weights
import experiments.plot_recording
import experiments.program.random_policy
import experiments.studies.figures
import experiments.studies.fitting
import experiments.studies.policy_figures
import experiments.studies.report
import experiments.supervised.figures
import experiments.sweep.estimate
import experiments.sweep.sweeping
import experiments.training.evaluate_run
import experiments.training.runner
import experiments.world_model.recording
import experiments.world_model.runner
import experiments.world_model.train
from agents import MultiTaskAlgorithm, MultiTaskDQN
from envs import get_tasks, make_task_vec_env
from experiments import methods
from experiments.analysis.figures import FIGURES
from experiments.studies.fitting import Fit
from experiments.supervised.training import Epoch, Learner, Score
from experiments.sweep.__main__ import main as sweep
from experiments.sweep.config import SweepConfig
from experiments.training.algorithms import DQNTrainConfig
from experiments.training.evaluation import Evaluation, Moment, TaskResult
from experiments.world_model.config import WorldModelConfig
from experiments.world_model.recording import LONGEST, Video, VideoSettings
from mtrl import Balancer
from mtrl.rl import AnyTask

Main = Callable[[Sequence[str]], int]
METHODS = tuple(methods.METHODS)
# Methods whose programs have flags of their own; the others have those of shared_dqn or, with PCGrad, of gradnorm.
TRAIN = ("shared_dqn", "aim", "brc", "gradnorm", "independent_dqn", "memory", "rgb", "static", "torchjd")
EVALUATE = ("shared_dqn", "independent_dqn", "torchjd")
BENCHMARKS = ("memory", "scaling", "time_to_return", "training", "update")
STUDIES = ("interference", "sabotage", "static_heuristics", "mixed_signals", "original")
LISTS = {  # argument lists for each command
    **{"train": 120, "evaluate": 120, "analyze": 250, "benchmark": 120},
    **{"sweep": 60, "compare_weights": 80, "plot_recording": 80, "supervised": 50, "study": 40, "world_model": 40},
    **{"demonstration": 40, "logging_cost": 40, "soak": 40},
}
ROOM = 2**30  # bytes of address space that a command may take beyond what is there

# Light settings, which most lists begin with, so that what is wrong elsewhere is reached.
LIGHT = [*("--quiet", "--seed", "5", "--tasks", "Standard"), *("--envs-per-task", "1", "--buffer-size", "300")]

ODD = [
    *("", " ", "0", "-1", "1", "2", "3.7", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "1e308", "-1e308", "0x10"),
    *("1_0", "9" * 20, "9" * 400, "9" * 5000, "½", "٣", "none", "None", "True", "false", "yes", "-", "--", "---", "="),
    *("--=", "all", "Standard", "standard", "Windey", "../../etc/passwd", "..", "/", "~", "$HOME", "`id`", "; rm x"),
    *("%s%n", "{0.__class__}", "\0", "a\0b", "\udc80", "\ud800", "a\nb", "\x1b[31m", "\u202e", "☃", "é" * 200),
    *(
        "x" * 5000,
        "[]",
        "{}",
        "[1,2]",
        "(" * 200,
        "c=0.4",
        "c=",
        "=c",
        "c=__import__('os')",
        "a.b=1",
        "c=[[[[",
        "c=9e999",
    ),
    *("n_tasks=-1", "null", "UPGrad", "CAGrad", "NashMTL", "Krum", "Constant", "../UPGrad", "upgrad", "__class__"),
    *("pcgrad", "rgb", "notes"),
]
PATHS = [
    *(
        "new",
        "new/a/b",
        "new.png",
        "afile",
        "afile/x",
        "afolder",
        "afolder/x.png",
        "afolder/../afile",
        "../outside",
        ".",
    ),
    *("", "..", "a\0b", "x" * 300, "x/" * 3000, "\udc80", "\ud800", "loop", "dangling", "/dev/null", "/dev/null/x"),
    *("/proc/nope", "/proc/nope.png", "pipe", "results/runs", "results", "badout", "☃", "a\nb", "-", "~/x", "~/x.png"),
]
# For flags that take names of their own.
NAMES = {
    "methods": ["gradnorm", "rgb", "shared_dqn", "gradnorm_blind", "torchjd:UPGrad", "torchjd:Best", "rgb:CAGrad"],
    "seeds": ["0", "1", "0-1", "0 1", "1-0", "0-", "0-99999", str(2**32), "9" * 18],
    "address": ["auto", "localhost", "localhost:0", "localhost:99999", "x" * 300 + ":1"],
    "balancer": ["equal", "aim", "random", "rgb:2", "torchjd:UPGrad", "torchjd:Best", "torchjd:", "Equal", "../rgb"],
}
NAMES["balancers"] = NAMES["balancer"]
WORDS = [
    "--help",
    "-h",
    "--zzz",
    "-q",
    "--",
    "-",
    "stray",
    "--tyro-print-completion",
    "--tyro-write-completion",
    "--no-",
]


def hints(config_type: type[Any]) -> dict[str, Any]:
    """Types of the fields that are flags."""
    types = get_type_hints(config_type, include_extras=True)
    return {
        field.name: types[field.name]
        for field in dataclasses.fields(config_type)
        if not hasattr(types[field.name], "__metadata__")
    }


def choices(kind: Any) -> list[str]:
    """Those of a `Literal`, wherever in the type it stands."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for part in get_args(kind) for choice in choices(part)]


def a_value(rng: random.Random, name: str, kind: Any) -> str:
    """Something for a flag: of its kind, out of range, or nonsense."""
    text = str(kind)
    own = PATHS if "Path" in text else NAMES.get(name)
    if own and rng.random() < 0.8:
        return rng.choice(own)
    if rng.random() < 0.2:
        return rng.choice(ODD)
    if "Literal" in text:
        return rng.choice([*choices(kind), "neither"])
    if "float" in text:
        return rng.choice(["0", "1", "0.5", "0.1", "0.9", "1e-3", "-0.5", "2", "1e30", "nan", "inf"])
    if "int" in text:
        return rng.choice(["0", "1", "2", "3", "4", "8", "64", "-1", "1.5", str(10**12)])
    return rng.choice(["Standard", "Windy", "Heavy", "Windy", "all", "gradnorm", "UPGrad", "c=0.5", *ODD[:8]])


def an_argument_list(rng: random.Random, config_type: type[Any], light: Sequence[str]) -> list[str]:
    """Words of which most name flags of `config_type`, few or many of them wrong."""
    words = list(light) if rng.random() < 0.8 else []
    kinds = hints(config_type)
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3])):
        name = rng.choice(list(kinds))
        flag = "--" + (name if rng.random() < 0.2 else name.replace("_", "-"))
        if rng.random() < 0.05:
            flag = flag[:-1] + rng.choice("xé-")
        kind = kinds[name]
        if kind is bool:
            words.append(rng.choice([flag, "--no-" + flag[2:], flag + "=1"]))
            continue
        count = 1 if "tuple" not in str(kind) else rng.choice([0, 1, 1, 2, 2, 3])
        values = [a_value(rng, name, kind) for _ in range(count)]
        if values and any(value.startswith("-") for value in values) and rng.random() < 0.9:
            words.append(f"{flag}={values[0]}")
        else:
            words += [flag, *values]
        if rng.random() < 0.05:
            words += words[-2:]
    if rng.random() < 0.08:
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS))
    return words


def snapshot(folder: Path) -> dict[str, Any]:
    """Every entry below `folder`, with all that tells whether it has been touched."""
    entries: dict[str, Any] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        entries[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return entries


class Timeout(BaseException):
    """A command took too long. Not an `Exception`: nothing must answer it."""


@contextlib.contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Inside, memory and time are short: what would take hours or all the memory fails at once."""

    def stop(*_: object) -> None:
        raise Timeout(f"still running after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")
    if pages.exists():
        size = int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, hard))
    timed = threading.current_thread() is threading.main_thread()
    if timed:
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(main: Main, argv: Sequence[str], seconds: float = 30) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limits(seconds):
        try:
            status = main(argv)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished and broken runs, files where folders are expected, and the other way round."""
    root = tmp_path_factory.mktemp("template") / "root"
    work = root / "work"
    runs = work / "results" / "runs"
    env = make_task_vec_env(get_tasks(["Standard"]), 1, seed=0)
    agent = MultiTaskDQN("MlpPolicy", env, "equal", buffer_size=100, batch_size=4, policy_kwargs={"net_arch": [8]})
    result = {"returns": [1.0], "mean": 1.0, "standard_deviation": 0.0, "success_rate": 0.0}
    evaluation = {"tasks": {"Standard": result}, "mean": 1.0, "worst_task": {"name": "Standard", "mean": 1.0}}
    for method in (*METHODS[:-1], "torchjd_upgrad", "gradnorm_blind"):
        folder = runs / method / "seed_0"
        agent.save(folder / "model.zip")
        (folder / "config.json").write_text(json.dumps({"run": method, "settings": {"seed": 0}}))
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        line = {"env_step": 1, "eval/Standard/return": 2.0}
        if method != "shared_dqn":
            line["balancer/Standard/weight"] = 0.5
        (folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    for method in METHODS:  # seed 1 is broken everywhere
        folder = runs / method / "seed_1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.zip").write_bytes(b"PK\3\4 no model")
        (folder / "config.json").write_text("{")
    (runs / "rgb" / "seed_2").write_text("a file in the place of a run")
    (work / "afile").write_text("a file")
    (work / "afolder").mkdir()
    for name in ("table.md", "learning_curves.png", "model.zip"):
        (work / "badout" / name).mkdir(parents=True)
    (work / "loop").symlink_to("loop")
    (work / "dangling").symlink_to("nowhere/at/all")
    os.mkfifo(work / "pipe")
    (work / "contents").mkdir()
    for name, content in CONTENTS.items():
        (work / "contents" / name).write_bytes(content.encode(errors="surrogateescape"))
    (work / "settings.yaml").write_text("training: {balancer: rgb, epochs: 2}\ndata: {num_train: 40, num_val: 20}\n")
    for run in ("supervised/synthetic_rgb", "world_model/rgb"):
        (runs / run / "seed_0").mkdir(parents=True)
        (runs / run / "seed_0" / "evaluation.json").write_text("{}")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template whose folder `work` is the current one, with training and play replaced by nothing."""
    root = tmp_path / "root"
    copy_to(template, root)
    monkeypatch.chdir(root / "work")
    monkeypatch.setenv("HOME", str(root / "work" / "afolder"))

    def evaluate(_: Any, tasks: Sequence[AnyTask], *__: Any) -> Evaluation:
        return Evaluation({task.name: TaskResult.of([0.0], [False], 200.0) for task in tasks})

    def moments(_: Any, task: AnyTask, episodes: int, *__: Any, **___: Any) -> Iterator[Moment]:
        for episode in range(episodes):
            yield Moment(task.name, episode, 1, 250.0, True, np.zeros((400, 600, 3), np.uint8), True, 200.0)

    @contextlib.contextmanager
    def film(path: Path, fps: int) -> Iterator[Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"film")
        yield lambda frame: None

    # What is replaced is what takes time: steps, updates, episodes, drawing. All checks before them are the real ones.
    def learn(self: MultiTaskAlgorithm, *_: Any, **__: Any) -> MultiTaskAlgorithm:
        self.ep_info_buffer, self.ep_success_buffer = deque(), deque()
        return self

    monkeypatch.setattr(MultiTaskAlgorithm, "learn", learn)
    monkeypatch.setattr(experiments.training.runner, "evaluate", evaluate)
    monkeypatch.setattr(experiments.training.evaluate_run, "moments", moments)
    monkeypatch.setattr(experiments.training.evaluate_run, "film", film)
    monkeypatch.setattr(experiments.analysis.plots, "draw", lambda data: Figure())
    for name in {*FIGURES} - {"learning_curves", *experiments.analysis.compare_weights.PICTURES}:
        # Not `delitem`: what that puts back stands at the end, and the order of the figures is that of the pages.
        monkeypatch.setitem(FIGURES, name, lambda analysis: None)
    monkeypatch.setattr(
        experiments.program.random_policy, "random_returns", lambda tasks, _: {task.name: [-2e2] for task in tasks}
    )
    return root


def copy_to(template: Path, root: Path) -> None:
    """Make `root` a copy of `template`, whatever it is now."""
    if root.exists():
        here = Path.cwd()
        os.chdir(root.parent)
        shutil.rmtree(root)
        copy_to(template, root)
        os.chdir(here)
        return
    shutil.copytree(template, root, symlinks=True, ignore=lambda *_: ["pipe"])
    os.mkfifo(root / "work" / "pipe")


def check(main: Main, argv: Sequence[str], root: Path, before: dict[str, Any], seconds: float = 30) -> bool:
    """Whether the command succeeded; a failure must be one line and leave everything as it was."""
    try:
        status, out, err = run(main, argv, seconds)
    except BaseException as error:
        raise AssertionError(f"{argv} ended in {type(error).__name__}: {error}") from error
    if status == 0:
        return True
    assert status == 2, (argv, status, err)
    assert out == "", (argv, out)
    assert len(err.splitlines()) == 1, (argv, err)
    assert err.endswith("\n"), (argv, err)
    assert err[:-1].isprintable(), (argv, err)
    assert snapshot(root) == before, argv
    return False


def fuzz(
    main: Main,
    config_type: type[Any],
    root: Path,
    template: Path,
    count: int,
    seed: int,
    light: Sequence[str] = (),
    more: Callable[[random.Random], Sequence[str]] = lambda rng: (),
) -> None:
    """`count` lists for one command, each with the words `more` at its end; both outcomes must come up."""
    rng, before, succeeded = random.Random(seed), snapshot(root), 0
    for _ in range(count):
        argv = [*an_argument_list(rng, config_type, light), *more(rng)]
        if check(main, argv, root, before):
            succeeded += 1
            copy_to(template, root)
            os.chdir(root / "work")
            before = snapshot(root)
    assert 0 < succeeded < count


def test_a_method_with_flags_of_its_own_is_among_these() -> None:
    for kind, chosen in (("config_type", TRAIN), ("evaluate_config_type", EVALUATE)):
        flags = {
            name: {f.name for f in dataclasses.fields(getattr(method, kind))}
            for name, method in methods.METHODS.items()
        }
        for own in flags.values():
            assert any(own == flags[name] for name in chosen)


@pytest.mark.parametrize("method", TRAIN)
def test_train(method: str, root: Path, template: Path) -> None:
    main = importlib.import_module(f"experiments.{method}.train").main
    fuzz(main, methods.METHODS[method].config_type, root, template, LISTS["train"], METHODS.index(method), LIGHT)


def test_train_sac(root: Path, template: Path) -> None:
    main = importlib.import_module("experiments.gradnorm.train").main
    light = [*LIGHT, "--algorithm", "sac", "--tasks", "StandardContinuous"]
    kind = methods.METHODS["gradnorm"].sac_config_type
    assert kind is not None
    fuzz(main, kind, root, template, LISTS["train"], len(METHODS), light)


@pytest.mark.parametrize("method", EVALUATE)
def test_evaluate(method: str, root: Path, template: Path) -> None:
    main = importlib.import_module(f"experiments.{method}.evaluate").main
    config_type = methods.METHODS[method].evaluate_config_type
    fuzz(main, config_type, root, template, LISTS["evaluate"], 100 + METHODS.index(method))


def test_analyze_results(root: Path, template: Path) -> None:
    module = experiments.analyze_results
    fuzz(module.main, module.AnalyzeConfig, root, template, LISTS["analyze"], 200)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks(name: str, root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(module, "benchmark", lambda config: None)
    fuzz(module.main, module.BenchmarkConfig, root, template, LISTS["benchmark"], 300 + BENCHMARKS.index(name))


def a_file(rng: random.Random, good: Sequence[str]) -> str:
    """A file that the command takes, one of another content, or none."""
    kind = rng.random()
    return rng.choice(good if kind < 0.5 else [f"contents/{name}" for name in CONTENTS] if kind < 0.75 else PATHS)


def test_sweep(root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = experiments.sweep.sweeping.cluster

    @contextlib.contextmanager
    def cluster(address: str | None) -> Iterator[int]:
        if address in (None, "auto"):  # Ray would start, or look for one
            yield 2
        else:
            with real(address) as cores:
                yield cores

    def more(rng: random.Random) -> Sequence[str]:
        light = ["--envs-per-task", "1", "--buffer-size", "300"]
        return ["--", *an_argument_list(rng, DQNTrainConfig, light)] if rng.random() < 0.5 else []

    monkeypatch.setattr(experiments.sweep.sweeping, "cluster", cluster)
    monkeypatch.setattr(experiments.sweep.sweeping, "check_nodes", lambda folder: None)
    monkeypatch.setattr(experiments.sweep.sweeping, "dispatch", lambda *_: None)
    monkeypatch.setattr(experiments.sweep.estimate, "measure_speed", lambda config: 100.0)
    light = ["--methods", "gradnorm", "--seeds", "0-1"]
    fuzz(sweep, SweepConfig, root, template, LISTS["sweep"], 400, light, more)


def test_compare_weights(root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = experiments.compare_weights
    monkeypatch.setattr(experiments.analysis.compare_weights, "log_weights", lambda config, runs: len(runs))
    light = ["--methods", "gradnorm"]
    fuzz(module.main, module.CompareWeightsConfig, root, template, LISTS["compare_weights"], 401, light)


def test_plot_recording(root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, runs = experiments.plot_recording, "results/runs"
    figures = {name: lambda recording: Figure() for name in experiments.analysis.plots.recording.FIGURES}
    monkeypatch.setattr(experiments.analysis.plots.recording, "FIGURES", figures)

    def more(rng: random.Random) -> Sequence[str]:
        return [a_file(rng, [f"{runs}/rgb/seed_0/metrics.jsonl", f"{runs}/shared_dqn/seed_0/metrics.jsonl"])]

    fuzz(module.main, module.PlotRecordingConfig, root, template, LISTS["plot_recording"], 402, (), more)


@pytest.mark.parametrize(("name", "config"), [("train", "TrainConfig"), ("compare", "CompareConfig")])
def test_supervised(name: str, config: str, root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def epoch(self: Learner) -> Epoch:
        tasks = self.settings.model.tasks
        ones = {task.name: 1.0 for task in tasks}
        return Epoch(1, ones, {task.name: Score(task.metric, 0.5, 1.0) for task in tasks}, ones, {})

    def more(rng: random.Random) -> Sequence[str]:
        return [f"--config={a_file(rng, ['settings.yaml'])}"] if rng.random() < 0.5 else []

    monkeypatch.delenv("RANDOM_SEED", raising=False)
    monkeypatch.setattr(Learner, "epoch", epoch)
    for figure in ("curves", "comparison", "differences"):
        monkeypatch.setattr(experiments.supervised.figures, figure, lambda *_: None)
    main = importlib.import_module(f"experiments.supervised.{name}").main
    config_type = getattr(importlib.import_module("experiments.supervised.config"), config)
    fuzz(main, config_type, root, template, LISTS["supervised"], 403 + len(name), ["--quick", "--quiet"], more)


@pytest.mark.parametrize("name", STUDIES)
def test_studies(name: str, root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(losses: Any, *arguments: Any, watch: Callable[[], None] = lambda: None, **_: Any) -> Fit:
        phase = arguments[2][-1]
        tasks = len(losses(phase.train))
        watch()
        matrix = np.zeros((tasks, tasks))
        return Fit(np.array([0.0]), np.ones((1, tasks)), np.ones(tasks), matrix, matrix)

    monkeypatch.setattr(experiments.studies.fitting, "fit", fit)
    monkeypatch.setattr(experiments.studies.fitting, "settled", lambda gradients, *_: gradients.sum(0))
    monkeypatch.setattr(experiments.studies.report, "save", lambda *_: None)
    for figure in ("learning_curves", "gradient_arrows", "transfer", "valley_paths", "feature_use", "bars"):
        monkeypatch.setattr(experiments.studies.figures, figure, lambda *_, **__: Figure())
    for figure in ("thresholds", "threshold_curves"):
        monkeypatch.setattr(experiments.studies.policy_figures, figure, lambda *_, **__: Figure())
    module = importlib.import_module(f"experiments.studies.{name}")
    (config_type,) = (c for n, c in vars(module).items() if n.endswith("Config") and c.__module__ == module.__name__)
    fuzz(module.main, config_type, root, template, LISTS["study"], 420 + STUDIES.index(name), ["--quick", "--quiet"])


def test_world_model(root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(settings: VideoSettings, *_: Any) -> Video:
        starts = np.arange(5) * LONGEST  # the fifth episode is held out
        frames = np.zeros((5 * LONGEST, 40, 60, 3), np.uint8)
        return Video(frames, np.zeros(len(frames), np.uint8), starts, np.zeros(5, np.int64), settings)

    monkeypatch.setattr(experiments.world_model.recording, "record", record)
    monkeypatch.setattr(experiments.world_model.runner, "_learn", lambda *_: None)
    errors = {"all_pixels": {"model": 0.0}, "changed_pixels": {"model": 0.0}}
    monkeypatch.setattr(experiments.world_model.runner, "_evaluate", lambda *_: errors)
    main, light = experiments.world_model.train.main, ["--seed", "5"]
    fuzz(main, WorldModelConfig, root, template, LISTS["world_model"], 430, light)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--frames", "100", "--horizon", "30"], "frames is 100; it must be at least 510, 170 for each task"),
        (["--frame-skip", "50", "--horizon", "30"], "with frame_skip 50 no episode has more than 20"),
    ],
)
def test_a_video_too_short_for_held_out_sequences_is_refused(argv: Sequence[str], message: str, root: Path) -> None:
    main, before = experiments.world_model.train.main, snapshot(root)
    assert message in run(main, argv)[2]
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("name", "light"),
    [
        ("rgb_balancing", ["--size", "20", "--steps", "2"]),
        ("loss_aggregation", ["--sequences", "1", "--frames", "2"]),
        ("mtl_flow", ["--sequences", "1", "--frames", "2", "--steps", "10"]),
    ],
)
def test_demonstrations(
    name: str, light: Sequence[str], root: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Balancer, "backward", lambda self, losses, _: torch.ones(len(losses)))
    module = importlib.import_module(f"experiments.demonstrations.{name}")
    (config_type,) = (c for n, c in vars(module).items() if n.endswith("Config") and c.__module__ == module.__name__)
    fuzz(module.main, config_type, root, template, LISTS["demonstration"], 440 + len(name), light)


def test_logging_cost(root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmarks.logging_cost
    monkeypatch.setattr(module, "find_spec", lambda name: None)  # W&B takes seconds to open
    monkeypatch.setattr(module, "take_turns", take_no_turns)
    fuzz(module.main, module.BenchmarkConfig, root, template, LISTS["logging_cost"], 450)


def take_no_turns(cases: dict[str, Any], *_: Any) -> dict[str, list[float]]:
    """The figures of cases whose clocks have not run."""
    for case in cases.values():
        case.lines, case.recording, case.seconds = 0, 0.0, 1.0
    return {name: [1.0] for name in cases}


def test_soak(root: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmarks.soak

    def trace(samples: Sequence[module.Sample], folder: Path) -> module.Trace:
        rising = np.linspace(1e15, 2e15, 100)  # after any replay is full
        return module.Trace(rising, rising, *np.ones((3, 100)))

    monkeypatch.setattr(module.Trace, "of", trace)
    monkeypatch.setattr(module, "draw", lambda *_: None)
    light = ["--total-steps", "2000", "--buffer-size", "100"]
    fuzz(module.main, module.BenchmarkConfig, root, template, LISTS["soak"], 451, light)


# Each would take all the memory or hours.
HUGE = [
    ("shared_dqn", "--buffer-size", str(10**12)),
    ("shared_dqn", "--buffer-size", str(10**10), "--batch-size", str(10**9)),
    ("shared_dqn", "--envs-per-task", str(10**7)),
    ("shared_dqn", "--hidden-dims", str(10**9)),
    ("shared_dqn", "--hidden-dims", *["64"] * 2000),
    ("shared_dqn", "--hidden-dims", "65536", "65536"),
    ("independent_dqn", "--hidden-dims", "10000", "9990"),
    ("shared_dqn", "--embedding-dim", str(10**9)),
    ("shared_dqn", "--n-step", str(10**30)),
    ("shared_dqn", "--stats-window-size", str(10**30)),
    ("shared_dqn", "--gradient-steps", str(10**12)),
    ("rgb", "--alpha-steps", str(10**12)),
    ("torchjd", "--aggregator", "NashMTL", "--aggregator-args", "n_tasks=50000"),
    ("torchjd", "--aggregator", "MGDA", "--aggregator-args", f"max_iters={10**12}"),
    ("brc", "--width", str(10**7)),
    ("brc", "--depth", str(10**7)),
    ("brc", "--num-bins", str(10**9)),
    ("brc", "--width", "65536"),
    ("brc", "--width", "4096", "--num-bins", str(10**5)),
]


@pytest.mark.parametrize("argv", HUGE, ids=lambda argv: " ".join(argv)[:60])
def test_what_would_take_all_the_memory_or_hours_is_refused(argv: tuple[str, ...], root: Path) -> None:
    method, *words = argv
    main = importlib.import_module(f"experiments.{method}.train").main
    assert not check(main, [*LIGHT, *words], root, snapshot(root), seconds=2)


GOOD = {
    "config.json": json.dumps({"run": "gradnorm", "settings": {"seed": 0}}),
    "evaluation.json": json.dumps(
        {
            "tasks": {"Standard": {"mean": 1.0, "success_rate": 0.0}},
            "mean": 1.0,
            "worst_task": {"name": "Standard", "mean": 1.0},
        }
    ),
    "metrics.jsonl": '{"env_step": 1}\n',
}
CONTENTS = {
    "empty": "",
    "not JSON": "{",
    "not text": "\udcff\udcfe",
    "a number": "3",
    "null": "null",
    "a list": "[1, 2]",
    "text": '"x"',
    "an empty object": "{}",
    "deep": "[" * 100_000,
    "a long number": "9" * 10_000,
    "seed of another type": '{"run": "a", "settings": {"seed": [1]}}',
    "infinite seed": '{"run": "a", "settings": {"seed": 1e999}}',
    "settings of another type": '{"run": "a", "settings": 3}',
    "tasks of another type": '{"tasks": [1], "mean": 1, "worst_task": {"mean": 1}}',
    "no tasks": '{"tasks": {}, "mean": 1, "worst_task": {"mean": 1}}',
    "numbers without end": '{"tasks": {"a": {"mean": %s, "success_rate": 1}}, "mean": 1, "worst_task": {"mean": 1}}'
    % ("9" * 400),
    "a lone surrogate": r'{"tasks": {"\ud800": {"mean": 1, "success_rate": 1}}, "mean": 1, "worst_task": {"mean": 1}}',
    "numbers as text": '{"tasks": {"a": {"mean": "1", "success_rate": "1"}}, "mean": "1", "worst_task": {"mean": "1"}}',
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_run_with_a_hostile_file_is_skipped_or_harmless(name: str, kind: str, root: Path) -> None:
    folder = root / "work" / "hostile" / "gradnorm" / "seed_0"
    folder.mkdir(parents=True)
    for file, content in {**GOOD, name: CONTENTS[kind]}.items():
        (folder / file).write_bytes(content.encode(errors="surrogateescape"))
    check(experiments.analyze_results.main, ["--results-dir", "hostile"], root, snapshot(root))
