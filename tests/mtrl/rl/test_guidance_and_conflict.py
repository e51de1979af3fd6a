"""What the agent adds around a balancer: AIM's held-out transitions, and measurements of conflict."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import BRC, MultiTaskDQN
from envs import make_task_env, make_task_vec_env
from mtrl.conflict import conflict_metrics
from mtrl.rl import SharedUpdate
from tests.support import SMALL, assert_same, make_agent, next_batch

make = partial(make_agent, balancer="aim", n_step=1, buffer_size=9_000, gradient_steps=1)
PAIRS = ("Standard_Windy", "Standard_Heavy", "Windy_Heavy")


class RecordingUpdate(SharedUpdate):
    """Keeps every batch it trains on and every one that guides."""

    def __init__(self, *args, **kwargs):
        self.trained, self.guided, self.guiding = [], [], False
        super().__init__(*args, **kwargs)

    def targets(self, batch):
        (self.guided if self.guiding else self.trained).append(batch)
        return super().targets(batch)

    def chain_guidance(self, step):
        self.guiding = True
        gradient = super().chain_guidance(step)
        self.guiding = False
        return gradient


class Recording(MultiTaskDQN):
    update_type = RecordingUpdate


class Watch(BaseCallback):
    """Keeps the rewards and actions of every step, (steps, columns)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_step(self):
        self.seen.append(np.column_stack((self.locals["actions"], self.locals["rewards"])))
        return True


def rows(buffer):
    return buffer.state_dict()["rows"]  # (T, N, 2 O + 3)


def as_set(rows):
    return {row.tobytes() for row in rows.reshape(-1, rows.shape[-1])}


def batch_rows(batches):
    parts = [
        torch.column_stack((b.observations, b.next_observations, b.actions, b.rewards, b.discounts)) for b in batches
    ]
    return torch.cat(parts).float().numpy()


# ------------------------------------------------------------------------------------------------ guidance


def test_replay_and_guidance_set_are_disjoint_and_together_everything():
    agent, watch = make(Recording, guidance_share=0.3), Watch()
    agent.learn(2_400, watch)
    trained_on, held_out = rows(agent.replay_buffer), rows(agent.guidance_buffer)
    together = np.concatenate((trained_on, held_out), 1)
    wanted = np.concatenate(watch.seen).reshape(-1, 3, 2, 2).transpose(1, 0, 2, 3).reshape(3, -1, 2)
    assert together.shape[1] == wanted.shape[1] == 800

    def sort(pairs):
        return pairs[np.lexsort(pairs.T)]

    for task in range(3):
        np.testing.assert_array_equal(sort(together[task, :, -3:-1]), sort(wanted[task].astype(np.float32)))
        assert (held_out[task, :, 8:11].argmax(1) == task).all()
    assert not as_set(trained_on) & as_set(held_out)
    # 400 steps, each held out with probability 0.3: 120 expected, 9 their standard deviation.
    assert 75 < held_out.shape[1] / 2 < 165

    assert len(agent.update.trained) == agent._n_updates > 300
    assert as_set(batch_rows(agent.update.trained)) <= as_set(trained_on)
    assert len(agent.update.guided) == agent._n_updates  # the policy's interval is 1
    assert as_set(batch_rows(agent.update.guided)) <= as_set(held_out)


def test_both_reach_equally_far_back_and_together_hold_what_was_asked_for():
    agent = make(guidance_share=0.25, buffer_size=1_200)
    assert (agent.replay_buffer.capacity, agent.guidance_buffer.capacity) == (300, 100)
    assert make(guidance_share=0.001, buffer_size=1_200).guidance_buffer.capacity == 1


@pytest.mark.parametrize(("balancer", "settings"), [("aim", {"guidance": "none"}), ("equal", {}), ("pcgrad", {})])
def test_without_guidance_nothing_is_held_out(balancer, settings):
    agent = make(balancer=balancer, balancer_kwargs=settings, guidance_share=0.9).learn(300)
    assert agent.guidance_buffer is None
    assert len(agent.replay_buffer) == 100
    assert agent.replay_buffer.capacity == 3_000


@pytest.mark.parametrize("thresholds", ["matrix", "scalar"])
def test_guidance_alone_moves_tau(thresholds):
    alone = {"magnitude_weight": 0.0, "progress_weight": 0.0, "tau": thresholds}
    guided = make(balancer_kwargs=alone).learn(300).balancer
    off_diagonal = guided.tau[~torch.eye(3, dtype=torch.bool)] if thresholds == "matrix" else guided.tau
    assert (off_diagonal != 0).all()
    assert (guided.alignment != 0).any()
    assert not make(balancer_kwargs={**alone, "guidance": "none"}).learn(300).balancer.tau.any()


