"""Sweeps: the grid, and real Ray under nodes, runs and sweeps that are killed.

The undisturbed runs are made one after the other in this process, without Ray.
"""

import _thread
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console

import experiments
from experiments.methods import METHODS
from experiments.program.flags import parse, parse_seeds
from experiments.shared_dqn import train as shared_train
from experiments.sweep import __main__ as program
from experiments.sweep import child, grid, worker
from experiments.sweep.jobs import Job, State
from experiments.sweep.progress import duration, read_progress
from experiments.sweep.view import SweepView
from experiments.sweep.worker import Outcome

SMALL = (
    *("--total-steps", "4000", "--envs-per-task", "2", "--learning-starts", "300", "--batch-size", "16"),
    *("--eval-interval", "2000", "--eval-episodes", "1", "--final-episodes", "1", "--log-interval", "4"),
    *("--conflict-interval", "100", "--checkpoint-interval", "0.2"),
)
ROOT = Path(experiments.__file__).parent.parent
RUNS = {  # of shared_dqn with seeds 0 and 1, and words in their command lines
    f"{name}/seed_{seed}": f"--variant {variant} --seed {seed}"
    for seed in (0, 1)
    for name, variant in (("shared_dqn", "aware"), ("shared_dqn_blind", "blind"))
}

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def plan(*names, variants=("aware", "blind"), seeds=(0,), results="runs", flags=()):
    return grid.plan(names, variants, seeds, Path(results), flags, "sweep")


def planned(*names, **choices):
    return [run.name for run in plan(*names, **choices)]


def test_the_grid_is_every_combination_once_seed_by_seed():
    assert planned("pcgrad", "rgb", "pcgrad", seeds=(3, 1)) == [
        f"{run} seed {seed}" for seed in (3, 1) for run in ("pcgrad", "pcgrad_blind", "rgb", "rgb_blind")
    ]
    assert planned("rgb", variants=("blind", "blind")) == ["rgb_blind seed 0"]


def test_a_method_without_variants_runs_once_and_an_aggregator_is_part_of_the_method():
    assert planned("independent_dqn") == planned("independent_dqn", variants=("blind",)) == ["independent_dqn seed 0"]
    names = planned("torchjd:CAGrad", "torchjd", "torchjd:UPGrad", variants=("blind",))
    assert names == ["torchjd_cagrad_blind seed 0", "torchjd_upgrad_blind seed 0"]


