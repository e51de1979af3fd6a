"""PopArt: the statistics are right, no change of them changes a value, and a factor of rewards changes no update."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from agents import BRC, IndependentDQN, MultiTaskDQN
from experiments.brc.train import main as train_brc
from mtrl import checkpoint
from mtrl.rl import MultiTaskSAC
from mtrl.rl.value_scales import RATE, ValueScales
from tests.mtrl.rl.test_reward_scales import NAMES, walker
from tests.mtrl.rl.test_sac import NET, Keep, Restore, columns, weights_of
from tests.mtrl.rl.test_sac import agent as actor_critic
from tests.support import assert_same, make_agent, next_batch

POPART: dict[str, Any] = {"value_normalization": "popart"}
OWN_HEADS = {"heads": "per_task", "net_arch": (16,)}
TANH = {"activation_fn": torch.nn.Tanh, "net_arch": (16,)}


def walking(*factors: float, **settings: Any) -> Any:
    return walker(*factors, **{"reward_scaling": "none", **POPART, **settings})


def sac(**settings: Any) -> Any:
    return actor_critic(**{**POPART, **settings})


def make(name: str) -> Any:
    """An agent by name. `chain` works without autograd, and the others with it."""
    lander = {"policy_kwargs": {"net_arch": (16,)}, **POPART}
    makers: dict[str, Any] = {
        "blind chain": lambda: make_agent(variant="blind", **lander),
        "aware chain": lambda: make_agent(**lander),
        "autograd": lambda: make_agent(**{**lander, "policy_kwargs": TANH}),
        "own heads": lambda: make_agent(**{**lander, "policy_kwargs": OWN_HEADS}),
        "independent": lambda: make_agent(kind=IndependentDQN, **lander),
        "scaled rewards": lambda: make_agent(reward_scaling="return", double_q=False, td_loss="mse", **lander),
        "blind sac": lambda: sac(env=columns(variant="blind")),
        "aware sac": sac,
        "sac by autograd": lambda: sac(policy_kwargs={**NET, **TANH}),
        "sac with own heads": lambda: sac(policy_kwargs={**NET, "heads": "per_task"}),
    }
    return makers[name]()


AGENTS = (
    *("blind chain", "aware chain", "autograd", "own heads", "independent", "scaled rewards"),
    *("blind sac", "aware sac", "sac by autograd", "sac with own heads"),
)


def critics_of(agent: Any) -> Any:
    """The online and the target network, as functions of a batch to outputs (C, T * B * A)."""
    policy = agent.policy
    if isinstance(agent, MultiTaskSAC):
        return [lambda b, one=one: one(b.observations, b.actions) for one in (policy.critic, policy.critic_target)]
    return [lambda b, one=one: one(b.observations).view(1, -1) for one in (policy.q_net, policy.q_net_target)]


def raw_values(agent: Any, batch: Any) -> list[Tensor]:
    """The values, in units of rewards, of the online and the target network, each (C, T * B * A)."""
    scales, found = agent.update.value_scales, []
    with torch.no_grad():
        for of_target, outputs in enumerate(critics_of(agent)):
            normalised = scales.normalised(outputs(batch), of_target=bool(of_target))
            found.append(torch.stack([scales.raw(one) for one in normalised]))
    return found


# ----------------------------------------------------------------- the statistics


def targets_of_several_sizes(steps: int, tasks: int = 3, rows: int = 7) -> Any:
    """Targets (steps, T, B) whose size and mean differ from task to task and change from step to step."""
    rng = np.random.default_rng(0)
    sizes = 1000.0 ** np.arange(tasks)[None, :, None] * np.exp(0.3 * rng.normal(size=(steps, 1, 1)).cumsum(0))
    return ((rng.normal(size=(steps, tasks, rows)) + 2) * sizes).astype(np.float32)


def test_the_statistics_are_running_moments() -> None:
    targets = targets_of_several_sizes(400)
    scales = ValueScales(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), 3)
    first = second = np.zeros(3)
    for count, batch in enumerate(targets.astype(np.float64), 1):
        scales.adapt(torch.tensor(batch.ravel(), dtype=torch.float32))
        rate = RATE / (1 - (1 - RATE) ** count)
        first = (1 - rate) * first + rate * batch.mean(1)
        second = (1 - rate) * second + rate * (batch**2).mean(1)
        np.testing.assert_allclose(scales.mean.numpy(), first, rtol=1e-9)
        np.testing.assert_allclose(scales.variance.numpy(), second - first**2, rtol=1e-8)
        np.testing.assert_allclose(scales.deviation.numpy(), np.sqrt(second - first**2), rtol=1e-8)


@pytest.mark.parametrize(("target", "deviation"), [(0.0, 1.0), (0.001, 1e-4), (-500.0, 5.0)])
def test_targets_that_never_differ_have_a_deviation(target: float, deviation: float) -> None:
    scales = ValueScales(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), 1)
    for _ in range(10):
        scales.adapt(torch.full((4,), target))
    assert scales.deviation.item() == pytest.approx(deviation)


def test_a_mean_that_is_far_from_0_keeps_the_variance() -> None:
    scales = ValueScales(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), 1)
    targets = torch.randn(500, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for batch in targets + 1e8:
        scales.adapt(batch)
    assert scales.variance.item() == pytest.approx(1, rel=0.05)


# ----------------------------------------------------------------- no change of the statistics changes a value


@pytest.mark.parametrize("name", AGENTS)
def test_values_stay_what_they_were_whatever_the_statistics_become(name: str) -> None:
    agent = make(name).learn(160)
    assert agent._n_updates > 20
    batch = agent.replay_buffer.sample(8)
    tasks = len(agent.task_names)
    for targets in targets_of_several_sizes(30, tasks):
        before = raw_values(agent, batch)
        old = agent.update.value_scales.deviation.clone()
        agent.update.value_scales.adapt(torch.tensor(targets.ravel()))
        assert not torch.equal(old, agent.update.value_scales.deviation)
        for one, other in zip(before, raw_values(agent, batch), strict=True):
            by_task, now = (values.view(len(one), tasks, -1) for values in (one, other))
            largest = torch.maximum(by_task.abs().amax((0, 2)), agent.update.value_scales.mean.abs().float())
            assert ((by_task - now).abs().amax((0, 2)) <= 4e-6 * largest).all()  # digits of float32


@pytest.mark.parametrize("name", AGENTS)
def test_the_target_network_becomes_the_online_network(name: str) -> None:
    agent = make(name).learn(160)
    online, target = raw_values(agent, agent.replay_buffer.sample(8))
    assert not torch.allclose(online, target)
    agent.update.update_target(1.0)
    online, target = raw_values(agent, agent.replay_buffer.sample(8))
    torch.testing.assert_close(online, target)


def test_before_the_first_batch_all_values_are_0() -> None:
    agent = walking(1, 1000)
    agent.learn(50)
    assert agent._n_updates == 0
    batch = agent.replay_buffer.sample(4)
    with torch.no_grad():
        assert torch.equal(agent.update.targets(batch), batch.rewards)


def test_a_batch_that_is_not_finite_changes_nothing() -> None:
    agent = walking(1, 1000).learn(200)
    before = copy.deepcopy(agent.update.saved_state()["value_scales"])
    batch = agent.replay_buffer.sample(8)
    batch.rewards[9] = torch.nan
    weights = agent.update.weights.clone()
    with pytest.raises(FloatingPointError, match="the loss of task walk 1 is nan"):
        agent.update(batch)
    assert torch.equal(weights, agent.update.weights)
    assert str(before) == str(agent.update.saved_state()["value_scales"])


# ----------------------------------------------------------------- gradients are those of the plain formulas


def reference(agent: Any) -> tuple[Any, Tensor, Tensor, Any]:
    """A copy of the learned networks, logarithms of scales and shifts (C, T) as leaves, and the statistics as rows."""
    scales = agent.update.value_scales
    log_scale, shift = scales._online.clone().requires_grad_()
    return copy.deepcopy(agent.policy), log_scale, shift, scales


def expected_rows(losses: Tensor, network: Any, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of each loss (T, D) by the parameters, and that of the sum by the scales and shifts."""
    parameters = list(network.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    of_leaves = torch.autograd.grad(losses.sum(), leaves, retain_graph=True)
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]), torch.cat(
        [leaf.flatten() for leaf in of_leaves]
    )


