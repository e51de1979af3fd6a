"""One task's environment: Gymnasium's contract, and the physics measured in the running Box2D world."""

import copy
import itertools
import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.box2d.lunar_lander import FPS, heuristic
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import envs
from envs import TASKS, LunarLanderTask, make_task_env

CASES = list(itertools.product(TASKS, envs.variants))


def bodies(env: gymnasium.Env[Any, Any]) -> list[Any]:
    """The craft: lander and two legs, as Box2D bodies."""
    game: Any = env.unwrapped
    return [game.lander, *game.legs]


def momentum(env: gymnasium.Env[Any, Any]) -> float:
    """The craft's vertical momentum in kg m/s; the joints between its bodies cannot change it."""
    return float(sum(body.mass * body.linearVelocity.y for body in bodies(env)))


def mass(env: gymnasium.Env[Any, Any]) -> float:
    """The craft's mass in kg."""
    return float(sum(body.mass for body in bodies(env)))


def hold_still(env: gymnasium.Env[Any, Any]) -> None:
    """Keep the craft where it is: no gravity, no speed, and no falling asleep (which counts as landed)."""
    game: Any = env.unwrapped
    game.world.gravity = (0.0, 0.0)
    for body in bodies(env):
        body.linearVelocity = (0.0, 0.0)
        body.sleepingAllowed = False