@pytest.mark.parametrize("method", METHODS)
def test_the_flags_of_a_planned_run_make_its_settings(method, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for run in plan(method, seeds=(0, 7), flags=("--preset", "notes", "--gamma", "0.5")):
        kind, presets = METHODS[method].config_type, METHODS[method].presets
        assert parse(kind, run.flags, prog="train", presets=presets) == run.config
        assert run.config.gamma == 0.5
        assert run.config.episodes_per_task == 500
        assert run.folder == tmp_path / "runs" / run.config.run_name / f"seed_{run.config.seed}"


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds(["0-9"]) == list(range(10))
    assert parse_seeds(["0", "3", "7-9", "8"]) == [0, 3, 7, 8, 9]
    assert len(parse_seeds(["0-9999"])) == 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods pcgard --seeds 0", "unknown method 'pcgard'; choose from aim, brc, gradnorm"),
        ("--methods rgb:CAGrad", "method 'rgb:CAGrad': only torchjd takes an aggregator"),
        ("--methods torchjd:Best", "torchjd_best: unknown"),
        ("--methods rgb --variants seeing", "argument --variants: invalid choice 'seeing'; choose from aware, blind"),
        ("--methods rgb --seeds x", "seeds: 'x' is neither"),
        ("--methods rgb --seeds 9-0", "seeds: '9-0' counts down; did you mean 0-9?"),
        ("--methods rgb --seeds 0-99999999999999999", "seeds: 0-99999999999999999 are more than 10,000"),
        ("--methods rgb --seeds", "seeds: there are none"),
        ("--methods", "methods: there are none"),
        ("--seeds 1", "missing argument --methods"),
        ("--methods rgb --retries -1", "retries is -1; it must be at least 0"),
        ("--methods rgb --max-runs-at-once 0", "max_runs_at_once is 0; it must be at least 1"),
        ("--methods rgb --address here", "address 'here' is neither HOST:PORT nor auto"),
        ("--methods rgb gradnorm -- --alpha 1", "rgb: unrecognized argument '--alpha'"),
        ("--methods rgb -- --gamma high", "rgb: argument --gamma: invalid value 'high'; expected FLOAT"),
        ("--methods rgb -- --gamma 2", "rgb: gamma is 2"),
        ("--methods rgb -- --tasks Windey", "rgb: unknown task 'Windey'"),
        ("--methods rgb -- --seed=3", "argument --seed after '--': a sweep has --seeds"),
        ("--methods rgb -- --existing replace", "argument --existing after '--': a sweep continues"),
        ("--methods rgb -- --overwrite", "argument --overwrite after '--': a sweep continues"),
        ("--methods rgb -- --device cuda", "argument --device after '--': a run of a sweep has one CPU core"),
        (
            "--methods rgb --tuned . -- --settings FILE",
            "argument --settings after '--': --tuned gives every run a file",
        ),
        ("--methods rgb --results-dir FILE", "'FILE' is a file; results need a folder"),
        ("--methods rgb --address 127.0.0.1:1", "there is no Ray cluster at '127.0.0.1:1': "),
    ],
)
def test_what_cannot_be_carried_out_is_one_line_and_starts_nothing(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    with pytest.raises(SystemExit) as stop:
        program.main(words.split())
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.err.startswith("experiments.sweep: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert printed.out == ""
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["FILE"]


def test_without_ray_one_line_says_how_to_install_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stop:
        program.main(["--methods", "rgb", "--results-dir", str(tmp_path / "runs")])
    assert stop.value.code == 2
    expected = "experiments.sweep: a sweep needs Ray, which is not installed: pip install 'mtrl-balance[sweep]'\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "runs").exists()


def test_only_deaths_are_tried_again(tmp_path):
    (run,) = plan("rgb", variants=("aware",), results=tmp_path)
    job = Job(run, State.WAITING)
    job.judge(Outcome(-9, "half a line"), retries=1)
    assert (job.state, job.problem) == (State.RETRYING, "killed by SIGKILL")
    job.judge(Outcome(1, "a full disk"), retries=1)
    assert (job.state, job.problem) == (State.FAILED, "a full disk")
    job = Job(run, State.WAITING)
    job.judge(Outcome(2, "refused"), retries=3)
    assert job.state is State.FAILED
    job = Job(run, State.WAITING)
    job.judge(Outcome(0, ""), retries=0)
    assert job.state is State.FINISHED
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(json.dumps({"run": "rgb", "settings": run.config.record}))
    evaluation = {"mean": 1, "worst_task": {"mean": 1}, "tasks": {"Standard": {"mean": 1, "success_rate": 0}}}
    (run.folder / "evaluation.json").write_text(json.dumps(evaluation))
    job = Job(run, State.WAITING)
    job.judge(Outcome(-9, ""), retries=0)
    assert job.state is State.FINISHED, "it was killed when nothing was left to do"


def metrics(folder, *lines, rest=""):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)


def test_progress_is_read_from_the_end_of_the_metrics(tmp_path):
    assert read_progress(tmp_path / "none").steps == 0
    first = {"env_step": 10, "time/steps_per_s": 5.0, "train/A/return": -4.0, "train/B/return": 8.0}
    many = [{**first, "env_step": step, "more": 1.0} for step in range(20, 20_000, 10)]
    metrics(tmp_path / "run", first, *many, {"env_step": 20_000, "eval/A/return": 3.0}, rest='{"env_step": 20')
    progress = read_progress(tmp_path / "run")
    assert (progress.steps, progress.steps_per_s, progress.mean_return) == (20_000, 5.0, 2.0)
    odd = {"env_step": 20_010, "time/steps_per_s": 1e-320, "train/A/return": float("nan")}
    metrics(tmp_path / "odd", first, odd, {"env_step": float("inf")})
    progress = read_progress(tmp_path / "odd")
    assert (progress.steps, progress.steps_per_s, progress.mean_return) == (20_010, 5.0, 2.0)
    evaluation = {"tasks": {"A": {"mean": 7.5, "success_rate": 0}}, "mean": 7.5, "worst_task": {"mean": 7.5}}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(evaluation))
    assert read_progress(tmp_path / "run").mean_return == 7.5


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (95, "2 min"), (3600, "1 h 0 min"), (7499, "2 h 5 min"), (3599, "1 h 0 min")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_a_large_sweep_shows_the_runs_under_way_and_counts_the_others(tmp_path):
    jobs = [Job(run, State.WAITING) for run in plan("pcgrad", "rgb", seeds=range(25), results=tmp_path)]
    assert len(jobs) == 100
    for job, state in zip(jobs, [State.FAILED, *[State.FINISHED] * 30, *[State.RUNNING] * 4], strict=False):
        job.state = state
        metrics(job.run.folder, {"env_step": 150_000, "time/steps_per_s": 500.0, "train/Heavy/return": 33.25})
    jobs[-1].state = State.SKIPPED
    console = Console(file=io.StringIO(), width=100, height=24, force_terminal=True, color_system=None)
    view = SweepView(jobs, console)
    console.print(view.table())
    lines = console.file.getvalue().splitlines()
    assert len(lines) < 24
    for job in jobs:
        (shown,) = [line for line in lines if f" {job.run.name} " in line] or [""]
        assert bool(shown) == (job.state in (State.RUNNING, State.FAILED))
        if job.state is State.RUNNING:
            assert shown.strip("│ ").split("│")[1:] == [" running ", "      25% ", "     500 ", "   33.2"]
    assert view.summary() == (
        "4 running, 64 waiting, 30 finished, 1 skipped, 1 failed; 2,000 steps/s together, about 5 h 35 min left"
    )