@pytest.mark.parametrize("name", ["blind chain", "aware chain", "autograd", "scaled rewards"])
def test_gradients_of_q_learning_are_those_of_autograd(name: str) -> None:
    agent = make(name).learn(160)
    update, tasks = agent.update, 3
    batch = next_batch(agent, 8)
    rows = update.task_gradients(batch).jacobian.clone()
    found = update.value_scales._gradient.clone()
    policy, log_scale, shift, scales = reference(agent)
    sigma, mu = (part.float().repeat_interleave(8) for part in (scales.deviation, scales.mean))
    a, c = (part[0].float().repeat_interleave(8) for part in (log_scale.exp(), shift))
    target_a, target_c = (part[0].float().repeat_interleave(8) for part in (scales._target[0].exp(), scales._target[1]))
    with torch.no_grad():
        after = policy.q_net_target(batch.next_observations)
        chooser = policy.q_net(batch.next_observations) if agent.settings.double_q else after
        best = after.gather(1, chooser.argmax(1, keepdim=True))[:, 0]
        targets = update.rewards(batch) + batch.discounts * (sigma * (target_a * best + target_c) + mu)
    taken = a * policy.q_net(batch.observations).gather(1, batch.actions[:, None])[:, 0] + c
    loss = F.mse_loss if agent.settings.td_loss == "mse" else F.huber_loss
    more = {} if agent.settings.td_loss == "mse" else {"delta": agent.settings.huber_delta}
    losses = loss(taken, (targets - mu) / sigma, reduction="none", **more).view(tasks, 8).mean(1)
    expected, of_scales = expected_rows(losses, policy.q_net, [log_scale, shift])
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found, of_scales, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["blind sac", "aware sac", "sac by autograd"])
def test_gradients_of_the_actor_critic_are_those_of_autograd(name: str) -> None:
    agent = make(name).learn(160)
    update, tasks = agent.update, 2
    batch, temperatures = agent.replay_buffer.sample(8), agent.update.temperatures
    with torch.no_grad():
        targets = update.targets(batch, temperatures)
    rows = update.critic_gradients(batch, targets.clone()).jacobian.clone()
    found = update.value_scales._gradient.clone()
    noise = update.noise(batch)
    of_actor = update.actor_gradients(batch, temperatures, noise)
    actor_rows, actor_losses = of_actor.jacobian.clone(), of_actor.losses.clone()
    policy, log_scale, shift, scales = reference(agent)
    sigma, mu, alpha = (
        part.float().repeat_interleave(8) for part in (scales.deviation, scales.mean, temperatures.double())
    )
    a, c = (part.float().repeat_interleave(8, 1) for part in (log_scale.exp(), shift))
    errors = a * policy.critic(batch.observations, batch.actions) + c - (targets - mu) / sigma
    losses = 0.5 * errors.square().sum(0).view(tasks, 8).mean(1)
    expected, of_scales = expected_rows(losses, policy.critic, [log_scale, shift])
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found, of_scales, rtol=1e-3, atol=1e-4)
    actions, density = policy.actor.sample(batch.observations, noise)
    values = (sigma * (a * policy.critic(batch.observations, actions) + c) + mu).amin(0)
    losses = ((alpha * density - values) / sigma).view(tasks, 8).mean(1)
    torch.testing.assert_close(actor_losses, losses.detach(), rtol=1e-4, atol=1e-4)
    expected, _ = expected_rows(losses, policy.actor, [log_scale, shift])
    torch.testing.assert_close(actor_rows, expected, rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------- whole trainings


def same_but_for_the_factor(agents: list[Any]) -> None:
    for agent in agents:
        agent.learn(300)
    assert agents[0]._n_updates > 100
    assert_same(*(agent.policy.state_dict() for agent in agents))
    first, second = (agent.update.value_scales.deviation for agent in agents)
    assert torch.equal(second, first * torch.tensor([1024, 1 / 64]))


@pytest.mark.parametrize("balancer", NAMES)
def test_a_factor_of_a_tasks_rewards_changes_no_update(balancer: str) -> None:
    same_but_for_the_factor([walking(*factors, balancer=balancer) for factors in ((1, 1), (1024, 1 / 64))])


def test_a_factor_changes_no_update_of_networks_or_layers_of_the_tasks_own() -> None:
    same_but_for_the_factor([walking(*factors, kind=IndependentDQN) for factors in ((1, 1), (1024, 1 / 64))])
    heads = {"policy_kwargs": OWN_HEADS}
    same_but_for_the_factor([walking(*factors, **heads) for factors in ((1, 1), (1024, 1 / 64))])


def test_without_normalisation_there_is_nothing_of_it() -> None:
    agent = walking(1, 1000, value_normalization="none").learn(100)
    assert agent.update.value_scales is None
    assert "value_scales" not in agent.training_state()
    assert agent.update.scales() == {}


EVERY: dict[str, Any] = {
    "plain": {},
    "scaled rewards": {"reward_scaling": "return", "balancer": "rgb", "n_step": 1},
    "own heads": {"policy_kwargs": OWN_HEADS, "balancer": "pcgrad"},
    "guided": {"balancer": "aim", "on_nonfinite": "skip", "td_loss": "mse"},
}


@pytest.mark.parametrize("name", EVERY)
def test_a_training_that_goes_on_from_its_state_ends_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, keep = walking(1, 1000, **EVERY[name]), Keep(at=160)
    whole.learn(320, keep)
    checkpoint.save(tmp_path / "state", keep.state)
    model = walking(1, 1000, **EVERY[name])
    model.learn(320, Restore(checkpoint.load(tmp_path / "state"), keep.env))
    assert_same(whole.policy.state_dict(), model.policy.state_dict())
    assert str(whole.update.saved_state()) == str(model.update.saved_state())


@pytest.mark.parametrize("heads", ["shared", "per_task"])
def test_a_training_of_an_actor_critic_goes_on_bit_for_bit(heads: str, tmp_path: Path) -> None:
    kwargs = {"policy_kwargs": {**NET, "heads": heads}}
    whole, keep = sac(**kwargs), Keep(at=120)
    whole.learn(240, keep)
    checkpoint.save(tmp_path / "state", keep.state)
    model = sac(**kwargs)
    model.learn(240, Restore(checkpoint.load(tmp_path / "state"), keep.env))
    assert torch.equal(weights_of(model), weights_of(whole))
    assert str(whole.update.saved_state()) == str(model.update.saved_state())


def test_a_saved_model_has_the_values_that_it_had(tmp_path: Path) -> None:
    agent = walking(1, 1000).learn(200)
    agent.save(tmp_path / "m.zip")
    loaded = MultiTaskDQN.load(tmp_path / "m.zip", env=walking(1, 1000).get_env(), device="cpu")
    batch = agent.replay_buffer.sample(8)
    for one, other in zip(raw_values(agent, batch), raw_values(loaded, batch), strict=True):
        assert torch.equal(one, other)
    assert loaded.learn(100, reset_num_timesteps=False)._n_updates > agent._n_updates
    agent.save_weights(tmp_path / "w.safetensors")
    playing = MultiTaskDQN.load_weights(tmp_path / "w.safetensors")
    observations = batch.observations.numpy()[:, :4]
    first, second = (one.predict(observations, deterministic=True)[0] for one in (agent, playing))
    assert np.array_equal(first, second)


def test_parameters_have_the_units_of_their_values(tmp_path: Path) -> None:
    for make_one in (lambda: walking(1, 1000), sac):
        agent, other = make_one().learn(200), make_one()
        batch = agent.replay_buffer.sample(8)
        agent.save(tmp_path / "m.zip")
        for parameters in (copy.deepcopy(agent.get_parameters()), tmp_path / "m.zip"):
            other.learn(160).set_parameters(parameters)
            for one, another in zip(raw_values(agent, batch), raw_values(other, batch), strict=True):
                assert torch.equal(one, another)


def test_scales_are_logged() -> None:
    agent = walking(1, 1000).learn(200)
    found = agent.update.scales()
    assert found["value_scale"][1] > 100 * found["value_scale"][0]
    assert set(found) == {"value_scale", "value_mean"}


# ----------------------------------------------------------------- refusals


def changed(name: str, value: Any) -> Any:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        changed("count", -1),
        changed("mean", torch.tensor([torch.nan, 0], dtype=torch.float64)),
        changed("mean", torch.zeros(3, dtype=torch.float64)),
        changed("variance", -torch.ones(2, dtype=torch.float64)),
        changed("variance", torch.tensor([torch.inf, 1], dtype=torch.float64)),
        changed("variance", np.ones(2)),
        changed("online", torch.full((2, 1, 2), torch.nan, dtype=torch.float64)),
        changed("target", torch.zeros(2, 2, 2, dtype=torch.float64)),
        changed("optimizer", {"state": {}, "param_groups": []}),
    ],
)
def test_scales_that_cannot_be_are_refused(change: Any) -> None:
    agent = walking(1, 1000).learn(100)
    state = agent.training_state()
    agent.set_training_state(state)
    with pytest.raises(ValueError, match=r"^value_scales[^\n]*$"):
        agent.set_training_state({**state, "value_scales": change(copy.deepcopy(state["value_scales"]))})


