"""Tasks whose actions have different numbers of numbers are learned together by soft actor-critic."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import load_agent
from mtrl.rl import MultiTaskSAC, Task, evaluate_tasks, make_task_vec_env


class Reach(gymnasium.Env[Any, Any]):
    """The reward is the negative distance of the action to a quarter of its bounds; actions are recorded."""

    def __init__(self, low: list[float], high: list[float], shape: tuple[int, ...], render_mode: str | None = None):
        self.action_space = spaces.Box(
            np.array(low, np.float32).reshape(shape), np.array(high, np.float32).reshape(shape), dtype=np.float32
        )
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.taken.append(action)
        self.steps += 1
        place = (action - self.action_space.low) / (self.action_space.high - self.action_space.low)  # type: ignore[attr-defined]
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return observation, -float(np.abs(place - 0.25).mean()), False, self.steps >= 10, {}


def reach(name: str, low: list[float], high: list[float], shape: tuple[int, ...] | None = None) -> Task:
    return Task(name, partial(Reach, low, high, shape or (len(low),)))


TASKS = (
    reach("two", [-1, -1], [1, 1]),
    reach("one", [-3], [5]),
    reach("four", [-1, 0, 2, -9], [1, 1, 7, 9], (2, 2)),
)
COUNTS = (2, 1, 4)
SMALL: dict[str, Any] = {
    "learning_starts": 60,
    "batch_size": 8,
    "buffer_size": 3_000,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
    "device": "cpu",
}


def columns(**kwargs: Any) -> Any:
    return make_task_vec_env(TASKS, envs_per_task=2, seed=0, pad=True, **kwargs)


def three(**kwargs: Any) -> MultiTaskSAC:
    return MultiTaskSAC("MlpPolicy", columns(), **{**SMALL, **kwargs})


def test_actions_are_as_long_as_the_longest_and_reach_each_task_in_its_own_bounds() -> None:
    model = three()
    assert model.action_space == spaces.Box(-1, 1, (4,), np.float32)
    model.learn(900)
    assert model.env is not None
    for column, taken in enumerate(model.env.get_attr("taken")):
        task = TASKS[column // 2]
        space: Any = task.make().action_space
        seen = np.stack(taken)
        assert seen.shape[1:] == space.shape
        # Random play covers the bounds of every number.
        assert (seen.max(0) > space.high - 0.2 * (space.high - space.low)).all()
        assert (seen.min(0) < space.low + 0.2 * (space.high - space.low)).all()
    assert model.replay_buffer is not None
    kept = model.replay_buffer.sample(64).actions.view(3, 64, 4)
    for task, count in enumerate(COUNTS):
        assert not kept[task, :, count:].any()
        assert kept[task, :, :count].all()


@pytest.mark.parametrize("value_normalization", ["none", "popart"])
def test_numbers_that_a_task_lacks_count_nowhere(value_normalization: str) -> None:
    """Neither their noise nor what the network gives for them changes actions, densities, losses or gradients."""
    model = three(value_normalization=value_normalization).learn(150)
    update = model.update
    assert update.chains is not None
    assert model.replay_buffer is not None
    batch = model.replay_buffer.sample(8)
    noise = update.noise(batch)
    lacking = torch.cat([(torch.arange(4) >= count).expand(8, 4) for count in COUNTS])
    temperatures = update.temperatures
    found, density = update.chains.actor_gradients(batch, temperatures, noise)
    by_chain, losses = found.jacobian.clone(), found.losses
    other, same_density = update.chains.actor_gradients(batch, temperatures, noise.masked_fill(lacking, 3.0))
    torch.testing.assert_close(other.jacobian.clone(), by_chain, rtol=0, atol=0)
    torch.testing.assert_close(same_density, density, rtol=0, atol=0)
    # Autograd, on the formula of the loss, agrees.
    by_graph = update.actor.task_gradients(lambda: update.losses_of_actor(batch, temperatures, noise))
    torch.testing.assert_close(by_graph.jacobian.clone(), by_chain, rtol=2e-4, atol=2e-6)
    torch.testing.assert_close(by_graph.losses, losses, rtol=1e-5, atol=1e-6)
    actions, densities = update.chains.sample(batch.observations, noise)
    expected, expected_densities = model.actor.sample(batch.observations, noise)
    assert not actions[lacking].any()
    torch.testing.assert_close(actions, expected.detach())
    torch.testing.assert_close(densities, expected_densities.detach())
    # The density is that of the task's own numbers alone, by torch's own distribution.
    mean, log_std = model.actor(batch.observations)
    per_number = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * noise)
    per_number = per_number - torch.log(1 - actions.square() + 1e-6)
    torch.testing.assert_close(densities, per_number.masked_fill(lacking, 0).sum(1).detach(), rtol=1e-4, atol=1e-4)


def test_each_temperature_aims_at_the_entropy_of_the_tasks_own_actions() -> None:
    assert three().update.target_entropy.tolist() == [-2, -1, -4]
    assert three(target_entropy=-0.5).update.target_entropy.tolist() == [-0.5] * 3


def test_three_tasks_are_learned_saved_loaded_and_played(tmp_path: Path) -> None:
    model = three(batch_size=32, learning_rate=3e-3, gamma=0.5).learn(6_000)
    found = evaluate_tasks(model, columns(), 4)
    assert all(task.mean > -1.2 for task in found.values()), found  # random play has -3.1 in each
    model.save(tmp_path / "m.zip")
    model.save_weights(tmp_path / "w.safetensors")
    observations: Any = columns().reset()
    expected, _ = model.predict(observations, deterministic=True)
    assert not expected[2:4, 1:].any()
    for path in ("m.zip", "w.safetensors"):
        again: Any = load_agent(tmp_path / path)
        assert again.actions_of_tasks == COUNTS
        np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)
        assert not again.predict(observations)[0][2:4, 1:].any()
    alike = [reach(task.name, [-1] * 4, [1] * 4) for task in TASKS]
    with pytest.raises(ValueError, match=r"tasks have \(4, 4, 4\) actions; the model's have \(2, 1, 4\)"):
        model.set_env(make_task_vec_env(alike, envs_per_task=2, pad=True))


def test_bounds_alone_may_differ_even_blind() -> None:
    tasks = [reach("a", [-1, -1], [1, 1]), reach("b", [0, 5], [1, 9])]
    with pytest.raises(ValueError, match=r"task b has Box.* and column 0 of task a has Box.*pad=True"):
        make_task_vec_env(tasks, envs_per_task=1)
    env = make_task_vec_env(tasks, envs_per_task=1, variant="blind", pad=True)
    assert MultiTaskSAC("MlpPolicy", env, **SMALL).learn(100)._n_updates > 0


def test_what_cannot_be_padded_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^the tasks have 2, 1, 4 actions, .*use the variant 'aware'$"):
        MultiTaskSAC("MlpPolicy", columns(variant="blind"), **SMALL)
    without_bounds = reach("free", [-np.inf], [np.inf])
    with pytest.raises(ValueError, match=r"^task free: actions are in Box\(.*has no bounds"):
        make_task_vec_env([TASKS[0], without_bounds], pad=True)
