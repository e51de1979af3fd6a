"""Checkpoints of unfinished runs that a stranger has altered: a run continues, or says in one line why it does not."""

import contextlib
import importlib
import importlib.util
import io
import json
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.program import run_folder
from experiments.program.run_folder import RunFolder
from experiments.supervised.train import main as train_supervised
from experiments.world_model import runner as world_model
from mtrl import checkpoint
from tests.hostile.alterations import at, has_nan, odd_values, places, with_other

FLAGS = (
    *("--total-steps", "240", "--envs-per-task", "1", "--tasks", "Standard", "Windy", "--learning-starts", "60"),
    *("--batch-size", "4", "--buffer-size", "600", "--n-step", "3", "--final-episodes", "1", "--log-interval", "1"),
    *("--conflict-interval", "5", "--eval-interval", "230", "--eval-episodes", "1", "--quiet", "--no-tensorboard"),
)
SMALL = (*FLAGS, "--hidden-dims", "8", "8")
OF_SAC = (
    *("--algorithm", "sac", "--tasks", "StandardContinuous", "WindyContinuous"),
    *("--actor-balancer", "same", "--progress-weight", "0"),
)
WORLD_MODEL = "world_model"
SAC = "aim of actors and critics"
# The programs, so chosen that every kind of state is met, and how many mutations each gets.
PROGRAMS: dict[str, tuple[tuple[str, ...], int]] = {
    "shared_dqn": ((*SMALL, "--episodes-per-task", "50", "--train-freq", "2"), 30),
    "gradnorm": (SMALL, 20),
    "aim": (SMALL, 20),
    "rgb": (SMALL, 20),
    "brc": ((*FLAGS, "--width", "8", "--depth", "1", "--num-bins", "5"), 20),
    "independent_dqn": (SMALL, 12),
    "gradnorm_pcgrad": (SMALL, 15),
    "torchjd": ((*SMALL, "--aggregator", "GradVac"), 15),
    SAC: ((*SMALL, *OF_SAC), 20),
    WORLD_MODEL: (
        (
            *("--quick", "--tasks", "Standard", "Windy", "--sequences", "2", "--length", "3", "--steps", "7"),
            *("--eval-windows", "1", "--log-interval", "1", "--eval-interval", "3", "--quiet"),
        ),
        8,
    ),
}
NEWEST, PREVIOUS, METRICS = "checkpoint.zip", "checkpoint.previous.zip", "metrics.jsonl"
LONGEST = 30.0  # seconds that one resume may take; most take a tenth of one

# Parts that a resume does not read, or of which it takes numbers of several types.
LENIENT = {
    *("settings", "observation_low", "observation_high", "episode_infos", "episode_stats", "episode_successes"),
    *("balancer", "diagnostics", "_current_progress_remaining", "lr"),
}


class HangError(BaseException):
    """A resume took too long. No `except Exception` catches this."""


def run(main: Any, *words: Any) -> tuple[int, str]:
    """The exit status of a program, and what it wrote to stderr."""

    def hang(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = main([str(word) for word in words])
            except SystemExit as stop:
                status = stop.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return int(status), error.getvalue()


def interrupted(main: Any, stop_at: int, *words: Any) -> int:
    """Run a program until its first checkpoint at `stop_at` steps or later, where it is stopped as by Ctrl-C."""
    write = RunFolder.checkpoint

    def stopping(self: RunFolder, make_state: Any) -> None:
        write(self, make_state)
        if (self.steps or 0) >= stop_at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "checkpoint", stopping)
        patch.setattr(run_folder, "LARGEST_SHARE", 1.0)  # the interval alone decides
        return run(main, *words, "--checkpoint-interval", "1e-9")[0]


