"""The command line of every program in the project: a dataclass becomes its flags, bad input becomes one line.

A configuration is a dataclass whose field docstrings are the help text. Its program is

    def main(argv: Sequence[str] | None = None) -> int:
        return run("package.module:train", TrainConfig, argv, prog="train", presets=PRESETS)

A mistake of the user is answered by exit status 2 and one line on stderr, which names the argument, its value and the
values that are valid. Ctrl-C gives exit status 130. Any other exception is a bug and keeps its traceback.
"""

import contextlib
import dataclasses
import difflib
import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from mtrl.files import one_line, open_regular

__all__ = ["UsageError", "flags_of", "main_guard", "parse", "parse_seeds", "value_of"]

T = TypeVar("T")

MOST_SEEDS = 10_000

# Errors of the operating system that a name can cause and that have no exception class of their own.
NAME_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENXIO, errno.ENODEV)
USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, FileExistsError, IsADirectoryError, PermissionError)
# Spellings of earlier versions, which are understood but not shown by `--help`, and what they stand for now. They count
# in programs that have the new flag and not the old one.
FORMER_FLAGS = {
    "--overwrite": ("--existing", "replace"),
    "--no-overwrite": ("--existing", "continue"),
    "--no-resume": ("--existing", "restart"),
    "--resume": ("--existing", "continue"),
    "--method": ("--methods",),
    "--methods": ("--method",),
}
SETTINGS_FLAG = "--settings"  # names a file of settings, where a program has this flag
LARGEST_SETTINGS = 2**20  # bytes
COMPLETION_FLAGS = ("--tyro-print-completion", "--tyro-write-completion")
EXPONENT_FORM = r"[+-]?[0-9]+(\.[0-9]*)?[eE]\+?[0-9]{1,2}"  # of an integer, such as 1e5 or 2.5e6
SHELLS = ("bash", "zsh", "fish")
# How Python and tyro begin a message that says nothing beyond "not of the expected type".
GENERIC_REASONS = (
    "invalid literal for",
    "could not convert string",
    "no type matching",
    "Could not find valid parse",
    "Could not parse arguments",
    "Failed to parse key-value pairs",
)


class UsageError(ValueError):
    """The user asked for something impossible. The message says what is wrong, and what is possible instead."""


def parse(
    config_type: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str | None = None,
    presets: Mapping[str, T] | None = None,
    default: T | None = None,
) -> T:
    """Make a configuration from command-line words.

    Args:
        config_type: a dataclass; its field `total_steps` is the flag `--total-steps`. If a flag is repeated, the last
            value counts.
        argv: the words after the program's name (default `sys.argv[1:]`).
        prog: the program's name in messages.
        description: the first paragraph of `--help` (default: the docstring of `config_type`).
        presets: configurations by name, for a `config_type` with a field `preset`. `--preset NAME`, at any place in the
            command line, makes `presets[NAME]` the source of every default. Flags that are given take precedence.
        default: the source of every default without `--preset` (default: the field defaults of `config_type`).

    Raises:
        SystemExit: with status 0 after printing `--help`; with status 2 after one line on stderr for bad input,
            including a ValueError from `__post_init__`.
    """
    words = _renewed(sys.argv[1:] if argv is None else argv, flags_of(config_type))
    with main_guard(prog):
        if SETTINGS_FLAG in flags_of(config_type):
            words = [*_words_of_file(words, config_type), *words]
        if presets is not None:
            default = _preset(words, presets, default)
        # tyro uses an assertion where it should check the shell.
        if len(words) > 1 and words[0].replace("_", "-") in COMPLETION_FLAGS and words[1] not in SHELLS:
            raise UsageError(f"argument {words[0]}: invalid choice {words[1]!r}; choose from {', '.join(SHELLS)}")
        options = {} if default is None else {"default": default}
        return _parse(config_type, words, prog=prog, description=description, **options)


def _words_of_file(words: Sequence[str], config_type: type[Any]) -> list[str]:
    """The words that stand for the settings in the file that the last `--settings` names; none without one.

    Since the words of the command line follow them, these take precedence, and every check of a flag holds for a file.

    Raises:
        UsageError: the file cannot be read, or is not an object of settings that the program has.
    """
    path = value_of(SETTINGS_FLAG, words)
    if path is None:
        return []
    try:
        with open_regular(Path(path), follow_link=True) as file:
            content = json.loads(file.read(LARGEST_SETTINGS))
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else "it is not JSON"
        raise UsageError(f"argument {SETTINGS_FLAG}: cannot read '{path}': {reason}") from None
    if not isinstance(content, dict):
        raise UsageError(f"argument {SETTINGS_FLAG}: '{path}' holds no object of settings by name")
    flags, found = [flag for flag in flags_of(config_type) if flag != SETTINGS_FLAG], []
    elsewhere = {field.name for field in dataclasses.fields(config_type) if field.metadata.get("resumable")}
    for name, value in content.items():
        flag = f"--{name.replace('_', '-')}"
        if name in elsewhere:
            how = f"which does not decide what is learned; give {flag} instead"
            raise UsageError(f"argument {SETTINGS_FLAG}: '{path}' sets {name}, {how}")
        if flag not in flags:
            near = difflib.get_close_matches(flag, flags, n=1)
            hint = f"; did you mean {near[0][2:].replace('-', '_')}?" if near else ""
            raise UsageError(f"argument {SETTINGS_FLAG}: '{path}' has an unknown setting {name!r}{hint}")
        if isinstance(value, bool) and f"--no-{flag[2:]}" in flags:
            found.append(flag if value else f"--no-{flag[2:]}")
        else:
            words_of_it = [str(part) for part in (value if isinstance(value, list) else [value])]
            if any(word.startswith("--") for word in words_of_it):  # it would be taken for another flag
                raise UsageError(f"argument {SETTINGS_FLAG}: '{path}' has an impossible value of {name}: {value!r}")
            found += [flag, *words_of_it]
    return found


