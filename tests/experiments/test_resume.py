"""A run that was killed, stopped or hindered ends as one that was not; and nothing that it had is lost.

Runs are children forked from this process, which has everything imported: a new interpreter takes seconds to start.
"""

import errno
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch._dynamo  # noqa: F401 - what optimizers import when they are made; so it need not be in every child

import experiments.training.runner
from envs import TaskVecEnv
from experiments.analysis.comparison import analyse
from experiments.analysis.replicates import Method
from experiments.analysis.runs import load_runs
from experiments.program import run_folder
from experiments.training import checkpoints
from experiments.training.evaluation import FINAL_SEED
from mtrl import checkpoint
from mtrl.rl import vec_env

SMALL = (
    *("--total-steps", "1200", "--envs-per-task", "2", "--learning-starts", "100", "--batch-size", "8"),
    *("--gradient-steps", "2", "--eval-interval", "400", "--eval-episodes", "1", "--final-episodes", "1"),
    *("--log-interval", "2", "--conflict-interval", "50", "--quiet", "--no-tensorboard"),
)
OFTEN = ("--checkpoint-interval", "0.03")
LONGER = ("--total-steps", "2400")
FILES = {"config.json", "metrics.jsonl", "model.zip", "evaluation.json"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")


class Child:
    """A run in a forked process: `python -m experiments.<method>.train` without the start of the interpreter."""

    def __init__(self, method, results, *arguments, before=lambda: None):
        self.folder = results / {"torchjd": "torchjd_gradvac"}.get(method, method).replace(" ", "_") / "seed_0"
        self.log = results / f"{method}.log"
        results.mkdir(parents=True, exist_ok=True)
        method, _, algorithm = method.partition(" ")
        arguments = ("--algorithm", algorithm or "dqn", *arguments)
        main = importlib.import_module(f"experiments.{method}.train").main
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads: those of the test runner only wait
            self.pid = os.fork()
        if self.pid:
            return
        status = 99
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            run_folder.LARGEST_SHARE = 1.0  # small runs: the interval alone decides
            before()
            status = main([*SMALL, *OFTEN, "--results-dir", str(results), *arguments])
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            import traceback  # noqa: PLC0415

            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def wait(self):
        """Its exit status, minus n if signal n killed it."""
        _, status, used = os.wait4(self.pid, 0)
        self.seconds = used.ru_utime + used.ru_stime
        return os.waitstatus_to_exitcode(status)

    def kill(self, number=signal.SIGKILL, after=0.0):
        """Send the signal when it has used `after` seconds of its core, which do not depend on how busy that is."""
        while cpu_seconds(self.pid) < after:
            time.sleep(0.001)
        os.kill(self.pid, number)
        return self.wait()

    @property
    def message(self):
        """What it printed, one line."""
        (line,) = self.log.read_text().splitlines()
        return line

    def wait_for(self, name):
        """Until the file is in the run's folder."""
        while not (self.folder / name).exists():
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            assert ended is None or (self.folder / name).exists(), f"no {name}: {self.log.read_text()}"
            time.sleep(0.005)


def cpu_seconds(pid):
    """What the process has used so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def untimed(folder):
    """The lines of metrics.jsonl without what depends on the clock: times, and where the checkpoints fell."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/fps", "time/time_elapsed", "time/steps_per_s", "time/checkpoints_s")
    return [[(key, value) for key, value in line.items() if key not in timed] for line in lines]


def assert_same_run(folder, other):
    """Bit for bit: weights, returns, metrics but for times; and no file more."""
    assert {path.name for path in folder.iterdir()} == FILES
    for name in ("model.zip", "evaluation.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert untimed(folder) == untimed(other)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """A method's run without checkpoints or interruption, made when asked for."""
    results = tmp_path_factory.mktemp("references")
    known = {}

    def reference(method, *arguments):
        if (method, arguments) not in known:
            place = results / str(len(known))
            child = Child(method, place, "--checkpoint-interval", "0", *arguments)
            assert child.wait() == 0, child.log.read_text()
            known[method, arguments] = child
        return known[method, arguments]

    return reference


# ------------------------------------------------------------------------------------------------ killed


def die_at(function, nth, after):
    """Make the process kill itself at the nth call of `os.<function>`, before or after it does its work."""
    original = getattr(os, function)
    calls = iter(range(1, 10**6))

    def deadly(*arguments):
        now = next(calls) == nth
        if now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, function, deadly)


