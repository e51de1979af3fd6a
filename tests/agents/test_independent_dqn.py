import copy
from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from agents import BRC, IndependentDQN, IndependentQNetworks, MultiTaskDQN, SharedQNetwork, load_agent
from envs import make_task_vec_env
from mtrl import DirectionMemory, EqualWeights
from mtrl.checkpoint import CheckpointError
from tests.support import assert_same, make_agent

make = partial(make_agent, IndependentDQN)


def alone(networks, task):
    """One task's network on its own."""
    network = SharedQNetwork(8, 4)
    layers = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, weight, bias in zip(layers, networks.weights, networks.biases, strict=True):
            layer.weight.copy_(weight[task])
            layer.bias.copy_(bias[task])
    return network


def task_major(rows_per_task, num_tasks=3):
    """Random observations (T * B, 8 + T) and their tasks."""
    task = torch.arange(num_tasks).repeat_interleave(rows_per_task)
    return torch.cat((torch.randn(len(task), 8), nn.functional.one_hot(task, num_tasks).float()), 1), task


def test_three_networks_of_the_shared_ones_size():
    assert sum(parameter.numel() for parameter in make().policy.q_net.parameters()) == 107_148 == 3 * 35_716


def test_every_row_is_valued_by_its_tasks_network_in_any_order():
    networks = IndependentQNetworks(11, 4, 3)
    observations, task = task_major(20)
    by_loop = torch.cat([alone(networks, t)(observations[task == t, :8]) for t in range(3)])
    torch.testing.assert_close(networks(observations), by_loop)  # task-major: the fast way
    order = torch.randperm(60)
    torch.testing.assert_close(networks(observations[order]), by_loop[order])
    some = order[:17]  # not even the same number of each
    torch.testing.assert_close(networks(observations[some]), by_loop[some])
    for row in range(60):
        torch.testing.assert_close(networks(observations[row : row + 1]), by_loop[row : row + 1])
    assert networks(observations[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    "settings", [{}, {"max_grad_norm": 0.5}, {"double_q": False, "td_loss": "mse"}, {"memory_angle": 0.0}]
)
def test_each_network_evolves_as_if_it_were_trained_alone(settings):
    agent = make(tau=0.25, target_update_interval=2, gradient_steps=0, **settings).learn(600)
    clip, double_q = settings.get("max_grad_norm"), settings.get("double_q", True)
    angle = settings.get("memory_angle", 0.8)
    td_loss = nn.MSELoss() if settings.get("td_loss") == "mse" else nn.HuberLoss(delta=10.0)
    generator = agent.replay_buffer.generator.get_state()
    batches = [agent.replay_buffer.sample(8) for _ in range(6)]
    agent.replay_buffer.generator.set_state(generator)
    clipped = 0
    trained = []
    for task in range(3):
        network = alone(agent.policy.q_net, task)
        target = copy.deepcopy(network)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
        memory = DirectionMemory(angle)
        rows = slice(8 * task, 8 * task + 8)
        for update, batch in enumerate(batches, 1):
            with torch.no_grad():
                after = target(batch.next_observations[rows, :8])
                by = network(batch.next_observations[rows, :8]) if double_q else after
                best = after[torch.arange(8), by.argmax(1)]
                wanted = batch.rewards[rows] + batch.discounts[rows] * best
            got = network(batch.observations[rows, :8])[torch.arange(8), batch.actions[rows]]
            optimizer.zero_grad()
            td_loss(got, wanted).backward()
            turned = memory.turn_(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
            torch.nn.utils.vector_to_parameters(turned, (parameter.grad for parameter in network.parameters()))
            if clip is not None:
                clipped += torch.nn.utils.clip_grad_norm_(network.parameters(), clip) > clip
            optimizer.step()
            if update % 2 == 0:
                for mine, theirs in zip(target.parameters(), network.parameters(), strict=True):
                    mine.data.lerp_(theirs.data, 0.25)
        trained.append((network, target))
    assert clip is None or clipped > 0

    agent.train(6, 8)
    for task, (network, target) in enumerate(trained):
        for stacked, by_hand in ((agent.policy.q_net, network), (agent.policy.q_net_target, target)):
            mine = alone(stacked, task).state_dict()
            for name, tensor in by_hand.state_dict().items():
                torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 0.5}, {"memory_angle": 0.0}])
