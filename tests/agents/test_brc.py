import copy
import math
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.nn import functional

from agents import BRC, BroNet, load_agent
from agents.brc import ReturnScale, project
from envs import make_task_vec_env
from mtrl.gradients import TaskMajorEngine
from tests.support import assert_same, make_agent, next_batch

NETWORK = {"width": 24, "num_bins": 21}
make = partial(make_agent, BRC, gradient_steps=1, policy_kwargs=NETWORK)


def observations(count, num_tasks=3):
    state = torch.randn(count, 8)
    return torch.cat((state, functional.one_hot(torch.randint(num_tasks, (count,)), num_tasks)), 1)


# ------------------------------------------------------------------------------------------------ network


@pytest.mark.parametrize("num_tasks", [0, 3])
@pytest.mark.parametrize(("width", "depth", "bins", "dim"), [(128, 2, 101, 32), (16, 1, 2, 5), (7, 3, 11, 1)])
def test_parameter_count(num_tasks, width, depth, bins, dim):
    network = BroNet(8 + num_tasks, 4, num_tasks, embedding_dim=dim, width=width, depth=depth, num_bins=bins)
    inputs = 8 + (dim if num_tasks else 0)
    dense_and_norm = width * width + width + 2 * width
    formula = num_tasks * dim + (inputs * width + 3 * width) + 2 * depth * dense_and_norm + (width + 1) * 4 * bins
    assert sum(parameter.numel() for parameter in network.parameters()) == formula


@pytest.mark.parametrize("num_tasks", [0, 3])
def test_network_is_the_published_one(num_tasks):
    """Against the formulas written out on the raw tensors."""
    network = BroNet(8 + num_tasks, 4, num_tasks, width=16, depth=2, num_bins=5, v_max=2.0)
    for parameter in network.parameters():  # away from the initial zeros and ones
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = observations(30) if num_tasks else torch.randn(30, 8)

    def dense_norm(x, dense, norm):
        return functional.layer_norm(x @ dense.weight.T + dense.bias, (16,), norm.weight, norm.bias)

    h = x
    if num_tasks:
        embedded = network.embedding.weight[x[:, 8:].argmax(1)]
        h = torch.cat((x[:, :8], embedded / embedded.norm(dim=1, keepdim=True)), 1)
    h = dense_norm(h, network.first[0], network.first[1]).relu()
    for block in network.blocks:
        h = h + dense_norm(dense_norm(h, block[0], block[1]).relu(), block[3], block[4])
    logits = (h @ network.last.weight.T + network.last.bias).reshape(30, 4, 5)
    torch.testing.assert_close(network.logits(x), logits)
    values = (logits.softmax(2) * torch.tensor([-2.0, -1, 0, 1, 2])).sum(2)
    torch.testing.assert_close(network(x), values)


def test_embedding_has_length_one_for_any_weights():
    network = BroNet(11, 4, 3)
    inputs = []
    network.first[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    x = observations(50)
    for scale in (1.0, 1e-3, 1e3):
        network.embedding.weight.data *= scale
        network(x)
        torch.testing.assert_close(inputs[-1][:, 8:].norm(dim=1), torch.ones(50))
        torch.testing.assert_close(inputs[-1][:, :8], x[:, :8])


def test_embedding_starts_at_about_the_length_that_it_is_normalised_to():
    lengths = BroNet(8 + 200, 4, 200).embedding.weight.norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1, abs=0.05)


