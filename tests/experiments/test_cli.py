"""Every command line either gives a configuration, or help, or exactly one line on stderr and exit status 2."""

import ast
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

import experiments
from experiments.program.command import resolve, run
from experiments.program.flags import UsageError, main_guard, parse


@dataclass(frozen=True)
class Config:
    """Train one agent."""

    preset: Literal["default", "notes"] = "default"
    """Which set of defaults to start from."""
    total_steps: int = 400_000
    """Environment steps, over all tasks together."""
    variant: Literal["aware", "blind"] = "aware"
    """Whether the observation names the task."""
    lr: float = 5e-4
    """Learning rate."""
    tasks: tuple[Literal["Standard", "Windy", "Heavy"], ...] = ("Standard", "Windy")
    """The tasks to learn."""
    hidden: tuple[int, int] = (256, 128)
    """Layer widths."""
    seeds: tuple[int, ...] = (0,)
    """One run for each."""
    clip: float | None = None
    """Gradient norm limit."""
    evaluate: bool = True
    """Evaluate at the end."""
    out: Path = Path("runs")
    """Folder for the results."""
    options: dict[str, float] = field(default_factory=dict)
    """Settings of the balancer."""

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if self.total_steps <= 0:
            raise ValueError(f"total_steps is {self.total_steps}; it must be positive")


@dataclass(frozen=True)
class Required:
    """Evaluate one run."""

    run_folder: Path
    """The run."""
    episodes: int = 20
    """How many."""


PRESETS = {"default": Config(), "notes": Config(preset="notes", total_steps=1_000, lr=1e-3)}


def parse_config(*argv: str) -> Config:
    return parse(Config, argv, prog="train", presets=PRESETS)


def failure(argv: Sequence[str], config_type: type[Any] = Config, **options: Any) -> str:
    """The one line that `argv` must give on stderr, without the program's name."""
    stderr, stdout = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout), pytest.raises(SystemExit) as stop:
        parse(config_type, argv, prog="train", **options)
    assert stop.value.code == 2
    assert stdout.getvalue() == ""
    line, end = stderr.getvalue().removeprefix("train: "), "\n"
    assert stderr.getvalue().startswith("train: ")
    assert line.endswith(end)
    assert len(line.splitlines()) == 1
    return line.removesuffix(end)