def parse_seeds(words: Sequence[str]) -> list[int]:
    """The seeds that words such as `0 3 7-9` stand for, each once, in the order given.

    Raises:
        ValueError: a word is neither a number nor a range, or there are no seeds, or more than 10,000.
    """
    seeds: dict[int, None] = {}
    for word in words:
        if not (match := re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", word)):
            raise ValueError(f"seeds: {word!r} is neither a seed such as 3 nor a range such as 0-9")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise ValueError(f"seeds: {word!r} counts down; did you mean {last}-{first}?")
        if last - first >= MOST_SEEDS or len(seeds) + last - first >= MOST_SEEDS:
            raise ValueError(f"seeds: {' '.join(words)} are more than {MOST_SEEDS:,}")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    if not seeds:
        raise ValueError("seeds: there are none; give some, such as 0-9")
    return list(seeds)


@contextlib.contextmanager
def main_guard(prog: str) -> Iterator[None]:
    """Turn the errors that a user can cause into one line `prog: message` on stderr and exit status 2.

    It is a context manager, and a decorator: `@main_guard("train")`. Errors that a user can cause are ValueError, which
    includes `UsageError`, and OSErrors about paths that are missing, in the way, forbidden or invalid.
    KeyboardInterrupt gives exit status 130.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more when it ends
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (*USER_ERRORS, OSError) as error:
        if not isinstance(error, USER_ERRORS) and error.errno not in NAME_ERRORS:
            raise
        print(f"{prog}: {one_line(_message(error), longest=0)}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print(f"{prog}: interrupted", file=sys.stderr)
        raise SystemExit(130) from error


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:  # str(error) would begin with "[Errno 2]"
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename!r}"
    return str(error) or type(error).__name__


def _renewed(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words, with the spellings of earlier versions replaced by those that the program has."""
    renewed: list[str] = []
    for word in words:
        former, equals, value = word.partition("=")
        former = former.replace("_", "-")
        new = FORMER_FLAGS.get(former, ("", ""))
        if new[0] not in flags or former in flags or (equals and len(new) > 1):
            renewed.append(word)
        elif equals:
            renewed.append(f"{new[0]}={value}")
        elif former != "--no-resume" or "--overwrite" not in words:  # together, they meant what --overwrite means
            renewed += new
    return renewed


def _preset(words: Sequence[str], presets: Mapping[str, T], default: T | None) -> T | None:
    """The configuration that the last `--preset` among `words` names; `default` if there is no `--preset`."""
    chosen = value_of("--preset", words)
    if chosen is None:
        return default
    if chosen not in presets:
        raise UsageError(f"argument --preset: invalid choice {chosen!r}; choose from {', '.join(presets)}")
    return presets[chosen]


def value_of(wanted: str, words: Sequence[str]) -> str | None:
    """The value that the last of these flags has among `words`; None if there is no such flag."""
    found = None
    for word, after in pairwise([*words, "-"]):
        flag, equals, value = word.partition("=")
        if flag == wanted and (equals or not after.startswith("-")):  # tyro reports a missing value
            found = value if equals else after
    return found


def _parse(config_type: type[T], words: Sequence[str], **options: Any) -> T:
    """Call `tyro.cli`, and turn every failure into a UsageError.

    tyro prints a failure as a box of many lines and exits. Before that it calls its hook `on_parse_error`, which is
    private and may change in any release. So the box is caught as well. It is flattened to one line and used when the
    hook is gone, when its event is of a new kind, or when the fields of the event have changed.
    """

    def raise_as_usage_error(event: Any) -> None:
        with contextlib.suppress(AttributeError):
            if message := _explain(event, words, flags_of(config_type)):
                raise UsageError(message)

    errors = getattr(tyro, "_errors", None)
    on_parse_error = getattr(errors, "on_parse_error", contextlib.nullcontext)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), on_parse_error(raise_as_usage_error):
            config: T = tyro.cli(config_type, args=words, registry=_registry(), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_flatten(box.getvalue())) from None
    print(box.getvalue(), end="", file=sys.stderr)  # warnings
    return config


