"""Multi-task soft actor-critic: the same numbers as Stable-Baselines3's, balancers, saving, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from agents import load_agent
from mtrl import checkpoint
from mtrl.balancers import make_balancer
from mtrl.gradients import TaskMajorEngine
from mtrl.rl import MultiTaskDQN, MultiTaskSAC, Task, evaluate_tasks, make_task_vec_env
from mtrl.rl.replay import TaskBatch

NET = {"net_arch": [32, 16], "layer_norm": False}


class Target(gymnasium.Env[Any, Any]):
    """Move a point to a place: the reward is minus the distance, times a factor."""

    def __init__(self, place: float, factor: float = 1.0, size: int = 2) -> None:
        self.observation_space = gymnasium.spaces.Box(-3, 3, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-0.5, 2.0, (size,), np.float32)
        self.place, self.factor = place, factor

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        self.steps = 0
        return self.at.copy(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.steps += 1
        self.at = np.clip(self.at + 0.2 * np.resize(action, 3), -3, 3).astype(np.float32)
        reward = -self.factor * float(np.abs(self.at - self.place).mean())
        return self.at.copy(), reward, self.steps % 7 == 0 and bool(self.at[0] > 0), self.steps == 15, {}


def columns(tasks: int = 2, **kwargs: Any) -> Any:
    made = [Task(f"t{i}", lambda render_mode, i=i: Target(0.5 * i - 0.5, 1 + i)) for i in range(tasks)]
    return make_task_vec_env(made, envs_per_task=2, seed=0, **kwargs)


def agent(tasks: int = 2, env: Any = None, **kwargs: Any) -> MultiTaskSAC:
    settings = {"learning_starts": 20, "batch_size": 16, "buffer_size": 2_000, "seed": 0, "policy_kwargs": NET}
    return MultiTaskSAC("MlpPolicy", columns(tasks) if env is None else env, **{**settings, **kwargs})


@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.3", 0.2])
def test_an_update_equals_that_of_stable_baselines3(ent_coef: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = columns(1, variant="blind")
    same = {"memory_angle": 0, "learning_rate": 1e-3, "learning_rate_decay": 0, "n_step": 1, "tau": 0.005}
    ours = agent(env=env, ent_coef=ent_coef, **same)
    theirs = SAC(
        "MlpPolicy",
        Target(-0.5),
        learning_rate=1e-3,
        ent_coef=ent_coef,
        policy_kwargs={"net_arch": [32, 16]},
        batch_size=16,
        device="cpu",
    )
    ours.learn(60)
    reference = copy.deepcopy(theirs.policy.state_dict())
    copy_weights(ours, theirs)
    assert any(not torch.equal(a, reference[k]) for k, a in theirs.policy.state_dict().items())
    theirs._setup_learn(100)
    ours.update = ours.make_update()  # new optimizers, as those of the other agent are new
    for _ in range(5):
        batch = ours.replay_buffer.sample(16)
        noises = [torch.randn(16, 2) for _ in range(2)]
        given = iter(copy.deepcopy(noises))
        monkeypatch.setattr(ours.update, "noise", lambda batch, given=given: next(given))
        ours.update(batch)
        ours.update.update_target(ours.tau)
        step_of_theirs(theirs, batch, noises, monkeypatch)
    after = copy.deepcopy(theirs.policy.state_dict())
    copy_weights(ours, theirs)
    for name, weights in theirs.policy.state_dict().items():
        torch.testing.assert_close(weights, after[name], rtol=0, atol=1e-6, msg=name)
    if isinstance(ent_coef, str):
        assert theirs.log_ent_coef is not None
        torch.testing.assert_close(ours.policy.log_ent_coef.detach(), theirs.log_ent_coef.detach(), rtol=0, atol=1e-6)


def copy_weights(ours: MultiTaskSAC, theirs: SAC) -> None:
    """Give the networks of `theirs` the weights of `ours`, whose actor has mean and deviation in one layer, and whose
    critics take the action first."""
    first, second, last = [layer for layer in ours.policy.actor.networks[0].layers if hasattr(layer, "weight")]
    actor: Any = theirs.actor
    for mine, their in ((first, actor.latent_pi[0]), (second, actor.latent_pi[2])):
        their.load_state_dict(mine.state_dict())
    for part, their in zip((slice(0, 2), slice(2, 4)), (actor.mu, actor.log_std), strict=True):
        their.load_state_dict({"weight": last.weight[part], "bias": last.bias[part]})
    for mine, their in ((ours.policy.critic, theirs.critic), (ours.policy.critic_target, theirs.critic_target)):
        for network, q in zip(mine.networks, their.q_networks, strict=True):
            layers = [layer for layer in network.layers if hasattr(layer, "weight")]
            for layer, target in zip(layers, (q[0], q[2], q[4]), strict=True):
                target.load_state_dict(layer.state_dict())


def step_of_theirs(theirs: SAC, batch: TaskBatch, noises: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of Stable-Baselines3 on our batch, with our noise and our order of inputs."""
    samples = ReplayBufferSamples(
        batch.observations,
        batch.actions,
        batch.next_observations,
        (batch.discounts == 0).float()[:, None],
        batch.rewards[:, None],
    )
    monkeypatch.setattr(theirs.replay_buffer, "sample", lambda *_, **__: samples)
    given = iter(noises)
    monkeypatch.setattr(
        torch.distributions.Normal,
        "rsample",
        lambda self, *_: self.loc + self.scale * next(given),
    )
    for critic in (theirs.critic, theirs.critic_target):
        critic.forward = lambda obs, actions, critic=critic: tuple(  # type: ignore[method-assign]
            q(torch.cat((actions, obs), 1))
            for q in critic.q_networks  # the action first, as ours
        )
    theirs._n_updates = 0
    theirs.train(1, 16)


