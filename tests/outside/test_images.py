"""Convolutions in the agents: SB3's update, autograd's rows, bytes in the replay, saving, resuming, hostile files."""

import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBufferSamples
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents import load_agent
from mtrl import checkpoint
from mtrl.checkpoint import CheckpointError
from mtrl.gradients import AutogradEngine, TaskMajorEngine
from mtrl.rl import MultiTaskDQN, Task, TaskBatch, make_task_vec_env
from tests.support import assert_same

SMALL: dict[str, Any] = {
    "learning_starts": 40,
    "buffer_size": 400,
    "batch_size": 4,
    "learning_rate_decay": 0,
    "device": "cpu",
    "seed": 0,
}


class Pictures(gymnasium.Env[Any, Any]):
    """Ten random pictures; the reward is that of the action which the brighter half names."""

    def __init__(
        self,
        shape: tuple[int, ...] = (40, 36, 3),
        flip: bool = False,
        extra: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.image = spaces.Box(0, 255, shape, np.uint8)
        self.observation_space: Any = self.image
        if extra:
            speed = spaces.Box(-1, 1, (2,), np.float64)
            self.observation_space = spaces.Dict(
                {"view": self.image, "speed": speed, "gear": spaces.Discrete(3, start=1)}
            )
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self.flip, self.extra = flip, extra

    def _observe(self) -> Any:
        self.bright = int(self.np_random.integers(2))
        image = self.np_random.integers(0, 128, self.image.shape).astype(np.uint8)
        half = self.image.shape[0] // 2
        image[half * self.bright : half * (self.bright + 1)] += 127
        if not self.extra:
            return image
        return {"view": image, "speed": self.np_random.uniform(-1, 1, 2), "gear": self.np_random.integers(1, 4)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        reward = float((action == self.bright) != self.flip)
        self.steps += 1
        return self._observe(), reward, False, self.steps == 10, {}


def pictures(variant: str = "aware", envs_per_task: int = 2, **kwargs: Any) -> Any:
    tasks = [Task(name, partial(Pictures, flip=name == "dark", **kwargs)) for name in ("bright", "dark")]
    return make_task_vec_env(tasks, envs_per_task, seed=0, variant=variant)


def agent(env: Any = None, policy: Any = "CnnPolicy", **kwargs: Any) -> MultiTaskDQN:
    return MultiTaskDQN(policy, pictures() if env is None else env, **{**SMALL, **kwargs})


class Small(BaseFeaturesExtractor):
    """A user's own convolutions, with a layer for which there is no rule if `free`."""

    def __init__(self, observation_space: Any, features_dim: int = 16, free: bool = False) -> None:
        super().__init__(observation_space, features_dim)
        norm: nn.Module = nn.GroupNorm(2, 4) if free else nn.Identity()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 5, 4), norm, nn.ELU(), nn.Flatten(), nn.LazyLinear(features_dim))
        with torch.no_grad():
            self.net(torch.zeros(1, *observation_space.shape))

    def forward(self, observations: Any) -> Any:
        return self.net(observations)