@cache
def _registry() -> tyro.constructors.ConstructorRegistry:
    """How words become values where tyro's own way is too narrow or too wide.

    An integer may be written as 1e5. A path may not be empty, as that of a shell variable without a value is: Python
    would take it for the current folder.
    """
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def integer(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: _integer(words[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def path(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: _path(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _path(word: str) -> Path:
    """The path that a word stands for."""
    if not word:
        raise ValueError("the path is empty; the current folder is '.'")
    return Path(word)


def _integer(word: str) -> int:
    """The integer that a word stands for, such as 100000 or 1e5."""
    try:
        return int(word)
    except ValueError:
        number = Decimal(word) if re.fullmatch(EXPONENT_FORM, word) else None
        if number is None or number != number.to_integral_value():
            raise
        return int(number)


def _explain(event: Any, words: Sequence[str], flags: Sequence[str]) -> str | None:
    """Describe tyro's parse error `event` in one line; None if its kind is not known here."""
    kind = type(event).__name__
    if kind == "UnrecognizedArgs":
        return _unrecognized(event.tokens, words, flags)
    if kind == "MissingArgs":
        if event.unrecognized_tokens:  # the missing flag may be one of these, misspelt
            return _unrecognized(event.unrecognized_tokens, words, flags)
        return f"missing argument {', '.join(missing.arg.display_name() for missing in event.missing_arguments)}"
    if kind in ("InvalidChoice", "BadValue", "InstantiationFailure"):
        # A ValueError of the whole configuration belongs to no argument; its own message is enough.
        return _bad_value(event, words) if event.argument else str(event.message)
    return None


def _bad_value(event: Any, words: Sequence[str]) -> str:
    lowered = event.argument.lowered
    expected = f"choose from {', '.join(lowered.choices)}" if lowered.choices else f"expected {lowered.metavar}"
    given = _given(words, lowered.name_or_flags)
    match type(event).__name__:
        case "InvalidChoice":
            problem = f"invalid choice {event.value!r}"
        case "BadValue":
            got = event.offending_value
            problem = "missing value" if got is None else f"takes no value but got {got!r}"
        case _:
            problem = str(event.message).partition("\n")[0]
            if problem.startswith(GENERIC_REASONS):
                problem = f"invalid value {given!r}"
    return f"argument {event.argument.display_name()}: {problem}; {expected}"


def _given(words: Sequence[str], flags: Sequence[str]) -> str:
    """The words after the last occurrence of one of `flags`, as one string."""
    values: list[str] = []
    for word in reversed(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in flags:
            return " ".join([value, *values] if equals else values)
        values = [] if word.startswith("--") else [word, *values]
    return ""


def _unrecognized(tokens: Sequence[str], words: Sequence[str], flags: Sequence[str]) -> str:
    unknown = [token.partition("=")[0] for token in tokens if token.startswith("-")]
    if not unknown:
        return _unexpected(tokens[0], words, flags)
    wanted = unknown[0].replace("_", "-")
    similar = [flag for flag in flags if wanted.strip("-") and flag.startswith(wanted)]
    if not similar:  # the dashes are left out of the comparison, as they would make all flags similar
        similar = [f"--{name}" for name in difflib.get_close_matches(wanted[2:], [flag[2:] for flag in flags], n=1)]
    hint = f"did you mean {' or '.join(similar)}?" if similar else "see --help"
    return f"unrecognized argument {', '.join(map(repr, unknown))}; {hint}"


def _unexpected(value: str, words: Sequence[str], flags: Sequence[str]) -> str:
    for before, word in pairwise(["", *words]):
        owner = (before if word == value else word.removesuffix(f"={value}")).replace("_", "-")
        if f"--no-{owner[2:]}" in flags:
            return f"argument {owner}: takes no value but got {value!r}; use {owner} or --no-{owner[2:]}"
    return f"unexpected value {value!r}; no argument takes it (see --help)"


def flags_of(config_type: type[Any]) -> list[str]:
    """The flags of a dataclass. A fixed field has no flag."""
    types = get_type_hints(config_type, include_extras=True)
    flags = []
    for field in dataclasses.fields(config_type):
        name, kind = field.name.replace("_", "-"), types[field.name]
        if tyro.conf.Fixed not in getattr(kind, "__metadata__", ()):
            flags += [f"--{name}", f"--no-{name}"] if kind is bool else [f"--{name}"]
    return flags


def _flatten(box: str) -> str:
    """The message in tyro's error box, without colours, frame, title and help text."""
    plain = re.sub(r"\x1b\[[\d;]*m|[\u2500-\u257f]|-{3,}", "", box)
    lines = [line.strip(" |") for line in plain.splitlines()[1:]]
    return re.split(r" (?:Argument helptext|For full helptext)", " ".join(lines))[0]
