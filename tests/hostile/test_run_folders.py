"""Run folders that a stranger has made: every reader reads what it should or says in one line why it does not."""

import contextlib
import copy
import csv
import io
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import peak_memory, restart_peak_memory
from experiments import analyze_results, compare_weights, plot_recording
from experiments.analysis import tables
from experiments.analysis.comparison import analyse
from experiments.analysis.marl_eval import to_marl_eval
from experiments.analysis.plots.recording import Recording
from experiments.analysis.replicates import as_methods
from experiments.analysis.runs import Run, load_runs
from experiments.program.flags import UsageError
from experiments.program.run_files import (
    LARGEST_CONFIG,
    LARGEST_METRICS,
    LONGEST_NAME,
    MOST_TASKS,
    BrokenRunError,
    settings_record,
)
from experiments.sweep.grid import plan, refuse_other_settings
from experiments.sweep.progress import read_progress

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "gradnorm" / "seed_0"
FILES = ("config.json", "evaluation.json", "metrics.jsonl")
BATCHES, PER_BATCH = 44, 50
HEADINGS = ("Ranking", "Returns", "Interquartile means", "Against the baseline", "Sample efficiency", "Size and speed")
SECRET = "the user's own words"

TEXTS = (
    *(
        "",
        " ",
        "\n",
        "a\nb",
        "\n## A heading\n",
        "\0",
        "\x1b[31m",
        "\x1b]0;title\a",
        "\u202e",
        "\ud800",
        "é" * 300,
        "$x$",
    ),
    *('"><meta http-equiv=refresh content="0;url=https://example.com">', "<img src=https://example.com/x.png>"),
    *("=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "[a](https://example.com)", "a|b", "`a`", "a/b", "../..", "x" * 10**5),
    *("{{ 1 + 1 }}", "{% raw %}", "%s%n", "{0}", "aware", "gradnorm", "nan", "1e400", "www.example.com", "[/b]"),
)
NUMBERS = (
    *(0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e15, 1e308),
    *(float("nan"), float("inf"), float("-inf"), True, False, None),
)
SHAPES: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: [],
    lambda rng: {},
    lambda rng: [1],
    lambda rng: [rng.choice(NUMBERS) for _ in range(5)],
    lambda rng: [f"t{i}" for i in range(rng.choice((3, MOST_TASKS + 1, 20_000)))],
    lambda rng: {f"k{i}": i for i in range(rng.choice((3, 20_000)))},
    lambda rng: {rng.choice(TEXTS): rng.choice(TEXTS)},
    lambda rng: [[[[[[["deep"]]]]]]],
    lambda rng: rng.choice(TEXTS),
    lambda rng: rng.choice(NUMBERS),
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in plain data, leaving out most of long lists."""
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node[:2]):
            yield from places(value, (*path, index))


def changed(node: Any, rng: random.Random) -> Any:
    """A copy of plain data with a value replaced, removed or added somewhere."""
    node = copy.deepcopy(node)
    *way, last = rng.choice(list(places(node))[1:])
    parent = node
    for key in way:
        parent = parent[key]
    kind = rng.randrange(4)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = rng.choice(SHAPES)(rng)
    else:
        parent[last] = rng.choice(SHAPES)(rng)
    return node


def odd_bytes(content: bytes, rng: random.Random) -> bytes:
    """The content of a file, damaged."""
    place = rng.randrange(len(content))
    return rng.choice(
        (
            content[:place],
            content[:place] + bytes(rng.randrange(256) for _ in range(4)) + content[place:],
            content[:place] + content[place + 1 :],
            b"",
            b"\xff\xfe" + content,
            content + b"\0",
            content.decode().encode("utf-16"),
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"9" * 10_000,
            b"null",
            content * 2,
        )
    )


def odd_file(path: Path, rng: random.Random) -> None:
    """Something in the place of a file that is no regular file, or a very large one."""
    kind = rng.randrange(8)
    path.unlink(missing_ok=True)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.symlink_to(path.parents[2] / "private.txt")
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        path.symlink_to(path)
    elif kind == 5:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:  # its path may be too long
            server.bind(str(path))
    elif kind == 6:
        with open(path, "wb") as file:
            file.truncate(2**40)  # a sparse file: it takes no room on the disk
    # and 7: nothing is there


def mutate(folder: Path, contents: dict[str, Any], rng: random.Random) -> None:
    """Write a run folder that differs from a good one in one or two ways."""
    folder.mkdir(parents=True)
    config, evaluation, lines = (copy.copy(contents[name]) for name in FILES)
    kind = rng.randrange(10)
    if kind < 4:
        config = changed(config, rng)
    elif kind < 7:
        evaluation = changed(evaluation, rng)
    elif kind < 9:
        number = rng.randrange(len(lines))
        lines[number] = changed(lines[number], rng)
    texts = [json.dumps(config), json.dumps(evaluation), "".join(f"{json.dumps(line)}\n" for line in lines)]
    for name, text in zip(FILES, texts, strict=True):
        (folder / name).write_bytes(text.encode())
    if kind == 9 or rng.random() < 0.1:
        path = folder / rng.choice(FILES)
        if rng.random() < 0.5:
            path.write_bytes(odd_bytes(path.read_bytes(), rng))
        else:
            odd_file(path, rng)


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """A short run, as plain data."""
    config, evaluation = (json.loads((REFERENCE / name).read_text()) for name in FILES[:2])
    lines = [json.loads(line) for line in (REFERENCE / FILES[2]).read_text().splitlines()]
    return {FILES[0]: config, FILES[1]: evaluation, FILES[2]: lines[::40]}


def write(folder: Path, contents: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / FILES[0]).write_text(json.dumps(contents[FILES[0]]))
    (folder / FILES[1]).write_text(json.dumps(contents[FILES[1]]))
    (folder / FILES[2]).write_text("".join(f"{json.dumps(line)}\n" for line in contents[FILES[2]]))
    return folder


def is_a_line(text: str) -> bool:
    return len(text) < 5_000 and text.isprintable() and SECRET not in text


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_reader_reads_or_refuses_2200_folders(batch: int, good: dict[str, Any], tmp_path: Path) -> None:
    rng = random.Random(batch)
    root = tmp_path / "runs"
    (tmp_path / "private.txt").write_text(SECRET)
    (root / "private.txt").parent.mkdir()
    (root / "private.txt").write_text(SECRET)
    genuine = write(root / "gradnorm" / "seed_0", good)
    folders = [root / f"{number:02}" / "seed_0" for number in range(PER_BATCH)]
    for folder in folders:
        mutate(folder, good, rng)
    restart_peak_memory()
    before = peak_memory()

    runs, errors = load_runs(root)
    assert genuine in [run.folder for run in runs["gradnorm"]], "no other folder can take the place of a run"
    assert sum(map(len, runs.values())) + len(errors) == PER_BATCH + 1
    assert {type(error) for error in errors} == {BrokenRunError}

    analysis = analyse(list(as_methods(runs).values()))
    page = tables.markdown(analysis)
    assert "<img" not in page.replace("\\<", "")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert headings == [name for name in HEADINGS if name in headings]
    for row in csv.reader(io.StringIO(tables.to_csv(analysis))):
        assert not row[0].startswith(("=", "@", "+"))
        assert not row[3].startswith(("=", "@", "+", "-"))
    json.dumps(to_marl_eval(analysis.methods), allow_nan=False)

    refusals = [str(error) for error in errors]
    planned = plan(["gradnorm"], ["aware"], [0], root, [], "sweep")
    for folder in folders:
        progress = read_progress(folder)
        assert 0 <= progress.steps <= 1e15
        assert progress.steps_per_s is None or 1e-3 <= progress.steps_per_s <= 1e9
        try:
            recording = Recording.read(folder / "metrics.jsonl")
        except BrokenRunError as error:
            refusals.append(str(error))
        else:
            assert len(recording.tasks) <= MOST_TASKS
        (root / "gradnorm" / "seed_0").rename(root / "away")
        folder.rename(root / "gradnorm" / "seed_0")
        try:
            refuse_other_settings(planned)
        except UsageError as error:
            refusals.append(str(error))
        (root / "gradnorm" / "seed_0").rename(folder)
        (root / "away").rename(root / "gradnorm" / "seed_0")
    assert [text for text in refusals if not is_a_line(text)] == []
    assert peak_memory() - before < 600e6


# ------------------------------------------------------------------------------------------------ the whole programs


def run(main: Any, *words: Any) -> int:
    try:
        status = main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    return int(status)


NASTY = (
    *('"><img src=https://example.com/x.png>', "=HYPERLINK(1)", "[a](https://example.com)", "$x^{2$", "a | `b` _c_"),
    *("<b>&amp;", "{{ 7 * 7 }}", "www.example.com", "x" * LONGEST_NAME, "javascript:alert(1)"),
)


def test_a_page_of_nasty_names_asks_for_nothing_and_shows_them_as_they_are(
    good: dict[str, Any], tmp_path: Path, visit: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(NASTY):
        contents = copy.deepcopy(good)
        contents[FILES[0]]["run"] = name
        contents[FILES[0]]["settings"] |= {name: name, "gamma": name, "batch_size": name}
        text = json.dumps(contents).replace("Standard", "Standard " + name[:30].replace("\\", "").replace('"', "'"))
        write(tmp_path / "runs" / str(number) / "seed_0", json.loads(text))
    write(tmp_path / "runs" / "shared_dqn" / "seed_0", good)
    out = tmp_path / "out"
    assert run(analyze_results.main, "--results-dir", tmp_path / "runs", "--output-dir", out, "--html") == 0
    printed = capfd.readouterr()
    assert all(line.isprintable() for line in (printed.out + printed.err).splitlines())
    view = visit(out / "report.html")
    for plot in view.tab.locator(".plot").all():
        plot.scroll_into_view_if_needed()
    view.tab.wait_for_timeout(500)
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith("data:")] == [(out / "report.html").as_uri()]
    assert view.tab.url == (out / "report.html").as_uri()
    for table in ("#ranking", "#returns"):
        names = view.tab.locator(f"{table} th[scope=row]").all_inner_texts()
        assert set(names) >= set(NASTY)
    assert view.tab.locator("a[href^=http], img, iframe, meta[http-equiv=refresh]").count() == 0


def test_what_is_long_is_bounded(good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"task {number}" for number in range(MOST_TASKS)]
    many = copy.deepcopy(good)
    result = next(iter(many[FILES[1]]["tasks"].values()))
    many[FILES[0]]["settings"]["tasks"] = names
    many[FILES[1]]["tasks"] = dict.fromkeys(names, result)
    many[FILES[2]] = [{"env_step": step, **{f"eval/{n}/return": 1.0 for n in names}} for step in range(1, 200)]
    write(tmp_path / "runs" / "gradnorm" / "seed_0", many)
    more = copy.deepcopy(many)
    more[FILES[0]]["settings"] |= {"seed": 1, "tasks": [*names, "one more"]}
    more[FILES[1]]["tasks"]["one more"] = result
    write(tmp_path / "runs" / "gradnorm" / "seed_1", more)
    large = write(tmp_path / "runs" / "gradnorm" / "seed_2", good)
    (large / "config.json").write_bytes(b" " * (LARGEST_CONFIG + 1))
    endless = write(tmp_path / "runs" / "gradnorm" / "seed_3", good)
    with open(endless / "metrics.jsonl", "r+b") as file:
        file.truncate(LARGEST_METRICS + 1)
    assert run(analyze_results.main, "--results-dir", tmp_path / "runs", "--output-dir", tmp_path / "out") == 0
    skipped = capsys.readouterr().err.splitlines()
    assert len(skipped) == 3
    reasons = ("101 names; they must be 1 to 100", "more than 1,048,576 bytes", "files of more than 134,217,728")
    for line, part in zip(skipped, reasons, strict=True):
        assert line.startswith("skipped ")
        assert part in line


def test_a_million_lines_are_read_in_bounded_memory(good: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "runs" / "gradnorm" / "seed_0", good)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1_000_000):
            file.write(f'{{"env_step": {step}, "balancer/Standard/weight": {step % 7}}}\n')
        file.write('{"env_step": 10000')  # as if it were being written
    restart_peak_memory()
    before = peak_memory()
    recording = Recording.read(folder / "metrics.jsonl")
    assert len(recording.curves["balancer/Standard/weight"][0]) == 1_000_000
    assert peak_memory() - before < 200e6
    assert run(plot_recording.main, folder / "metrics.jsonl", "--output-dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "weights.png").is_file()


def test_an_evaluation_belongs_to_the_settings_beside_it(good: dict[str, Any], tmp_path: Path) -> None:
    contents = copy.deepcopy(good)
    contents[FILES[1]] |= settings_record(contents[FILES[0]], without=["quiet"])
    contents[FILES[0]]["settings"] |= {"quiet": True, "results_dir": "elsewhere"}
    write(tmp_path / "gradnorm" / "seed_0", contents)
    contents[FILES[0]]["settings"]["seed"] = 1
    write(tmp_path / "gradnorm" / "seed_1", contents)
    (found,), (error,) = load_runs(tmp_path)[0]["gradnorm"], load_runs(tmp_path)[1]
    assert isinstance(found, Run)
    assert "evaluation.json: it belongs to a run with other settings than those of" in str(error)


def test_odd_numbers_in_the_metrics_cost_nothing_but_themselves(good: dict[str, Any], tmp_path: Path) -> None:
    contents = copy.deepcopy(good)
    contents[FILES[2]][0] |= {"time/fps": 2**70, "train/x": float("inf"), "train/y": 1e300}
    folder = write(tmp_path / "gradnorm" / "seed_0", contents)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"train/x": Infinity', f'"train/x": {"9" * 5000}'))
    (found,) = load_runs(tmp_path)[0]["gradnorm"]
    assert "train/updates" in found.columns
    assert not {"time/fps", "train/x", "train/y"} & {k for k, (rows, _) in found.columns.items() if 0 in rows}


@pytest.mark.parametrize("main", [analyze_results.main, compare_weights.main, plot_recording.main])
def test_help_and_folders_that_are_not_there(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [tmp_path / "none"] if main is plot_recording.main else ["--results-dir", tmp_path / "none"]
    more = ["--methods", "gradnorm"] if main is compare_weights.main else []
    assert run(main, *where, *more) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