class Batched(Small):
    """One that normalises over the batch."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space)
        self.norm = nn.BatchNorm1d(16)


# --------------------------------------------------------------------------------------------------------- the update


def test_with_one_task_and_equal_weights_an_update_is_that_of_sb3() -> None:
    kwargs: dict[str, Any] = {"net_arch": [], "optimizer_kwargs": {"eps": 1e-3}}
    env = make_task_vec_env([Task("one", Pictures)], envs_per_task=1, variant="blind", seed=0)
    theirs = DQN("CnnPolicy", env, 1e-3, policy_kwargs=kwargs, max_grad_norm=0.5, buffer_size=10, seed=0, device="cpu")
    same: dict[str, Any] = {
        "double_q": False,
        "huber_delta": 1.0,
        "n_step": 1,
        "max_grad_norm": 0.5,
        "learning_rate": 1e-3,
        "memory_angle": 0.0,
    }
    ours = agent(env, policy_kwargs=kwargs, tau=1.0, target_update_interval=10**6, gradient_steps=0, **same).learn(100)
    theirs.set_logger(ours.logger)
    names = {name: name.replace("head.layers.", "q_net.") for name in ours.q_net.state_dict()}
    for mine, other in ((ours.q_net, theirs.q_net), (ours.q_net_target, theirs.q_net_target)):
        mine.load_state_dict({name: other.state_dict()[names[name]] for name in names})
    for _ in range(4):
        batch = ours.replay_buffer.sample(8)
        shape = ours.observation_space.shape
        parts = (batch.observations.view(-1, *shape), batch.actions[:, None], batch.next_observations.view(-1, *shape))  # type: ignore[misc]
        dones, rewards = (batch.discounts == 0).float()[:, None], batch.rewards[:, None]
        samples = ReplayBufferSamples(*parts, dones, rewards, None)  # type: ignore[arg-type]
        theirs.replay_buffer = SimpleNamespace(sample=lambda *_, kept=samples, **__: kept)  # type: ignore[assignment]
        theirs.train(1, 8)
        ours.update(batch)
    for name, weight in ours.q_net.state_dict().items():
        torch.testing.assert_close(weight, theirs.q_net.state_dict()[names[name]], rtol=1e-4, atol=1e-6)
    assert not torch.equal(ours.update.weights, ours.update.target_weights)


@pytest.mark.parametrize("heads", ["shared", "per_task"])
@pytest.mark.parametrize(
    ("extractor", "engine"), [(None, TaskMajorEngine), (Small, TaskMajorEngine), ("free", AutogradEngine)]
)
def test_task_gradients_are_autograds_rows(extractor: Any, engine: type, heads: str) -> None:
    kwargs: dict[str, Any] = {"net_arch": [12], "activation_fn": nn.Tanh, "heads": heads}
    if extractor is not None:
        kwargs |= {"features_extractor_class": Small, "features_extractor_kwargs": {"free": extractor == "free"}}
    model = agent(policy_kwargs=kwargs).learn(60)
    assert type(model.update.engine) is engine
    batch = model.replay_buffer.sample(6)
    gradients = model.update.task_gradients(batch)
    losses = model.update.losses(batch, model.update.targets(batch))
    shared = list(model.update.shared.parameters())
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    expected = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    torch.testing.assert_close(gradients.jacobian, expected, rtol=1e-4, atol=1e-6)
    assert gradients.layer_norms.shape == (2,)
    assert (gradients.layer_norms < torch.linalg.vector_norm(expected, dim=1)).all()


class Exchanged(BaseFeaturesExtractor):
    """Exchanges axes, so that the rows of a layer's input no longer come task after task."""

    def __init__(self, observation_space: Any, outside: bool = False) -> None:
        super().__init__(observation_space, 40)
        self.layer, self.outside = nn.Linear(3, 1), outside

    def forward(self, observations: Any) -> Any:
        pooled = observations.mean(3).permute(2, 0, 1)  # (rows of the image, N, channels)
        features = nn.functional.linear(pooled, self.layer.weight) if self.outside else self.layer(pooled)
        return features.squeeze(2).T


@pytest.mark.parametrize("outside", [True, False])
def test_an_extractor_that_mixes_up_the_order_of_rows_gets_its_right_gradients(outside: bool) -> None:
    kwargs = {"features_extractor_class": Exchanged, "features_extractor_kwargs": {"outside": outside}}
    model = agent(policy_kwargs=kwargs).learn(60)
    assert type(model.update.engine) is AutogradEngine
    batch = model.replay_buffer.sample(6)
    gradients = model.update.task_gradients(batch)
    losses = model.update.losses(batch, model.update.targets(batch))
    for row, loss in zip(gradients.jacobian, losses, strict=True):
        parts = torch.autograd.grad(loss, list(model.q_net.parameters()), retain_graph=True, allow_unused=True)
        weights = model.q_net.parameters()
        expected = [torch.zeros_like(w) if part is None else part for w, part in zip(weights, parts, strict=True)]
        torch.testing.assert_close(row, torch.cat([part.flatten() for part in expected]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_it_learns_what_the_picture_and_the_task_say(variant: str) -> None:
    model = agent(
        pictures(variant), policy_kwargs={"features_extractor_class": Small}, batch_size=32, buffer_size=4_000,
        n_step=1, gamma=0.0, gradient_steps=2, learning_rate=2e-3, exploration_final_eps=0.05,
    ).learn(3_000)  # fmt: skip
    if variant == "aware":
        assert min(model.recent_returns) > 8
    else:  # the two tasks want opposite actions for the same picture
        assert max(model.recent_returns) < 8


# --------------------------------------------------------------------------------------------------------- the replay


def test_pictures_are_kept_as_the_bytes_they_were() -> None:
    seen: list[Any] = []

    class Watched(Pictures):
        def _observe(self) -> Any:
            seen.append(super()._observe())
            return seen[-1]

    env = make_task_vec_env([Task("one", Watched)], envs_per_task=1, seed=0, variant="blind")
    model = agent(env, n_step=1).learn(60)
    rows = model.replay_buffer.state_dict()["rows"]
    assert rows.dtype == np.uint8
    assert model.replay_buffer.nbytes == 400 * (2 * 40 * 36 * 3 + 12)
    kept = {rows[0, step, : 40 * 36 * 3].tobytes() for step in range(59)}
    assert kept <= {np.moveaxis(image, 2, 0).tobytes() for image in seen}
    assert len(kept) > 50


@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_a_dictionary_with_a_picture_is_kept_to_the_digit(variant: str) -> None:
    model = agent(pictures(variant, extra=True), "MultiInputPolicy", n_step=1).learn(80)
    assert model._n_updates > 0
    batch: TaskBatch = model.replay_buffer.sample(16)
    parts: Any = model.rows.tensors(batch.observations)
    assert set(parts) == {"view", "speed", "gear", *(["task"] if variant == "aware" else [])}
    assert parts["view"].dtype == torch.uint8
    assert parts["view"].shape == (32, 3, 40, 36)
    assert parts["gear"].unique().tolist() == [0, 1, 2]
    assert parts["speed"].abs().max() <= 1
    assert len(parts["speed"].unique()) > 20
    if variant == "aware":
        assert torch.equal(parts["task"], torch.eye(2).repeat_interleave(16, 0))


def test_a_replay_of_pictures_that_does_not_fit_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3_000_000))
    with pytest.warns(UserWarning, match=r"^the replay of 2 x 200 transitions takes 0\.00 GB when it is full"):
        agent()