def test_a_good_command_line() -> None:
    config = parse_config(
        "--total-steps", "10", "--variant=blind", "--tasks", "Windy", "Heavy", "--no-evaluate", "--clip", "None",
        "--options", "alpha", "1.5", "--out", "a b/c", "--lr", "-1e-3", "--total_steps", "20",
    )  # fmt: skip
    assert config == Config(
        total_steps=20, variant="blind", tasks=("Windy", "Heavy"), evaluate=False, options={"alpha": 1.5},
        out=Path("a b/c"), lr=-1e-3,
    )  # fmt: skip
    assert parse_config() == Config()
    assert parse(Required, ["--run-folder", "x"], prog="evaluate") == Required(Path("x"))
    assert parse(Config, ["--lr", "1"], prog="train", default=Config(seeds=(3,))) == Config(lr=1, seeds=(3,))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--total_stepz 3", "unrecognized argument '--total_stepz'; did you mean --total-steps?"),
        ("--total=3", "unrecognized argument '--total'; did you mean --total-steps?"),
        ("--no-evaluat", "unrecognized argument '--no-evaluat'; did you mean --no-evaluate?"),
        ("--zzz 3 -q", "unrecognized argument '--zzz', '-q'; see --help"),
        ("-", "unrecognized argument '-'; see --help"),
        ("stray", "unexpected value 'stray'; no argument takes it (see --help)"),
        ("--evaluate yes", "argument --evaluate: takes no value but got 'yes'; use --evaluate or --no-evaluate"),
        ("--evaluate=yes", "argument --evaluate: takes no value but got 'yes'; use --evaluate or --no-evaluate"),
        ("--total-steps many", "argument --total-steps: invalid value 'many'; expected INT"),
        ("--total_steps=1.5", "argument --total-steps: invalid value '1.5'; expected INT"),
        ("--lr 1 --lr fast", "argument --lr: invalid value 'fast'; expected FLOAT"),
        ("--clip x --lr 1", "argument --clip: invalid value 'x'; expected {None}|FLOAT"),
        ("--hidden 256", "argument --hidden: missing value; expected INT INT"),
        ("--hidden 256 wide", "argument --hidden: invalid value '256 wide'; expected INT INT"),
        ("--seeds 1 b", "argument --seeds: invalid value '1 b'; expected [INT [INT ...]]"),
        ("--options alpha x", "argument --options: invalid value 'alpha x'; expected [STR FLOAT [STR FLOAT ...]]"),
        ("--variant awre", "argument --variant: invalid choice 'awre'; choose from aware, blind"),
        ("--variant", "argument --variant: missing value; choose from aware, blind"),
        ("--tasks Windy Windey", "argument --tasks: invalid choice 'Windey'; choose from Standard, Windy, Heavy"),
        ("--out --lr 1", "argument --out: missing value; expected PATH"),
        ("--total-steps -3", "total_steps is -3; it must be positive"),
        ("--preset note", "argument --preset: invalid choice 'note'; choose from default, notes"),
        ("--preset=", "argument --preset: invalid choice ''; choose from default, notes"),
        ("--preset", "argument --preset: missing value; choose from default, notes"),
        ("--preset --lr 1", "argument --preset: missing value; choose from default, notes"),
        ("--preset note --help", "argument --preset: invalid choice 'note'; choose from default, notes"),
        ("--out=", "argument --out: the path is empty; the current folder is '.'; expected PATH"),
        ("--total-steps=", "argument --total-steps: invalid value ''; expected INT"),
        ("--tyro-print-completion", "unrecognized argument '--tyro-print-completion'; see --help"),
        ("--tyro-write-completion bash /no/such/file", "No such file or directory: '/no/such/file'"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(argv: str, message: str) -> None:
    assert failure(argv.split(), presets=PRESETS) == message


@pytest.mark.parametrize(
    ("word", "value"), [("1e5", 100_000), ("2.5E+3", 2_500), ("1_000", 1_000), ("1500e-2", None), ("1.5e0", None)]
)
def test_an_integer_may_be_written_with_an_exponent(word: str, value: int | None) -> None:
    if value is None:
        assert failure(["--total-steps", word]) == f"argument --total-steps: invalid value {word!r}; expected INT"
    else:
        assert parse_config("--total-steps", word, "--seeds", "1e1", word) == Config(
            total_steps=value, seeds=(10, value)
        )


def test_missing_required_arguments() -> None:
    assert failure([], Required) == "missing argument --run-folder"
    assert failure(["--run-foldr", "x"], Required) == "unrecognized argument '--run-foldr'; did you mean --run-folder?"


def test_completion_scripts_are_tyros_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config("--tyro-print-completion", "bash")
    assert not stop.value.code
    assert "--total-steps" in capsys.readouterr().out
    assert failure(["--tyro-print-completion", "ksh"]) == (
        "argument --tyro-print-completion: invalid choice 'ksh'; choose from bash, zsh, fish"
    )


def test_control_characters_are_escaped() -> None:
    assert failure(["--variant", "a\nb\x1b[31m\u2028"]) == (
        r"argument --variant: invalid choice 'a\nb\x1b[31m\u2028'; choose from aware, blind"
    )
    assert failure(["--out", "a", "\x1b"]) == r"unexpected value '\x1b'; no argument takes it (see --help)"


def test_presets_set_defaults_and_given_flags_win() -> None:
    assert parse_config("--preset", "notes") == PRESETS["notes"]
    assert parse_config("--lr", "1", "--preset=notes") == Config(preset="notes", total_steps=1_000, lr=1)
    assert parse_config("--preset", "notes", "--preset", "default") == Config()


def test_help_shows_the_docstrings_and_the_defaults_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, default in [(["--help"], "400000"), (["--preset", "notes", "-h"], "1000")]:
        with pytest.raises(SystemExit) as stop:
            parse_config(*argv)
        out, err = capsys.readouterr()
        assert (stop.value.code, err) == (0, "")
        assert "Train one agent." in out
        assert "Environment steps, over all tasks together." in out
        assert "--total-steps INT" in out
        assert f"(default: {default})" in " ".join(out.replace("│", " ").split())


# fmt: off
TOKENS = st.text(max_size=6) | st.text("-=aehlnrs_. ", max_size=8) | st.sampled_from([
    "--preset", "notes", "--preset=notes", "--total-steps", "--total_steps=7", "--variant", "blind", "--lr", "-1e-3",
    "--tasks", "Windy", "--hidden", "--seeds", "--clip", "None", "--evaluate", "--no_evaluate", "--out", "--options",
    "--run-folder", "--help", "-h", "--", "-", "=", "--=", "---", "-1", "nan", "", " ", "9" * 5000, "\0", "\udc80",
    "--tyro-print-completion", "--tyro-write-completion",
])
# fmt: on


@settings(deadline=None, max_examples=300)
@given(st.lists(TOKENS, max_size=6), st.sampled_from([Config, Required]))
def test_any_words_give_a_configuration_or_help_or_one_line(argv: list[str], config_type: type[Any]) -> None:
    presets = PRESETS if config_type is Config else None
    stderr, stdout = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout):
            parse(config_type, argv, prog="train", presets=presets)
        status: Any = None
    except SystemExit as stop:
        status = stop.code
    lines = stderr.getvalue().splitlines()
    assert (status, len(lines), bool(stdout.getvalue())) in [(None, 0, False), (0, 0, True), (2, 1, False)]