@dataclass
class Unfinished:
    """A run that was interrupted, and its files, to be altered and continued again and again."""

    main: Any
    words: tuple[str, ...]
    folder: Path
    files: dict[str, bytes]
    state: dict[str, Any]

    def restore(self) -> None:
        """Put all files back."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)

    def put(self, path: tuple[Any, ...], value: Any) -> None:
        """Put all files back, but with another value in the last checkpoint, which stays a valid archive."""
        self.restore()
        checkpoint.save(self.folder / NEWEST, with_other(self.state, path, value))

    def resume(self, *more: str) -> tuple[int, str]:
        """Continue, and return the exit status and the line on stderr.

        A run that ends has a finite evaluation and finite weights; one that is refused keeps its files as they were.
        """
        before = contents(self.folder)
        status, said = run(self.main, *self.words, "--checkpoint-interval", "3600", *more)
        lines = said.splitlines()
        assert all(line.isprintable() and len(line) < 5_000 for line in lines), said
        if status == 0:
            assert len(lines) <= 1, said
            evaluation = json.loads((self.folder / "evaluation.json").read_text(), parse_constant=not_finite)
            assert evaluation["tasks" if "tasks" in evaluation else "roll_out"]
            model = checkpoint.load(self.folder / "model.zip")
            weights = model["policy" if "policy" in model else "weights"].values()
            assert all(bool(weight.isfinite().all()) for weight in weights)
        else:
            assert status in (1, 2), said
            assert len(lines) == 1, said
            assert str(self.folder) in said
            kept = {name: content for name, content in contents(self.folder).items() if name in before}
            names = (NEWEST, PREVIOUS, METRICS) if status == 2 else (NEWEST, PREVIOUS)
            assert all(kept.get(name) == before.get(name) for name in names), "a refusal changes nothing"
        return status, said


def not_finite(name: str) -> float:
    raise AssertionError(f"the evaluation holds {name}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def evaluate_without_pictures(
    config: Any, trainer: Any, windows: Any, seconds: float, run: RunFolder
) -> dict[str, Any]:
    trainer.save(run.file("model.zip"))
    return {"steps": trainer.steps, **world_model.evaluate(trainer.model, windows, config.tasks)}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Unfinished]]:
    """An interrupted run of a program, made when it is first asked for."""
    known: dict[str, Unfinished] = {}

    def make(name: str) -> Unfinished:
        if name == "torchjd" and importlib.util.find_spec("torchjd") is None:
            pytest.skip("TorchJD is not installed")
        if name not in known:
            results = tmp_path_factory.mktemp(name)
            main = importlib.import_module(f"experiments.{name.partition(' ')[0]}.train").main
            words = (*PROGRAMS[name][0], "--results-dir", str(results))
            assert interrupted(main, 6 if name == WORLD_MODEL else 180, *words) == 130
            (folder,) = results.glob("*/seed_0")
            known[name] = Unfinished(main, words, folder, contents(folder), checkpoint.load(folder / NEWEST))
            assert {NEWEST, PREVIOUS, METRICS} <= known[name].files.keys()
        known[name].restore()
        return known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_model, "_evaluate", evaluate_without_pictures)  # they take many seconds
        yield make


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_continues_from_an_altered_checkpoint_or_refuses_it(
    name: str, unfinished: Callable[[str], Unfinished]
) -> None:
    saved = unfinished(name)
    rng = random.Random(name)
    there = [path for path in places(saved.state) if path and (path[0] != "description" or rng.random() < 0.2)]
    done, refused = 0, 0
    while done < PROGRAMS[name][1]:
        path = rng.choice(there)
        value, is_other = rng.choice(odd_values(at(saved.state, path)))
        try:
            saved.put(path, value)
        except (TypeError, ValueError):  # such as an integer of too many digits, which no checkpoint holds
            continue
        place = "/".join(map(str, path))
        status, said = saved.resume()
        done += 1
        refused += status != 0
        is_strict = path[0] in ("agent", "environments", "parts", "trainer") and not LENIENT & set(path)
        if is_strict and is_other:
            assert status == 2, f"{place}: another form was taken"
        if is_strict and {"policy", "optimizer", "trainer"} & set(path) and has_nan(value):
            assert status == 2, f"{place}: NaN was taken"
        if path[0] in ("kind", "steps", "metrics_length", "description") and status == 0 and said:
            assert said.count("continuing from the one before, 'checkpoint.previous.zip'") == 1
    assert refused > done / 6, "the mutations reach what is checked"
    saved.restore()
    assert saved.resume() == (0, ""), "the unaltered checkpoint goes on"


REFUSED: tuple[tuple[str, str, Any], ...] = (
    ("shared_dqn", "agent/progress/num_timesteps", 10**9),
    ("shared_dqn", "agent/progress/num_timesteps", -2),
    ("shared_dqn", "agent/progress/_episode_num", -1),
    ("shared_dqn", "agent/replay/position", 10**6),
    ("shared_dqn", "agent/replay/full", True),
    ("shared_dqn", "agent/loss_count", -1),
    ("shared_dqn", "environments/episodes/0/actions", np.full(5, 99)),
    ("shared_dqn", "environments/episodes/0/actions", np.zeros(10**4, np.int64)),
    ("shared_dqn", "environments/seeds", [0]),
    ("shared_dqn", "parts/2/finished", [-1, 0]),
    ("shared_dqn", "parts/1/next", 10**9),
    ("shared_dqn", "rollout_steps", 2),
    ("shared_dqn", "checkpoints_s", -1.0),
    ("shared_dqn", "numpy/2", 10**6),  # NumPy takes this place in its 624 numbers, and reads memory that is not its own
    ("shared_dqn", "agent/optimizer/param_groups/0/eps", -1.0),
    ("shared_dqn", "agent/optimizer/state/0/exp_avg_sq", None),
    ("gradnorm", "agent/balancer/weights", torch.tensor([-1.0, 3.0], dtype=torch.float64)),
    ("gradnorm", "agent/balancer/steps", torch.tensor([-1, 5])),
    ("aim", "agent/balancer/policy_steps", torch.tensor(-7)),
    ("aim", "agent/held_out/state/state", -1),
    ("rgb", "agent/balancer/consensus", torch.ones(7)),
    ("rgb", "agent/balancer/_extra_state/angles", [0.1]),
    ("rgb", "agent/balancer/_extra_state/angles", [math.nan, 0.1]),
    (SAC, "agent/actor_balancer/policy_steps", torch.tensor(-7)),
    (SAC, "agent/policy/log_ent_coef", torch.tensor([math.nan, 0.0])),
    ("brc", "agent/policy/q_net.support", torch.zeros(5)),
    ("brc", "agent/episode_rewards", [[1.0]]),
    ("brc", "agent/largest_returns", np.array([math.nan, 1.0])),
    (WORLD_MODEL, "trainer/steps", 10**6),
    (WORLD_MODEL, "trainer/balancer/consensus", torch.ones(7)),
    (WORLD_MODEL, "trainer/optimizers/0/state", {}),
    (WORLD_MODEL, "seconds", -1.0),
)


@pytest.mark.parametrize(("name", "place", "value"), REFUSED)
def test_what_cannot_be_is_refused(name: str, place: str, value: Any, unfinished: Callable[[str], Unfinished]) -> None:
    saved = unfinished(name)
    path = tuple(int(key) if key.isdecimal() else key for key in place.split("/"))
    at(saved.state, path)  # the place is there
    saved.put(path, value)
    status, said = saved.resume()
    assert status == 2
    assert f"cannot continue from '{saved.folder / NEWEST}': " in said


def test_stored_actions_and_observations_are_checked(unfinished: Callable[[str], Unfinished]) -> None:
    saved = unfinished("shared_dqn")
    rows = saved.state["agent"]["replay"]["rows"]
    for column, value in ((-3, 99.0), (-3, 0.5), (-1, -1.0), (-1, 2.0), (0, math.inf), (-2, math.nan)):
        altered = rows.copy()
        altered[0, 3, column] = value
        saved.put(("agent", "replay", "rows"), altered)
        assert "the stored replay holds" in saved.resume()[1]


def test_a_checkpoint_of_another_run_is_refused(unfinished: Callable[[str], Unfinished]) -> None:
    others = unfinished("gradnorm").state
    saved = unfinished("shared_dqn")
    checkpoint.save(saved.folder / NEWEST, {**others, "metrics_length": 0})
    status, said = saved.resume()
    assert status == 2
    assert "method was 'gradnorm' and is 'shared_dqn'" in said
    for place, change in (("settings/seed", 7), ("settings/gamma", "a\nb"), ("versions/mtrl", "0.0.1")):
        saved.put(("description", *place.split("/")), change)
        status, said = saved.resume()
        assert status == 2
        assert f"{place.split('/')[1]} was {change!r} and is " in said


# ------------------------------------------------------------------------------------------------ files


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (flip, truncate, pipe, link_to_itself, link_to_a_device, folder)


@pytest.mark.parametrize(
    ("name", "damage"),
    [*(("shared_dqn", damage) for damage in DAMAGES), (WORLD_MODEL, flip), (WORLD_MODEL, folder)],
)
def test_damaged_files(name: str, damage: Callable[[Path], None], unfinished: Callable[[str], Unfinished]) -> None:
    saved = unfinished(name)
    damage(saved.folder / NEWEST)
    status, said = saved.resume()
    assert said.count(str(saved.folder / NEWEST)) == 1
    # The one before could not take the place of a folder.
    assert (status, "continuing from the one before" in said) == ((2, False) if damage is folder else (0, True))
    saved.restore()
    damage(saved.folder / NEWEST)
    damage(saved.folder / PREVIOUS)
    status, said = saved.resume()
    assert status == 2
    assert NEWEST in said
    assert PREVIOUS in said


@pytest.mark.parametrize("name", ["shared_dqn", WORLD_MODEL])
def test_the_good_checkpoint_is_kept_when_the_next_one_is_written(
    name: str, unfinished: Callable[[str], Unfinished]
) -> None:
    saved = unfinished(name)
    flip(saved.folder / NEWEST)
    assert interrupted(saved.main, 0, *saved.words) == 130
    good, next_one = (checkpoint.load(saved.folder / each)["steps"] for each in (PREVIOUS, NEWEST))
    assert (saved.folder / PREVIOUS).read_bytes() == saved.files[PREVIOUS]
    assert next_one >= good
    assert saved.resume() == (0, "")


@pytest.mark.parametrize("name", ["shared_dqn", WORLD_MODEL])
def test_lost_lines_of_metrics_are_noticed(name: str, unfinished: Callable[[str], Unfinished]) -> None:
    saved = unfinished(name)
    for metrics in (b"", saved.files[METRICS][:-2], None):
        saved.restore()
        (saved.folder / METRICS).unlink()
        if metrics is not None:
            (saved.folder / METRICS).write_bytes(metrics)
        (saved.folder / PREVIOUS).unlink()
        status, said = saved.resume()
        assert status == 2
        assert f"'{saved.folder / METRICS}' has lost lines since" in said


def test_other_versions_of_packages_are_noticed_by_the_world_model(unfinished: Callable[[str], Unfinished]) -> None:
    saved = unfinished(WORLD_MODEL)
    saved.put(("description", "versions", "torch"), "0.1")
    status, said = saved.resume()
    assert status == 2
    assert "torch was '0.1' and is" in said


def test_a_program_without_checkpoints_refuses_those_of_others(
    unfinished: Callable[[str], Unfinished], tmp_path: Path
) -> None:
    place = tmp_path / "synthetic_equal" / "seed_42"
    words = ("--results-dir", str(tmp_path), "--epochs", "1", "--quiet")
    state = unfinished("shared_dqn").state
    for kind in ("training", "supervised"):
        checkpoint.save(place / NEWEST, {**state, "kind": kind})
        before = contents(place)
        status, said = run(train_supervised, *words)
        assert status == 2
        assert str(place) in said
        assert len(said.splitlines()) == 1
        assert contents(place) == before