def in_writing(function, nth, after):
    return lambda: die_at(function, nth, after)


# None is a random moment. config.json takes one replace and two fsyncs; a checkpoint takes one replace where there is
# none to keep, else two, and three fsyncs: of the metrics, of itself, of the folder.
KILLS = {
    "gradnorm": [None, None, None, in_writing("fsync", 8, after=False), in_writing("replace", 5, after=True)],
    "aim": [None, None, None, in_writing("replace", 4, after=False), in_writing("fsync", 10, after=True)],
    "rgb": [None, None, None, in_writing("replace", 6, after=True), in_writing("fsync", 9, after=False)],
    "pcgrad": [None, in_writing("replace", 7, after=False)],
    "brc": [None, None],
    "independent_dqn": [None],
    "gradnorm_pcgrad": [None],
    "torchjd": [None],
    "gradnorm sac": [None, in_writing("replace", 4, after=False)],
    "aim sac": [None, None],
}


def test_there_are_twenty_kills():
    assert sum(map(len, KILLS.values())) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("method", KILLS)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(method, references, tmp_path):
    extra = {
        "brc": ("--width", "16", "--depth", "1"),
        "pcgrad": ("--reward-scaling", "return"),
        "torchjd": ("--aggregator", "GradVac"),  # remembers, and draws random numbers
        "aim sac": ("--actor-balancer", "same", "--progress-weight", "0", "--heads", "per_task"),
    }.get(method, ())
    extra += LONGER
    reference = references(method, *extra)
    draws = random.Random(f"{method} 5")
    for before in KILLS[method]:
        # As often as can be, so that little is done between two kills.
        child = Child(method, tmp_path, *extra, "--checkpoint-interval", "0.005", before=before or (lambda: None))
        if before is None:
            child.wait_for("checkpoint.zip")
            now = cpu_seconds(child.pid)
            assert child.kill(after=now + draws.uniform(0, 0.15) * reference.seconds) == -signal.SIGKILL
        else:
            assert child.wait() == -signal.SIGKILL, child.log.read_text()
    child = Child(method, tmp_path, *extra)
    assert child.wait() == 0, child.log.read_text()
    assert_same_run(child.folder, reference.folder)


@pytest.mark.slow
def test_the_program_killed_and_started_again_ends_as_one_that_was_not(references, tmp_path):
    folder = references("gradnorm").folder
    command = [sys.executable, "-m", "experiments.gradnorm.train", *SMALL, *OFTEN, "--results-dir", tmp_path]
    with subprocess.Popen(command) as process:
        while not (tmp_path / "gradnorm" / "seed_0" / "checkpoint.zip").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("results in ")
    assert_same_run(tmp_path / "gradnorm" / "seed_0", folder)


def test_checkpoints_change_nothing(references, tmp_path):
    child = Child("aim", tmp_path)
    assert child.wait() == 0
    assert_same_run(child.folder, references("aim").folder)


def test_a_run_by_episodes_continues(references, tmp_path):
    arguments = ("--total-steps", "100000", "--episodes-per-task", "4", "--train-freq", "3")
    child = Child("gradnorm", tmp_path, *arguments)
    child.wait_for("checkpoint.previous.zip")
    assert child.kill() == -signal.SIGKILL
    child = Child("gradnorm", tmp_path, *arguments)
    assert child.wait() == 0
    assert_same_run(child.folder, references("gradnorm", *arguments).folder)


