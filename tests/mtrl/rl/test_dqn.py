import copy
import json
import subprocess
import sys
import zipfile
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from agents import MultiTaskDQN
from envs import make_task_env, make_task_vec_env
from mtrl import EqualWeights, GradNorm
from mtrl.checkpoint import CheckpointError
from tests.support import assert_same, make_agent, next_batch

make = partial(make_agent, MultiTaskDQN, target_update_interval=7, tau=1.0)


class Lines(KVWriter):
    """A logger output that keeps what it is given."""

    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append({key: value for key, value in key_values.items() if not key.startswith("time/")})

    def close(self):
        pass


def weights(agent):
    return {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}


@pytest.mark.parametrize("variant", ["aware", "blind"])
@pytest.mark.parametrize("balancer", ["equal", "gradnorm"])
def test_one_seed_gives_bitwise_identical_weights_and_metrics(variant, balancer):
    results = []
    for disturbance in (0, 1):
        agent, lines = make(variant, balancer=balancer), Lines()
        agent.set_logger(Logger(None, [lines]))
        torch.manual_seed(disturbance)  # global generators must not matter once the agent is made
        np.random.seed(disturbance)
        agent.learn(900, log_interval=1)
        results.append((weights(agent), lines.lines))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert results[0][1]  # some episode ended


def test_another_seed_gives_other_weights():
    one, two = make(seed=0).learn(300), make(seed=1).learn(300)
    assert not torch.equal(one.policy.q_net.layers[-1].weight, two.policy.q_net.layers[-1].weight)