def test_dense_layers_start_orthogonal_with_gain_root_two():
    layers = [module for module in BroNet(11, 4, 3).modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 6
    for layer in layers:
        wide = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        torch.testing.assert_close(wide @ wide.T, 2 * torch.eye(len(wide)), rtol=0, atol=1e-4)
        assert not layer.bias.any()


def test_task_major_engine_has_a_rule_for_every_layer():
    for num_tasks in (0, 3):
        network = BroNet(8 + num_tasks, 4, num_tasks, width=16, depth=2, num_bins=5).double()
        state, task = torch.randn(24, 8).double(), torch.arange(3).repeat_interleave(8)
        x = torch.cat((state, functional.one_hot(task, 3).double()), 1) if num_tasks else state

        def losses(network=network, x=x):
            return network.logits(x).log_softmax(2)[:, 1, 2].view(3, 8).mean(1) ** 2

        engine = TaskMajorEngine(network, 3, network.last_shared_layer)
        with engine.record():
            recorded = losses()
        rows = engine.backward(recorded)
        for row, loss in zip(rows.jacobian, losses(), strict=True):
            grads = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
            torch.testing.assert_close(row, torch.cat([grad.flatten() for grad in grads]))
        columns = engine.layout.slice_of(network.blocks[-1][3].weight)
        torch.testing.assert_close(rows.layer_norms, rows.jacobian[:, columns].norm(dim=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width is 0; it must be between 1 and 65536"),
        ({"depth": 0}, "depth is 0"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"num_bins": 1}, "num_bins is 1; it must be between 2 and 100000"),
        ({"v_max": 0.0}, "v_max is 0.0; it must be above 0 and finite"),
        ({"v_max": math.inf}, "v_max is inf"),
        ({"v_max": math.nan}, "v_max is nan"),
    ],
)
def test_network_sizes_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        BroNet(11, 4, 3, **settings)


# ------------------------------------------------------------------------------------------------ projection


def slow_projection(probabilities, targets, support):
    bins, step = len(support), support[1] - support[0]
    result = np.zeros_like(probabilities)
    for row in range(len(probabilities)):
        for mass, target in zip(probabilities[row], targets[row], strict=True):
            for index in range(bins):  # a triangle of the width of a bin around each centre
                share = 1 - abs(min(max(target, support[0]), support[-1]) - support[index]) / step
                result[row, index] += mass * max(share, 0.0)
    return result


@pytest.mark.parametrize("bins", [2, 5, 101])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection(bins, spread, dtype):
    generator = torch.Generator().manual_seed(bins)
    support = torch.linspace(-10, 10, bins, dtype=dtype)
    probabilities = torch.randn(16, bins, generator=generator, dtype=dtype).softmax(1)
    targets = torch.randn(16, 1, generator=generator, dtype=dtype) + spread * support
    targets[0], targets[1] = support, 0.0  # on the centres; all in one place, as after a terminal step
    projected = project(probabilities, targets, support)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    reference = slow_projection(probabilities.double().numpy(), targets.double().numpy(), support.double().numpy())
    torch.testing.assert_close(projected.double(), torch.from_numpy(reference), **tolerance)
    assert (projected >= 0).all()
    torch.testing.assert_close(projected.sum(1), torch.ones(16, dtype=dtype), **tolerance)
    torch.testing.assert_close(projected[0], probabilities[0], **tolerance)
    inside = (probabilities * targets.clamp(-10, 10)).sum(1)
    torch.testing.assert_close(projected @ support, inside, rtol=1e-4, atol=1e-4)


def test_what_lies_beyond_the_support_goes_to_its_end():
    support = torch.linspace(-10, 10, 5)
    projected = project(torch.full((2, 5), 0.2), torch.tensor([[1e9] * 5, [-1e9] * 5]), support)
    torch.testing.assert_close(projected, torch.tensor([[0.0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]))


# ------------------------------------------------------------------------------------------------ return scale


def largest_return(rewards, ends, terminals, gamma):
    """The largest absolute return of one column's stream, each from every step to its episode's end."""
    largest, start = 0.0, 0
    for end in np.flatnonzero(ends):
        episode = rewards[start : end + 1]
        beyond = 0.0 if terminals[end] else np.mean(episode) / (1 - gamma)
        for first in range(len(episode)):
            rest = episode[first:]
            value = sum(gamma**k * r for k, r in enumerate(rest)) + gamma ** len(rest) * beyond
            largest = max(largest, abs(value))
        start = end + 1
    return largest


@pytest.mark.parametrize("columns_per_task", [1, 3])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_return_scale_is_the_largest_return(columns_per_task, gamma):
    rng = np.random.default_rng(columns_per_task)
    steps, columns = 120, 3 * columns_per_task
    rewards = (rng.normal(size=(steps, columns)) * np.repeat([1, 10, 0.1], columns_per_task)).astype(np.float32)
    ends = rng.random((steps, columns)) < 0.1
    terminals = ends & (rng.random((steps, columns)) < 0.5)
    scale = ReturnScale(3, gamma)
    for step in range(steps):
        scale.add(rewards[step], ends[step], terminals[step])
    streams = [largest_return(rewards[:, c].astype(float), ends[:, c], terminals[:, c], gamma) for c in range(columns)]
    wanted = np.reshape(streams, (3, columns_per_task)).max(1)
    np.testing.assert_allclose(scale.largest, wanted)
    np.testing.assert_allclose(scale.divisors, wanted)


def test_return_scale_before_the_first_episode_and_without_rewards_is_one():
    scale = ReturnScale(2, 0.9)
    never, yes = np.zeros(2, bool), np.ones(2, bool)
    scale.add(np.array([5, 0], np.float32), never, never)
    assert scale.divisors.tolist() == [1, 1]
    scale.add(np.array([0, 0], np.float32), yes, yes)
    assert scale.divisors.tolist() == [5, 1]


class FiveSteps(gymnasium.Env):
    """A reward of 1 in each of five steps, ended for good or by a time limit."""

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, truncated):
        self.truncated = truncated

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        over = self.count == 5
        return np.full(1, self.count, np.float32), 1.0, over and not self.truncated, over and self.truncated, {}


