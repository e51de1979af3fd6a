"""Tasks of different shape in one agent: CartPole, Acrobot and MountainCar."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import BRC, IndependentDQN, load_agent
from mtrl import checkpoint
from mtrl.rl import MultiTaskDQN, Task, evaluate_tasks, make_task_vec_env
from tests.support import assert_same

SMALL: dict[str, Any] = {
    "learning_starts": 60,
    "buffer_size": 3_000,
    "batch_size": 8,
    "learning_rate_decay": 0,
    "device": "cpu",
    "seed": 0,
}
CART, ACROBOT, CAR = (
    Task(name, partial(gymnasium.make, name)) for name in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")
)
THREE = [CART, ACROBOT, CAR]


class Corridor(gymnasium.Env[Any, Any]):
    """Walk right through `length` places; actions begin at `start`, and the last one of them goes right."""

    def __init__(self, actions: int = 2, start: int = 0, zeros: int = 0, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (2 + zeros,), np.float32)
        self.action_space = spaces.Discrete(actions, start=start)
        self.render_mode = render_mode
        self.taken: list[int] = []

    def _observe(self) -> Any:
        observation = np.zeros(self.observation_space.shape, np.float32)  # type: ignore[arg-type]
        observation[:2] = self.place / 4, self.np_random.uniform(-1, 1)
        return observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.taken.append(int(action))
        actions: Any = self.action_space
        self.place = max(0, self.place + (1 if action == actions.start + actions.n - 1 else -1))
        self.steps += 1
        return self._observe(), float(self.place == 4), self.place == 4, self.steps == 12, {}


def corridor(name: str, **kwargs: Any) -> Task:
    return Task(name, lambda render_mode: Corridor(render_mode=render_mode, **kwargs))


def three(kind: type[MultiTaskDQN] = MultiTaskDQN, **kwargs: Any) -> MultiTaskDQN:
    env = make_task_vec_env(THREE, envs_per_task=2, seed=0, pad=True)
    return kind("MlpPolicy", env, **{**SMALL, **kwargs})


def test_observations_are_padded_with_zeros_and_actions_to_the_largest_number() -> None:
    env = make_task_vec_env(THREE, envs_per_task=2, seed=0, pad=True)
    assert env.observation_space.shape == (6 + 3,)
    assert env.action_space == spaces.Discrete(3)
    observations: Any = env.reset()
    own = np.abs(observations[:, :6]) > 0
    assert own[:2, :4].all()
    assert not own[:2, 4:].any()
    assert own[2:4].all()
    assert not own[4:, 2:].any()
    np.testing.assert_array_equal(observations[:, 6:], np.repeat(np.eye(3), 2, 0))


def test_without_padding_the_two_tasks_and_their_spaces_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"task Acrobot-v1 has Discrete\(3\) and column 0 of task CartPole-v1 has Discrete\(2\).*pad"
    ) as caught:
        make_task_vec_env(THREE, envs_per_task=1)
    assert "\n" not in str(caught.value)
    many = [corridor("a"), corridor("b", actions=3)]
    with pytest.raises(
        ValueError, match=r"column 1 of task b has Discrete\(3\) and column 0 of task a has Discrete\(2\)"
    ):
        make_task_vec_env(many, envs_per_task=1)


def test_an_environment_of_one_task_has_the_shape_of_all() -> None:
    one = make_task_vec_env(CART, envs_per_task=1, one_hot_tasks=THREE, pad=True)
    assert one.observation_space.shape == (9,)
    assert one.action_space == spaces.Discrete(3)


@pytest.mark.parametrize("kind", [MultiTaskDQN, IndependentDQN, BRC])
def test_actions_that_a_task_lacks_are_never_taken_in_10_000_steps(kind: type[MultiTaskDQN]) -> None:
    tasks = [corridor("two", actions=2), corridor("five", actions=5, zeros=3), corridor("three", actions=3, start=7)]
    env = make_task_vec_env(tasks, envs_per_task=4, seed=0, pad=True)
    model = kind("MlpPolicy", env, **{**SMALL, "gradient_steps": 1, "train_freq": 4, "exploration_final_eps": 0.5})
    model.learn(10_000)
    model.learn(10_000 // 10, reset_num_timesteps=False)
    for column, taken in enumerate(env.get_attr("taken")):
        first, count = ((0, 2), (0, 5), (7, 3))[column // 4]
        assert set(taken) == set(range(first, first + count))
        assert len(taken) > 800
    observations = np.repeat(env.reset(), 500, 0)  # type: ignore[arg-type]
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic)
        by_task = actions.reshape(3, -1)
        assert [row.max() < count for row, count in zip(by_task, (2, 5, 3), strict=True)] == [True] * 3
    single, _ = model.predict(observations[0])
    assert single in (0, 1)


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("kind", [MultiTaskDQN, IndependentDQN])
def test_actions_that_a_task_lacks_do_not_count_in_the_target(kind: type[MultiTaskDQN], double_q: bool) -> None:
    model = three(kind, double_q=double_q).learn(200)
    batch = model.replay_buffer.sample(16)
    with torch.no_grad():
        online, target = (
            model.q_net(batch.next_observations).clone(),
            model.q_net_target(batch.next_observations).clone(),
        )
    counts = np.repeat((2, 3, 3), 16)
    for row, count in enumerate(counts):
        own = target[row, :count]
        best = own[online[row, :count].argmax()] if double_q else own.max()
        expected = batch.rewards[row] + batch.discounts[row] * best
        torch.testing.assert_close(model.update.targets(batch)[row], expected, rtol=1e-5, atol=1e-5)


def test_brc_does_not_bootstrap_from_actions_that_a_task_lacks() -> None:
    model = three(BRC).learn(200)
    with torch.no_grad():  # the third action looks far better than the others to both networks
        for network in (model.q_net, model.q_net_target):
            network.last.bias.view(3, -1)[2, -1] += 50
    batch = model.replay_buffer.sample(16)
    batch = batch._replace(rewards=torch.zeros(48), discounts=torch.full((48,), 0.9))
    means = model.update.targets(batch).view(3, 16, -1) @ model.q_net.support
    assert (means[0] < 8.9).all()  # CartPole has two actions
    torch.testing.assert_close(means[1:], torch.full((2, 16), 9.0))


def test_padded_learning_is_that_of_a_task_with_columns_of_zeros() -> None:
    """A task with two zeros at its end, and one that padding makes as long, give the same run to the digit."""

    def run(task: Task, **kwargs: Any) -> MultiTaskDQN:
        longer = corridor("long", zeros=2)
        env = make_task_vec_env([task, longer], envs_per_task=2, seed=3, **kwargs)
        return MultiTaskDQN("MlpPolicy", env, **SMALL).learn(1_000)

    padded, zeros = run(corridor("short"), pad=True), run(corridor("short", zeros=2))
    assert padded._n_updates == zeros._n_updates > 100
    assert_same(padded.policy.state_dict(), zeros.policy.state_dict())
    assert padded.recent_returns == zeros.recent_returns


def test_differing_numbers_of_actions_need_the_task_in_the_observations() -> None:
    env = make_task_vec_env(THREE, envs_per_task=1, variant="blind", pad=True)
    with pytest.raises(ValueError, match=r"^the tasks have 2, 3, 3 actions, .*use the variant 'aware'$"):
        MultiTaskDQN("MlpPolicy", env, **SMALL)
    alike = make_task_vec_env([ACROBOT, CAR], envs_per_task=1, variant="blind", pad=True)
    assert MultiTaskDQN("MlpPolicy", alike, **SMALL).learn(150)._n_updates > 0


def test_a_padded_agent_is_saved_loaded_and_evaluated(tmp_path: Path) -> None:
    model = three().learn(300)
    model.save(tmp_path / "m.zip")
    model.save_weights(tmp_path / "w.safetensors")
    env = make_task_vec_env(THREE, envs_per_task=1, seed=5, pad=True)
    observations = env.reset()
    expected, _ = model.predict(observations, deterministic=True)
    for path in ("m.zip", "w.safetensors"):
        again = load_agent(tmp_path / path)
        assert again.actions_of_tasks == (2, 3, 3)
        np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)
        assert (again.predict(np.repeat(observations[:1], 300, 0))[0] < 2).all()  # type: ignore[index]
    found = evaluate_tasks(again, make_task_vec_env(CART, envs_per_task=1, one_hot_tasks=THREE, pad=True), 1)
    assert list(found) == ["CartPole-v1"]
    with pytest.raises(ValueError, match=r"have \(2, 3, 3\) actions|Action spaces|actions; the model's"):
        again.set_env(
            make_task_vec_env([corridor(t.name, actions=3, zeros=4) for t in THREE], envs_per_task=1, pad=True)
        )


@pytest.mark.parametrize("start", [1, -2])
def test_actions_that_begin_at_another_number(start: int, tmp_path: Path) -> None:
    tasks = [corridor("a", start=start, actions=3), corridor("b", start=start, actions=3, zeros=0)]
    model = MultiTaskDQN("MlpPolicy", make_task_vec_env(tasks, envs_per_task=2, seed=0), **SMALL).learn(400)
    assert set(np.concatenate(model.env.get_attr("taken"))) == {start, start + 1, start + 2}  # type: ignore[union-attr]
    assert set(model.replay_buffer.sample(64).actions.tolist()) == {0, 1, 2}
    model.save(tmp_path / "m.zip")
    model.save_weights(tmp_path / "w.safetensors")
    observations = model.env.reset()  # type: ignore[union-attr]
    actions, _ = model.predict(observations, deterministic=True)
    assert (actions >= start).all()
    assert set(model.predict(np.repeat(observations, 100, 0))[0]) == {start, start + 1, start + 2}  # type: ignore[arg-type]
    for path in ("m.zip", "w.safetensors"):
        np.testing.assert_array_equal(load_agent(tmp_path / path).predict(observations, deterministic=True)[0], actions)


# ------------------------------------------------------------------------------------------------------------ own heads


def test_own_heads_get_their_ordinary_gradient_and_the_rest_is_balanced() -> None:
    model = three(
        policy_kwargs={"heads": "per_task", "net_arch": [16, 8]},
        balancer="static",
        balancer_kwargs={"weights": (1.0, 2.0, 0.5)},
    ).learn(200)
    batch = model.replay_buffer.sample(8)
    direction, _ = model.update.direction(batch)
    network: Any = model.q_net
    targets = model.update.targets(batch)
    losses = model.update.losses(batch, targets)
    shared, own = list(network.layers.parameters()), list(network.heads.parameters())
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    weights = torch.tensor((1.0, 2.0, 0.5)) * 3 / 3.5
    expected = [
        sum(w * part for w, part in zip(model.update.diagnostics["weight"], parts, strict=True)).flatten()
        for parts in zip(*rows, strict=True)
    ]
    ordinary = [part.flatten() for part in torch.autograd.grad(losses.sum(), own)]
    assert model.update.diagnostics["weight"].shape == weights.shape
    torch.testing.assert_close(direction, torch.cat([*expected, *ordinary]).to(direction), rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.cat([p.detach().flatten() for p in [*shared, *own]]), model.update.weights)


def test_own_heads_of_one_task_do_not_move_with_another() -> None:
    model = three(policy_kwargs={"heads": "per_task"}).learn(200)
    batch = model.replay_buffer.sample(8)
    losses = model.update.losses(batch, model.update.targets(batch))
    for task, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, [model.q_net.heads.weight], retain_graph=True)
        moved = gradient.view(3, 3, -1).abs().sum((1, 2)) > 0
        assert moved.tolist() == [place == task for place in range(3)]


@pytest.mark.parametrize("balancer", ["equal", "gradnorm", "rgb", "aim", "pcgrad"])
def test_every_kind_of_balancer_learns_with_own_heads_and_is_saved(balancer: str, tmp_path: Path) -> None:
    model = three(
        policy_kwargs={"heads": "per_task"}, balancer=balancer, memory_angle=0.5 if balancer == "equal" else 0
    )
    before = model.q_net.heads.weight.clone()
    model.learn(240)
    assert not torch.equal(before, model.q_net.heads.weight)
    model.save(tmp_path / "m.zip")
    again = MultiTaskDQN.load(tmp_path / "m.zip")
    assert_same(again.policy.state_dict(), model.policy.state_dict())
    checkpoint.save(tmp_path / "state.zip", model.training_state())
    other = three(
        policy_kwargs={"heads": "per_task"}, balancer=balancer, memory_angle=0.5 if balancer == "equal" else 0, seed=1
    )
    other._setup_learn(240)
    other.set_training_state(checkpoint.load(tmp_path / "state.zip"))
    for each in (model, other):
        each.train(3, 8)
    assert_same(other.policy.state_dict(), model.policy.state_dict())


def test_own_heads_that_cannot_be_are_refused() -> None:
    blind = make_task_vec_env([corridor("a"), corridor("b")], envs_per_task=1, variant="blind")
    with pytest.raises(ValueError, match=r"^heads='per_task' need the task's one-hot"):
        MultiTaskDQN("MlpPolicy", blind, policy_kwargs={"heads": "per_task"}, **SMALL)
    with pytest.raises(ValueError, match=r"^heads='per_task' need a hidden layer"):
        three(policy_kwargs={"heads": "per_task", "net_arch": []})
    with pytest.raises(ValueError, match=r"^unknown heads 'own'; choose from shared, per_task$"):
        three(policy_kwargs={"heads": "own"})


def test_what_cannot_be_padded_is_refused_by_name() -> None:
    pendulum = Task("Pendulum", partial(gymnasium.make, "Pendulum-v1"))
    with pytest.raises(
        ValueError, match=r"^task Pendulum has actions in Box.* and task CartPole-v1 in Disc.*no agent takes both$"
    ):
        make_task_vec_env([CART, pendulum], pad=True)
    with pytest.raises(ValueError, match=r"^actions are in Box\(.*agents of Q-learning act in Discrete\(n\) only"):
        MultiTaskDQN("MlpPolicy", make_task_vec_env(pendulum, envs_per_task=1), **SMALL)
