"""The folder of one run: its files, who may write to it, whether it goes on, and what Ctrl-C leaves in it.

Every program that trains one run uses `RunFolder`. A folder with `evaluation.json` holds a finished run; this file is
written last. A folder with `checkpoint.zip` or `checkpoint.previous.zip` holds an unfinished run that can be continued.

On SIGINT (Ctrl-C), SIGTERM or SIGHUP the training writes a checkpoint, if it keeps checkpoints, and raises
`StopSignal`. The folder then keeps its settings, metrics and checkpoints, its lock is released, and the program ends
with one line that says how to continue the run.

This module loads PyTorch only when a checkpoint is read or written, because `--help` and the analysis need none.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import mtrl
from experiments.program.arithmetic import arithmetic, changes
from experiments.program.flags import UsageError
from experiments.program.locking import identity, locked
from experiments.program.outputs import check_folder, write_json
from experiments.program.run_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    BrokenRunError,
    read_json,
    settings_record,
)
from experiments.program.saved_run import SavedRun, binding, differences, read_checkpoint
from experiments.program.stopping import StoppedError, StopSignal, StopSignals, disk_errors, memory_problem
from mtrl.files import one_line

Existing = Literal["continue", "restart", "replace"]
"""What to do with the run that is in the folder already:

- `continue` goes on with an unfinished run from its last checkpoint, and refuses a finished run;
- `restart` throws an unfinished run away and begins anew, and refuses a finished run;
- `replace` throws an unfinished or finished run away and begins anew.
"""

MODEL_FILE = "model.zip"
# These two exist only while a run is in training.
CHECKPOINT_FILE = "checkpoint.zip"
PREVIOUS_FILE = "checkpoint.previous.zip"

ANEW = "give --existing restart to start anew"
LARGEST_SHARE = 0.03
"""The largest share of the time that writing checkpoints may take. After a slow write the next one waits longer."""

FORMER_SETTINGS = ("overwrite", "resume")
"""Names under which earlier versions kept what is now `existing`. Checkpoints of earlier runs still hold them."""


class RunFolder:
    """The folder of one run, which belongs to this process inside a `with` block.

        run = RunFolder(folder, description, kind="training", interval=60)    # refuses a finished run
        with run:                     # makes and locks the folder, and finds the run to continue
            run.begin()               # deletes what is left of an earlier run, and writes config.json
            ...                       # trains; calls run.checkpoint(...) when run.is_due()
            run.finish(evaluation)    # writes evaluation.json and deletes the checkpoints

    Inside the block, a `StopSignal` and an error of the disk become a `StoppedError`, whose message says how to go on.

    Args:
        path: the folder.
        description: the contents of config.json. `settings` in it maps names to values; `method` and `versions` are
            optional. A run is continued only with the same method, settings and versions.
        kind: the word that the program's checkpoints carry, so that no other program takes them for its own.
        existing: what to do with the run that is in the folder already.
        free: names of settings that may differ when a run is continued.
        interval: seconds between checkpoints; 0 if the user wants none, None if the program has none. Default None.
        unit: what `steps` of a checkpoint counts, for messages. Default "step".

    Attributes:
        saved: the run to continue; None if the run is new. It is found when the block begins.
        steps: how far the run was at the last checkpoint; None before the first.
        seconds: how long writing the checkpoints of the run has taken.
        exact: whether all of the run was computed alike. A run that was continued on another kind of processor, or with
            other threads, ends with other last bits than one that was not interrupted.
        signals: may ask the run to stop.

    Raises:
        UsageError: the folder holds a finished run, and `existing` is not `replace`.
    """

    def __init__(
        self,
        path: Path,
        description: Mapping[str, Any],
        *,
        kind: str,
        existing: Existing = "continue",
        free: Sequence[str] = (),
        interval: float | None = None,
        unit: str = "step",
    ) -> None:
        self.path = path
        self.description = description
        self.saved: SavedRun | None = None
        self.steps: int | None = None
        self.seconds = 0.0
        self.exact = True
        self.signals = StopSignals()
        self._kind = kind
        self._existing = existing
        self._free = (*free, "existing", *FORMER_SETTINGS)
        self._interval = interval
        self._unit = unit
        self._last_end = time.monotonic()
        self._last_duration = 0.0
        self._identity: tuple[int, int] | None = None
        self._refuse_finished()

    def __enter__(self) -> Self:
        """Make and lock the folder, and find the run to continue.

        Raises:
            UsageError: the folder cannot be written to, another process trains in it or has finished the run, or the
                unfinished run in it cannot be continued.
        """
        with ExitStack() as stack:
            with disk_errors(self.path, UsageError):
                check_folder(self.path)
                self.path.mkdir(parents=True, exist_ok=True)
            another = ("another process is training in", "wait for it, or give another --seed")
            stack.enter_context(locked(self.path, *another))
            self._identity = identity(self.path)
            stack.enter_context(self._stopping())
            stack.enter_context(self.signals)
            self._refuse_finished()  # another process may have finished the run since the first look
            if self._existing == "continue":
                self.saved = self._find()
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave.__exit__(kind, error, traceback)

    def begin(self, results: Sequence[str] = (), records: Sequence[str] = ()) -> None:
        """Delete what an earlier run left in the folder, except what is needed to continue it, and write config.json.

        Args:
            results: files that the program writes at the end of a run, besides model.zip and evaluation.json.
            records: files and folders that the program adds to while it trains, besides metrics.jsonl; they stay where
                a run is continued.

        Raises:
            UsageError: the folder cannot be written to.
        """
        self._last_end = time.monotonic()
        for name in records:
            if (self.path / name).is_symlink():  # a run that continues would write where the link leads
                raise UsageError(f"'{self.path / name}' is a symbolic link; remove it")
        names = [EVALUATION_FILE, MODEL_FILE, CONFIG_FILE, *results]
        if self.saved is None:
            names += [METRICS_FILE, CHECKPOINT_FILE, PREVIOUS_FILE, *records]
        with disk_errors(self.path, UsageError):
            for path in (*map(self.file, names), *self.path.glob(".*.tmp")):
                if path.name in records and path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            write_json(self.file(CONFIG_FILE), self.description)

    def file(self, name: str) -> Path:
        """The path of a file in the folder, to be written now.

        A process that moves a folder away, or puts another one in its place, would otherwise have this run write where
        it holds no lock.

        Raises:
            StoppedError: the folder is no longer where this run began.
        """
        if identity(self.path) != self._identity:
            raise StoppedError(f"'{self.path}' has been moved or replaced since the run began; nothing more is written")
        return self.path / name

    @contextmanager
    def restoring(self) -> Iterator[dict[str, Any]]:
        """Give the state of the saved run, to be put in place within the block.

        Raises:
            UsageError: the block failed, because a file with good checksums has wrong contents.
        """
        assert self.saved is not None
        path = self.saved.path
        try:
            yield self.saved.state
        except Exception as error:  # a stranger may have written anything
            problem = one_line(f"{type(error).__name__}: {error}", longest=0)
            raise UsageError(f"cannot continue from '{path}': {problem}; {ANEW}") from error
        self._compare_arithmetic(self.saved.state)
        if path.name == PREVIOUS_FILE:  # otherwise the next checkpoint would replace the good one by the damaged one
            os.replace(path, self.file(CHECKPOINT_FILE))
        self.saved = None  # the replay in its state is large
        self._last_end = time.monotonic()

    def is_due(self, interval: float | None = None) -> bool:
        """Whether a checkpoint is due: `interval` seconds have passed since the last one, more if that one took long.

        Args:
            interval: seconds. Default: the interval of the run. Without it, a checkpoint is never due.
        """
        least = self._interval if interval is None else interval
        rested = time.monotonic() - self._last_end
        return bool(self._interval) and rested >= max(least or 0, self._last_duration / LARGEST_SHARE)

    def checkpoint(self, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Write a checkpoint, and keep the one before it. Nothing is written if the run has no interval.

        Args:
            make_state: makes the state to save. `steps` in it says how far the run is. The time that it takes counts
                as time of writing.

        Raises:
            OSError: the checkpoint cannot be written. The last one is untouched.
        """
        if not self._interval:
            return
        begun = time.monotonic()
        computed = {"arithmetic": arithmetic(), "exact": self.exact}
        state = {"kind": self._kind, "description": self.description, **computed, **make_state()}
        mtrl.checkpoint.save(self.file(CHECKPOINT_FILE), state, previous=self.path / PREVIOUS_FILE)
        self._last_end = time.monotonic()
        self._last_duration = self._last_end - begun
        self.seconds += self._last_duration
        self.steps = state["steps"]

    def finish(self, evaluation: Mapping[str, Any]) -> None:
        """Write evaluation.json, which makes the run a finished one, and delete the checkpoints.

        A signal that arrives meanwhile changes nothing, and from then on signals act as they do outside the block:
        there is nothing left to stop.
        """
        self.signals.only_note()
        record = settings_record(self.description, self._free)
        inexact = {} if self.exact else {"exact": False}
        write_json(self.file(EVALUATION_FILE), {**evaluation, **inexact, **record})
        self._remove_checkpoints()
        self.signals.let_go()

    @property
    def outlook(self) -> str:
        """What becomes of a run that ends now, in words."""
        if self.steps is not None:
            without = "" if self._existing == "continue" else f" without --existing {self._existing}"
            return f"the same command{without} continues from {self._unit} {self.steps:,}"
        if self._interval is None:
            return "the same command starts anew"
        if not self._interval:
            return "without checkpoints it can't be continued"
        return "there is no checkpoint yet, so the same command starts anew"

    @property
    def kept(self) -> str:
        """Where the last checkpoint is, in words."""
        return f"'{self.path / CHECKPOINT_FILE}' is kept" if self.steps is not None else "there is no checkpoint"

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            with disk_errors(self.path, StoppedError):
                yield
        except StopSignal as stop:
            raise StoppedError(f"stopped by {stop}; {self.outlook}", stop.status) from None
        except (MemoryError, RuntimeError) as error:
            if (problem := memory_problem(error)) is None:
                raise
            raise StoppedError(f"{problem}; {self.outlook}") from error
        except StoppedError as stop:
            if not isinstance(stop.__cause__, OSError):
                raise  # the message says already how to go on
            raise StoppedError(f"{stop}; {self.outlook}") from stop

    def _compare_arithmetic(self, state: Mapping[str, Any]) -> None:
        """Warn, and remember, if the checkpoint was computed otherwise than this process computes."""
        before = state.get("arithmetic", {})
        differ = changes(before, arithmetic()) if before else []
        self.exact = state.get("exact", True) and not differ
        if differ:
            how = one_line("; ".join(differ))
            print(
                f"warning: the run in '{self.path}' began with other arithmetic ({how}); it goes on, and its last bits "
                "will not be those of an uninterrupted run",
                file=sys.stderr,
            )

    def _remove_checkpoints(self) -> None:
        for name in (CHECKPOINT_FILE, PREVIOUS_FILE):
            (self.path / name).unlink(missing_ok=True)

    def _refuse_finished(self) -> None:
        if is_finished(self.path) and self._existing != "replace":
            if is_begun(self.path):  # the run was killed after its last file and before these were removed
                with suppress(UsageError), disk_errors(self.path, UsageError), locked(self.path):
                    self._remove_checkpoints()
            changed, instead = self._changed_since(), "--existing replace to replace it, or another --seed"
            if changed and "label" in self.description["settings"]:
                instead = f"--label NAME to keep both, {instead}"
            other = f" with other settings ({one_line(', '.join(changed), 300)})" if changed else ""
            raise UsageError(f"'{self.path}' holds a finished run{other}; give {instead}")

    def _changed_since(self) -> list[str]:
        """What this run's settings have changed against those of the finished run, in words; nothing if unknown."""
        try:
            before = read_json(self.path, CONFIG_FILE)["settings"]
            now = json.loads(json.dumps(self.description["settings"]))
            return differences(
                {name: before[name] for name in now if name in before}, now, (*self._free, "results_dir")
            )
        except (BrokenRunError, KeyError, TypeError):
            return []

    def _find(self) -> SavedRun | None:
        """The run to continue; None if there is none. A damaged last checkpoint is one line of warning.

        Raises:
            UsageError: none of the checkpoints can be read, or they belong to a run with other settings.
        """
        problems: list[str] = []
        for path in (self.path / CHECKPOINT_FILE, self.path / PREVIOUS_FILE):
            if not os.path.lexists(path):
                continue
            try:
                if self._interval is None:
                    reason = "this program writes no checkpoints"
                    raise mtrl.checkpoint.CheckpointError(f"cannot continue from '{path}': {reason}")
                state = read_checkpoint(path, self._kind, self.description)
            except (mtrl.checkpoint.CheckpointError, OSError) as error:
                problems.append(one_line(error, longest=0))
                continue
            if changed := differences(binding(state["description"]), binding(self.description), self._free):
                what = one_line(", ".join(changed), 2_000)
                raise UsageError(
                    f"'{self.path}' holds an unfinished run with other settings: {what}; "
                    f"repeat its settings to continue it, or {ANEW}"
                )
            if problems and (self.path / CHECKPOINT_FILE).is_dir():  # the one before could not take its place
                raise UsageError(f"{problems[0]}; move it away to continue from the one before, '{path.name}'")
            for problem in problems:
                print(f"warning: {problem}; continuing from the one before, '{path.name}'", file=sys.stderr)
            return SavedRun(path, state)
        if problems:
            raise UsageError(f"{'; '.join(problems)}; {ANEW}")
        return None


def is_finished(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (folder / EVALUATION_FILE).exists()


def is_begun(folder: Path) -> bool:
    """Whether the folder holds a checkpoint from which a run can be continued."""
    return any((folder / name).exists() for name in (CHECKPOINT_FILE, PREVIOUS_FILE))
