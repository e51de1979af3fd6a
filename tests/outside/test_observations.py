"""Observations and policies as strangers have them: what Stable-Baselines3's DQN takes, and what they report of it."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

from mtrl.rl import ColumnError, MultiTaskDQN, Task, evaluate_tasks, make_task_vec_env
from mtrl.rl.observations import ObservationRows
from tests.support import assert_same

SMALL: dict[str, Any] = {"learning_starts": 40, "buffer_size": 400, "batch_size": 4, "device": "cpu", "seed": 0}
VECTOR, IMAGE = Box(-1, 1, (3,), np.float32), Box(0, 255, (40, 36, 3), np.uint8)


class Samples(gymnasium.Env[Any, Any]):
    """Ten samples of a space."""

    def __init__(self, space: Any, actions: int = 2, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(actions)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample(), 1.0, False, self.steps == 10, {}


def tasks(space: Any, wrap: Any = lambda env: env, actions: tuple[int, int] = (2, 2), **kwargs: Any) -> Any:
    def make(count: int, render_mode: str | None) -> Any:
        return wrap(Samples(space, count, render_mode))

    both = [Task(name, partial(make, count)) for name, count in zip("ab", actions, strict=True)]
    return make_task_vec_env(both, envs_per_task=2, seed=0, **kwargs)


def columns(space: Any, wrap: Any = lambda env: env) -> DummyVecEnv:
    return DummyVecEnv([lambda: wrap(Samples(space))])


def agent(env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> MultiTaskDQN:
    return MultiTaskDQN(policy, env, **{**SMALL, **kwargs})


def check(model: MultiTaskDQN, tmp_path: Path) -> None:
    """It learns, and it is the same again when it is loaded."""
    before = model.update.weights.clone()
    model.learn(80)
    assert model._n_updates > 0
    assert not torch.equal(before, model.update.weights)
    model.save(tmp_path / "m.zip")
    model.save_weights(tmp_path / "w.safetensors")
    observations: Any = model.env.reset()  # type: ignore[union-attr]
    expected, _ = model.predict(observations, deterministic=True)
    for again in (MultiTaskDQN.load(tmp_path / "m.zip"), MultiTaskDQN.load_weights(tmp_path / "w.safetensors")):
        assert_same(again.q_net.state_dict(), model.q_net.state_dict())
        np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)


# ------------------------------------------------------------------------------------------- made by make_task_vec_env


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.uint16, np.int8, np.int64, np.bool_])
@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_vectors_of_any_dtype_are_cast_once(dtype: Any, variant: str, tmp_path: Path) -> None:
    model = agent(tasks(Box(0, 1, (3,), dtype), variant=variant))
    check(model, tmp_path)
    assert model.update.chain is not None
    assert model._last_obs.dtype == np.float32  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Discrete(5), 5),
        (spaces.Discrete(5, start=-2), 5),
        (spaces.MultiDiscrete([3, 4]), 7),
        (spaces.MultiDiscrete([[3, 4], [2, 2]]), 11),
        (spaces.MultiBinary((2, 3)), 6),
        (spaces.Tuple((spaces.Discrete(3), VECTOR)), 6),
        (spaces.Dict(a=spaces.Dict(b=spaces.Discrete(3)), c=VECTOR), 6),
        (Box(-1, 1, (), np.float32), 1),
    ],
)
def test_other_spaces_become_vectors_by_gymnasiums_flattening(space: Any, size: int, tmp_path: Path) -> None:
    env = tasks(space)
    assert env.observation_space.shape == (size + 2,)
    model = agent(env)
    check(model, tmp_path)
    assert model.update.chain is not None
    raw = Samples(space)
    observation = raw.reset(seed=3)[0]
    flat = spaces.utils.flatten(space, observation)
    np.testing.assert_array_equal(
        ObservationRows(spaces.utils.flatten_space(space)).of_one(flat), np.asarray(flat, np.float32)
    )


@pytest.mark.parametrize(
    ("space", "wrap", "shape"),
    [
        (Box(0, 255, (40, 36, 3), np.uint8), lambda env: env, (3, 40, 36)),
        (Box(0, 255, (3, 40, 36), np.uint8), lambda env: env, (3, 40, 36)),
        (Box(0, 255, (40, 36, 1), np.uint8), lambda env: env, (1, 40, 36)),
        (Box(0, 255, (40, 36), np.uint8), lambda env: FrameStackObservation(env, 4), (4, 40, 36)),
        (Box(0, 255, (40, 36, 3), np.uint8), lambda env: FrameStackObservation(env, 4), (12, 40, 36)),
        (Box(0, 255, (3, 40, 36), np.uint8), lambda env: FrameStackObservation(env, 4), (12, 40, 36)),
    ],
)
@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_images_of_any_layout_reach_the_convolutions_with_the_channels_first(
    space: Any, wrap: Any, shape: Any, variant: str, tmp_path: Path
) -> None:
    model = agent(tasks(space, wrap, variant=variant), "CnnPolicy")
    first: Any = model.q_net.features_extractor.cnn[0]
    assert first.in_channels == shape[0]
    check(model, tmp_path)
    assert model.replay_buffer.state_dict()["rows"].dtype == np.uint8


@pytest.mark.parametrize("shape", [(40, 36, 3), (3, 40, 36)])
def test_stacked_frames_lie_one_after_the_other(shape: Any) -> None:
    env = tasks(Box(0, 255, shape, np.uint8), lambda env: FrameStackObservation(env, 2), variant="blind")
    model = agent(env, "CnnPolicy")
    model.env.reset()  # type: ignore[union-attr]
    stacked = model.env.step(np.zeros(4, int))[0]  # type: ignore[union-attr]
    assert stacked.shape == (4, 6, 40, 36)  # type: ignore[union-attr]
    following = model.env.step(np.zeros(4, int))[0]  # type: ignore[union-attr]
    np.testing.assert_array_equal(following[:, :3], stacked[:, 3:])  # type: ignore[index,call-overload]


def test_images_of_tasks_with_different_numbers_of_actions_are_padded(tmp_path: Path) -> None:
    model = agent(tasks(IMAGE, actions=(2, 4), pad=True), "CnnPolicy")
    check(model, tmp_path)
    observations: Any = model.env.reset()  # type: ignore[union-attr]
    drawn = np.array([model.predict(observations)[0] for _ in range(200)])
    assert set(drawn[:, :2].flatten()) == {0, 1}
    assert set(drawn[:, 2:].flatten()) == {0, 1, 2, 3}


def test_one_image_as_an_environment_gives_it_is_predicted_for() -> None:
    env = tasks(IMAGE)
    model = agent(env, "CnnPolicy")
    one = env.envs[0].reset(seed=1)[0]
    assert one["observation"].shape == (40, 36, 3)
    action, _ = model.predict(one, deterministic=True)
    batch: Any = {"observation": one["observation"].transpose(2, 0, 1)[None], "task": one["task"][None]}
    assert action.shape == ()
    assert model.predict(batch, deterministic=True)[0] == action


def test_images_are_evaluated() -> None:
    model = agent(tasks(IMAGE), "CnnPolicy")
    assert {name: of.mean for name, of in evaluate_tasks(model, tasks(IMAGE), 2).items()} == {"a": 10.0, "b": 10.0}
    with pytest.warns(UserWarning, match="may leave out tasks"):
        assert evaluate_policy(model, tasks(IMAGE), n_eval_episodes=4, warn=False)[0] == 10.0


# ------------------------------------------------------------------------------------------- columns of the user's own


@pytest.mark.parametrize(
    ("space", "policy", "wrap"),
    [
        (spaces.Discrete(5), "MlpPolicy", lambda env: env),
        (spaces.MultiDiscrete([3, 4]), "MlpPolicy", lambda env: env),
        (spaces.MultiBinary(4), "MlpPolicy", lambda env: env),
        (IMAGE, "CnnPolicy", lambda env: env),
        (IMAGE, "MlpPolicy", lambda env: env),
        (Box(0, 1, (3, 40, 36), np.float32), "CnnPolicy", lambda env: env),
        (spaces.Dict(a=spaces.Discrete(3), b=VECTOR, c=IMAGE), "MultiInputPolicy", lambda env: env),
        (spaces.Dict(a=VECTOR, b=spaces.MultiBinary(2)), "MultiInputPolicy", lambda env: env),
    ],
)
def test_what_sb3_takes_gives_the_same_action_values(space: Any, policy: str, wrap: Any, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"net_arch": [8], "activation_fn": nn.Tanh}
    if getattr(space, "dtype", None) == np.float32:
        kwargs["normalize_images"] = False
    env = columns(space, wrap)
    model = agent(env, policy, policy_kwargs={**kwargs, "layer_norm": False})
    theirs = DQN(policy, env, policy_kwargs=kwargs, buffer_size=10, seed=0, device="cpu")
    ours, other = list(model.q_net.parameters()), list(theirs.q_net.parameters())
    for mine, its in zip(ours, other, strict=True):
        its.data.copy_(mine.data)
    for seed in range(5):
        observation = Samples(space).reset(seed=seed)[0]
        rows, _ = model.policy.obs_to_tensor(observation)
        tensors, _ = theirs.policy.obs_to_tensor(observation)
        torch.testing.assert_close(model.q_net(rows), theirs.q_net(tensors))
        assert model.predict(observation, deterministic=True)[0] == theirs.predict(observation, deterministic=True)[0]
    check(model, tmp_path)


def test_frames_stacked_by_sb3() -> None:
    model = agent(VecFrameStack(columns(IMAGE), 4), "CnnPolicy").learn(80)
    assert model.q_net.features_extractor.cnn[0].in_channels == 12


@pytest.mark.parametrize(
    ("space", "policy", "message"),
    [
        (spaces.Tuple((VECTOR, VECTOR)), "MlpPolicy", "observations are in Tuple, which is not"),
        (spaces.Dict(a=spaces.Dict(b=VECTOR)), "MultiInputPolicy", "part 'a' is in Dict, which is not supported"),
        (spaces.Dict(a=VECTOR), "MlpPolicy", "use MultiInputPolicy, or wrap every environment in .*FlattenObservation"),
        (spaces.MultiDiscrete([[2, 2]]), "MlpPolicy", "several axes; use gymnasium.wrappers.FlattenObservation"),
        (Box(0, 255, (4, 40, 36, 3), np.uint8), "CnnPolicy", "make_task_vec_env makes one image of stacked frames"),
        (Box(0, 1, (3, 40, 36), np.float32), "CnnPolicy", "must be uint8 from 0 to 255; if they are normalised, "),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_with_a_way_out(space: Any, policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        agent(Samples(space), policy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "wrap", "message"),
    [
        (spaces.Sequence(spaces.Discrete(3)), lambda env: env, "observations in Sequence are not supported"),
        (spaces.Dict(a=spaces.Dict(b=IMAGE)), lambda env: env, "an image inside Dict.* can't be reached"),
        (spaces.Tuple((IMAGE, VECTOR)), lambda env: env, "an image inside Tuple.* can't be reached"),
        (Box(0, 255, (7, 7, 3), np.uint8), lambda env: FrameStackObservation(env, 4), "12 channels, more than a side"),
        (spaces.Dict(task=IMAGE), lambda env: env, "called 'task', and the observations have such a part"),
    ],
)
def test_a_task_that_no_column_can_be_made_of_is_refused(space: Any, wrap: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tasks(space, wrap)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda o: (o / 255).astype(np.float32), r"an observation of float32 in a space of uint8"),
        (lambda o: o[:, :, 0], r"shape \(40, 36\)"),
    ],
)
def test_observations_that_do_not_fit_their_space_are_named(wrong: Any, message: str) -> None:
    wrap = partial(gymnasium.wrappers.TransformObservation, func=wrong, observation_space=IMAGE)
    with pytest.raises((ColumnError, ValueError), match=rf"of task '?a'? .*{message}"):
        tasks(IMAGE, wrap).reset()


# ------------------------------------------------------------------------------------------------------- policy_kwargs


@pytest.mark.parametrize(
    "kwargs",
    [
        {"net_arch": []},
        {"activation_fn": nn.Tanh, "net_arch": [64, 64]},
        {"optimizer_kwargs": {"eps": 1e-5, "betas": (0.9, 0.99), "weight_decay": 1e-3}},
        {"features_extractor_kwargs": {}, "normalize_images": False},
    ],
)
def test_policy_kwargs_as_in_an_sb3_project(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = agent(tasks(VECTOR), policy_kwargs=kwargs)
    check(model, tmp_path)
    again = MultiTaskDQN.load(tmp_path / "m.zip")
    assert again.policy_kwargs == kwargs
    for name in ("eps", "betas", "weight_decay"):
        assert again.policy.optimizer.param_groups[0][name] == model.policy.optimizer.param_groups[0][name]


def test_weight_decay_is_that_of_adam() -> None:
    kwargs = {"weight_decay": 0.1, "eps": 1e-4, "betas": (0.8, 0.9)}
    model = agent(tasks(VECTOR), policy_kwargs={"optimizer_kwargs": kwargs}, learning_rate=1e-2)
    weights = nn.Parameter(model.update.weights.clone())
    optimizer = torch.optim.Adam([weights], 1e-2, **kwargs)  # type: ignore[arg-type]
    for seed in range(3):
        gradient = torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed))
        weights.grad = gradient.clone()
        optimizer.step()
        model.update.optimizer.update(gradient)
    torch.testing.assert_close(model.update.weights, weights.detach())


def test_a_machine_without_a_gpu_trains_on_its_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = agent(tasks(VECTOR), device="cuda")
    assert model.device.type == "cpu"
    assert model.learn(60)._n_updates > 0
