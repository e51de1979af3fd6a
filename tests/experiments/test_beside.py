"""A run is the same alone and beside another one: nothing that runs share, such as folders and cores, tells."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from experiments.gradnorm.train import main

SMALL = (
    *("--envs-per-task", "2", "--learning-starts", "100", "--batch-size", "8", "--eval-interval", "1000"),
    *("--eval-episodes", "1", "--final-episodes", "2", "--log-interval", "2", "--conflict-interval", "50", "--quiet"),
)
OURS = ("--seed", "3", "--total-steps", "2000", *SMALL)
TIMES = ("time/fps", "time/time_elapsed", "time/steps_per_s", "time/checkpoints_s")


def untimed(folder):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@contextmanager
def another_run(results):
    """Inside, another process trains in the same results, by another method and seed, and has more to do than we."""
    command = [sys.executable, "-m", "experiments.rgb.train", "--seed", "4", "--total-steps", "10000000", *SMALL]
    with subprocess.Popen([*command, "--results-dir", results]) as process:
        metrics = results / "rgb" / "seed_4" / "metrics.jsonl"
        try:
            while not (metrics.exists() and metrics.stat().st_size):  # then it is learning
                assert process.poll() is None
                time.sleep(0.01)
            yield
            assert process.poll() is None, "it was not there all the time"
        finally:
            process.kill()


@pytest.mark.slow
def test_a_run_beside_another_is_bitwise_the_run_alone(tmp_path):
    assert main([*OURS, "--results-dir", str(tmp_path / "alone")]) == 0
    with another_run(tmp_path / "beside"):
        assert main([*OURS, "--results-dir", str(tmp_path / "beside")]) == 0
    alone, beside = (tmp_path / name / "gradnorm" / "seed_3" for name in ("alone", "beside"))
    for name in ("model.zip", "evaluation.json"):
        assert (alone / name).read_bytes() == (beside / name).read_bytes()
    assert len(untimed(alone)) > 2
    assert untimed(alone) == untimed(beside)
