"""The wheel: it contains `mtrl` alone, and works beside packages of the user that have the names of our folders."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

import mtrl

ROOT = Path(__file__).parents[1]
OURS = ("envs", "agents", "experiments", "benchmarks")

# A user's program, which has packages `envs`, `agents` and `experiments` of its own.
PROGRAM = """
import sys
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np

import mtrl.rl
from mtrl.rl import MultiTaskDQN, Task, make_task_vec_env, register_task

import agents, envs, experiments
from envs.walk import Walk

here, site = Path.cwd(), Path(sys.argv[1])
for package in (envs, agents, experiments):
    assert Path(list(package.__path__)[0]).parent == here, package
assert Path(mtrl.__file__).is_relative_to(site), mtrl.__file__

register_task(Task("right", partial(Walk, goal=1.0), solved_at=9.0))
tasks = ["right", Task("left", lambda render_mode: Walk(render_mode, goal=-1.0))]
env = make_task_vec_env(tasks, envs_per_task=2, seed=0)
assert env.observation_space.shape == (3,)
settings = {"learning_starts": 20, "buffer_size": 400, "batch_size": 8, "verbose": 0, "device": "cpu"}
model = MultiTaskDQN("MlpPolicy", env, balancer="pcgrad", seed=0, policy_kwargs={"net_arch": [8]}, **settings)
model.learn(200)
assert model.task_names == ("right", "left")
model.save("walk.zip")
loaded = MultiTaskDQN.load("walk.zip", env=env)
observations = env.reset()
np.testing.assert_array_equal(
    model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
)
loaded.learn(40)
print("done")
"""

WALK = """
import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    def __init__(self, render_mode=None, goal=1.0):
        self.render_mode, self.goal = render_mode, goal
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-0.1, 0.1))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place += 0.2 * action - 0.1
        far = abs(self.place) > 1
        return np.array([self.place], np.float32), self.goal * self.place, far, False, {}
"""

# The base of the library, where Gymnasium and Stable-Baselines3 are not installed.
BASE = """
import sys

sys.modules["gymnasium"] = sys.modules["stable_baselines3"] = None  # as if they were not installed
import mtrl

for name in mtrl.__all__:
    getattr(mtrl, name)
mtrl.checkpoint, mtrl.conflict
import torch

weight = torch.ones(3, requires_grad=True)
mtrl.GradNorm(num_tasks=2).backward([weight.square().sum(), weight.sum()], parameters=[weight])
try:
    from mtrl.rl import MultiTaskDQN
except ModuleNotFoundError as error:
    print(error)
"""


def run(*words: Any, cwd: Path) -> str:
    """Run a program without the checkout on its path, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(map(str, words), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy, so that the build leaves no files in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "results", "videos")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ".")
    run(sys.executable, *words, cwd=folder / "checkout")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The Python of a fresh virtual environment with the wheel, and the folder where its packages are.

    To save time and space it borrows the other packages from the environment that runs the tests. The checkout itself
    is not importable there, even if it is installed in that environment: a line in a .pth file adds a folder of
    packages, but not the .pth files in that folder, through which an editable installation works.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    places = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    python, site = Path(places["scripts"], "python"), Path(places["purelib"])
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages"))
    return python, site


def test_the_wheel_contains_mtrl_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    information = f"mtrl_balance-{mtrl.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(("mtrl/", information))} == set()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mtrl").rglob("*.py")}
    assert {name for name in names if name.startswith("mtrl/")} == modules | {"mtrl/py.typed"}


def test_the_source_distribution_is_the_checkout_without_results_and_without_litter(wheel: Path) -> None:
    checkout = wheel.parent / "checkout"
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", code, cwd=checkout)
    with tarfile.open(checkout / "dist" / f"mtrl_balance-{mtrl.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "constraints.txt", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE"}
    for folder in ("mtrl", *OURS, "examples", "tests"):
        files = [path for path in (checkout / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        wanted |= {path.relative_to(checkout).as_posix() for path in files}
    assert wanted <= names
    assert not [name for name in names if name.endswith((".pyc", ".egg-link", "~")) or "__pycache__" in name]
    assert not [name for name in names if name.startswith(("results/", ".venv", "build/", "dist/"))]


def test_the_citation_names_the_version() -> None:
    assert f"\nversion: {mtrl.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_its_base_needs_three_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"mtrl_balance-{mtrl.__version__}.dist-info/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("mtrl-balance", mtrl.__version__)
    requirements = metadata.get_all("Requires-Dist") or []
    base = {words.partition(">")[0] for words in requirements if "extra ==" not in words}
    assert base == {"torch", "numpy", "safetensors"}
    rl = {words.partition(">")[0] for words in requirements if words.endswith('extra == "rl"')}
    assert rl == {"gymnasium", "stable-baselines3", "psutil"}


def test_only_the_library_is_importable_once_installed(installed: tuple[Path, Path], tmp_path: Path) -> None:
    python, site = installed
    code = f"import importlib.util as u; print([n for n in {('mtrl', *OURS)} if u.find_spec(n)])"
    assert run(python, "-c", code, cwd=tmp_path) == "['mtrl']\n"
    version = (
        "import importlib.metadata as m, mtrl; print(m.version('mtrl-balance') == mtrl.__version__, mtrl.__file__)"
    )
    assert run(python, "-c", version, cwd=tmp_path) == f"True {site / 'mtrl' / '__init__.py'}\n"


@pytest.mark.parametrize("regular", [True, False], ids=["with __init__.py", "without __init__.py"])
def test_it_works_beside_packages_of_the_same_names(
    regular: bool, installed: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("envs", "agents", "experiments"):
        (tmp_path / name).mkdir()
        if regular:
            (tmp_path / name / "__init__.py").touch()
    (tmp_path / "envs" / "walk.py").write_text(WALK)
    (tmp_path / "program.py").write_text(PROGRAM)
    python, site = installed
    assert run(python, "program.py", site, cwd=tmp_path) == "done\n"


def test_the_base_works_without_gymnasium_and_stable_baselines3(installed: tuple[Path, Path], tmp_path: Path) -> None:
    printed = run(installed[0], "-c", BASE, cwd=tmp_path)
    assert printed == "mtrl.rl needs gymnasium: pip install 'mtrl-balance[rl]'\n"


@pytest.mark.parametrize("name", ["mtrl", "mtrl.rl", "agents"])
def test_a_package_hands_on_what_its_type_checked_imports_say(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    imports = {alias.name: node.module for node in checked.body for alias in node.names}  # type: ignore[attr-defined]
    assert sorted(imports) == sorted(package.__all__)
    for public, module in imports.items():
        assert getattr(package, public) is getattr(importlib.import_module(module), public)
    assert set(dir(package)) >= set(package.__all__)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