# ------------------------------------------------------------------------------------------------ stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_which_continues(number, references, tmp_path):
    child = Child("shared_dqn", tmp_path, *LONGER)
    child.wait_for("checkpoint.zip")
    assert child.kill(number) == 128 + number
    assert f"train: stopped by {number.name}; the same command continues from step " in child.message
    state = checkpoint.load(child.folder / "checkpoint.zip")
    assert f"{state['agent']['progress']['num_timesteps']:,}" in child.message
    assert not (child.folder / ".lock").exists()
    again = Child("shared_dqn", tmp_path, *LONGER)
    assert again.wait() == 0
    assert_same_run(again.folder, references("shared_dqn", *LONGER).folder)


def test_a_signal_in_the_final_evaluation_stops_it_at_once(references, tmp_path):
    child = Child("shared_dqn", tmp_path, "--final-episodes", "10000")
    child.wait_for("model.zip")
    assert child.kill(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "continues from step 1,200" in child.message
    assert not (child.folder / "evaluation.json").exists()


def test_a_run_killed_in_the_final_evaluation_is_not_trained_again(references, tmp_path):
    def before():
        original = experiments.training.runner.evaluate

        def evaluate(agent, tasks, episodes, seed):
            if seed == FINAL_SEED:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(agent, tasks, episodes, seed)

        experiments.training.runner.evaluate = evaluate

    assert Child("shared_dqn", tmp_path, before=before).wait() == -signal.SIGKILL
    child = Child("shared_dqn", tmp_path, "--no-quiet")
    assert child.wait() == 0
    text = child.log.read_text()
    assert "shared_dqn, seed 0: continuing from" in text
    assert "1,200 of 1,200 steps, 0/s, 0 s left" in text
    assert "% of training" in text
    assert_same_run(child.folder, references("shared_dqn").folder)


def test_without_checkpoints_a_signal_still_stops_cleanly(tmp_path):
    child = Child("shared_dqn", tmp_path, "--total-steps", "100000", "--checkpoint-interval", "0")
    child.wait_for("metrics.jsonl")
    assert child.kill(signal.SIGTERM, after=0.2) == 128 + signal.SIGTERM
    assert "without checkpoints it can't be continued" in child.message
    assert {path.name for path in child.folder.iterdir()} == {"config.json", "metrics.jsonl"}


# ------------------------------------------------------------------------------------------------ which run goes on


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run that was killed with two checkpoints which count on lines in metrics.jsonl."""

    def before():
        original = checkpoints.Checkpoints.save
        counting = iter(range(10**6))

        def save(self):
            original(self)
            if (self.run.path / "metrics.jsonl").stat().st_size and next(counting) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.Checkpoints.save = save

    results = tmp_path_factory.mktemp("unfinished")
    child = Child("shared_dqn", results, before=before)
    assert child.wait() == -signal.SIGKILL
    return results


@pytest.fixture
def results(unfinished, tmp_path):
    """A copy of it."""
    return shutil.copytree(unfinished, tmp_path / "results")


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.suffix != ".log" and path.name != ".lock"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gamma", "0.5"), "gamma was 0.99 and is 0.5"),
        (("--tasks", "Windy", "Heavy"), "tasks was ('Standard', 'Windy', 'Heavy') and is ('Windy', 'Heavy')"),
        (("--total-steps", "9000", "--max-grad-norm", "1"), "total_steps was 1200 and is 9000, max_grad_norm was None"),
    ],
)
def test_other_settings_are_refused(arguments, message, results):
    before = contents(results)
    child = Child("shared_dqn", results, *arguments)
    assert child.wait() == 2
    assert message in child.message
    assert "give --existing restart to start anew" in child.message
    assert contents(results) == before


def test_a_checkpoint_of_another_method_is_refused(results):
    shutil.copytree(results / "shared_dqn", results / "pcgrad")
    child = Child("pcgrad", results)
    assert child.wait() == 2
    assert "method was 'shared_dqn' and is 'pcgrad'" in child.message


def test_settings_that_change_no_result_may_differ(results, references):
    moved = results.rename(results.with_name("moved"))
    child = Child("shared_dqn", moved, "--checkpoint-interval", "5", "--step-timeout", "0")
    assert child.wait() == 0
    assert_same_run(child.folder, references("shared_dqn").folder)


def test_a_run_continued_with_other_instructions_says_that_it_is_not_exact(results, references):
    command = [sys.executable, "-m", "experiments.shared_dqn.train", *SMALL, *OFTEN, "--results-dir", str(results)]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert "ATEN_CPU_CAPABILITY: not set, now default" in warning
    assert json.loads((results / "shared_dqn/seed_0/evaluation.json").read_text())["exact"] is False
    assert "exact" not in json.loads((references("shared_dqn").folder / "evaluation.json").read_text())
    (run,) = load_runs(results)[0]["shared_dqn"]
    (sentence,) = analyse([Method("shared_dqn", (run,), tuple(run.tasks))]).warnings
    assert sentence.startswith("Runs of shared_dqn (seed 0) were continued on another kind of processor")


def test_once_inexact_a_run_stays_so(results):
    path = results / "shared_dqn/seed_0/checkpoint.zip"
    checkpoint.save(path, checkpoint.load(path) | {"exact": False})
    child = Child("shared_dqn", results)
    assert child.wait() == 0
    assert child.message.startswith("results in ")  # the warning was given when it happened
    assert json.loads((child.folder / "evaluation.json").read_text())["exact"] is False


def test_a_run_of_an_earlier_version_that_named_its_settings_otherwise_continues(results, references):
    for name in ("checkpoint.zip", "checkpoint.previous.zip"):
        path = results / "shared_dqn/seed_0" / name
        state = checkpoint.load(path)
        del state["description"]["settings"]["existing"]
        state["description"]["settings"] |= {"overwrite": False, "resume": True}
        checkpoint.save(path, state)
    child = Child("shared_dqn", results)
    assert child.wait() == 0, child.log.read_text()
    assert child.message.startswith("results in ")
    assert_same_run(child.folder, references("shared_dqn").folder)


@pytest.mark.parametrize("words", ["--existing restart", "--existing replace", "--overwrite", "--no-resume"])
def test_starting_anew(words, results, references):
    (results / "shared_dqn/seed_0/checkpoint.zip").write_bytes(b"")  # not even looked at
    child = Child("shared_dqn", results, *words.split())
    child.wait_for("checkpoint.zip")
    assert child.wait() == 0
    assert child.message.startswith("results in ")
    assert_same_run(child.folder, references("shared_dqn").folder)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def empty(path):
    path.write_bytes(b"")


def foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state.json", "{}")


def another_checkpoint(path):
    checkpoint.save(path, {"weights": np.zeros(3)})


def folder_in_its_place(path):
    path.unlink()
    path.mkdir()


DAMAGES = [flip, truncate, empty, foreign_zip, another_checkpoint]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, results, references):
    newest = results / "shared_dqn/seed_0/checkpoint.zip"
    damage(newest)
    child = Child("shared_dqn", results)
    assert child.wait() == 0
    last, warning = sorted(child.log.read_text().splitlines())  # the streams are flushed at different times
    assert warning.startswith("warning: cannot ")
    assert str(newest) in warning
    assert "continuing from the one before, 'checkpoint.previous.zip'" in warning
    assert last.startswith("results in ")
    assert_same_run(child.folder, references("shared_dqn").folder)


def test_the_good_checkpoint_is_not_replaced_by_the_damaged_one(results, references):
    newest, before = (results / "shared_dqn/seed_0" / name for name in ("checkpoint.zip", "checkpoint.previous.zip"))
    flip(newest)
    child = Child("shared_dqn", results, before=in_writing("replace", 2, after=True))  # 1 is config.json
    assert child.wait() == -signal.SIGKILL
    assert checkpoint.load(newest)
    assert not before.exists()
    assert Child("shared_dqn", results).wait() == 0
    assert_same_run(child.folder, references("shared_dqn").folder)


@pytest.mark.parametrize("damage", [*DAMAGES, folder_in_its_place])
def test_without_a_readable_checkpoint_nothing_is_touched(damage, results):
    for name in ("checkpoint.zip", "checkpoint.previous.zip"):
        damage(results / "shared_dqn/seed_0" / name)
    before = contents(results)
    child = Child("shared_dqn", results)
    assert child.wait() == 2
    assert "checkpoint.zip'" in child.message
    assert "checkpoint.previous.zip'" in child.message
    assert "give --existing restart to start anew" in child.message
    assert contents(results) == before


def test_lost_metrics_are_noticed(results):
    (results / "shared_dqn/seed_0/metrics.jsonl").write_text("")
    child = Child("shared_dqn", results)
    assert child.wait() == 2
    assert "has lost lines" in child.message


def test_environments_that_do_not_come_back_are_noticed(results):
    for name in ("checkpoint.zip", "checkpoint.previous.zip"):
        path = results / "shared_dqn/seed_0" / name
        state = checkpoint.load(path)
        state["environments"]["episodes"][3]["generator"]["state"]["state"] += 1
        checkpoint.save(path, state)
    child = Child("shared_dqn", results)
    assert child.wait() == 2
    assert "the environments do not come back to where they were" in child.message


def test_a_checkpoint_with_wrong_contents_is_one_line(results):
    path = results / "shared_dqn/seed_0/checkpoint.zip"
    good = checkpoint.load(path)
    for key, value in (("agent", {}), ("environments", {"seeds": [], "episodes": []}), ("torch", 3), ("parts", [])):
        checkpoint.save(path, {**good, key: value})
        child = Child("shared_dqn", results)
        assert child.wait() == 2
        assert "cannot continue from" in child.message
        assert "give --existing restart to start anew" in child.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint-interval", "-1"), "checkpoint_interval is -1.0; it must be at least 0 and finite"),
        (("--checkpoint-interval", "nan"), "checkpoint_interval is nan"),
        (("--step-timeout", "inf"), "step_timeout is inf"),
    ],
)
def test_bad_settings_leave_no_trace(arguments, message, tmp_path):
    child = Child("shared_dqn", tmp_path, *arguments)
    assert child.wait() == 2
    assert message in child.message
    assert list(tmp_path.iterdir()) == [child.log]


# ------------------------------------------------------------------------------------------------ disks and locks


def test_a_second_process_on_the_same_run_is_refused(references, tmp_path):
    first = Child("shared_dqn", tmp_path, *LONGER)
    first.wait_for("checkpoint.zip")
    log = first.log.rename(tmp_path / "first.log")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        for flags in ((), ("--existing", "replace"), ("--existing", "restart")):
            before = contents(first.folder)
            second = Child("shared_dqn", tmp_path, *LONGER, *flags)
            assert second.wait() == 2
            assert f"another process is training in '{first.folder}'" in second.message
            assert contents(first.folder) == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0, log.read_text()
    assert_same_run(first.folder, references("shared_dqn", *LONGER).folder)


def limit_files(size):
    """No file may grow beyond `size` bytes: writing fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(results, references):
    newest = results / "shared_dqn/seed_0/checkpoint.zip"
    before = newest.read_bytes()
    child = Child("shared_dqn", results, before=limit_files(300_000))
    assert child.wait() == 1
    assert "File too large; the same command continues from step" in child.message
    assert newest.read_bytes() == before
    assert not list(child.folder.glob(".*"))
    assert Child("shared_dqn", results).wait() == 0
    assert_same_run(child.folder, references("shared_dqn").folder)


def test_a_disk_that_is_full_from_the_start(tmp_path):
    child = Child("shared_dqn", tmp_path, before=limit_files(1000))
    assert child.wait() == 2
    assert "cannot write to" in child.message
    child = Child("shared_dqn", tmp_path, before=limit_files(3000))  # enough for the settings and a line of metrics
    assert child.wait() == 1
    assert "there is no checkpoint yet, so the same command starts anew" in child.message


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a file system in memory")
def test_no_space_left(results, references, tmp_path):
    """A real disk of two megabytes, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        child = Child("shared_dqn", disk)
        assert child.wait() == 1
        assert os.strerror(errno.ENOSPC) in child.message
        assert "the same command continues from step" in child.message
        shutil.copytree(disk, tmp_path / "larger")
    finally:
        subprocess.run(["umount", disk], check=True)
    child = Child("shared_dqn", tmp_path / "larger")
    assert child.wait() == 0
    assert_same_run(child.folder, references("shared_dqn").folder)


@pytest.mark.parametrize("existing", [True, False])
def test_a_read_only_folder(existing, results, tmp_path_factory):
    place = Path("/tmp") / f"mtrl-test-{os.getpid()}"  # not in tmp_path, which another user may not enter
    try:
        shutil.copytree(results, place) if existing else place.mkdir()
        child_folder = place / "shared_dqn" / "seed_0"
        for path in (place, *place.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = contents(place)

        def as_nobody():
            if os.geteuid() == 0:
                os.setuid(65534)

        child = Child("shared_dqn", results.with_name("log"), "--results-dir", str(place), before=as_nobody)
        assert child.wait() == 2
        assert f"cannot write to '{child_folder if existing else place}" in child.message
        assert "Permission denied" in child.message
        assert contents(place) == before
    finally:
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(place)


# ------------------------------------------------------------------------------------------------ failing environments


def failing(kind, at):
    """Make a column of Windy fail at the `at`th training step of all of them. Evaluations have no columns."""

    def patch():
        original = vec_env._Column.step
        count = iter(range(10**9))

        def step(self, action):
            result = original(self, action)
            if self.task.name == "Windy" and next(count) == at:
                if kind == "raise":
                    raise ZeroDivisionError("division by\nzero")
                if kind == "hang":
                    time.sleep(60)
                if kind == "nan":
                    return result[0], float("nan"), *result[2:]
                return result[0][:3], *result[1:]
            return result

        vec_env._Column.step = step

    return patch


@pytest.mark.parametrize("train_freq", ["1", "4"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "ZeroDivisionError: division by zero"),
        ("shape", "ValueError: an observation of shape"),
        ("hang", "WatchdogError: no answer within 0.5 s"),
    ],
)
def test_a_failing_environment_is_named_and_the_run_continues_without_it(
    kind, message, train_freq, references, tmp_path
):
    arguments = ("--train-freq", train_freq)
    patch = failing(kind, at=301)
    child = Child("gradnorm", tmp_path, *arguments, "--step-timeout", "0.5", before=patch)
    assert child.wait() == 1
    seed = TaskVecEnv.seed(type("", (), {"num_envs": 6, "_seeds": []})(), 0)
    assert any(f"environment {i} of task Windy (seed {seed[i]}) failed: {message}" in child.message for i in (2, 3))
    state = checkpoint.load(child.folder / "checkpoint.zip")
    steps = state["agent"]["progress"]["num_timesteps"]
    assert child.message.endswith(f"; the same command continues from step {steps:,}")
    assert state["rollout_steps"] == steps // 6 % int(train_freq)
    assert train_freq == "1" or state["rollout_steps"]  # amid a rollout
    child = Child("gradnorm", tmp_path, *arguments)
    assert child.wait() == 0, child.log.read_text()
    assert_same_run(child.folder, references("gradnorm", *arguments).folder)


def test_a_number_that_is_not_finite_ends_the_run_and_leaves_the_last_checkpoint(references, tmp_path):
    child = Child("gradnorm", tmp_path, before=failing("nan", at=301))
    assert child.wait() == 1
    newest = child.folder / "checkpoint.zip"
    assert "of task Windy gave the reward nan at step" in child.message
    assert f"'{newest}' is kept; the same command continues from step" in child.message
    assert checkpoint.load(newest)["agent"]["progress"]["num_timesteps"] < 1200
    child = Child("gradnorm", tmp_path, "--on-nonfinite", "skip")
    assert child.wait() == 0, child.log.read_text()
    assert (child.folder / "evaluation.json").read_bytes() == (
        references("gradnorm").folder / "evaluation.json"
    ).read_bytes()