# --------------------------------------------------------------------------------------------- files and determinism


@pytest.mark.parametrize(("policy", "extra"), [("CnnPolicy", False), ("MlpPolicy", False), ("MultiInputPolicy", True)])
@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_saved_loaded_and_resumed_it_is_the_same(policy: str, extra: bool, variant: str, tmp_path: Path) -> None:
    def make(seed: int = 0) -> MultiTaskDQN:
        return agent(
            pictures(variant, extra=extra), policy, balancer="gradnorm", policy_kwargs={"net_arch": [8]}, seed=seed
        )

    model, twin = make().learn(80), make().learn(80)
    assert_same(model.policy.state_dict(), twin.policy.state_dict())
    model.save(tmp_path / "m.zip")
    model.save_weights(tmp_path / "w.safetensors")
    model.save_replay_buffer(tmp_path / "replay.zip")
    checkpoint.save(tmp_path / "state.zip", model.training_state())
    observations: Any = model.env.reset()  # type: ignore[union-attr]
    expected, _ = model.predict(observations, deterministic=True)
    loaded = MultiTaskDQN.load(tmp_path / "m.zip", env=pictures(variant, extra=extra))
    assert type(loaded.policy) is type(model.policy)
    assert loaded.policy_kwargs == model.policy_kwargs
    for again in (loaded, load_agent(tmp_path / "w.safetensors")):
        np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)
    loaded.load_replay_buffer(tmp_path / "replay.zip")
    loaded.set_logger(model.logger)
    resumed = make(seed=1)
    resumed._setup_learn(200)
    resumed.set_training_state(checkpoint.load(tmp_path / "state.zip"))
    for each in (model, twin, loaded, resumed):
        each.train(3, 4)
    for other in (twin, loaded, resumed):
        assert_same(other.policy.state_dict(), model.policy.state_dict())


def test_a_features_extractor_of_ones_own_is_asked_for_when_the_model_is_loaded(tmp_path: Path) -> None:
    model = agent(policy_kwargs={"features_extractor_class": Small, "features_extractor_kwargs": {"features_dim": 9}})
    model.save(tmp_path / "m.zip")
    with pytest.raises(
        CheckpointError, match=r"features_extractor_class of its own, '[a-z_.]*\.Small'; give custom_objects"
    ) as caught:
        MultiTaskDQN.load(tmp_path / "m.zip")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError, match=r"with a features_extractor_class of its own, .*Small, can't be written as weights"
    ):
        model.save_weights(tmp_path / "w.safetensors")
    again = MultiTaskDQN.load(tmp_path / "m.zip", custom_objects={"features_extractor_class": Small})
    assert_same(again.policy.state_dict(), model.policy.state_dict())


def altered(tmp_path: Path, change: Any) -> Path:
    """A saved model of pictures in which `change` has altered what it says."""
    agent().save(tmp_path / "m.zip")
    state = checkpoint.load(tmp_path / "m.zip")
    change(state)
    checkpoint.save(tmp_path / "altered.zip", state)
    return tmp_path / "altered.zip"