# ----------------------------------------------------------------- what it has in common with MultiTaskDQN


def weights_of(model: MultiTaskSAC) -> Tensor:
    update = model.update
    return torch.cat((update.critic.weights, update.actor.weights, update.target_weights, update.temperatures))


EVERY = {
    "plain": {},
    "balanced": {"critic_balancer": "gradnorm", "actor_balancer": "pcgrad"},
    "remembering": {"critic_balancer": "rgb", "actor_balancer": "rgb", "reward_scaling": "return"},
    "guided": {
        "critic_balancer": "aim",
        "actor_balancer": "aim",
        "critic_balancer_kwargs": {"gate": True, "guidance_loss": "log_sum"},
        "actor_balancer_kwargs": {"progress_weight": 0.0, "gate": True, "guidance_loss": "unit_norm"},
        "max_grad_norm": 1.0,
    },
    "own heads": {"policy_kwargs": {**NET, "heads": "per_task"}, "n_step": 1, "memory_angle": 0.5},
}


@pytest.mark.parametrize("name", EVERY)
def test_the_seed_decides_everything(name: str) -> None:
    first, second = (agent(**EVERY[name]) for _ in range(2))
    for model in (first, second):
        torch.randn(7)  # numbers that are drawn elsewhere change nothing
        np.random.rand(3)
        model.learn(160)
    assert first._n_updates > 20
    assert torch.equal(weights_of(first), weights_of(second))
    other = agent(**{**EVERY[name], "seed": 1})
    other.learn(160)
    assert not torch.equal(weights_of(first), weights_of(other))


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_model_acts_and_goes_on(name: str, tmp_path: Path) -> None:
    model = agent(**EVERY[name])
    model.learn(160)
    model.save(tmp_path / "model")
    again = MultiTaskSAC.load(tmp_path / "model", env=columns())
    assert torch.equal(weights_of(model), weights_of(again))
    assert again.actor_balancer_name == EVERY[name].get("actor_balancer", "equal")
    observations = columns().reset()
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], again.predict(observations, deterministic=True)[0]
    )
    for optimizer, of_saved in zip(again.update.optimizers, model.update.optimizers, strict=True):
        assert str(optimizer.state_dict()) == str(of_saved.state_dict())
    again.learn(60, reset_num_timesteps=False)
    assert again._n_updates > model._n_updates
    model.save_weights(tmp_path / "weights.safetensors")
    playing = MultiTaskSAC.load_weights(tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], playing.predict(observations, deterministic=True)[0]
    )