def trajectory(env: gymnasium.Env[Any, Any], seed: int, steps: int = 150) -> np.ndarray:
    """Observation, reward and end of `steps` steps under actions drawn from `seed`: (steps, dim + 2)."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    rows = [[*observation, 0.0, 0.0]]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rows.append([*observation, reward, terminated])
        if terminated or truncated:
            env.reset()
    return np.array(rows)


@pytest.mark.parametrize(("task", "variant"), CASES)
def test_gymnasiums_checker_passes_without_warnings(task: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # the checker renders to a window as well
    env = gymnasium.make(TASKS[task].env_id, variant=variant, disable_env_checker=True)
    # Its advice to check `env.unwrapped` instead would check Gymnasium's own LunarLander: the wrappers are the point.
    warnings.filterwarnings("ignore", message=".*is different from the unwrapped version.*")
    gymnasium_check_env(env)


@pytest.mark.parametrize(("task", "variant"), CASES)
def test_stable_baselines_checker_passes_without_warnings(task: str, variant: str) -> None:
    sb3_check_env(make_task_env(task, variant=variant))


@pytest.mark.parametrize("task", TASKS)
def test_registered_id_and_make_task_env_agree(task: str) -> None:
    made, direct = gymnasium.make(TASKS[task].env_id), make_task_env(task)
    assert made.spec is not None
    assert made.spec.max_episode_steps == TASKS[task].time_limit
    assert made.get_wrapper_attr("task") is not None
    assert made.get_wrapper_attr("task") == direct.get_wrapper_attr("task") == TASKS[task]
    np.testing.assert_array_equal(trajectory(made, seed=3), trajectory(direct, seed=3))
    np.testing.assert_array_equal(trajectory(made.spec.make(), seed=3), trajectory(direct, seed=3))


@pytest.mark.parametrize(("task", "variant"), CASES)
def test_the_seed_fixes_the_trajectory_bit_for_bit(task: str, variant: str) -> None:
    env = make_task_env(task, variant=variant)
    first = trajectory(env, seed=11)
    np.testing.assert_array_equal(trajectory(env, seed=11), first)
    np.testing.assert_array_equal(trajectory(make_task_env(task, variant=variant), seed=11), first)
    assert not np.array_equal(trajectory(env, seed=12), first)


def test_standard_is_gymnasiums_lunar_lander_bit_for_bit() -> None:
    np.testing.assert_array_equal(
        trajectory(make_task_env("Standard"), seed=5, steps=500), trajectory(gymnasium.make(envs.BASE_ID), 5, 500)
    )


def test_a_pickled_environment_keeps_its_physics() -> None:
    env = make_task_env("Heavy", variant="aware")
    np.testing.assert_array_equal(trajectory(pickle.loads(pickle.dumps(env)), seed=1), trajectory(env, seed=1))


@pytest.mark.parametrize("task", envs.DEFAULT_TASKS)
def test_aware_observations_are_blind_ones_and_the_one_hot(task: str) -> None:
    blind, aware = (make_task_env(task, variant=variant) for variant in ("blind", "aware"))
    expected = trajectory(blind, seed=2)
    actual = trajectory(aware, seed=2)
    one_hot = np.eye(3)[envs.DEFAULT_TASKS.index(task)]
    np.testing.assert_array_equal(np.delete(actual, [8, 9, 10], axis=1), expected)
    np.testing.assert_array_equal(actual[:, 8:11], np.broadcast_to(one_hot, (len(actual), 3)))
    assert aware.observation_space.dtype == aware.reset()[0].dtype == np.float32
    low, high = aware.observation_space.low, aware.observation_space.high  # type: ignore[attr-defined]
    np.testing.assert_array_equal(low, [*blind.observation_space.low, 0, 0, 0])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(high, [*blind.observation_space.high, 1, 1, 1])  # type: ignore[attr-defined]


def test_the_one_hot_ranges_over_the_given_tasks() -> None:
    def one_hot(task: str, **kwargs: Any) -> list[float]:
        return make_task_env(task, variant="aware", **kwargs).reset()[0][8:].tolist()  # type: ignore[no-any-return]

    assert one_hot("Heavy", tasks=["Heavy", "Standard"]) == [1, 0]
    assert one_hot("Heavy") == [0, 0, 1]
    assert one_hot("WindyUngated") == [1]


def test_bad_arguments_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^unknown variant 'awake'; choose from aware, blind$"):
        make_task_env("Windy", variant="awake")
    with pytest.raises(ValueError, match=r"^task 'Windy' is not one of the tasks Standard, Heavy$"):
        make_task_env("Windy", tasks=["Standard", "Heavy"])
    with pytest.raises(envs.UnknownTaskError, match="unknown task 'Breezy'"):
        make_task_env("Breezy")
    with pytest.raises(gymnasium.error.ResetNeeded):
        make_task_env("Windy").step(0)


@pytest.mark.parametrize("task", ["Standard", "Heavy"])
def test_the_craft_falls_with_the_tasks_gravity_in_every_episode(task: str) -> None:
    env = make_task_env(task)
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(30):  # too short to reach the ground
            before = momentum(env)
            env.step(0)
            assert (momentum(env) - before) / mass(env) * FPS == pytest.approx(TASKS[task].gravity, rel=1e-4)
        assert env.unwrapped.world.gravity.y == TASKS[task].gravity  # type: ignore[attr-defined]


def test_heavy_pulls_in_the_step_inside_reset_too() -> None:
    start = {}
    for task in ("Standard", "Heavy"):
        env = make_task_env(task)
        env.reset(seed=0)
        start[task] = momentum(env) / mass(env)
    assert start["Heavy"] - start["Standard"] == pytest.approx(-2.5 / FPS, rel=1e-3)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_mass_scale_scales_mass_and_inertia_of_every_body(scale: float) -> None:
    env, standard = make_task_env(LunarLanderTask("Scaled", mass_scale=scale)), make_task_env("Standard")
    standard.reset(seed=0)
    for _ in range(2):  # not twice the factor after a second reset
        env.reset(seed=0)
        for scaled, plain in zip(bodies(env), bodies(standard), strict=True):
            assert scaled.mass == pytest.approx(scale * plain.mass)
            assert scaled.inertia == pytest.approx(scale * plain.inertia)


def test_gymnasiums_own_wind_is_passed_on() -> None:
    task = LunarLanderTask("Breeze", enable_wind=True, wind_power=3.0, turbulence_power=0.5)
    reference = gymnasium.make(envs.BASE_ID, enable_wind=True, wind_power=3.0, turbulence_power=0.5)
    np.testing.assert_array_equal(trajectory(make_task_env(task), seed=4), trajectory(reference, seed=4))


@pytest.mark.parametrize("task", ["Standard", "Windy", "WindyUngated"])
def test_gusts_are_drawn_from_np_random_and_only_in_the_air_if_gated(task: str) -> None:
    """Each step draws two numbers for the engines' dispersion; a gust is one more from the same generator."""
    env = make_task_env(task)
    seen = set()
    for seed in range(5000, 5003):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            grounded = bool(observation[6] or observation[7])
            gust = task == "WindyUngated" or (task == "Windy" and not grounded)
            expected = copy.deepcopy(env.unwrapped.np_random)
            expected.bit_generator.advance(2 + gust)  # type: ignore[attr-defined]
            observation, _, terminated, truncated, _ = env.step(heuristic(env, observation))  # type: ignore[no-untyped-call]
            assert env.unwrapped.np_random.bit_generator.state == expected.bit_generator.state
            ended = terminated or truncated
            seen.add(grounded)
    assert seen == {False, True}


