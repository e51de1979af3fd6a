import json
import mmap
import os
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from agents import MultiTaskDQN
from benchmarks.soak import BenchmarkConfig, Ends, Sample, Trace, main, sampling
from envs import make_task_vec_env

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SMALL = BenchmarkConfig(total_steps=30_000, buffer_size=3_000)
QUANTITIES = {"resident size, MiB", "blocks of Python", "open files", "steps/s"}


@pytest.mark.parametrize("buffer_size", [600, 601])
def test_the_replay_is_full_when_the_trace_is_taken_to_begin(buffer_size: int) -> None:
    config = replace(SMALL, buffer_size=buffer_size)
    training = config.training
    env = make_task_vec_env(training.tasks, training.envs_per_task, seed=0)
    agent = MultiTaskDQN("MlpPolicy", env, **training.agent_kwargs | {"train_freq": 1})  # stops at any step
    agent.learn(config.full_at - training.n_step * env.num_envs)
    assert not agent.replay_buffer.full
    agent.learn(training.n_step * env.num_envs, reset_num_timesteps=False)
    assert agent.num_timesteps == config.full_at
    assert agent.replay_buffer.full


def test_samples_see_what_the_process_holds() -> None:
    before = Sample.now()
    # The operating system gives a map of its own memory that no earlier test has used.
    block, objects = mmap.mmap(-1, 32 * 2**20), [object() for _ in range(10_000)]
    block.write(b"x" * len(block))
    with open(os.devnull) as _:
        during = Sample.now()
    assert during.time > before.time
    assert during.resident - before.resident > 31 * 2**20
    assert during.blocks - before.blocks >= len(objects)
    assert during.files == before.files + 1
    block.close()
    assert during.resident - Sample.now().resident > 31 * 2**20


def test_samples_are_taken_until_the_block_ends() -> None:
    with sampling(0.001) as samples:
        while len(samples) < 3:
            pass
    count = len(samples)
    assert all(later.time > earlier.time for earlier, later in pairwise(samples))
    with sampling(60.0) as once:
        pass
    assert len(once) == 1
    assert len(samples) == count


def test_growth_is_between_the_medians_of_the_first_and_the_last_tenth() -> None:
    flat = np.full(100, 300.0)
    flat[[3, 50, 97]] = 900.0  # now and then a checkpoint is in memory
    assert Ends.medians(flat).growth == 0.0
    ends = Ends.medians(np.arange(1.0, 101.0))
    assert (ends.first, ends.last) == (5.5, 95.5)
    assert ends.growth == pytest.approx(95.5 / 5.5 - 1)
    assert Ends.medians(np.array([200.0, 202.0])).growth == pytest.approx(0.01)


def test_speeds_are_of_the_first_and_the_last_tenth() -> None:
    seconds = np.arange(40.0)
    steps = np.where(seconds < 20, 10 * seconds, 200 + 5 * (seconds - 20))
    other = np.zeros(40)
    ends = Ends.speeds(Trace(steps, seconds, other, other, other))
    assert (ends.first, ends.last) == (10.0, 5.0)


@pytest.mark.slow
def test_the_command_samples_a_run_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, figures, results = tmp_path / "new" / "soak.png", tmp_path / "soak.json", tmp_path / "runs"
    argv = f"--total-steps 30000 --buffer-size 3000 --interval 0.05 --results-dir {results}".split()
    argv += ["--plot", str(plot), "--json", str(figures)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "resident size, MiB" in printed
    assert "from 3,024 to 29," in printed or "from 3,024 to 30," in printed
    assert plot.read_bytes().startswith(b"\x89PNG")

    content = json.loads(figures.read_text())
    assert content["settings"]["total_steps"] == 30_000
    assert content["full_at"] == SMALL.full_at
    assert set(content["ends"]) == QUANTITIES
    assert all(one["first"] > 0 and one["last"] > 0 for one in content["ends"].values())
    assert content["growth"] == content["ends"]["resident size, MiB"]["growth"]
    samples = {name: np.array(values) for name, values in content["samples"].items()}
    assert len({values.shape for values in samples.values()}) == 1
    assert (np.diff(samples["steps"]) >= 0).all()
    assert (np.diff(samples["seconds"]) > 0).all()
    assert samples["steps"][0] < SMALL.full_at
    assert samples["steps"][-1] > 29_000
    assert (samples["mebibytes"] > 50).all()  # torch alone is more

    (run,) = (results / "gradnorm").iterdir()  # a whole run, as `train` leaves it
    names = {"config.json", "metrics.jsonl", "model.zip", "evaluation.json"}
    assert names <= {path.name for path in run.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "holds a finished run; give --existing replace" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--plot /", "'/' is a folder; figures need a file"),
        ("--json /dev/null/x", "'/dev/null' is a file; figures need a folder"),
        ("--interval 0", "interval is 0.0; it must be above 0 and finite"),
        ("--total-steps 30000", "total_steps is 30000; the replay is full only after 30024"),
        ("--buffer-size 0", "buffer_size is 0; it must be between 1 and 100000000"),
        ("--seed -1", "seed is -1; it must be at least 0"),
    ],
)
def test_bad_flags_get_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"benchmarks.soak: {message}\n"
