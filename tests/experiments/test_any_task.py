"""Commands on tasks of the user's own, in a folder of the user's own: from training to the report."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from experiments import analyze_results
from experiments.analysis import goals
from experiments.analysis.replicates import as_methods
from experiments.analysis.runs import load_runs
from experiments.program.flags import UsageError
from experiments.program.random_policy import return_ranges
from experiments.program.tasks import describe_tasks, file_stems, get_tasks, tasks_called
from experiments.shared_dqn import evaluate, train
from experiments.training.descents import _overlaid
from experiments.training.filming import ROW, as_frame, side_by_side

MODULE = """
import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from mtrl.rl import Task

SPACE = gymnasium.make("CartPole-v1").observation_space


class Walk(gymnasium.Env):
    "Has no specification, reports success in its info, and shows a picture of 7 x 9."

    metadata = {"render_modes": ["rgb_array"]}
    observation_space, action_space = SPACE, gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = 3, 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.place += 1 if action else -1
        self.steps += 1
        over = self.place in (0, 6)
        return np.full(4, self.place / 9, np.float32), 0.1, over, self.steps > 20, {"is_success": self.place == 6}

    def render(self):
        picture = np.zeros((7, 9, 3), np.uint8)
        picture[3, self.place] = 255
        return picture


def short(render_mode=None):
    return gymnasium.make("CartPole-v1", render_mode=render_mode, max_episode_steps=30)