class Keep(BaseCallback):
    """Keeps the training state at a step, and what the environments are then."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == self.at:
            self.state = copy.deepcopy(self.model.training_state())
            self.env = copy.deepcopy(self.training_env)

    def _on_step(self) -> bool:
        return True


class Restore(BaseCallback):
    """Puts a training state back when learning begins, and the environments that go with it."""

    def __init__(self, state: Any, env: Any = None) -> None:
        super().__init__()
        self.state, self.env = state, env

    def _on_training_start(self) -> None:
        self.model.set_training_state(self.state)
        self.model.env = self.env

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", EVERY)
def test_a_training_that_goes_on_from_its_state_ends_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, keep = agent(**EVERY[name]), Keep(at=120)
    whole.learn(240, keep)
    checkpoint.save(tmp_path / "state", keep.state)
    model = agent(**EVERY[name])
    model.learn(240, Restore(checkpoint.load(tmp_path / "state"), keep.env))
    assert model.num_timesteps == whole.num_timesteps
    assert torch.equal(weights_of(model), weights_of(whole))
    assert model.diagnostics == pytest.approx(whole.diagnostics, nan_ok=True)


def test_a_strangers_training_state_is_refused() -> None:
    model, keep = agent(), Keep(at=120)
    model.learn(160, keep)
    for part, change, message in (
        ("noise", torch.zeros(3, dtype=torch.uint8), "noise"),
        ("actor_losses", torch.zeros(5), "actor_losses"),
        ("actor_optimizer", {"state": {}, "param_groups": []}, "actor_optimizer"),
        ("actor_memory", {}, "actor_memory"),
        ("n_step", {"steps": [[*keep.state["n_step"]["steps"][0][:2], np.full((4, 2), 7, np.float32)]]}, "n_step"),
    ):
        with pytest.raises(ValueError, match=message):
            agent().learn(30, Restore({**keep.state, part: change}))


# ----------------------------------------------------------------- networks and observations


class Looking(Target):
    """`Target`, seen as an image beside a vector."""

    def __init__(self, place: float) -> None:
        super().__init__(place)
        image = gymnasium.spaces.Box(0, 255, (12, 12, 1), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"image": image, "vector": self.observation_space})

    def _seen(self, at: Any) -> Any:
        return {"image": np.full((12, 12, 1), 40 * (at[0] + 3), np.uint8), "vector": at}

    def reset(self, **kwargs: Any) -> Any:
        at, info = super().reset(**kwargs)
        return self._seen(at), info

    def step(self, action: Any) -> Any:
        at, *others = super().step(action)
        return (self._seen(at), *others)


class Small(BaseFeaturesExtractor):
    """A convolution of the image, joined to the vector."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 2 * 4 * 4 + 3)
        self.convolution = torch.nn.Conv2d(1, 2, 3, stride=3)

    def forward(self, observations: Any) -> Tensor:
        image = observations["image"]
        image = image if image.shape[1] == 1 else image.movedim(3, 1)
        return torch.cat((self.convolution(image).flatten(1), observations["vector"]), 1)


def test_images_and_dictionaries() -> None:
    tasks = [Task(f"t{i}", lambda render_mode, i=i: Looking(0.5 * i)) for i in range(2)]
    env = make_task_vec_env(tasks, envs_per_task=2, seed=0)
    kwargs = {"features_extractor_class": Small, "net_arch": [16]}
    model = MultiTaskSAC("MultiInputPolicy", env, learning_starts=20, batch_size=8, seed=0, policy_kwargs=kwargs)
    before = weights_of(model)
    model.learn(100)
    assert model._n_updates > 10
    assert model.replay_buffer.sample(2).observations.dtype == torch.uint8
    assert not torch.equal(before, weights_of(model))
    assert type(model.update.critic.engine) is type(model.update.actor.engine) is TaskMajorEngine
    assert set(evaluate_tasks(model, env, 2)) == {"t0", "t1"}