@pytest.mark.parametrize("kind", [MultiTaskDQN, BRC])
@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_one_seed_gives_bitwise_identical_weights(kind, variant):
    one, two = make(kind, variant=variant).learn(400), make(kind, variant=variant).learn(400)
    assert_same(one.policy.state_dict(), two.policy.state_dict())
    assert_same(one.balancer.state_dict(), two.balancer.state_dict())


def test_replay_with_guidance_and_model_come_back_and_go_on_identically(tmp_path):
    agent = make().learn(300)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.zip")
    loaded = MultiTaskDQN.load(tmp_path / "agent.zip", device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay.zip")
    for name in ("replay_buffer", "guidance_buffer"):
        assert np.array_equal(rows(getattr(agent, name)), rows(getattr(loaded, name)))
    loaded.set_logger(agent.logger)
    before = agent.balancer.tau.clone()
    for each in (agent, loaded):
        each.train(5, 8)
    assert_same(agent.policy.state_dict(), loaded.policy.state_dict())
    assert_same(agent.balancer.state_dict(), loaded.balancer.state_dict())
    assert not torch.equal(before, agent.balancer.tau)


def test_a_loaded_agent_learns_on_with_empty_replays(tmp_path):
    for seed in range(3):
        make(seed=seed).learn(200).save(tmp_path / "agent.zip")
        env = make_task_vec_env(envs_per_task=1, seed=seed)
        changed = {"guidance_share": 0.6, "learning_starts": 0}
        agent = MultiTaskDQN.load(tmp_path / "agent.zip", env=env, device="cpu", **changed)
        before, updates = agent.balancer.tau.clone(), agent._n_updates
        agent.learn(60, reset_num_timesteps=False)
        assert len(agent.guidance_buffer) + len(agent.replay_buffer) == 20
        assert agent._n_updates > updates
        assert not torch.equal(before, agent.balancer.tau)


def test_replay_of_an_agent_without_guidance_waits_for_something_held_out(tmp_path):
    make(balancer="equal").learn(300).save_replay_buffer(tmp_path / "replay.zip")
    agent = make(learning_starts=0)
    agent.load_replay_buffer(tmp_path / "replay.zip")
    agent.learn(60)
    assert agent._n_updates == 10
    assert len(agent.guidance_buffer) > 0


def test_training_may_start_at_once():
    agent = make(learning_starts=0, guidance_share=0.8).learn(120)
    assert 0 < agent._n_updates < 20


def test_guidance_looks_one_step_of_the_present_learning_rate_ahead():
    class Record(BaseCallback):
        def _on_rollout_start(self):
            guide = self.model.balancer._guide
            if guide is not None:
                seen.append((guide.eta, self.model.policy.optimizer.param_groups[0]["lr"]))

        def _on_step(self):
            return True

    for settings in (
        {"learning_rate": 1e-3, "learning_rate_decay": 0.5},
        {"learning_rate": lambda remaining: 1e-3 * (1 - remaining) * remaining},  # begins and ends at 0
    ):
        seen = []
        agent = make(**settings).learn(600, Record())
        assert len({eta for eta, _ in seen}) > 40
        assert all(eta == pytest.approx(rate) for eta, rate in seen)
        assert agent.policy.optimizer.param_groups[0]["lr"] == 0  # the last update


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_out_of_range_are_named(share):
    with pytest.raises(ValueError, match=r"guidance_share is .*; it must be above 0 and below 1"):
        make(guidance_share=share)


# ------------------------------------------------------------------------------------------------ conflict

METRIC_KEYS = {
    "balancer/conflict_share",
    "balancer/norm_ratio",
    *(f"balancer/{name}/{pair}" for name in ("cosine", "magnitude_similarity") for pair in PAIRS),
}


@pytest.mark.parametrize("kind", [MultiTaskDQN, BRC])
@pytest.mark.parametrize("balancer", ["equal", "gradnorm", "pcgrad", "rgb", "aim", "gradnorm_pcgrad", "random"])
def test_conflict_is_measured_under_every_balancer(kind, balancer):
    diagnostics = make(kind, balancer=balancer).learn(100).diagnostics
    assert diagnostics.keys() >= METRIC_KEYS
    assert np.isfinite(list(diagnostics.values())).all()
    symmetric = [key for key in diagnostics if "/cosine/" in key or "/magnitude_similarity/" in key]
    assert set(symmetric) == {key for key in METRIC_KEYS if key.count("/") == 2}  # once per unordered pair
    if balancer == "equal":
        assert diagnostics.keys() - METRIC_KEYS == {
            f"balancer/{task}/weight" for task in ("Standard", "Windy", "Heavy")
        }
    if balancer == "aim":  # one way and the other differ
        assert {"balancer/tau/Standard_Windy", "balancer/tau/Windy_Standard"} <= diagnostics.keys()


@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_metrics_are_those_of_the_task_gradients(variant):
    """Against one backward pass per task and the definitions, in float64."""
    agent = make(balancer="equal", variant=variant, conflict_interval=1).learn(600)
    network, target = copy.deepcopy(agent.policy.q_net).double(), copy.deepcopy(agent.policy.q_net_target).double()
    batch = next_batch(agent, 8)
    gradients = []
    for task in range(3):
        part, each = slice(8 * task, 8 * task + 8), torch.arange(8)
        with torch.no_grad():
            chosen = network(batch.next_observations[part].double()).argmax(1)
            best = target(batch.next_observations[part].double())[each, chosen]
            wanted = batch.rewards[part] + batch.discounts[part] * best
        got = network(batch.observations[part].double())[each, batch.actions[part]]
        loss = torch.nn.functional.huber_loss(got, wanted, delta=10.0)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]))
    agent.train(1, 8)
    logged = agent.diagnostics
    conflicts = 0
    for i, j, pair in ((0, 1, PAIRS[0]), (0, 2, PAIRS[1]), (1, 2, PAIRS[2])):
        a, b = gradients[i], gradients[j]
        assert logged[f"balancer/cosine/{pair}"] == pytest.approx((a @ b / a.norm() / b.norm()).item(), abs=1e-4)
        similarity = (2 * a.norm() * b.norm() / (a @ a + b @ b)).item()
        assert logged[f"balancer/magnitude_similarity/{pair}"] == pytest.approx(similarity, rel=1e-4)
        conflicts += bool(a @ b < 0)
    norms = [g.norm().item() for g in gradients]
    assert logged["balancer/norm_ratio"] == pytest.approx(max(norms) / min(norms), rel=1e-4)
    assert logged["balancer/conflict_share"] == pytest.approx(conflicts / 3)