def lose_the_hook(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(tyro, "_errors")


def rename_the_fields_of_events(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("experiments.program.flags._explain", lambda event, *_: event.no_such_field)


def use_the_argparse_backend(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(tyro._experimental_options, "backend", "argparse")


def draw_boxes_in_ascii(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(tyro, "_errors")
    patch.setitem(tyro._experimental_options, "utf8_boxes", False)


@pytest.mark.parametrize(
    "change", [lose_the_hook, rename_the_fields_of_events, use_the_argparse_backend, draw_boxes_in_ascii]
)
def test_another_tyro_still_gives_one_line(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    for argv, words in [
        ("--total-steps many", ["--total-steps", "'many'"]),
        ("--variant awre", ["--variant", "'awre'", "'aware', 'blind'"]),
        ("--clip x", ["--clip", "'x'", "None"]),
        ("--zzz", ["--zzz"]),
        ("--total 3", ["--total", "--total-steps INT"]),
        ("--hidden 1", ["--hidden", "2"]),
        ("--total-steps -3", ["total_steps is -3"]),
    ]:
        message = failure(argv.split())
        assert all(word in message for word in words), message
        assert not set(message) & set("─│╭╰"), message


def test_run_returns_the_exit_status_of_main(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Config] = []
    assert run(seen.append, Config, ["--lr", "1"], prog="train") == 0
    assert seen == [Config(lr=1)]
    assert run(lambda _: 3, Config, [], prog="train") == 3

    def fail(_: Config) -> None:
        raise UsageError("unknown task 'Windey'; tasks are Standard, Windy, Heavy")

    with pytest.raises(SystemExit) as stop:
        run(fail, Config, [], prog="train")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "train: unknown task 'Windey'; tasks are Standard, Windy, Heavy\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("one\n  two"), "train: one two"),
        (ValueError(), "train: ValueError"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), "train: No such file or directory: 'a/b'"),
        (FileExistsError("run 'x' exists"), "train: run 'x' exists"),
        (PermissionError(13, "Permission denied"), "train: Permission denied"),
    ],
)
def test_main_guard_reports_user_errors(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    @main_guard("train")
    def fail() -> None:
        raise error

    for _ in range(2):  # a decorated function can be called again
        with pytest.raises(SystemExit) as stop:
            fail()
        assert stop.value.code == 2
        assert stop.value.__cause__ is error
        assert capsys.readouterr().err == line + "\n"


def test_main_guard_lets_bugs_through_and_reports_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    for bug in [KeyError("x"), TypeError("x"), AssertionError(), OSError(28, "No space left on device")]:
        with pytest.raises(type(bug)), main_guard("train"):
            raise bug
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as stop, main_guard("train"):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "train: interrupted\n"


def test_warnings_during_parsing_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Noisy:
        """Warns."""

        def __post_init__(self) -> None:
            """Print as a warning would be printed."""
            print("careful", file=sys.stderr)

    parse(Noisy, [], prog="train")
    assert capsys.readouterr().err == "careful\n"


@dataclass(frozen=True)
class Renewed:
    """Train again."""

    existing: Literal["continue", "restart", "replace"] = "continue"
    """What to do with the run that is there."""
    methods: tuple[str, ...] = ()
    """Which."""


@pytest.mark.parametrize(
    ("argv", "config"),
    [
        ("--overwrite", Renewed("replace")),
        ("--no-resume --method a b", Renewed("restart", ("a", "b"))),
        ("--no_resume --method=a", Renewed("restart", ("a",))),
        ("--resume", Renewed()),
        ("--overwrite --no-resume", Renewed("replace")),
        ("--no-resume --overwrite", Renewed("replace")),
    ],
)
def test_spellings_of_earlier_versions_are_understood(argv: str, config: Renewed) -> None:
    assert parse(Renewed, argv.split(), prog="train") == config


def test_spellings_of_earlier_versions_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Renewed, ["--help"], prog="train")
    words = capsys.readouterr().out.replace("--methods", "").split()
    assert not {"--overwrite", "--resume", "--no-resume", "--method"} & set(words)
    assert "--overwrite" in failure(["--overwrite"])  # a program without the new flag does not know the old one


PROGRAM = '''
import sys
from dataclasses import dataclass
import experiments
from experiments.program.command import resolve, run

@dataclass
class Config:
    """Train."""
    steps: int = 3
    """Steps."""

sys.exit(run(print, Config, prog="train"))
'''


@pytest.mark.parametrize(
    ("argv", "status", "out", "err"),
    [
        (["--steps", "4"], 0, "Config(steps=4)\n", ""),
        (["--steps", "x"], 2, "", "train: argument --steps: invalid value 'x'; expected INT\n"),
        ([b"--steps\xff"], 2, "", "train: unrecognized argument '--steps\\udcff'; did you mean --steps?\n"),
    ],
)
def test_as_a_program(argv: list[str | bytes], status: int, out: str, err: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m experiments.gradnorm.train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage")
    assert done.stderr == ""


HELP = """
import contextlib, importlib, io, sys
from experiments.methods import METHODS

programs = [f"experiments.{method}.{program}" for method in METHODS for program in ("train", "evaluate")]
programs += ["experiments.supervised.train", "experiments.supervised.compare"]
programs += [f"experiments.world_model.{program}" for program in ("train", "evaluate", "land")]
for name in [*programs, "experiments.sweep.__main__"]:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            importlib.import_module(name).main(["--help"])
        except SystemExit as stop:
            assert stop.code == 0, name
    slow = {"torch", "gymnasium", "matplotlib", "scipy", "ray"} & set(sys.modules)
    assert not slow, (name, slow)
"""


def test_help_loads_nothing_that_is_slow() -> None:
    subprocess.run([sys.executable, "-c", HELP], check=True)


ROOT = Path(experiments.__file__).parent.parent
ADDRESS = re.compile(r"(mtrl|envs|agents|experiments|benchmarks)(\.\w+)+:\w+")


def addresses() -> set[str]:
    """Every string in the project's code that is the address of something in it."""
    files = [
        path
        for package in ("mtrl", "envs", "agents", "experiments", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
    ]
    strings = (
        node.value
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return {text for text in strings if ADDRESS.fullmatch(text)}


def test_every_address_leads_to_something() -> None:
    found = addresses()
    assert {"experiments.training.runner:train", "experiments.rgb.config:RGBConfig"} <= found
    for address in found:
        assert callable(resolve(address)), address
