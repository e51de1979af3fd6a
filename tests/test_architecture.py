"""The rules of the house that a program can check. `docs/design/architecture.md` gives the reasons."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mtrl.balancers import Balancer

ROOT = Path(__file__).parents[1]
PACKAGES = ("mtrl", "envs", "agents", "experiments", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# From the lowest layer to the highest. A module may import modules of its own layer and of lower ones. The packages
# within one set of braces do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("mtrl",),
    ("mtrl.rl",),
    ("envs", "agents"),
    ("experiments.program",),
    ("experiments.training", "experiments.analysis"),
    ("experiments",),
    ("benchmarks",),
)
# Modules that lower layers may import, too, as if the module were in the layer that stands here.
LOWER = {"experiments.methods": "experiments.program"}  # the list of methods, which knows the higher layers by address

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_METHODS = 400, 60, 25
LARGER: dict[str, str] = {}  # what may be larger, as `path`, `path:function` or `path:Class`, and why

# Packages of optional extras. They are imported inside the function that needs them, so that a program which does
# not need them runs without them.
OPTIONAL = {
    "dotenv",
    "jinja2",
    "markdown_it",
    "optuna",
    "plotly",
    "ray",
    "mlxtend",
    "sklearn",
    "torchjd",
    "wandb",
    "yaml",
}
# Other imports inside functions, as `path:imported module`, and why they cannot stand at the top of the file.
INSIDE: dict[str, str] = {
    "experiments/analysis/report/__init__.py:experiments.analysis.report.page": "it imports the extra `report`",
    "experiments/program/arithmetic.py:torch": "it loads slowly, and only a checkpoint needs it",
    "experiments/training/window.py:pygame": "it loads slowly, and only a window needs it",
}

ADDRESS = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+:\w+(\.\w+)*")


def name_of(path: Path) -> str:
    """The module in a file, by its full name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def modules() -> frozenset[str]:
    return frozenset(map(name_of, FILES))


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    """The modules that a statement imports, by their full names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = name_of(path).split(".")
            package = package if path.name == "__init__.py" else package[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full in modules() else base


def layer_of(module: str) -> tuple[int, str]:
    """A module's layer, and the package in that layer that it belongs to."""
    inside = [
        (layer, package)
        for layer, packages in enumerate(LAYERS)
        for package in packages
        if module == package or module.startswith(f"{package}.")
    ]
    return max(inside, key=lambda found: len(found[1]))


def test_imports_point_down() -> None:
    wrong = set()
    for path in FILES:
        layer, package = layer_of(name_of(path))
        for node in ast.walk(tree_of(path)):
            for module in imported(node, path):
                if module.partition(".")[0] not in PACKAGES:
                    continue
                other_layer, other_package = layer_of(LOWER.get(module, module))
                if other_layer > layer or (other_layer == layer and other_package != package):
                    wrong.add(f"{place(path)} imports {module}")
    assert not wrong, "\n".join(sorted(wrong))


def test_the_library_imports_what_its_requirements_say() -> None:
    allowed = {"mtrl", "numpy", "safetensors", "torch", "torchjd"}
    wrong = set()
    for path in FILES:
        if not name_of(path).startswith("mtrl"):
            continue
        more = {"gymnasium", "stable_baselines3", "psutil"} if name_of(path).startswith("mtrl.rl") else set()
        for node in ast.walk(tree_of(path)):
            for module in imported(node, path):
                top = module.partition(".")[0]
                if top not in allowed | more and top not in sys.stdlib_module_names:
                    wrong.add(f"{place(path)} imports {module}")
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("module", ["mtrl", "mtrl.rl", "mtrl.files", "mtrl.limits", "agents"])
def test_it_is_imported_without_torch(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'gymnasium', 'stable_baselines3') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def lengths() -> Iterator[tuple[str, int, int]]:
    """What has a size, its size, and the largest size allowed."""
    for path in FILES:
        yield place(path), len(path.read_text(encoding="utf-8").splitlines()), MOST_LINES
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{place(path)}:{node.name}", node.end_lineno - node.lineno + 1, MOST_LINES_OF_A_FUNCTION
            elif isinstance(node, ast.ClassDef):
                methods = sum(isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) for item in node.body)
                yield f"{place(path)}:{node.name}", methods, MOST_METHODS


def test_nothing_is_too_large() -> None:
    larger = {what: f"{what}: {size} > {most}" for what, size, most in lengths() if size > most}
    unexpected = [text for what, text in larger.items() if what not in LARGER]
    assert not unexpected, "\n".join(unexpected)
    unneeded = [what for what in LARGER if what not in larger]
    assert not unneeded, f"these exceptions are no longer needed: {', '.join(unneeded)}"


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """Strings that are statements of their own: docstrings, also those below a field."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def strings(path: Path) -> Iterator[ast.Constant]:
    prose = docstrings(tree_of(path))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node


ADDRESSES = sorted({node.value for path in FILES for node in strings(path) if ADDRESS.fullmatch(node.value)})


def test_addresses_are_found() -> None:
    assert "envs.lunar_lander:assemble" in ADDRESSES


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_leads_to_something_callable(address: str) -> None:
    module, _, path = address.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert callable(found)


def test_a_setting_is_listed_once() -> None:
    setting = "exploration_final_eps"  # one of the settings of an agent; the others stand beside it
    wrong = []
    for path in FILES:
        if name_of(path).startswith("benchmarks"):  # they give the peers that they measure the same settings
            continue
        presets = {
            inside
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Assign | ast.AnnAssign) and "PRESET" in ast.unparse(node).partition("=")[0].upper()
            for inside in ast.walk(node)
        }
        wrong += [
            f"{place(path)}:{node.lineno}" for node in strings(path) if node.value == setting and node not in presets
        ]
    assert not wrong, f"{setting!r} is a string outside the presets: {', '.join(wrong)}"


def test_only_the_balancers_know_particular_balancers() -> None:
    def below(kind: type) -> Iterator[str]:
        for child in kind.__subclasses__():
            if child.__module__.startswith("mtrl."):
                yield child.__name__
                yield from below(child)

    particular = set(below(Balancer))
    assert {"AIM", "GradNorm", "EqualWeights"} <= particular
    wrong = [
        f"{place(path)}:{node.lineno}"
        for path in FILES
        if not name_of(path).startswith("mtrl.balancers")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("isinstance", "issubclass")
        and {part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in ast.walk(node.args[1])}
        & particular
    ]
    assert not wrong, f"isinstance of a particular balancer: {', '.join(wrong)}"


def test_imports_stand_at_the_top() -> None:
    found = set()
    for path in FILES:
        for function in ast.walk(tree_of(path)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            for node in ast.walk(function):
                for module in imported(node, path):
                    if module.partition(".")[0] not in OPTIONAL:
                        found.add(f"{place(path)}:{module}")
    unexpected = sorted(found - INSIDE.keys())
    assert not unexpected, "imports inside functions:\n" + "\n".join(unexpected)
    unneeded = sorted(INSIDE.keys() - found)
    assert not unneeded, f"these exceptions are no longer needed: {', '.join(unneeded)}"


def test_the_page_about_the_architecture_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "design" / "architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests|docs)/[\w/.]*)`", page))
    assert len(paths) > 20
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert not missing, f"docs/design/architecture.md names {', '.join(missing)}"
