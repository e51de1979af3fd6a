"""The page for readers of the four documents: its flags are the programs' own, its names import, its files exist."""

import importlib
import io
import re
import shlex
from contextlib import redirect_stdout
from functools import cache

import pytest

from experiments.methods import METHODS
from experiments.supervised.settings import Settings, TaskSettings
from tests.docs.blocks import DOCS, blocks_of
from tests.mtrl.test_losses import TERMS

ROOT = DOCS.parent
PAGE = DOCS / "origins.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in TEXT.split("\n## ")[1:]}
FLAG = re.compile(r"(?<!\S)--[a-z][\w-]*")
CODE = re.compile(r"`([^`\n]+)`")
COMMANDS = [command for block in blocks_of(PAGE) if block.language == "console" for command, _ in block.commands()]
# What the notes call the settings of their experiments, in their order.
KEYS = [
    *("num_episodes_per_task", "batch_size", "replay_buffer_size", "min_replay_size", "learning_rate", "gamma"),
    *("epsilon_start", "epsilon_end", "epsilon_decay", "target_update_freq", "embedding_dim", "hidden_dims"),
    *("use_task_embedding", "gradnorm_alpha", "gradnorm_lr", "weight_log_freq", "output_dir"),
]


@cache
def help_of(program: str) -> str:
    """What `python -m PROGRAM --help` prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        importlib.import_module(program).main(["--help"])
    assert ended.value.code == 0
    return printed.getvalue()


def spans(text: str) -> list[str]:
    """The code of a text that is no block."""
    return CODE.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", SECTIONS)
def test_every_flag_of_a_section_is_one_of_its_programs_flags(title: str) -> None:
    flags = {flag for code in spans(SECTIONS[title]) for flag in re.findall(FLAG, code)}
    programs = set(re.findall(r"\bexperiments(?:\.\w+)+", SECTIONS[title]))
    helps = "\n".join(help_of(program) for program in programs)
    assert flags - set(re.findall(FLAG, helps)) == set()


def test_every_command_is_understood() -> None:
    assert len(COMMANDS) > 10
    assert len(re.findall(FLAG, " ".join(spans(TEXT)))) > 50
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[:2] == ["python", "-m"]
        flags = {word for word in words[3:] if word.startswith("--")}
        assert all(re.search(rf"(?<!\S){flag}\b", help_of(words[2])) for flag in flags), command
        _, name, program = [*words[2].split("."), ""][:3]
        if program == "train" and name in METHODS:
            METHODS[name].parse(words[3:], "train")


def test_every_key_of_the_notes_stands_by_the_flags_that_the_preset_sets() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (`--[^|]*) \|$", SECTIONS["The notes on GradNorm"], re.MULTILINE))
    assert list(rows) == KEYS
    preset = METHODS["gradnorm"].parse(["--preset", "notes"], "train")
    words = shlex.split(" ".join(code for cell in rows.values() for code in CODE.findall(cell.partition(";")[0])))
    assert METHODS["gradnorm"].parse(["--preset", "notes", *words], "train") == preset
    assert (preset.learning_starts, preset.variant) == (3 * 2000, "aware")


def test_every_name_imports_and_every_file_is_there() -> None:
    names, files = set[str](), set[str]()
    for code in spans(TEXT):
        files |= set(re.findall(r"^(?:mtrl|experiments)/[\w/.]+\.\w+$", code))
        names |= set(re.findall(r"\b(?:mtrl|experiments|envs)(?:\.[A-Za-z_]\w*)+(?!/)", code))
        names |= {f"mtrl.{name}" for name in re.findall(r"^(?:AIM|GradNorm|RGB|LossAggregator)\.\w+", code)}
    names = {name for name in names if not name.endswith((".py", ".yaml", ".ipynb"))}
    assert len(names) > 50
    assert len(files) > 8
    for name in names:
        parts = name.split(".")
        thing = importlib.import_module(parts[0])
        for place, part in enumerate(parts[1:], 2):
            try:
                thing = getattr(thing, part)
            except AttributeError:
                annotated = getattr(thing, "__annotations__", {})
                thing = annotated[part] if part in annotated else importlib.import_module(".".join(parts[:place]))
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_every_key_of_the_losses_is_one() -> None:
    rows = [row for row in SECTIONS["The module of AIME"].splitlines() if "the same keys" in row]
    keys = {key for row in rows for key in CODE.findall(row.split("|")[1])}
    assert len(keys) == 12
    assert keys <= set(TERMS)


def test_every_key_of_the_yaml_file_is_a_setting() -> None:
    section = SECTIONS["The shared encoder with heads"]
    keys = {key for key in spans(section) if re.fullmatch(r"(?:logging|model|training|data)\.\w+", key)}
    assert len(keys) > 15
    for key in keys:
        part, _, name = key.partition(".")
        assert hasattr(getattr(Settings(), part), name), key
    for name in ("name", "type", "num_classes"):
        assert f"`{name}`" in section
        assert name in TaskSettings.__dataclass_fields__