@pytest.mark.parametrize("variant", ["aware", "blind"])
@pytest.mark.parametrize("kwargs", [{}, {"activation_fn": torch.nn.Tanh}])
def test_task_gradients_are_those_of_autograd(variant: str, kwargs: Any) -> None:
    model = agent(env=columns(variant=variant), policy_kwargs={"net_arch": {"pi": [16], "qf": [24, 8]}, **kwargs})
    model.learn(60)
    assert (model.update.chains is not None) == (not kwargs)
    update, batch = model.update, model.replay_buffer.sample(16)
    noise = update.noise(batch)
    with torch.no_grad():
        targets = update.targets(batch, update.temperatures)
    temperatures = update.temperatures
    for network, by_engine, losses in (
        (
            update.critic,
            update.critic_gradients(batch, targets).jacobian.clone(),
            lambda: update.critic_losses(batch, targets.clone()),
        ),
        (
            update.actor,
            update.actor_gradients(batch, temperatures, noise).jacobian.clone(),
            lambda: update.losses_of_actor(batch, temperatures, noise),
        ),
    ):
        rows = network.task_gradients(losses).jacobian.clone()
        torch.testing.assert_close(by_engine, rows, rtol=1e-4, atol=1e-6)
        for task, loss in enumerate(losses()):
            parameters = list(network.shared.parameters())
            expected = torch.autograd.grad(loss, parameters, retain_graph=True)
            torch.testing.assert_close(rows[task], torch.cat([part.flatten() for part in expected]))


def test_actions_lie_in_the_space_and_in_its_shape() -> None:
    class Matrix(Target):
        def __init__(self, place: float) -> None:
            super().__init__(place)
            self.action_space = gymnasium.spaces.Box(
                np.array([[-1, 0]], np.float64), np.array([[1, 5]], np.float64), dtype=np.float64
            )

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action), action
            self.action_space, own = gymnasium.spaces.Box(-9, 9, (2,), np.float64), self.action_space
            try:
                return super().step(action[0])
            finally:
                self.action_space = own

    env = make_task_vec_env([Task("m", lambda render_mode: Matrix(0.0))], envs_per_task=2, seed=0)
    model = agent(env=env)
    model.learn(80)
    stored = model.replay_buffer.sample(50).actions
    assert stored.shape == (50, 2)
    assert (stored.abs() <= 1).all()
    for deterministic in (True, False):
        actions, _ = model.predict(env.reset(), deterministic=deterministic)
        assert actions.shape == (2, 1, 2)
        assert all(env.action_space.contains(action.astype(np.float64)) for action in actions)


def test_each_task_has_its_own_temperature(tmp_path: Path) -> None:
    model = agent(learning_rate=1e-2, learning_rate_decay=0)
    model.learn(400)
    first, second = model.update.temperatures.tolist()
    assert first != second
    assert max(first, second) < 1  # the first temperature asks for more noise than is needed here
    model.save(tmp_path / "model")
    changed = MultiTaskSAC.load(tmp_path / "model", ent_coef=0.25)
    assert changed.update.temperatures.tolist() == pytest.approx([0.25, 0.25])
    assert isinstance(load_agent(tmp_path / "model.zip"), MultiTaskSAC)
    for ent_coef, expected in {"auto": [first, second], "auto_0.5": [0.5, 0.5]}.items():
        assert MultiTaskSAC.load(tmp_path / "model", ent_coef=ent_coef).update.temperatures.tolist() == pytest.approx(
            expected
        )
    fixed = agent(ent_coef=0.0)
    fixed.learn(60)
    assert (fixed.update.temperatures < 1e-40).all()


