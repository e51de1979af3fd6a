"""Meta-World's tasks: their names, which need no extra, and their episodes, which are Meta-World's own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import envs
from envs.meta_world import MT3, MT10, MT50, MetaWorldTask, RandomGoals
from experiments.aim.train import main as train
from experiments.program.tasks import describe_tasks, packages_of
from mtrl.rl import MultiTaskSAC, evaluate_tasks, get_task, get_tasks, make_env, make_task_vec_env

ROOT = Path(__file__).parents[2]
needs_meta_world = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra metaworld")
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32)


@pytest.fixture
def few_goals() -> Iterator[None]:
    """Let Meta-World's benchmarks, which draw fifty goals for each task when they are made, draw two."""
    import metaworld  # noqa: PLC0415 - an extra

    before = metaworld._N_GOALS
    metaworld._N_GOALS = 2
    yield
    metaworld._N_GOALS = before


def play(env: gymnasium.Env[Any, Any], seed: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Observations, and rewards with successes, of the beginning of an episode."""
    observations, rows = [env.reset(seed=seed)[0]], []
    for action in ACTIONS:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rows.append((reward, info["success"], terminated, truncated))
    return np.array(observations), np.array(rows, float)


# ------------------------------------------------------------------------------------------ names


def test_the_names_are_known_without_importing_meta_world() -> None:
    code = """
import sys, envs
from mtrl.rl import get_tasks
print(len(get_tasks("reach-v3")), len(get_tasks("MT50")), {"metaworld", "mujoco"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1 50 set()\n"


def test_a_group_stands_for_its_tasks_in_their_order() -> None:
    assert tuple(task.name for task in get_tasks("MT10")) == MT10
    assert get_tasks(["MT3", "push-v3"]) == tuple(MetaWorldTask(name) for name in (*MT3, "push-v3"))
    assert set(MT3) <= set(MT10) <= set(MT50)
    assert get_task("reach-v3") == MetaWorldTask("reach-v3")
    with pytest.raises(ValueError, match=r"^'MT3' stands for 3 tasks: reach-v3, "):
        get_task("MT3")
    with pytest.raises(ValueError, match=r"^tasks must be distinct, not "):
        get_tasks(["MT3", "MT10"])
    with pytest.raises(ValueError, match=r"^unknown task 'reach'; [^\n]*did you mean reach-v3"):
        get_tasks("reach")


def test_without_the_extra_there_is_one_line_and_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(envs.meta_world, "find_spec", lambda name: None)
    line = "task 'reach-v3' needs Meta-World: pip install 'mtrl-balance[metaworld]'"
    with pytest.raises(ValueError, match=re.escape(line)):
        make_task_vec_env("MT10")
    with pytest.raises(SystemExit) as caught:
        train(["--tasks", "MT10", "--results-dir", str(tmp_path / "results")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"experiments.aim.train: {line}"]
    assert not list(tmp_path.iterdir())


def test_config_json_names_the_environments_and_the_packages() -> None:
    tasks = get_tasks("MT3")
    assert describe_tasks(tasks) == {
        "environments": dict.fromkeys(MT3, "Meta-World/MT1"),
        "base_environment": "Meta-World/MT1",
    }
    assert packages_of(get_tasks(["Standard"])) == ()
    if find_spec("metaworld") is not None:
        assert packages_of(tasks) == ("metaworld", "mujoco")


# ------------------------------------------------------------------------------------------ episodes


@needs_meta_world
def test_the_names_and_groups_are_meta_worlds() -> None:
    from metaworld import env_dict  # noqa: PLC0415 - an extra

    assert tuple(env_dict.ALL_V3_ENVIRONMENTS) == MT50
    assert tuple(env_dict.MT10_V3) == MT10


@needs_meta_world
@pytest.mark.parametrize("name", ["reach-v3", "drawer-close-v3", "door-open-v3", "peg-insert-side-v3"])
def test_an_episode_depends_on_the_state_of_the_generator_alone(name: str) -> None:
    first, second = (MetaWorldTask(name).make() for _ in range(2))
    before = play(first, seed=3)
    state = first.unwrapped.np_random.bit_generator.state
    after = play(first)
    assert not np.array_equal(before[0][0, -3:], after[0][0, -3:])  # a new goal
    play(second, seed=4)  # another past
    for expected in (before, after):
        for mine, other in zip(expected, play(second, seed=3 if expected is before else None), strict=True):
            np.testing.assert_array_equal(mine, other)
    second.reset(seed=5)
    second.unwrapped.np_random.bit_generator.state = state  # as a run is continued
    for mine, other in zip(after, play(second), strict=True):
        np.testing.assert_array_equal(mine, other)


@needs_meta_world
def test_goals_come_from_no_global_generator() -> None:
    env = MetaWorldTask("reach-v3").make()
    before = np.random.get_state()[1]
    goals = [env.reset(seed=seed)[0][-3:] for seed in (0, 1, 0)]
    np.testing.assert_array_equal(goals[0], goals[2])
    assert not np.array_equal(goals[0], goals[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@needs_meta_world
@pytest.mark.usefixtures("few_goals")
@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")  # Meta-World's one-hots are float32
def test_aware_columns_are_those_of_meta_worlds_own_mt10_goal_for_goal() -> None:
    import metaworld  # noqa: PLC0415 - an extra

    ours = make_task_vec_env("MT10", envs_per_task=1, seed=5)
    observations = [ours.reset()]
    theirs: Any = gymnasium.make_vec("Meta-World/MT10", vector_strategy="sync", use_one_hot=True)
    for column, (mine, own) in enumerate(zip(ours.envs, theirs.envs, strict=True)):
        kind = type(mine.unwrapped)
        data = {"rand_vec": mine.unwrapped._last_rand_vec, "env_cls": kind, "partially_observable": False}
        own.get_wrapper_attr("tasks")[:] = [metaworld._encode_task(MT10[column], data)]
    expected = [theirs.reset()[0]]
    for row in ACTIONS:
        actions = np.tile(row, (10, 1))
        seen, rewards, dones, infos = ours.step(actions)
        own_seen, own_rewards, terminated, truncated, own_infos = theirs.step(actions)
        np.testing.assert_array_equal(rewards, own_rewards.astype(np.float32))  # SB3 keeps rewards in float32
        np.testing.assert_array_equal(dones, terminated | truncated)
        np.testing.assert_array_equal([info["success"] for info in infos], own_infos["success"])
        observations.append(seen)
        expected.append(own_seen)
    assert observations[0].shape == (10, 39 + 10)
    np.testing.assert_allclose(observations, expected, rtol=1e-6, atol=1e-7)  # Meta-World's vectors are float32
    theirs.close()


@needs_meta_world
def test_an_episode_is_truncated_after_500_steps_and_does_not_terminate() -> None:
    env = make_task_vec_env(["reach-v3"], envs_per_task=1, seed=0)
    first = env.reset()
    for step in range(1, 501):
        observation, _, dones, infos = env.step(np.zeros((1, 4), np.float32))
        assert dones[0] == (step == 500)
    assert infos[0]["TimeLimit.truncated"]
    last = infos[0]["terminal_observation"]
    np.testing.assert_array_equal(last[-4:-1], first[0, -4:-1])  # the goal of the old episode, before the one-hot
    assert not np.array_equal(last[-4:-1], observation[0, -4:-1])


@needs_meta_world
def test_an_interrupted_run_comes_back_to_where_it_was() -> None:
    env, other = (make_task_vec_env("MT3", envs_per_task=1, seed=seed) for seed in (1, 2))
    env.reset()
    other.reset()
    for action in ACTIONS[:20]:
        seen = env.step(np.tile(action, (3, 1)))[0]
    np.testing.assert_array_equal(other.load_state_dict(env.state_dict()), seen)
    for action in ACTIONS[20:]:
        both = [each.step(np.tile(action, (3, 1))) for each in (env, other)]
        np.testing.assert_array_equal(both[0][0], both[1][0])
        np.testing.assert_array_equal(both[0][1], both[1][1])


@needs_meta_world
def test_success_at_any_step_makes_an_episode_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that moves to the goal of reach-v3 and away again."""

    class ThereAndBack:
        steps = 0

        def predict(self, observation: NDArray[Any], *_: Any, **__: Any) -> tuple[NDArray[Any], None]:
            self.steps += 1
            there = 10 * (observation[:, 36:39] - observation[:, :3] + np.array([0, 0, 0.045]))
            move = there if self.steps % 500 < 250 else np.array([[0, -1, 0]])
            return np.column_stack((np.clip(move, -1, 1), [0])).astype(np.float32), None

    seen: list[float] = []
    env = make_task_vec_env(["reach-v3"], envs_per_task=1, seed=0)
    step = env.envs[0].step

    def watched(action: Any) -> Any:
        found = step(action)
        seen.append(found[4]["success"])
        return found

    monkeypatch.setattr(env.envs[0], "step", watched)
    found = evaluate_tasks(ThereAndBack(), env, n_eval_episodes=1)["reach-v3"]
    assert found.successes == (True,)
    assert 1.0 in seen
    assert seen[499] == 0.0
    assert set(seen) == {0.0, 1.0}


@needs_meta_world
def test_an_agent_learns_in_them() -> None:
    env = make_task_vec_env("MT3", envs_per_task=1, seed=0)
    model = MultiTaskSAC("MlpPolicy", env, learning_starts=60, buffer_size=900, seed=0, device="cpu")
    model.learn(120)
    assert model.task_names == MT3
    assert model.replay_buffer is not None


@needs_meta_world
def test_pictures_stand_upright_or_one_line_says_what_is_missing() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    env = MetaWorldTask("reach-v3").make()
    assert isinstance(env, RandomGoals)
    env.game = SimpleNamespace(render=lambda: picture)
    np.testing.assert_array_equal(env.render(), np.rot90(picture, 2))
    shown: gymnasium.Env[Any, Any] | None = None
    with suppress(ValueError):
        shown = make_env(MetaWorldTask("reach-v3"), "rgb_array")
    if shown is None:  # there is no way of drawing here
        with pytest.raises(
            ValueError, match=r"^the environment of task 'reach-v3' can't be made: ValueError: MuJoCo c"
        ):
            make_env(MetaWorldTask("reach-v3"), "rgb_array")
    else:
        assert cast(Any, shown.render()).shape == (480, 480, 3)
        shown.close()