def test_conflict_is_measured_every_interval_updates_and_changes_nothing():
    agent = make(balancer="equal", conflict_interval=4).learn(60)
    assert not METRIC_KEYS & agent.diagnostics.keys()
    agent.learn(66, reset_num_timesteps=True)
    values = []
    for _ in range(11):
        agent.train(1, 8)
        values.append(agent.diagnostics["balancer/norm_ratio"])
    changes = [agent._n_updates - 11 + index for index in range(1, 11) if values[index] != values[index - 1]]
    assert changes
    assert all(update % 4 == 0 for update in changes)
    often, seldom = (make(balancer="equal", conflict_interval=n).learn(300) for n in (1, 1_000))
    assert_same(often.policy.state_dict(), seldom.policy.state_dict())


@pytest.mark.parametrize("balancer", ["equal", "rgb"])
def test_what_is_logged_goes_on_after_a_resume_between_two_measurements(balancer):
    one, two = (make(balancer=balancer, conflict_interval=1_000).learn(300) for _ in range(2))
    two.set_training_state(one.training_state())
    assert two.diagnostics == one.diagnostics
    for agent in (one, two):
        agent.train(1, 8)
    assert two.diagnostics == one.diagnostics
    assert one.diagnostics.keys() >= METRIC_KEYS


def test_metrics_come_from_the_engines_jacobian():
    agent = make(balancer="equal", conflict_interval=1).learn(100)
    batch = next_batch(agent, 8)
    targets = agent.update.targets(batch)
    with agent.update.engine.record():
        losses = agent.update.losses(batch, targets)
    jacobian = agent.update.engine.backward(losses).jacobian.double()
    agent.train(1, 8)
    for name, value in conflict_metrics(jacobian @ jacobian.T).items():
        torch.testing.assert_close(agent.update.conflict[name], value, rtol=1e-5, atol=1e-6)


def test_one_task_has_no_pairs():
    env = make_task_env("Standard")
    settings = {**SMALL, "learning_starts": 20, "n_step": 1, "gradient_steps": 1}
    agent = MultiTaskDQN("MlpPolicy", env, seed=0, **settings).learn(40)
    assert agent.diagnostics["balancer/conflict_share"] == 0
    assert agent.diagnostics["balancer/norm_ratio"] == 1
    assert not any("cosine" in key for key in agent.diagnostics)