OWN = [Task("Pole/ short", short, solved_at=25), Walk]
SILENT = Task("silent", lambda: gymnasium.wrappers.TimeLimit(CartPoleEnv(), 20))
HIDDEN = Task("hidden", lambda: short())
"""
QUICK = ["--total-steps", "260", "--learning-starts", "100", "--batch-size", "8", "--buffer-size", "3000"]
QUICK += ["--eval-interval", "100", "--eval-episodes", "1", "--final-episodes", "2", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folder with a finished run of two tasks of the user's own and one of Gymnasium's."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "users_own_tasks.py").write_text(MODULE)
    with contextlib.chdir(folder):
        assert train.main(["--tasks", "CartPole-v1", "users_own_tasks:OWN", *QUICK]) == 0
    yield folder
    sys.modules.pop("users_own_tasks", None)


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], main=train.main) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_run_says_which_tasks_and_what_counts_as_solved() -> None:
    run = Path("results/runs/shared_dqn/seed_0")
    config, evaluation = (json.loads((run / name).read_text()) for name in ("config.json", "evaluation.json"))
    assert config["settings"]["tasks"] == ["CartPole-v1", "users_own_tasks:OWN"]
    assert config["environments"] == {"CartPole-v1": "CartPole-v1", "Pole/ short": None, "Walk": None}
    assert config["base_environment"] is None
    solved = {name: result["solved_at"] for name, result in evaluation["tasks"].items()}
    assert solved == {"CartPole-v1": 475, "Pole/ short": 25, "Walk": None}
    assert evaluation["tasks"]["Walk"]["success_rate"] in (0, 0.5, 1)
    assert evaluation["parameters"] == (4 + 8) * 256 + 256 + 256 * 128 + 128 + 128 * 2 + 2 + 3 * 8


def test_an_own_task_is_played_only_where_the_user_says_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(["--episodes", "1"], capsys, evaluate.main)
    assert "unknown task 'Pole/ short'" in line
    assert "say where it is: --tasks my_package.tasks:NAME" in line
    assert evaluate.main(["--episodes", "1", "--task", "CartPole-v1"]) == 0
    assert evaluate.main(["--episodes", "1", "--tasks", "users_own_tasks:Walk"]) == 0
    printed = capsys.readouterr().out
    assert "Walk" in printed
    assert "Pole/" not in printed
    assert "unknown task 'silent'" in fails(["--tasks", "users_own_tasks:SILENT"], capsys, evaluate.main)


def test_a_task_that_cannot_be_shown_is_named_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CartPoleEnv, "render", gymnasium.Env.render)  # which says that there is no such method
    line = fails(["--tasks", "users_own_tasks:OWN", "--video-dir", str(tmp_path / "films")], capsys, evaluate.main)
    assert "task 'Pole/ short' can't be shown: its environment has no render()" in line
    assert not (tmp_path / "films").exists()


def test_films_of_tasks_with_any_name_and_size(tmp_path: Path) -> None:
    words = ["--tasks", "users_own_tasks:OWN", "--episodes", "1", "--video-dir", str(tmp_path), "--grid"]
    assert evaluate.main(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"Pole_ short.mp4", "Walk.mp4", "grid.mp4"}
    with imageio.get_reader(tmp_path / "Walk.mp4") as reader:
        caption = 2 * ROW + 4  # stands beneath the frame
        assert reader.get_data(0).shape == (7 * 27 + 1 + caption, 9 * 27 + 1, 3)
        assert reader.get_meta_data()["fps"] == 30
    assert evaluate.main([*words[:4], "--picture", str(tmp_path / "a.png")]) == 0


def test_the_analysis_goes_by_each_tasks_own_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output-dir", str(tmp_path), "--tasks", "users_own_tasks:OWN"]
    assert analyze_results.main(words) == 0
    assert capsys.readouterr().err == ""
    text = (tmp_path / "table.md").read_text()
    assert "CartPole-v1: a return of at least 475, or what its environment reports; " in text
    assert "Walk: as its environment reports" in text
    assert "| to solved |" in text
    assert " 200" not in text
    methods = as_methods(load_runs(Path("results/runs"))[0])
    assert goals.solved_returns(methods.values()) == {"CartPole-v1": 475, "Pole/ short": 25, "Walk": None}
    (method,) = methods.values()
    assert method.rated == method.tasks
    assert len(method.margin_curves({"Pole/ short": 25.0, "Walk": None})) == 1


def test_goals() -> None:
    assert goals.goals_of({"A": 200.0, "B": 200.0}) == (50, 100, 150, 200)
    assert goals.goals_of({"A": -100.0}) == (-100,)
    assert goals.goals_of({"A": 475.0, "B": -100.0, "C": None}) == ("solved",)
    assert goals.goals_of({"A": None}) == ()
    assert goals.common({"A": 3.0, "B": None}) is None


def test_a_task_that_says_nothing_of_success_has_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    assert train.main(["--tasks", "users_own_tasks:SILENT", "--results-dir", runs, *QUICK]) == 0
    assert analyze_results.main(["--results-dir", runs, "--output-dir", str(tmp_path / "analysis")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| shared_dqn"))
    assert row.endswith("| - |")
    assert "success rate" not in (tmp_path / "analysis" / "table.csv").read_text()
    assert "Sample efficiency" not in (tmp_path / "analysis" / "table.md").read_text()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["CartPol-v1"], "did you mean CartPole-v1"),
        (["users_own_tasks:Wlk"], "did you mean Walk"),
        (["nowhere:TASK"], "ModuleNotFoundError: No module named 'nowhere'"),
        (["CartPole-v1", "CartPole-v1"], "tasks must be distinct"),
        (["CartPole-v1", "Acrobot-v1"], "task Acrobot-v1 has Discrete(3)"),
    ],
)
def test_bad_tasks_are_one_line_and_nothing_is_written(
    tasks: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(["--tasks", *tasks, "--results-dir", str(tmp_path / "runs")], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_cannot_be_shown_is_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = str(tmp_path / "runs")
    assert train.main(["--tasks", "users_own_tasks:HIDDEN", "--results-dir", runs, *QUICK]) == 0
    words = ["--results-dir", runs, "--tasks", "users_own_tasks:HIDDEN", "--video-dir", str(tmp_path / "films")]
    assert "can't be shown: it was made with render_mode=None" in fails(words, capsys, evaluate.main)
    assert not (tmp_path / "films").exists()


def test_names_from_files_are_found_without_an_import() -> None:
    with pytest.raises(UsageError, match="say where it is"):
        tasks_called(["users_own_tasks:Walk"])
    assert list(tasks_called(["Windy", "CartPole-v1", "Walk"], ["users_own_tasks:OWN"])) == [
        *("Windy", "CartPole-v1", "Walk")
    ]


def test_what_config_json_says_of_tasks() -> None:
    landers = describe_tasks(get_tasks(["Standard", "Heavy"]))
    assert landers["base_environment"] == "LunarLander-v3"
    assert landers["environments"]["Heavy"] == "mtrl/LunarLander-Heavy-v0"
    assert describe_tasks(get_tasks("CartPole-v1"))["base_environment"] == "CartPole-v1"


def test_names_of_files() -> None:
    names = ["grid", "a/b", "a:b", "Ä-1.x", "..", "GRID"]
    stems = file_stems(names)
    assert list(stems.values()) == ["grid", "a_b", "a_b_2", "Ä-1.x", "task", "GRID_2"]
    long = file_stems(["月" * 100, "月" * 99])
    assert sorted(len(stem) for stem in long.values()) == [66, 68]


def test_the_range_of_returns_is_that_of_each_task() -> None:
    ((low, high),) = return_ranges(["CartPole-v1"])
    assert high == 475
    assert 15 < low < 35
    with pytest.raises(ValueError, match="no return is known that counts as solved in task 'Walk'; give return_range"):
        return_ranges(["users_own_tasks:Walk"])


def test_pictures_of_any_kind_are_frames() -> None:
    assert as_frame(np.zeros((301, 400), np.uint8), "A").shape == (302, 400, 3)
    assert as_frame(np.zeros((400, 600, 4), np.int64), "A").shape == (400, 600, 3)
    for bad in (None, np.zeros((5, 5, 3)), [np.zeros((5, 5, 3), np.uint8)], "text"):
        with pytest.raises(UsageError, match="task 'A' can't be filmed: render\\(\\) gives"):
            as_frame(bad, "A")
    small, large = np.full((20, 30, 3), 7, np.uint8), np.full((40, 60, 3), 9, np.uint8)
    grid = side_by_side([small, large])
    assert (grid[:20, :30] == 7).all()
    assert (grid[:40, 64:124] == 9).all()


def test_what_moves_is_seen_on_any_ground() -> None:
    for ground, craft in ((0, 255), (255, 0)):
        frames = np.full((5, 4, 4, 3), ground, np.uint8)
        for number in range(4):
            frames[number, 0, number] = craft
        resting = np.concatenate([frames, *[frames[3:4]] * 9])  # most of the time the craft stands at its last place
        for shown in (frames, resting):
            assert (_overlaid(shown, 5)[0] == craft).all()
            assert (_overlaid(shown, 5)[1:] == ground).all()
        assert (_overlaid(frames, 3)[0] == craft).all(-1).sum() == 2  # of no craft, two, and the first


def test_what_moves_is_never_drawn_on_itself() -> None:
    frames = np.zeros((20, 8, 40, 3), np.uint8)
    for number in range(20):
        frames[number, 2:5, number : number + 6] = 200 + number  # each frame overlaps the next five
    picture = _overlaid(frames, 12)
    for colour in np.unique(picture[picture > 0]):
        assert (picture == colour).all(-1).sum() == 3 * 6  # each craft is whole


@pytest.mark.parametrize("variant", ["aware", "blind"])
def test_observations_that_are_numbers_of_a_place_are_flattened_in_training_and_evaluation(
    variant: str, tmp_path: Path
) -> None:
    arguments = ["--tasks", "FrozenLake-v1", "FrozenLake8x8-v1", "--results-dir", str(tmp_path), "--variant", variant]
    with pytest.raises(SystemExit, match="2"):
        train.main([*arguments, *QUICK])  # 16 places and 64
    assert list(tmp_path.iterdir()) == []
    assert train.main(["--tasks", "FrozenLake-v1", *arguments[3:], *QUICK]) == 0
    assert evaluate.main(["--results-dir", str(tmp_path), "--variant", variant, "--episodes", "1"]) == 0


@pytest.mark.parametrize("arguments", [["--heads", "per_task"], ["--variant", "aware"]])
def test_tasks_of_different_shape_are_trained_and_evaluated_together(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["--tasks", "CartPole-v1", "Acrobot-v1", "MountainCar-v0"]
    with pytest.raises(SystemExit, match="2"):
        train.main([*tasks, "--results-dir", str(tmp_path), *arguments, *QUICK])
    assert list(tmp_path.iterdir()) == []
    (message,) = capsys.readouterr().err.splitlines()
    assert "of task Acrobot-v1" in message
    assert "make_task_vec_env(..., pad=True), in commands --pad, takes vectors that differ in length" in message
    assert train.main([*tasks, "--pad", "--results-dir", str(tmp_path), *arguments, *QUICK]) == 0
    assert evaluate.main(["--results-dir", str(tmp_path), "--episodes", "1"]) == 0
    results = json.loads((tmp_path / "shared_dqn/seed_0/evaluation.json").read_text())["tasks"]
    assert results["CartPole-v1"]["solved_at"] == 475
    assert results["MountainCar-v0"]["mean"] == -200


def test_padding_is_known_again_where_only_the_observations_differ(tmp_path: Path) -> None:
    """Acrobot and MountainCar have three actions each, and six and two numbers in an observation."""
    run = ["--variant", "blind", "--results-dir", str(tmp_path)]
    assert train.main(["--tasks", "Acrobot-v1", "MountainCar-v0", "--pad", *run, *QUICK]) == 0
    assert evaluate.main([*run, "--episodes", "1"]) == 0


def test_a_package_of_the_users_that_hides_one_of_this_repository_is_named(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()
    command = [sys.executable, "-m", "experiments.rgb.train", "--tasks", "CartPole-v1"]
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "hides the package 'envs' of this repository; rename it" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["envs"]