def kwargs_of(state: Any) -> Any:
    return state["settings"]["policy_kwargs"]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: kwargs_of(s).update(features_extractor_kwargs={"features_dim": 10**12}),
        lambda s: kwargs_of(s).update(features_extractor_kwargs={"features_dim": "512"}),
        lambda s: kwargs_of(s).update(features_extractor_kwargs={"n": 1}),
        lambda s: kwargs_of(s).update(features_extractor_kwargs=[1]),
        lambda s: kwargs_of(s).update(features_extractor_class="os.system"),
        lambda s: kwargs_of(s).update(features_extractor_class=7),
        lambda s: kwargs_of(s).update(activation_fn="Transformer"),
        lambda s: kwargs_of(s).update(optimizer_kwargs={"betas": (2.0, 3.0)}),
        lambda s: kwargs_of(s).update(heads="per_task"),
        lambda s: s.update(policy_name="OwnPolicy"),
        lambda s: s.update(policy_name=3),
        lambda s: s.update(observation_space={}),
        lambda s: s.update(observation_space=None),
        lambda s: s["observation_space"].pop("task"),
        lambda s: s["observation_space"].pop("observation"),
        lambda s: s["observation_space"].update(more=("Text", np.zeros(1), np.ones(1))),
        lambda s: s["observation_space"].update(more=("Discrete", np.zeros((), np.int64), np.array(2**40))),
        lambda s: s["observation_space"].update(more=("Box", np.zeros(2), np.ones(3))),
        lambda s: s.update(actions_of_tasks=(2,)),
        lambda s: s.update(actions_of_tasks=(2, 0)),
        lambda s: s.update(first_action=2.5),
        lambda s: s.update(one_hot_size=7),
        lambda s: s.update(one_hot_size=0),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(change: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        MultiTaskDQN.load(altered(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_a_hostile_replay_of_pictures_is_refused(tmp_path: Path) -> None:
    model = agent(pictures(extra=True), "MultiInputPolicy").learn(60)
    state = model.replay_buffer.state_dict()
    good = state["rows"].copy()
    for place, value in ((0, np.nan), (-12, 9), (-4, 2)):
        rows = good.copy()
        rows[1, 3, place : place + 4 if place + 4 else None] = np.frombuffer(np.float32(value).tobytes(), np.uint8)
        with pytest.raises(ValueError, match="the stored replay holds a"):
            model.replay_buffer.load_state_dict({**state, "rows": rows})
    with pytest.raises(ValueError, match="the stored replay's rows are float32; they must be uint8"):
        model.replay_buffer.load_state_dict({**state, "rows": good.astype(np.float32)})
    model.replay_buffer.load_state_dict({**state, "rows": good})


def test_a_saved_model_of_pictures_holds_no_pickle(tmp_path: Path) -> None:
    agent(policy_kwargs={"activation_fn": nn.Tanh, "net_arch": [4]}).save(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert sorted(archive.namelist()) == ["state.json", "tensors.safetensors"]


# ------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("shape", "policy", "message"),
    [
        (
            (20, 16, 3),
            "CnnPolicy",
            r"^NatureCNN cannot take observations in Box\(3, 20, 16\): .*features_extractor_class",
        ),
        ((44, 44), "CnnPolicy", r"^CnnPolicy is for images, not for Box\(44, 44\) of uint8: .*keep_dim=True"),
        ((44,), "CnnPolicy", r"^CnnPolicy is for images, not for Box\(44,\) of uint8: use MlpPolicy$"),
        ((40, 36, 3), "MultiInputPolicy", r"^MultiInputPolicy is for dictionaries, not for Box"),
        ((40, 36, 3), "Cnn", r"^unknown policy 'Cnn'; choose from MlpPolicy, CnnPolicy, MultiInputPolicy$"),
    ],
)
def test_observations_that_do_not_fit_the_policy_are_refused(shape: Any, policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        agent(pictures("blind", shape=shape), policy)
    assert "\n" not in str(caught.value)


def test_a_dictionary_needs_the_policy_for_it() -> None:
    for policy, message in (("CnnPolicy", "use MultiInputPolicy"), ("MlpPolicy", "use MultiInputPolicy, or wrap")):
        with pytest.raises(ValueError, match=message):
            agent(pictures(extra=True), policy)


def test_what_normalises_over_the_batch_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^layer 'norm' of Batched is BatchNorm1d, which mixes the rows of different tasks"
    ):
        agent(policy_kwargs={"features_extractor_class": Batched})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"features_extractor_class": "NatureCNN"}, "features_extractor_class is 'NatureCNN'; it must be a class"),
        ({"features_extractor_kwargs": {"dim": 3}}, "NatureCNN cannot take observations"),
        ({"activation_fn": "tanh"}, "activation_fn is 'tanh'; it must be a class such as"),
        ({"activation_fn": torch.tanh}, "it must be a class such as"),
    ],
)
def test_wrong_arguments_of_the_policy_are_one_line(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent(policy_kwargs=kwargs)