def test_a_loaded_model_keeps_its_kind_of_values(tmp_path: Path) -> None:
    plain, normalised = (walking(1, 1000, value_normalization=kind) for kind in ("none", "popart"))
    plain.learn(100).save(tmp_path / "plain.zip")
    normalised.learn(100).save(tmp_path / "normalised.zip")
    state = checkpoint.load(tmp_path / "plain.zip")
    del state["settings"]["value_normalization"]  # as files were before there was the setting
    checkpoint.save(tmp_path / "old.zip", state)
    assert MultiTaskDQN.load(tmp_path / "old.zip", value_normalization="none").update.value_scales is None
    for name, other in (("plain", "popart"), ("old", "popart"), ("normalised", "none")):
        with pytest.raises(checkpoint.CheckpointError, match=r"value_normalization can't be changed when a model is"):
            MultiTaskDQN.load(tmp_path / f"{name}.zip", value_normalization=other)
    state = checkpoint.load(tmp_path / "normalised.zip")
    del state["value_scales"]
    checkpoint.save(tmp_path / "without.zip", state)
    with pytest.raises(checkpoint.CheckpointError, match=r"'value_scales' is missing$"):
        MultiTaskDQN.load(tmp_path / "without.zip")


def test_a_wrong_word_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"^unknown value_normalization 'art'; choose from none, popart$"):
        make_agent(value_normalization="art")


def test_brc_has_values_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^value_normalization is 'popart'; it must be 'none' here, because the val"):
        walking(1, kind=BRC, policy_kwargs={"width": 8})
    (tmp_path / "s.json").write_text(json.dumps(POPART))
    with pytest.raises(SystemExit) as stop:
        train_brc(["--settings", str(tmp_path / "s.json"), "--results-dir", str(tmp_path / "runs")])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
