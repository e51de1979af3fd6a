"""Rewards of different sizes in one agent: the deviation is right, and a factor does not matter."""

import copy
import json
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from agents import BRC, IndependentDQN, MultiTaskDQN
from experiments.brc.train import main as train_brc
from mtrl import balancers
from mtrl.rl import Task, make_task_vec_env
from mtrl.rl.reward_scales import RewardScales
from tests.support import SMALL, assert_same, make_agent, next_batch


def stream(steps: int, tasks: int, columns: int, seed: int = 0) -> tuple[Any, Any]:
    """Rewards (steps, T * K) of a different size in each task, and ends of episodes."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(10.0 ** np.arange(tasks), columns)
    rewards = (rng.normal(0.3, 1, (steps, tasks * columns)) * sizes).astype(np.float32)
    return rewards, rng.random(rewards.shape) < 0.1


def returns_of(rewards: Any, dones: Any, gamma: float) -> Any:
    """The discounted return of each column after each step, (steps, T * K), one by one."""
    found = np.zeros(rewards.shape)
    for column in range(rewards.shape[1]):
        value = 0.0
        for step, reward in enumerate(rewards[:, column].tolist()):
            value = gamma * value + reward
            found[step, column] = value
            value = 0.0 if dones[step, column] else value
    return found


def add(scales: RewardScales, rewards: Any, dones: Any) -> None:
    """Add a step of equally many columns of each task."""
    tasks = len(scales.count)
    scales.add(rewards, dones, np.repeat(np.arange(tasks), len(rewards) // tasks))


def test_tasks_may_have_different_numbers_of_columns() -> None:
    rewards, dones = stream(300, 1, 4)
    together, alone = RewardScales(2, 0.9), [RewardScales(1, 0.9) for _ in range(2)]
    for reward, done in zip(rewards, dones, strict=True):
        together.add(reward, done, np.array([0, 1, 1, 1]))
        for one, columns in zip(alone, (slice(0, 1), slice(1, 4)), strict=True):
            add(one, reward[columns], done[columns])
    np.testing.assert_allclose(together.divisors, np.concatenate([one.divisors for one in alone]), rtol=1e-12)


@pytest.mark.parametrize(("tasks", "columns"), [(1, 1), (2, 1), (3, 4)])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_the_deviation_is_that_of_the_whole_stream(tasks: int, columns: int, gamma: float) -> None:
    rewards, dones = stream(300, tasks, columns)
    scales = RewardScales(tasks, gamma)
    for reward, done in zip(rewards, dones, strict=True):
        add(scales, reward, done)
    by_task = returns_of(rewards, dones, gamma).reshape(300, tasks, columns)
    np.testing.assert_allclose(scales.divisors, by_task.std((0, 2)), rtol=1e-10)
    np.testing.assert_allclose(scales.mean, by_task.mean((0, 2)), rtol=1e-10, atol=1e-12)
    batch = torch.randn(tasks * 5)
    expected = batch.view(tasks, 5) / torch.tensor(by_task.std((0, 2)), dtype=torch.float32)[:, None]
    torch.testing.assert_close(scales.scale(batch), expected.flatten())


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_the_deviation_survives_a_mean_that_is_far_from_0(far: float) -> None:
    rewards, dones = stream(2_000, 1, 4)
    shifted = rewards.astype(np.float64) + far
    scales = RewardScales(1, gamma=0.0)
    for reward, done in zip(shifted, dones, strict=True):
        add(scales, reward, done)
    np.testing.assert_allclose(scales.squares / scales.count, shifted.var(), rtol=1e-6)


@pytest.mark.parametrize("reward", [0.0, 0.1, -1000.0])
def test_returns_that_never_differ_are_divided_by_their_size(reward: float) -> None:
    scales = RewardScales(1, gamma=0.9)
    assert scales.divisors.tolist() == [1]
    for _ in range(100):  # episodes of one step
        add(scales, np.full(3, reward, np.float32), np.ones(3, bool))
    assert scales.divisors == pytest.approx([abs(reward) or 1])


def test_a_reward_that_is_not_finite_spoils_nothing() -> None:
    rewards, dones = stream(50, 2, 2)
    scales, twin = RewardScales(2, 0.9), RewardScales(2, 0.9)
    for step, (reward, done) in enumerate(zip(rewards, dones, strict=True)):
        add(scales, reward, done)
        add(twin, reward, done)
        if step % 7 == 0:
            add(scales, np.array([np.nan, 1, np.inf, 1], np.float32), np.zeros(4, bool))
    assert scales.divisors.tolist() == twin.divisors.tolist()


# ------------------------------------------------------------------------------------------------------------ agents


class Walk(gymnasium.Env[Any, Any]):
    """A random walk whose reward is the place, times a factor; episodes end for good or by a time limit."""

    observation_space = spaces.Box(-100, 100, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.count = self.np_random.normal(size=2).astype(np.float32), 0
        return self.place.copy(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        self.place += np.float32(0.3) * self.np_random.normal(size=2).astype(np.float32)
        self.place[0] += action - 1
        reward = self.factor * float(self.place[0])
        return self.place.copy(), reward, bool(abs(self.place[1]) > 1.5), self.count == 20, {}


def walker(*factors: float, kind: Any = MultiTaskDQN, **settings: Any) -> Any:
    tasks = [
        Task(f"walk {place}", lambda render_mode, factor=factor: Walk(factor)) for place, factor in enumerate(factors)
    ]
    settings = {"policy_kwargs": {"net_arch": (16,)}, **SMALL, "reward_scaling": "return", **settings}
    return kind("MlpPolicy", make_task_vec_env(tasks, 2, seed=0), seed=0, device="cpu", **settings)


NAMES = [name for name in balancers.names() if name not in ("torchjd", "static")]


@pytest.mark.parametrize("balancer", NAMES)
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_factor_of_a_tasks_rewards_changes_no_update(balancer: str, n_step: int) -> None:
    # Powers of two change no digit, so that the agents act alike for ever.
    agents = [walker(*factors, balancer=balancer, n_step=n_step) for factors in ((1, 1), (1024, 1 / 64))]
    for agent in agents:
        agent.learn(400)
    assert agents[0]._n_updates > 100
    assert_same(*(agent.policy.state_dict() for agent in agents))
    first, second = (agent.replay_buffer.state_dict()["rows"][..., -2] for agent in agents)
    assert np.array_equal(second, first * np.array([[1024], [1 / 64]], np.float32))  # the replay holds what came
    # Monitors round returns to six digits after the point.
    expected = np.array(agents[0].recent_returns) * [1024, 1 / 64]
    np.testing.assert_allclose(agents[1].recent_returns, expected, atol=1e-3)


def test_a_factor_changes_no_update_of_independent_networks() -> None:
    agents = [walker(*factors, kind=IndependentDQN).learn(400) for factors in ((1, 1), (1024, 1 / 64))]
    assert_same(*(agent.policy.state_dict() for agent in agents))


def test_without_scaling_the_factor_does_change_the_updates() -> None:
    agents = [walker(*factors, reward_scaling="none").learn(400) for factors in ((1, 1), (1024, 1 / 64))]
    weights = [agent.update.weights for agent in agents]
    assert not torch.allclose(*weights)
    assert all(agent.update.reward_scales is None for agent in agents)
    assert not {"reward_scales", "unfinished_returns"} & agents[0].training_state().keys()


def test_targets_are_of_scaled_rewards() -> None:
    agent = walker(1, 1000).learn(300)
    batch = next_batch(agent, 8)
    scaled = batch.rewards.view(2, 8) / torch.tensor(agent.update.reward_scales.divisors, dtype=torch.float32)[:, None]
    with torch.no_grad():
        chosen = agent.q_net(batch.next_observations).argmax(1, keepdim=True)
        best = agent.q_net_target(batch.next_observations).gather(1, chosen)[:, 0]
        torch.testing.assert_close(agent.update.targets(batch), scaled.flatten() + batch.discounts * best)


def test_the_deviation_is_that_of_all_rewards_that_came() -> None:
    agent = walker(1, 1000, gamma=0.9, n_step=1, buffer_size=10_000).learn(800)
    rows = agent.replay_buffer.state_dict()["rows"].reshape(2, -1, 2, agent.replay_buffer._rows.shape[-1])
    observations, following, rewards = rows[..., :2], rows[..., 4:6], rows[..., -2]  # (T, steps, K, ...)
    dones = np.ones(rewards.shape, bool)
    dones[:, :-1] = (following[:, :-1] != observations[:, 1:]).any(-1)
    for task in range(2):
        values = returns_of(rewards[task], dones[task], 0.9)
        assert agent.update.reward_scales.divisors[task] == pytest.approx(values.std(), rel=1e-6)


def test_logs_hold_raw_returns_and_the_scales(tmp_path: Any) -> None:

    agent = walker(1, 1024)
    agent.set_logger(configure(str(tmp_path), ["json"]))
    agent.learn(800, log_interval=1)
    agent.logger.close()
    last = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    returns = [[r for r, _ in episodes] for episodes in agent._episode_stats]
    for task, name in enumerate(agent.task_names):
        assert last[f"train/{name}/return"] == pytest.approx(np.mean(returns[task]))
        assert last[f"train/{name}/reward_scale"] == pytest.approx(agent.update.reward_scales.divisors[task], rel=0.2)
    assert np.std(returns[1]) > 100 * np.std(returns[0])


# ------------------------------------------------------------------------------------------------------- saved states


def test_a_saved_model_goes_on_with_its_scales(tmp_path: Any) -> None:
    agent = walker(1, 1000).learn(300)
    agent.save(tmp_path / "m.zip")
    agent.save_replay_buffer(tmp_path / "r.zip")
    loaded = MultiTaskDQN.load(tmp_path / "m.zip", device="cpu")
    assert loaded.settings.reward_scaling == "return"
    assert loaded.update.reward_scales.divisors.tolist() == agent.update.reward_scales.divisors.tolist()
    loaded.load_replay_buffer(tmp_path / "r.zip")
    loaded.set_logger(agent.logger)
    for each in (agent, loaded):
        each.train(3, 8)
    assert_same(agent.policy.state_dict(), loaded.policy.state_dict())
    before = loaded.update.reward_scales.count.copy()
    agent.train(1, 8)
    assert (loaded.update.reward_scales.count == before).all()


def test_a_model_without_scales_begins_them_and_one_with_scales_drops_them(tmp_path: Any) -> None:
    walker(1, 1000, reward_scaling="none").learn(100).save(tmp_path / "m.zip")
    begun = MultiTaskDQN.load(tmp_path / "m.zip", reward_scaling="return", device="cpu")
    assert begun.update.reward_scales.divisors.tolist() == [1, 1]
    begun.save(tmp_path / "n.zip")
    assert MultiTaskDQN.load(tmp_path / "n.zip", reward_scaling="none").update.reward_scales is None


def test_a_checkpoint_within_episodes_goes_on_bitwise() -> None:

    class Keep(BaseCallback):
        state: Any = None

        def _on_rollout_start(self) -> None:
            if self.num_timesteps == 300:
                self.state = (self.model.training_state(), self.training_env.state_dict())
                self.state = copy.deepcopy(self.state)

        def _on_step(self) -> bool:
            return True

    class Resume(BaseCallback):
        def __init__(self, state: Any) -> None:
            super().__init__()
            self.state = state

        def _on_training_start(self) -> None:
            self.training_env.load_state_dict(self.state[1])
            self.model.set_training_state(self.state[0])

        def _on_step(self) -> bool:
            return True

    keep = Keep()
    whole = walker(1, 1000).learn(600, callback=keep)
    assert keep.state[0]["unfinished_returns"].any()
    resumed = walker(1, 1000).learn(600, callback=Resume(keep.state))
    assert_same(whole.policy.state_dict(), resumed.policy.state_dict())
    for name, value in whole.update.reward_scales.state_dict().items():
        assert np.array_equal(value, resumed.update.reward_scales.state_dict()[name]), name


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("reward_scales", {}),
        ("reward_scales", {"count": np.ones(2), "mean": np.ones(2), "squares": -np.ones(2)}),
        ("reward_scales", {"count": np.ones(2), "mean": np.array([np.nan, 0]), "squares": np.ones(2)}),
        ("reward_scales", {"count": np.ones(3), "mean": np.ones(3), "squares": np.ones(3)}),
        ("unfinished_returns", np.ones(3)),
        ("unfinished_returns", np.array([np.inf, 0, 0, 0])),
        ("unfinished_returns", [0.0] * 4),
    ],
)
def test_scales_that_cannot_be_are_refused(part: str, value: Any) -> None:
    agent = walker(1, 1000).learn(100)
    state = agent.training_state()
    agent.set_training_state(state)
    with pytest.raises(ValueError, match=rf"^{part}.*"):
        agent.set_training_state({**state, part: value})


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_wrong_word_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"^unknown reward_scaling 'std'; choose from none, return$"):
        make_agent(reward_scaling="std")


def test_brc_has_a_scale_of_its_own(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^reward_scaling is 'return'; it must be 'none' here, because BRC"):
        walker(1, kind=BRC, policy_kwargs={"width": 8})
    (tmp_path / "s.json").write_text('{"reward_scaling": "return"}')
    with pytest.raises(SystemExit) as stop:
        train_brc(["--settings", str(tmp_path / "s.json"), "--results-dir", str(tmp_path / "runs")])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