@pytest.mark.parametrize(("variant", "count"), [("aware", 37_788), ("blind", 35_716)])
def test_parameter_counts(variant, count):
    assert sum(parameter.numel() for parameter in make(variant).policy.q_net.parameters()) == count


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize("td_loss", ["huber", "mse"])
@pytest.mark.parametrize("memory_angle", [0.0, 0.8])
def test_an_update_is_the_textbook_one(double_q, td_loss, memory_angle):
    """One update against plain autograd and Adam, written out by hand on the same batch."""
    settings = {"double_q": double_q, "td_loss": td_loss, "memory_angle": memory_angle}
    agent = make(**settings, max_grad_norm=0.7, learning_rate_decay=0).learn(120)
    memory = copy.deepcopy(agent.update.memory)
    network, target = copy.deepcopy(agent.policy.q_net), copy.deepcopy(agent.policy.q_net_target)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    moments = agent.policy.optimizer.state_dict()["state"][0]
    start = 0
    for parameter in network.parameters():
        columns = slice(start, start + parameter.numel())
        start = columns.stop
        optimizer.state[parameter] = {
            "step": moments["step"].clone(),
            **{key: moments[key][columns].view_as(parameter).clone() for key in ("exp_avg", "exp_avg_sq")},
        }
    batch = next_batch(agent, 8)

    losses = []
    for task in range(3):
        rows = slice(8 * task, 8 * task + 8)
        with torch.no_grad():
            after = target(batch.next_observations[rows])
            by = network(batch.next_observations[rows]) if double_q else after
            best = after[torch.arange(8), by.argmax(1)]
            wanted = batch.rewards[rows] + batch.discounts[rows] * best
        got = network(batch.observations[rows])[torch.arange(8), batch.actions[rows]]
        losses.append((nn.HuberLoss(delta=10.0) if td_loss == "huber" else nn.MSELoss())(got, wanted))
    sum(losses).backward()
    assert (memory is not None) == (memory_angle > 0)
    if memory is not None:
        turned = memory.turn_(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
        torch.nn.utils.vector_to_parameters(turned, (parameter.grad for parameter in network.parameters()))
    torch.nn.utils.clip_grad_norm_(network.parameters(), 0.7)
    optimizer.step()

    agent.train(gradient_steps=1, batch_size=8)
    for mine, theirs in zip(agent.policy.q_net.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_target_network_is_copied_every_interval_updates():
    agent = make(gradient_steps=1, target_update_interval=5).learn(66)  # 6 columns: one update, from step 66 on
    first = copy.deepcopy(agent.policy.q_net_target)
    for _ in range(3):
        agent.train(1, 8)
        assert_same(agent.policy.q_net_target.state_dict(), first.state_dict())
    agent.train(1, 8)  # the fifth
    assert_same(agent.policy.q_net_target.state_dict(), agent.policy.q_net.state_dict())


def test_tau_moves_the_target_part_of_the_way():
    agent = make(gradient_steps=1, target_update_interval=1, tau=0.25).learn(66)
    before = copy.deepcopy(agent.policy.q_net_target.state_dict())
    agent.train(1, 8)
    for name, tensor in agent.policy.q_net_target.state_dict().items():
        torch.testing.assert_close(tensor, before[name].lerp(agent.policy.q_net.state_dict()[name], 0.25))


def test_target_updates_can_count_episodes():
    agent = make(target_update_unit="episodes", target_update_interval=10**6, learning_starts=30).learn(900)
    assert not torch.equal(agent.policy.q_net.layers[-1].weight, agent.policy.q_net_target.layers[-1].weight)
    agent = make(target_update_unit="episodes", target_update_interval=1, learning_starts=30, gradient_steps=0)
    with torch.no_grad():
        agent.policy.q_net.layers[-1].bias += 1
    agent.learn(900)
    assert_same(agent.policy.q_net.state_dict(), agent.policy.q_net_target.state_dict())


class StepCounter(gymnasium.Env):
    """One observation, ended by a time limit at step 3 in task A and for good at step 3 in task B."""

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, task):
        self.task = task
        self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        over = self.count == 3
        return np.full(1, self.count, np.float32), 1.0, over and self.task == "B", over and self.task == "A", {}


def test_time_limits_are_bootstrapped_through_and_final_observations_kept():
    env = DummyVecEnv([lambda task=task: StepCounter(task) for task in "AABB"])
    agent = MultiTaskDQN("MlpPolicy", env, n_step=1, learning_starts=1000, buffer_size=100, batch_size=1, seed=0)
    agent.learn(4 * 7)
    assert agent.task_names == ("A", "B")
    batch = agent.replay_buffer.sample(400)
    last = batch.observations[:, 0] == 2
    torch.testing.assert_close(batch.next_observations, batch.observations + 1)  # never a reset observation
    of_b = torch.arange(800) >= 400
    assert torch.equal(batch.discounts == 0, last & of_b)


def test_epsilon_is_drawn_per_environment():
    agent = make(envs_per_task=100)
    observations = agent.env.reset()
    greedy, _ = agent.predict(observations, deterministic=True)
    agent.exploration_rates = np.full(300, 0.5)
    shares = [np.mean(agent.predict(observations)[0] != greedy) for _ in range(30)]
    # A random action differs from the greedy one in 3 of 4 cases; one coin for all would give 0 or about 0.75.
    assert all(0.2 < share < 0.55 for share in shares)
    agent.exploration_rates = np.tile([0.0, 1.0], 150)
    explored = np.mean([agent.predict(observations)[0] != greedy for _ in range(30)], 0)
    assert (explored[::2] == 0).all()
    assert (explored[1::2] > 0.4).all()
    agent.exploration_rates = np.zeros(300)
    assert np.array_equal(agent.predict(observations[:7])[0], greedy[:7])


class RecordEpsilon(BaseCallback):
    """Keeps steps, finished episodes and epsilons as they are when a step's callback runs: before its schedule."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        self.seen.append((self.num_timesteps, self.model._episode_num, self.model.exploration_rates))
        return True


def test_epsilon_falls_linearly_to_each_columns_own():
    record = RecordEpsilon()
    make(exploration_fraction=0.5, exploration_final_eps=0.3, exploration_diversity=3).learn(600, record)
    final = np.tile([0.3, 0.3**4], 3)  # two columns of each of three tasks
    for steps, _, rates in record.seen:
        np.testing.assert_allclose(rates, 1 + (final - 1) * min(1, (steps - 6) / 300))


def test_epsilon_can_fall_by_the_episode():
    record, settings = RecordEpsilon(), {"exploration_diversity": 0, "learning_starts": 10**4}
    make(exploration_decay=0.9, exploration_final_eps=0.3, **settings).learn(3000, record)
    for (_, before, _), (_, _, rates) in zip(record.seen, record.seen[1:], strict=False):
        assert (rates <= max(0.3, 0.9**before) + 1e-12).all()
    assert record.seen[-1][1] > 10
    np.testing.assert_allclose(record.seen[-1][2], 0.3)


def test_a_lone_column_takes_the_middle_epsilon():
    agent = make(envs_per_task=1, exploration_fraction=0.1).learn(300)
    np.testing.assert_allclose(agent.exploration_rates, 0.1**2)


def test_gradnorm_runs_inside_and_reports_its_weights():
    agent = make(balancer="gradnorm", balancer_kwargs={"warmup_steps": 5}).learn(600)
    assert isinstance(agent.balancer, GradNorm)
    logged = agent.diagnostics
    total = sum(logged[f"balancer/{task}/weight"] for task in agent.task_names)
    assert total == pytest.approx(3)
    assert logged["balancer/Windy/weight"] != 1
    # The norm is that of the last hidden layer alone.
    of_layer = agent.update.engine.layout.slice_of(agent.policy.q_net.last_shared_layer.weight)
    assert of_layer.stop - of_layer.start == 128 * 256


def test_returns_reach_the_balancer():
    settings = {"progress": "return", "return_range": (-300, 250)}
    agent = make(balancer="gradnorm", balancer_kwargs=settings).learn(1500)
    torch.testing.assert_close(agent.balancer.returns, torch.tensor(agent.recent_returns, dtype=torch.float64))


@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_save_and_load_predict_and_go_on_identically(tmp_path, variant):
    agent = make(variant, balancer="gradnorm").learn(300)
    agent.save(tmp_path / "agent.zip")
    loaded = MultiTaskDQN.load(tmp_path / "agent.zip", device="cpu")
    observations = agent.env.reset()
    assert np.array_equal(
        agent.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    assert_same(weights(agent), weights(loaded))
    assert (loaded.variant, loaded.task_names) == (variant, agent.task_names)
    assert (loaded.num_timesteps, loaded._n_updates) == (agent.num_timesteps, agent._n_updates)
    # The same batches lead to the same weights: optimizer and balancer came along.
    agent.save_replay_buffer(tmp_path / "replay.zip")
    loaded.load_replay_buffer(tmp_path / "replay.zip")
    loaded.set_logger(agent.logger)
    for each in (agent, loaded):
        each.train(5, 8)
    assert_same(weights(agent), weights(loaded))


def test_loaded_agent_learns_on_in_an_environment_of_its_tasks(tmp_path):
    make(envs_per_task=1).learn(200).save(str(tmp_path / "agent"))
    env = make_task_vec_env(envs_per_task=3, seed=5)
    agent = MultiTaskDQN.load(str(tmp_path / "agent"), env=env, device="cpu", learning_rate=1e-4, learning_rate_decay=0)
    before = weights(agent)
    agent.learn(200, reset_num_timesteps=False)
    assert agent.num_timesteps >= 400
    assert agent.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert not torch.equal(before["q_net.layers.1.weight"], agent.policy.q_net.layers[1].weight)
    with pytest.raises(ValueError, match="environment's tasks are Standard, Heavy; the model's are"):
        agent.set_env(make_task_vec_env(["Standard", "Heavy"]))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        agent.set_env(make_task_vec_env(variant="blind"))


def test_saved_model_is_json_and_safetensors_without_pickle(tmp_path):
    make().learn(100).save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert sorted(archive.namelist()) == ["state.json", "tensors.safetensors"]
        json.loads(archive.read("state.json"))
    code = (
        "import pickle, sys, torch._dynamo; from agents import MultiTaskDQN\n"
        "def refuse(*_, **__): raise AssertionError('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "MultiTaskDQN.load(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "agent.zip"], check=True)


def test_unreadable_models_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere\.zip"):
        MultiTaskDQN.load(tmp_path / "nowhere")
    make().save(tmp_path / "agent.zip")
    content = (tmp_path / "agent.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"half\.zip"):
        MultiTaskDQN.load(tmp_path / "half.zip")
    make().save_replay_buffer(tmp_path / "replay.zip")
    with pytest.raises(CheckpointError, match="not a MultiTaskDQN"):
        MultiTaskDQN.load(tmp_path / "replay.zip")
    with pytest.raises(CheckpointError, match="holds no replay"):
        make().load_replay_buffer(tmp_path / "agent.zip")


def test_sb3_tools_work_on_it(tmp_path):
    agent = make()
    single = make_task_vec_env(["Windy"], envs_per_task=2, seed=3, one_hot_tasks=["Standard", "Windy", "Heavy"])
    callbacks = [
        CheckpointCallback(300, str(tmp_path), save_replay_buffer=True),
        EvalCallback(single, eval_freq=100, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0),
    ]
    agent.learn(1800, callbacks)
    assert {path.name for path in tmp_path.iterdir()} >= {"rl_model_1800_steps.zip", "best_model.zip"}
    best = MultiTaskDQN.load(tmp_path / "best_model")
    mean, deviation = evaluate_policy(best, single, n_eval_episodes=3)
    assert np.isfinite([mean, deviation]).all()


def test_plain_gymnasium_loop():
    agent = make()
    env = make_task_env("Heavy", variant="aware")
    check_env(env)
    observation, _ = env.reset(seed=1)
    for _ in range(20):
        action, state = agent.predict(observation, deterministic=True)
        assert state is None
        observation, *_ = env.step(action)


def test_one_task_is_ordinary_dqn():
    env = make_task_env("Standard")
    agent = MultiTaskDQN("MlpPolicy", env, learning_starts=20, buffer_size=500, batch_size=4, seed=0)
    agent.learn(60)
    assert agent.task_names == ("Standard",)
    assert agent.variant == "blind"


def test_policy_settings_reach_the_network():
    agent = make(policy_kwargs={"net_arch": [32, 16], "embedding_dim": 5})
    assert agent.policy.q_net.layers[1].weight.shape == (32, 13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 2000}, "batch_size is 2000; it must be between 1 and the 1000 transitions"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"gamma": 1.5}, "gamma is 1.5; it must be between 0 and 1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; it must be at least 0"),
        ({"target_update_interval": 0}, "target_update_interval is 0"),
        ({"target_update_unit": "steps"}, "unknown target_update_unit 'steps'; choose from updates, episodes"),
        ({"td_loss": "l1"}, "unknown td_loss 'l1'; choose from huber, mse"),
        ({"exploration_decay": 0.0}, "exploration_decay is 0.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
        ({"learning_starts": -1}, "learning_starts is -1"),
        ({"balancer": "nash"}, "unknown balancer 'nash'; balancers are equal, gradnorm"),
        ({"balancer": "gradnorm", "balancer_kwargs": {"beta": 1}}, "has no argument 'beta'; it has alpha"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_columns_must_be_task_after_task():
    with pytest.raises(ValueError, match="task after task, not A, B, A"):
        MultiTaskDQN("MlpPolicy", DummyVecEnv([lambda t=t: StepCounter(t) for t in "ABA"]))


def test_a_balancer_object_is_used_as_it_is(tmp_path):
    balancer = EqualWeights(3, scale="mean")
    agent = make(balancer=balancer)
    assert agent.balancer is balancer
    with pytest.raises(ValueError, match="give its name instead"):
        agent.save(tmp_path / "agent.zip")


def test_learning_rate_falls_over_the_last_part_of_training():
    class Record(BaseCallback):
        def _on_rollout_start(self):
            seen.append((self.model._current_progress_remaining, self.model.policy.optimizer.param_groups[0]["lr"]))

        def _on_step(self):
            return True

    seen = []
    make(learning_rate=1e-3, learning_rate_decay=0.25, gradient_steps=1).learn(600, Record())
    for remaining, rate in seen:  # the rate of the update before, which follows the same step
        assert rate == pytest.approx(1e-3 * min(1, remaining / 0.25))
    seen = []
    make(learning_rate=lambda remaining: 1e-3 * remaining, gradient_steps=1).learn(300, Record())
    assert seen[-1][1] == pytest.approx(1e-3 * seen[-1][0])
