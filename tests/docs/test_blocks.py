"""Every program and every command of the documentation runs, with small budgets."""

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from envs import TASKS
from mtrl.balancers import _REGISTRY
from tests.docs.blocks import DOCS, PAGES, Block, blocks_of

ROOT = DOCS.parent
QUICK = [
    *("--total-steps", "260", "--learning-starts", "100", "--batch-size", "8", "--buffer-size", "3000"),
    *("--eval-interval", "100", "--eval-episodes", "1", "--final-episodes", "2"),
]
# What makes a program short; the first pattern that fits counts.
SHORT = {
    r"experiments\.supervised\.train": ["--quick"],
    r"experiments\.supervised\.compare": ["--quick", "--seeds", "0-1", "--num-train", "40", "--num-val", "30"],
    r"experiments\.sweep": ["--dry-run", "--results-dir", "sweep"],  # apart from the short runs of the same page
    r"experiments\.tune": ["--dry-run"],
    r"experiments\.\w+\.train": QUICK,
    r"experiments\.\w+\.evaluate": ["--episodes", "1"],
}
# Programs that tests of their own run, whole and with small budgets. Here they are asked for their flags.
ELSEWHERE = {
    r"examples[./]\w+(\.py)?": "test_examples.py",
    r"experiments\.studies\.toy": "experiments/test_toy.py",
    r"experiments\.studies\.\w+": "experiments/test_studies.py",
    r"experiments\.demonstrations\.\w+": "experiments/test_demonstrations.py",
    r"experiments\.world_model\.\w+": "experiments/test_world_model.py",
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def shortened(words: list[str]) -> list[str]:
    """The words of a program, with those that make it short before a `--`, which begins the words of other programs."""
    more = next((more for pattern, more in SHORT.items() if re.fullmatch(pattern, words[0])), [])
    place = words.index("--") if "--" in words else len(words)
    return [*words[:place], *(word for word in more if word != "--dry-run" or word not in words), *words[place:]]


def run_program(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `python WORDS` in this process, as `-m` and a file do it."""
    is_module = words[0] == "-m"
    words = shortened(words[is_module:])
    monkeypatch.setattr(sys, "argv", [*words])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules.*", RuntimeWarning)
        try:
            if is_module:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, f"{shlex.join(words)} ends with {stop.code}"  # noqa: PT017


def run_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command, comments=True)
    words = [str(ROOT / word) if re.fullmatch(r"[\w/]+\.yaml", word) else word for word in words]
    if program == "python" and elsewhere(words):
        run_program([*words[: 1 + (words[0] == "-m")], "--help"], monkeypatch)
        described = capsys.readouterr().out
        assert all(word in described for word in words if word.startswith("--")), command
    elif program == "python":
        run_program(words, monkeypatch)
    elif program == "pip":  # what it would install is what runs these tests
        assert set(re.findall(r"\w+", command.partition("[")[2])) <= EXTRAS.keys(), command
    elif program == "source":
        assert words == [".venv/bin/activate"]
    else:
        assert program == "tensorboard"
        words = [sys.executable, "-m", "tensorboard.main", *words, "--inspect"]
        assert "event" in subprocess.run(words, check=True, capture_output=True, text=True).stdout


def elsewhere(words: list[str]) -> str | None:
    """The file of the tests that run a program, if it is in `ELSEWHERE`."""
    program = words[words[0] == "-m"]
    return next((file for pattern, file in ELSEWHERE.items() if re.fullmatch(pattern, program)), None)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]+", text))


def run_block(
    block: Block, names: dict[str, object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if block.mark.startswith("saved as "):
        Path(block.mark.removeprefix("saved as ")).write_text(block.text)
    if block.language == "python":
        text = re.sub(r"\.learn\([\d_]+", ".learn(300", block.text).replace(", progress_bar=True", "")
        exec(compile("\n" * block.line + text, "<page>", "exec"), names)
        return
    for command, printed in block.commands():
        capsys.readouterr()
        run_command(command, monkeypatch, capsys)
        if not elsewhere(shlex.split(command)[1:]):
            missing = words_of("\n".join(printed)) - words_of(capsys.readouterr().out)
            assert not missing, f"{command} does not print {', '.join(missing)}"


# The pages of the methods have tests of their own, which know what is special about each method.
RUN = [page for page in PAGES if page.parent.name != "methods" and any(block.is_run for block in blocks_of(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=[page.relative_to(DOCS).as_posix() for page in RUN])
def test_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    tasks, registry, names = dict(TASKS), dict(_REGISTRY), {"__name__": "page"}
    try:
        for block in blocks_of(page):
            if block.is_run:
                run_block(block, names, monkeypatch, capsys)
    finally:
        for known, before in ((TASKS, tasks), (_REGISTRY, registry)):
            known.clear()
            known.update(before)  # type: ignore[call-overload]
        sys.modules.pop("my_tasks", None)


@pytest.mark.parametrize("file", sorted(set(ELSEWHERE.values())))
def test_tests_of_their_own_run_programs(file: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    program = file.rpartition("test_")[2].removesuffix(".py")
    assert re.search(rf"\b{program}\b", text)
    assert re.search(r"\bmain\(|subprocess\.run\(", text)


def test_what_is_not_run_says_why() -> None:
    marks = [block.mark for page in PAGES for block in blocks_of(page) if block.mark]
    assert any(mark.startswith("not run: ") for mark in marks)
    for mark in marks:
        assert re.fullmatch(r"not run: \w.{10,}|saved as \w+\.py", mark), mark


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(DOCS).as_posix() for page in PAGES])
def test_programs_that_are_named_exist(page: Path) -> None:
    for module in set(re.findall(r"python -m ([a-z_.]+[a-z_])", page.read_text())):
        assert find_spec(module) is not None, module
