"""The README's Python runs as it stands, but for the length of the training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from envs import TASKS
from mtrl.balancers import _REGISTRY

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What the blocks take for granted: a model with two losses.
    encoder, heads, x = torch.nn.Linear(4, 8), [torch.nn.Linear(8, 1) for _ in range(2)], torch.randn(16, 4)
    loss_a, loss_b = ((head(encoder(x)) ** 2).mean() for head in heads)
    parameters = [*encoder.parameters(), *heads[0].parameters(), *heads[1].parameters()]
    names = {
        "loss_a": loss_a,
        "loss_b": loss_b,
        "optimizer": torch.optim.SGD(parameters, 0.1),
        "batches": torch.randn(3, 16, 4),
        "losses": lambda batch: [(head(encoder(batch)) ** 2).mean() for head in heads],
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    tasks, registry = dict(TASKS), dict(_REGISTRY)
    try:
        for block in blocks:
            exec(block.replace("600_000", "60").replace(", progress_bar=True", ""), names)
    finally:
        TASKS.clear()
        TASKS.update(tasks)
        _REGISTRY.clear()
        _REGISTRY.update(registry)
    assert (tmp_path / "lander.zip").exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m ([a-z_.]+)", README))))
def test_every_command_that_it_names_has_help(command):
    words = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert "usage" in done.stdout


def test_files_that_it_shows_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path
