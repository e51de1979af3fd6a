"""What the tests of several packages share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from agents import MultiTaskDQN
from envs import make_task_vec_env
from mtrl.rl.replay import TaskBatch

# Without decay: at the end of `learn` the learning rate would be 0, and updates after it would change nothing.
SMALL = {"learning_starts": 60, "buffer_size": 3_000, "batch_size": 8, "learning_rate_decay": 0}
TINY: dict[str, Any] = {
    "learning_starts": 40,
    "buffer_size": 400,
    "batch_size": 4,
    "policy_kwargs": {"net_arch": (8,)},
    "device": "cpu",
    "seed": 0,
}
"""Arguments of agents for environments of which a few steps say all."""


def make_agent(
    kind: type[MultiTaskDQN] = MultiTaskDQN,
    variant: str = "aware",
    seed: int = 0,
    envs_per_task: int = 2,
    device: str = "cpu",
    **settings: Any,
) -> Any:
    """An agent for the three tasks of the benchmark that has learned nothing yet."""
    env = make_task_vec_env(envs_per_task=envs_per_task, seed=seed, variant=variant)
    return kind("MlpPolicy", env, seed=seed, device=device, **{**SMALL, **settings})


def next_batch(agent: MultiTaskDQN, batch_size: int) -> TaskBatch:
    """The batch that the agent's next update will take."""
    generator = agent.replay_buffer.generator
    state = generator.get_state()
    batch = agent.replay_buffer.sample(batch_size)
    generator.set_state(state)
    return batch


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    """Two state dictionaries hold the same tensors, bit for bit."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def fails(main: Callable[[list[str]], int], words: Sequence[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a program that must fail with exit status 2 and print one line on stderr only. Return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    return printed.err