def untimed(folder):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time/fps", "time/time_elapsed", "time/steps_per_s", "time/checkpoints_s")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def assert_same(results, others, runs):
    """Bit for bit, but for times; and nothing of unfinished runs is left."""
    for run in runs:
        folder, other = results / run, others / run
        for name in ("model.zip", "evaluation.json"):
            assert (folder / name).read_bytes() == (other / name).read_bytes()
        assert untimed(folder) == untimed(other)
        assert not {path.name for path in folder.iterdir()} & {"checkpoint.zip", "checkpoint.previous.zip", ".lock"}


@needs_proc
def test_a_program_ends_when_its_parent_is_killed(tmp_path):
    (tmp_path / "endless.py").write_text("import time, pathlib\npathlib.Path('begun').touch()\ntime.sleep(600)")
    parent = "import os, subprocess, sys; subprocess.run([*sys.argv[1:4], str(os.getpid()), 'endless'])"
    process = subprocess.Popen(
        (sys.executable, "-c", parent, sys.executable, "-m", "experiments.sweep.child"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
    )
    wait_for((tmp_path / "begun").exists, process)
    (child,) = processes("endless", f" {process.pid} ")
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists())


@pytest.mark.parametrize("words", [[], ["--help"], ["1", "experiments.rgb.train"], ["x"]])
def test_the_program_within_a_sweep_says_that_it_is_none_for_people(words, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "experiments.rgb.train", raising=False)  # `runpy` warns if a test has imported it
    with pytest.raises(SystemExit) as stop:
        child.main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("experiments.sweep.child: a sweep starts this program")


@needs_proc
def test_a_run_can_be_cancelled_below_a_shell_that_ignores_interrupts(tmp_path):
    (run,) = plan("shared_dqn", variants=("aware",), results=tmp_path, flags=SMALL)
    run.log.parent.mkdir()
    run.log.touch()

    def cancel():  # as Ray does
        wait_for(lambda: processes(str(tmp_path)))
        _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    thread = threading.Thread(target=cancel)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            worker.train(run.package, run.flags, run.folder, run.log)
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert not processes(str(tmp_path))