def test_gusts_push_sideways_within_their_power() -> None:
    env = make_task_env("Windy")
    env.reset(seed=0)
    pushes = []
    for _ in range(300):
        hold_still(env)
        forecast = copy.deepcopy(env.unwrapped.np_random).uniform(-20.0, 20.0)
        env.step(0)
        push = sum(body.mass * body.linearVelocity.x for body in bodies(env)) * FPS  # N
        assert push == pytest.approx(forecast, rel=1e-3, abs=1e-3)
        assert env.get_wrapper_attr("gust") == pytest.approx(forecast / 20.0)
        pushes.append(push)
    assert -20 <= min(pushes) < -18
    assert 18 < max(pushes) <= 20


@pytest.mark.parametrize(("task", "limit"), [("Standard", 1000), ("Windy", 400), ("Heavy", 800), ("WindyUngated", 400)])
def test_time_limits_truncate(task: str, limit: int) -> None:
    env = make_task_env(task)
    env.reset(seed=0)
    for step in range(1, limit + 1):
        hold_still(env)
        _, _, terminated, truncated, _ = env.step(0)
        assert not terminated
        assert truncated == (step == limit)


@pytest.mark.parametrize("by_id", [False, True])
def test_render_mode_passes_through(by_id: bool) -> None:
    env = (gymnasium.make if by_id else make_task_env)(
        "mtrl/LunarLander-Windy-v0" if by_id else "Windy", render_mode="rgb_array"
    )
    assert env.render_mode == "rgb_array"
    env.reset(seed=0)
    frame: Any = env.render()
    assert (frame.shape, frame.dtype) == ((400, 600, 3), np.uint8)
    env.close()


def test_a_crash_and_a_flight_out_of_the_picture_are_told_apart() -> None:
    env = make_task_env("Standard")
    for push, outcome in ((0.0, "crashed"), (200.0, "flew away")):
        env.reset(seed=0)
        infos = []
        while not infos or "outcome" not in infos[-1]:
            env.unwrapped.lander.ApplyForceToCenter((push, push), True)  # type: ignore[attr-defined]
            *_, terminated, _, info = env.step(0)
            infos.append(info)
            assert terminated == ("outcome" in info)
        assert infos[-1]["outcome"] == outcome


def landed(env: gymnasium.Env[Any, Any], seed: int) -> bool:
    """Whether Gymnasium's heuristic controller earns the +100 for coming to rest."""
    observation, _ = env.reset(seed=seed)
    while True:
        observation, reward, terminated, truncated, _ = env.step(heuristic(env, observation))  # type: ignore[no-untyped-call]
        if terminated or truncated:
            return terminated and reward == 100


@pytest.mark.parametrize(("task", "least", "most"), [("Windy", 0.6, 1.0), ("WindyUngated", 0.0, 0.0)])
def test_windy_can_be_landed_only_with_the_gate(task: str, least: float, most: float) -> None:
    env = make_task_env(task)
    assert least <= np.mean([landed(env, seed) for seed in range(5000, 5100)]) <= most
