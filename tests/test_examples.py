"""The programs in examples/ run as their first lines say, with short budgets, and are short themselves."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
FILES = sorted(FOLDER.glob("*.py"))
NUMBER = r"-?\d[\d.e+]*"
# Of each program: what makes it short, the package that it is about, and what it prints last.
RUNS = {
    "accelerate_loop": (["--epochs", "1"], "accelerate", rf"losses: {NUMBER}, {NUMBER}"),
    "continuous_landers": (
        ["--steps", "1200", "--episodes", "1"],
        "Box2D",
        rf"HeavyContinuous: return {NUMBER} \+- {NUMBER}, success {NUMBER}%",
    ),
    "different_tasks": (
        ["--steps", "600", "--episodes", "1"],
        "stable_baselines3",
        rf"MountainCar-v0: return {NUMBER} \+- {NUMBER}, success {NUMBER}%",
    ),
    "lightning_manual": (["--epochs", "1"], "pytorch_lightning", rf"small: loss {NUMBER}, large: loss {NUMBER}"),
    "meta_world": (
        ["--steps", "1200", "--episodes", "1"],
        "metaworld",
        rf"window-close-v3: return {NUMBER} \+- {NUMBER}, success {NUMBER}%",
    ),
    "minigrid_images": (
        ["--steps", "6480", "--episodes", "1"],
        "minigrid",
        rf"Unlock: return {NUMBER} \+- {NUMBER}, success {NUMBER}%",
    ),
    "pytorch_loop": (["--steps", "20"], "torch", rf"centimetres: {NUMBER}% of the variance is left"),
    "sb3_continuous": (
        ["--steps", "300"],
        "stable_baselines3",
        rf"mars: return {NUMBER} \+- {NUMBER}, success {NUMBER}%",
    ),
    "sb3_own_tasks": (
        ["--steps", "480", "--folder", "FOLDER"],
        "stable_baselines3",
        rf"heavy: return {NUMBER} \+- {NUMBER}, success {NUMBER}%",
    ),
    "sb3_reward_scales": (["--steps", "400"], "stable_baselines3", rf"x1000: mean return {NUMBER}"),
    "sb3_value_scales": (["--steps", "400"], "stable_baselines3", rf"x1000: mean return {NUMBER}"),
}


def test_every_example_is_short_and_on_the_page_of_examples() -> None:
    page = (FOLDER.parent / "docs" / "examples.md").read_text()
    for path in FILES:
        assert len(path.read_text().splitlines()) < 60, path.name
        assert f"(../examples/{path.name})" in page, path.name


def test_every_example_is_run() -> None:
    assert {path.stem for path in FILES} == RUNS.keys()


IN_CHECKOUT = "It runs from the root of a checkout"


def test_what_needs_the_folders_of_the_checkout_says_so() -> None:
    for path in FOLDER.glob("*.py"):
        text = path.read_text()
        needs = re.search(r"^(from|import) (envs|agents|experiments)\b", text, re.MULTILINE) is not None
        assert needs == (IN_CHECKOUT in text), path.name


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    words, package, last = RUNS[name]
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    text = (FOLDER / f"{name}.py").read_text()
    words = [str(tmp_path) if word == "FOLDER" else word for word in words]
    if IN_CHECKOUT in text:  # the folder `envs` is found from the root only, and by no installation
        said, command, where, env = f"python -m examples.{name}", ["-m", f"examples.{name}"], FOLDER.parent, {}
    else:
        said, command, where = f"python examples/{name}.py", [str(FOLDER / f"{name}.py")], tmp_path
        env = {"PYTHONPATH": str(FOLDER.parent)}  # `mtrl` may not be installed
    assert f"    {said}\n" in text  # its first lines say how
    command, env = [sys.executable, *command, *words], {**os.environ, **env}
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(last, done.stdout.splitlines()[-1]), done.stdout