def test_a_first_temperature_is_begun_with_once(tmp_path: Path) -> None:
    model = agent(ent_coef="auto_0.5", learning_rate=1e-2)
    model.learn(100)
    model.save(tmp_path / "model")
    learned = model.update.temperatures
    assert (learned != 0.5).all()
    assert torch.equal(MultiTaskSAC.load(tmp_path / "model").update.temperatures, learned)


def test_the_networks_have_the_names_of_stable_baselines3() -> None:
    model = agent()
    for name in ("actor", "critic", "critic_target"):
        assert isinstance(getattr(SAC("MlpPolicy", Target(0.0)), name), torch.nn.Module)
        assert getattr(model, name) is getattr(model.policy, name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", EVERY)
def test_cpu_and_cuda_agree(name: str) -> None:
    cpu, cuda = (agent(**EVERY[name], device=device) for device in ("cpu", "cuda"))
    for model in (cpu, cuda):
        model.learn(20)  # no update yet, so that both have seen the same
        for _ in range(50):
            model.train(1, 16)
    torch.testing.assert_close(weights_of(cuda).cpu(), weights_of(cpu), rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------- what it refuses


def test_a_number_that_is_not_finite_is_named() -> None:
    model = agent()
    model.learn(60)
    before = weights_of(model)
    batch = model.replay_buffer.sample(16)
    batch.rewards[3] = torch.inf
    with pytest.raises(FloatingPointError, match="the loss of task t0 is inf"):
        model.update(batch)
    assert torch.equal(before, weights_of(model))
    with torch.no_grad():
        model.policy.actor.networks[0].layers[-1].bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="task t"):
        model.update(model.replay_buffer.sample(16))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"actor_balancer": "gradnorm"}, "the balancer gradnorm needs positive losses, and those of an actor may be"),
        ({"actor_balancer": "nothing"}, "unknown balancer 'nothing'"),
        ({"balancer": "pcgrad"}, "unknown setting 'balancer'"),
        ({"use_sde": True}, "unknown setting 'use_sde'"),
        ({"action_noise": None}, "unknown setting 'action_noise'"),
        *(
            ({"ent_coef": value}, f"^ent_coef is {value!r}; it must be a finite number of at least 0, 'auto', or")
            for value in ("automatic", "0.1", "auto_", "auto_x", "auto_-1", "auto_0", "auto_nan", -1, np.nan, None)
        ),
        *(
            ({"target_entropy": value}, f"^target_entropy is {value!r}; it must be a finite number or 'auto'")
            for value in ("low", "nan", "-inf", np.nan, np.inf, None, True)
        ),
        ({"policy_kwargs": {"net_arch": {"pi": [8]}}}, "net_arch is .*; it must be a list, or have the keys 'pi' and"),
        ({"policy_kwargs": {"n_critics": 0}}, "n_critics is 0; it must be between 1 and 100"),
        ({"policy_kwargs": {"n_critic": 1}}, "unknown policy_kwargs 'n_critic'; did you mean 'n_critics'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        agent(**kwargs)
    assert "\n" not in str(caught.value)


def test_one_balancer_cannot_serve_both() -> None:
    balancer = make_balancer("rgb", 2)
    with pytest.raises(ValueError, match="one balancer can't serve critics and actor"):
        agent(critic_balancer=balancer, actor_balancer=balancer)
    with pytest.raises(ValueError, match="can't be saved"):
        agent(actor_balancer=balancer).save("nowhere")


def test_action_spaces_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"in Discrete\(2\); MultiTaskSAC acts in a Box with bounds only; MultiTaskDQN"
    ):
        MultiTaskSAC("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="MultiTaskSAC acts in a bounded Box"):
        MultiTaskDQN("MlpPolicy", "Pendulum-v1")
    unbounded = Target(0.0)
    unbounded.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(ValueError, match="which has no bounds; wrap every environment in"):
        MultiTaskSAC("MlpPolicy", unbounded)
    sizes = [Task(f"t{size}", lambda render_mode, size=size: Target(0.0, size=size)) for size in (1, 2)]
    with pytest.raises(ValueError, match=r"t1.*t2|t2.*t1|column"):
        make_task_vec_env(sizes, envs_per_task=1)