@needs_proc
def test_an_interrupt_while_the_process_is_started_stops_it(tmp_path, monkeypatch):
    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            _thread.interrupt_main()
            time.sleep(0.1)  # here Python calls the handler

    (run,) = plan("shared_dqn", variants=("aware",), results=tmp_path, flags=SMALL)
    run.log.parent.mkdir()
    run.log.touch()
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.train(run.package, run.flags, run.folder, run.log)
    assert not processes(str(tmp_path))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_node_that_does_not_see_the_results_trains_nothing(tmp_path):
    (run,) = plan("rgb", variants=("aware",), results=tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        worker.train(run.package, run.flags, run.folder, run.log)
    assert not any(tmp_path.iterdir())
    assert not worker.sees(run.log)
    assert worker.sees(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`RUNS`, one after the other."""
    results = tmp_path_factory.mktemp("undisturbed")
    for run in plan("shared_dqn", seeds=(0, 1), results=results, flags=(*SMALL, "--quiet")):
        assert shared_train.main(run.flags) == 0
    return results


def wait_for(condition, process=None):
    """What the condition comes to when it holds. The end of `process` alone ends the waiting, not a clock."""
    while not (value := condition()):
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    return value


def processes(*parts):
    """The training processes whose command lines have all these parts."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:  # it has ended
            continue
        if "experiments.sweep.child" in command and all(part in command for part in parts):
            found.append(int(path.parent.name))
    return found


def parent(pid):
    """The process that started another; 0 when that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def training_on(raylet, results):
    """Which of `RUNS` is trained on a Ray node, and its process; None if none is."""
    for run, words in RUNS.items():
        for pid in processes(str(results), words):
            if parent(parent(pid)) == raylet:
                return run, pid
    return None


@contextmanager
def halted(pid):
    """The process stands still, so that it cannot have finished before what happens to it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_asked_to_stop(pid):
    """Whether a SIGTERM waits for a process that stands still."""
    (pending,) = re.findall(r"^ShdPnd:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(pending, 16) & 1 << signal.SIGTERM - 1


class Sweep:
    """`python -m experiments.sweep` of `RUNS`, as from a terminal of its own."""

    def __init__(self, results, *words):
        self.results = results
        command = (sys.executable, "-m", "experiments.sweep", "--methods", "shared_dqn", "--seeds", "0-1")
        self.process = subprocess.Popen(
            (*command, "--results-dir", str(results), *words, "--", *SMALL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        # Ray's processes and the runs end by themselves when the sweep has.
        wait_for(lambda: not processes(str(self.results)))

    def end(self):
        """Exit status, standard output and standard error."""
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    def checkpoint(self, run):
        """Wait for the run's first checkpoint."""
        wait_for((self.results / run / "checkpoint.zip").exists, self.process)


@pytest.fixture
def plain_ray(monkeypatch, tmp_path):
    """Ray as it is without settings; the token that it makes for its own instances goes to a home of the test's."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def two_nodes(plain_ray):
    """A cluster of two nodes on this machine, of one core each; only the first is there to stay."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - a third of a second

    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.second = cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()


@needs_proc
@pytest.mark.slow
def test_a_node_that_is_killed_changes_nothing_in_the_results(two_nodes, undisturbed, tmp_path):
    with Sweep(tmp_path, "--address", two_nodes.address) as sweep:
        raylet = two_nodes.second.all_processes["raylet"][0].process.pid
        run, pid = wait_for(lambda: training_on(raylet, tmp_path), sweep.process)
        sweep.checkpoint(run)
        watcher = parent(pid)
        with halted(pid):
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)
            wait_for(lambda: parent(pid) != watcher)
        status, out, err = sweep.end()
    assert (status, err) == (0, ""), out
    assert out.count(": retrying after 1 attempt: ") == out.count("retrying after") == 1
    continued = [run for run in RUNS if "continuing from" in (tmp_path / f"{run}.log").read_text()]
    assert continued == [run]
    assert_same(tmp_path, undisturbed, RUNS)


@needs_proc
@pytest.mark.slow
@pytest.mark.usefixtures("plain_ray")
def test_ctrl_c_is_a_pause_and_a_run_that_fails_is_named(undisturbed, tmp_path):
    *finished, other, unlucky = RUNS
    for run in finished:
        shutil.copytree(undisturbed / run, tmp_path / run)

    # Ctrl-C: the terminal tells the whole process group.
    with Sweep(tmp_path) as sweep:
        sweep.checkpoint(other)
        (pid,) = processes(str(tmp_path), RUNS[other])
        with halted(pid):
            os.killpg(sweep.process.pid, signal.SIGINT)
            wait_for(lambda: is_asked_to_stop(pid))
        status, out, err = sweep.end()
        assert not processes(str(tmp_path))
    assert (status, err) == (130, "experiments.sweep: stopped by SIGINT; the same command goes on\n")
    log = (tmp_path / f"{other}.log").read_text()
    assert "stopped by SIGTERM; the same command continues from step" in log

    # One of the two runs that are left is killed whenever it begins.
    with Sweep(tmp_path, "--retries", "1") as sweep:
        for _ in range(2):
            (pid,) = wait_for(lambda: processes(str(tmp_path), RUNS[unlucky]), sweep.process)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())
        status, out, err = sweep.end()
    assert status == 1
    see = f"(see '{tmp_path / unlucky}.log')"
    assert err == f"experiments.sweep: shared_dqn_blind seed 1 failed: killed by SIGKILL {see}\n"
    assert "shared_dqn_blind seed 1: retrying after 1 attempt: killed by SIGKILL\n" in out
    assert "shared_dqn_blind seed 1: failed after 2 attempts: killed by SIGKILL\n" in out
    after = f"compare them: python -m experiments.analyze_results --results-dir {tmp_path}"
    assert out.endswith(f"1 finished, 2 skipped, 1 failed\n{after}\n")
    assert not (tmp_path / unlucky / "evaluation.json").exists()
    assert "continuing from" in (tmp_path / f"{other}.log").read_text()
    assert_same(tmp_path, undisturbed, [*finished, other])
    assert not any((tmp_path / f"{run}.log").exists() for run in finished), "they were not run again"


@pytest.mark.slow
def test_a_dry_run_goes_by_the_speed_of_finished_runs(undisturbed, capsys):
    words = ["--methods", "shared_dqn", "--variants", "aware", "--results-dir", str(undisturbed), "--seeds"]
    assert program.main([*words, "0", "9", "--dry-run", "--max-runs-at-once", "1", "--", *SMALL]) == 0
    speeds = [read_progress(path.parent).steps_per_s for path in undisturbed.glob("*/*/evaluation.json")]
    assert capsys.readouterr().out.splitlines() == [
        "shared_dqn seed 0  finished, will be skipped",
        "shared_dqn seed 9  4,000 steps",
        "",
        "2 runs, 1 of them finished; 4,000 environment steps to go",
        f"shared_dqn: {median(speeds):,.0f} steps/s, the median of its 4 finished runs in '{undisturbed}'",
        f"about {duration(4000 / median(speeds))} with 1 at once",
    ]
    assert program.main([*words, "0-1", "--", *SMALL]) == 0
    finished, after = capsys.readouterr().out.splitlines()
    assert finished == "all 2 runs are finished"
    assert after.endswith(f"python -m experiments.analyze_results --results-dir {undisturbed}")

    with pytest.raises(SystemExit):  # not this sweep's runs, though in its place
        program.main([*words, "0-9", "--", *SMALL, "--gamma", "0.9"])
    expected = (
        f"experiments.sweep: '{undisturbed}/shared_dqn/seed_0' holds a run with other settings: gamma was 0.99 and"
    )
    assert capsys.readouterr().err.startswith(expected)


def test_a_dry_run_measures_what_it_has_no_runs_of_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--hidden-dims", "16", "--batch-size", "4", "--gradient-steps", "1")
    assert program.main(["--methods", "rgb", "--variants", "blind", "--seeds", "4", "--dry-run", "--", *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rgb_blind seed 4  600,000 steps"
    (speed,) = re.findall(r"^rgb: ([\d,]+) steps/s, measured just now", "\n".join(lines), re.MULTILINE)
    assert int(speed.replace(",", "")) > 0
    assert lines[-1].startswith("about ")
    assert not any(tmp_path.iterdir())