def test_a_tasks_network_does_not_depend_on_the_other_tasks(settings):
    one = make(gradient_steps=0, **settings).learn(300)
    two = make(gradient_steps=0, **settings).learn(300)
    two.replay_buffer._rows[0, :, -2] *= 100  # other rewards in the first task
    for agent in (one, two):
        agent.train(5, 8)
    for left, right in zip(one.policy.q_net.parameters(), two.policy.q_net.parameters(), strict=True):
        assert not torch.equal(left[0], right[0])
        assert torch.equal(left[1:], right[1:])


def test_blind_observations_and_balancers_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^[^\n]*use task-aware observations$"):
        make(variant="blind")
    for balancer in ("gradnorm", EqualWeights(3)):
        with pytest.raises(ValueError, match=r"^[^\n]*share nothing that a balancer could balance[^\n]*$"):
            make(balancer=balancer)


def test_one_seed_gives_bitwise_identical_weights():
    one, two = make().learn(600), make().learn(600)
    assert_same(one.policy.state_dict(), two.policy.state_dict())
    other = make(seed=1).learn(600)
    assert not torch.equal(one.policy.q_net.weights[0], other.policy.q_net.weights[0])


def test_saved_and_loaded_it_predicts_and_goes_on_identically(tmp_path):
    agent = make(max_grad_norm=1.0, policy_kwargs={"net_arch": [32, 16]}).learn(300)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.zip")
    loaded = load_agent(tmp_path / "agent.zip", device="cpu")
    assert type(loaded) is IndependentDQN
    assert_same(agent.policy.state_dict(), loaded.policy.state_dict())
    observations = agent.env.reset()
    assert np.array_equal(
        agent.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    loaded.load_replay_buffer(tmp_path / "replay.zip")
    loaded.set_logger(agent.logger)
    for each in (agent, loaded):
        each.train(5, 8)
    assert_same(agent.policy.state_dict(), loaded.policy.state_dict())
    assert not torch.equal(loaded.policy.q_net.weights[0], load_agent(tmp_path / "agent.zip").policy.q_net.weights[0])


def test_sb3_evaluates_it_on_all_tasks_and_on_one():
    agent = make().learn(100)
    agent._knows_of_evaluate_policy = True  # which leaves out no task here
    for tasks in (["Standard", "Windy", "Heavy"], ["Windy"]):
        env = make_task_vec_env(tasks, envs_per_task=1, seed=3, one_hot_tasks=["Standard", "Windy", "Heavy"])
        assert np.isfinite(evaluate_policy(agent, env, n_eval_episodes=3)).all()


@pytest.mark.parametrize("kind", [MultiTaskDQN, IndependentDQN, BRC])
def test_load_agent_gives_back_what_was_saved(tmp_path, kind):
    kind("MlpPolicy", make_task_vec_env(envs_per_task=1), device="cpu", seed=0).save(str(tmp_path / "agent"))
    for path in (tmp_path / "agent.zip", tmp_path / "agent", str(tmp_path / "agent")):
        assert type(load_agent(path, device="cpu")) is kind
    with open(tmp_path / "agent.zip", "rb") as stream:
        assert type(load_agent(stream, device="cpu")) is kind
    other = MultiTaskDQN if kind is BRC else BRC
    with pytest.raises(CheckpointError, match=f"holds {kind.__name__}, not a {other.__name__}"):
        other.load(tmp_path / "agent.zip")


def test_load_agent_names_what_it_cannot_read(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere"):
        load_agent(tmp_path / "nowhere")
    make().save_replay_buffer(tmp_path / "replay.zip")
    kinds = "MultiTaskDQN, MultiTaskSAC, IndependentDQN, BRC"
    with pytest.raises(CheckpointError, match=rf"replay\.zip' holds no agent; agents are {kinds}"):
        load_agent(tmp_path / "replay.zip")