@pytest.mark.parametrize(("truncated", "wanted"), [(False, (1 - 0.9**5) / (1 - 0.9)), (True, 10)])
def test_return_scale_follows_the_environments(truncated, wanted):
    env = DummyVecEnv([lambda: FiveSteps(truncated)] * 2)
    agent = BRC("MlpPolicy", env, gamma=0.9, learning_starts=100, buffer_size=100, batch_size=1, policy_kwargs=NETWORK)
    agent.learn(14)
    assert agent.return_scale.largest == pytest.approx([wanted])
    for _ in range(3):  # the environment is reset: what was begun is not the start of the next episode
        agent.learn(14)
    agent.learn(6, reset_num_timesteps=False)  # it is not, and goes on
    assert agent.return_scale.largest == pytest.approx([wanted])


# ------------------------------------------------------------------------------------------------ agent


@pytest.mark.parametrize("variant", ["aware", "blind"])
@pytest.mark.parametrize("double_q", [True, False])
def test_an_update_is_plain_autograd_and_adamw(variant, double_q):
    agent = make(variant, double_q=double_q, weight_decay=1.0, learning_rate=3e-3, tau=0.005, memory_angle=0).learn(900)
    assert (agent.return_scale.largest > 0).all()
    network, target = copy.deepcopy(agent.policy.q_net), copy.deepcopy(agent.policy.q_net_target)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1.0)
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
    choices = [each(batch.next_observations).argmax(1) for each in (network, target)]
    assert not torch.equal(*choices)  # or `double_q` would make no difference

    support = torch.linspace(-10, 10, 21)
    losses = []
    for task in range(3):
        rows, each = slice(8 * task, 8 * task + 8), torch.arange(8)
        with torch.no_grad():
            after = target.logits(batch.next_observations[rows]).softmax(2)
            by = (network if double_q else target)(batch.next_observations[rows]).argmax(1)
            rewards = batch.rewards[rows] * (10 / agent.return_scale.largest[task])
            goes_to = rewards[:, None] + batch.discounts[rows, None] * support
            numbers = [x.double().numpy() for x in (after[each, by], goes_to, support)]
            wanted = torch.from_numpy(slow_projection(*numbers)).float()
        got = network.logits(batch.observations[rows])[each, batch.actions[rows]]
        losses.append(nn.CrossEntropyLoss()(got, wanted))
    sum(losses).backward()
    optimizer.step()

    agent.train(gradient_steps=1, batch_size=8)
    for mine, theirs in zip(agent.policy.q_net.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


def test_the_scale_of_a_tasks_rewards_does_not_matter():
    agent = make().learn(900)
    batch = agent.replay_buffer.sample(50)
    before = agent.update.targets(batch)
    agent.return_scale.largest *= [1, 1024, 1 / 64]
    scaled = batch.rewards.view(3, -1) * torch.tensor([[1], [1024], [1 / 64]])
    torch.testing.assert_close(agent.update.targets(batch._replace(rewards=scaled.flatten())), before)
    assert not torch.allclose(agent.update.targets(batch), before)


def test_returns_fit_the_bins():
    agent = make().learn(1200)
    assert (agent.return_scale.largest > 1).all()
    # Discounted from its first step an episode's return, in normalised units, is within [-10, 10].
    batch = agent.replay_buffer.sample(500)
    unit = 10 / agent.return_scale.divisors
    over = batch.discounts.view(3, -1) == 0
    assert over.any()
    normalised = batch.rewards.view(3, -1) * torch.from_numpy(unit)[:, None]
    assert (normalised[over].abs() <= 10 + 1e-4).all()  # the last reward is the last return


@pytest.mark.parametrize("variant", ["aware", "blind"])
@pytest.mark.parametrize("balancer", ["equal", "gradnorm", "pcgrad", "aim"])
def test_saved_and_loaded_it_predicts_and_goes_on_identically(tmp_path, variant, balancer):
    agent = make(variant, balancer=balancer, weight_decay=0.01).learn(700)
    assert (agent.return_scale.largest > 0).any()
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.zip")
    loaded = load_agent(tmp_path / "agent.zip", device="cpu")
    assert type(loaded) is BRC
    assert (loaded.variant, loaded.settings.weight_decay) == (variant, 0.01)
    assert loaded.return_scale.largest.tolist() == agent.return_scale.largest.tolist()
    batch = agent.env.reset()
    assert np.array_equal(agent.predict(batch, deterministic=True)[0], loaded.predict(batch, deterministic=True)[0])
    loaded.load_replay_buffer(tmp_path / "replay.zip")
    loaded.set_logger(agent.logger)
    for each in (agent, loaded):
        each.train(5, 8)
    assert_same(agent.policy.state_dict(), loaded.policy.state_dict())
    assert not torch.equal(loaded.policy.q_net.last.weight, load_agent(tmp_path / "agent.zip").policy.q_net.last.weight)


def test_saving_changes_nothing_and_loading_shares_nothing(tmp_path):
    agent = make().learn(700)
    agent.save(tmp_path / "agent.zip")
    before = agent.return_scale.largest.copy()
    loaded = BRC.load(tmp_path / "agent.zip", env=make_task_vec_env(envs_per_task=1, seed=9), device="cpu")
    loaded.learn(700, reset_num_timesteps=False)
    assert (loaded.return_scale.largest >= before).all()
    assert agent.return_scale.largest.tolist() == before.tolist()


@pytest.mark.parametrize("balancer", ["equal", "gradnorm"])
def test_one_seed_gives_bitwise_identical_weights(balancer):
    one, two = make(balancer=balancer).learn(600), make(balancer=balancer).learn(600)
    assert_same(one.policy.state_dict(), two.policy.state_dict())
    assert one.return_scale.largest.tolist() == two.return_scale.largest.tolist()


def test_gradnorm_measures_on_the_last_hidden_layer():
    agent = make(balancer="gradnorm", balancer_kwargs={"warmup_steps": 5}).learn(400)
    assert agent.diagnostics["balancer/Windy/weight"] != 1
    columns = agent.update.engine.layout.slice_of(agent.policy.q_net.blocks[-1][3].weight)
    assert agent.update.engine._last_layer == columns


def test_sb3_evaluates_it():
    agent = make().learn(100)
    with pytest.warns(UserWarning, match="evaluate_policy shares its episodes out"):
        assert np.isfinite(evaluate_policy(agent, make_task_vec_env(envs_per_task=1, seed=3), n_eval_episodes=3)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, "gamma is 1.0; it must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be at least 0"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"policy_kwargs": {"width": 0}}, "width is 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_model_of_an_earlier_release_is_read():
    agent = load_agent(Path(__file__).with_name("brc_0_1_0.zip"), device="cpu")  # of the commit dfc25f8
    assert type(agent) is BRC
    assert (agent.settings.n_step, agent.settings.weight_decay, agent.settings.exploration_decay) == (5, 0.5, 0.9)
    assert (agent.variant, agent.task_names, agent.num_timesteps) == ("aware", ("Standard", "Windy", "Heavy"), 900)
    assert agent.policy.q_net.last.weight.shape == (4 * 3, 4)
    assert (agent.return_scale.largest > 0).all()
    assert agent.balancer_name == "gradnorm"
