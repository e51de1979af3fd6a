"""The pages about methods: their code runs, and they say what the balancers, the benchmarks and the results say."""

import inspect
import re
from pathlib import Path

import gymnasium
import pytest
import torch

from docs.methods import make_pictures
from experiments.methods import METHODS
from mtrl import make_balancer
from mtrl.balancers import names, torchjd_names
from mtrl.rl import MultiTaskDQN, Task, make_task_vec_env

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "methods"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
METHOD_PAGES = sorted(PAGES.keys() - {"index", "playground"})
REPORTS = [
    *(ROOT / "results").glob("**/*.md"),
    ROOT / "benchmarks" / "README.md",
]


def overview():
    """The rows of the overview by method: what it looks at, the losses, what it keeps, and the cost."""
    rows = re.findall(r"^\| \[(\w+)\]\(\w+\.md\) \|(.*)\|$", PAGES["index"], re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")][1:] for name, cells in rows}


def costs():
    """The time of an update relative to plain PyTorch, by the name in the table of the benchmark."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = text.partition("## One update")[2].partition("The floor")[0]
    return dict(re.findall(r"^\| (.*?) \| ([\d.]+) \|", table, re.MULTILINE))


def test_every_method_has_a_page_and_a_place_in_the_index():
    known = {*names(), *METHODS.keys() - {"shared_dqn"}}
    assert set(METHOD_PAGES) == known
    assert {*overview(), "independent_dqn", "brc"} == known
    toctree = PAGES["index"].rpartition("```{toctree}")[2].split()
    assert {*METHOD_PAGES, "playground"} <= set(toctree)


@pytest.mark.parametrize("name", names())
def test_the_overview_says_what_the_balancer_is(name):
    looks_at, losses, keeps, cost = overview()[name]
    balancer = make_balancer(name, 2)
    assert looks_at == balancer.looks_at
    assert losses == ("positive" if balancer.needs_positive_losses else "any")
    balancer.combine(torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.ones(2))
    assert (keeps == "nothing") == (not balancer.state_dict())
    known = costs()
    measured = known.get(name) or known.get(f"{name} (look-ahead every 10 updates, the default)", "-")
    assert cost == measured
    if cost != "-":
        assert f"{cost} of the time" in re.sub(r"\s+", " ", PAGES[name])


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_intervals_are_those_of_a_report(name):
    reports = "\n".join(path.read_text(encoding="utf-8") for path in REPORTS)
    text = re.sub(r"\s+", " ", PAGES[name])
    for value in re.findall(r"[-+]?[\d.]+ \[[^\]\n]*, [^\]\n]*\]", text):
        assert value in reports, value
    for path in re.findall(r"`((?:results|benchmarks|tests|docs)/[\w/.]+)`", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_its_python_runs(name):
    if name == "torchjd":
        pytest.importorskip("torchjd", reason="the extra `torchjd` is not installed")
    encoder, heads, x = torch.nn.Linear(4, 8), [torch.nn.Linear(8, 1) for _ in range(2)], torch.randn(16, 4)
    tasks = [Task(task, lambda render_mode=None: gymnasium.make("CartPole-v1")) for task in ("a", "b")]
    known = {
        "MultiTaskDQN": MultiTaskDQN,
        "env": make_task_vec_env(tasks, seed=0),
        "encoder": encoder,
        "held_out_loss": lambda: heads[0](encoder(x)).square().mean(),
        "optimizer": torch.optim.SGD([*encoder.parameters(), *heads[0].parameters(), *heads[1].parameters()], 0.1),
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL)
    assert blocks
    for block in blocks:
        known["loss_a"], known["loss_b"] = (head(encoder(x)).square().mean() for head in heads)
        exec(block, known)
    assert "model" in known


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_its_commands_are_understood(name):
    commands = re.findall(r"^python -m experiments\.(\w+)\.train(.*)$", PAGES[name], re.MULTILINE)
    assert [command for command, _ in commands] == [{"equal": "shared_dqn"}.get(name, name)]
    for command, words in commands:
        METHODS[command].parse(words.split(), command)


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_the_formula_and_the_code_are_those_of_the_method(name):
    (path,) = re.findall(r"```\{literalinclude\} (\S+)", PAGES[name])
    source = (FOLDER / path).resolve()
    kinds = re.findall(r"autoclass:: (?:mtrl|mtrl\.balancers|agents)\.(\w+)$", PAGES[name], re.MULTILINE)
    assert f"class {kinds[0]}(" in source.read_text(encoding="utf-8")
    if name in names():
        kind = type(make_balancer(name, 2))
        assert (kind.__name__, Path(inspect.getfile(kind))) == (kinds[0], source)


def test_the_page_of_torchjd_names_every_aggregator():
    pytest.importorskip("torchjd", reason="the extra `torchjd` is not installed")
    table = PAGES["torchjd"].partition("## Which aggregator?")[2].partition("In the toy problem")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", table))
    assert named == set(torchjd_names())


def test_the_pictures_are_there_small_and_made_by_the_command(tmp_path, monkeypatch):
    pytest.importorskip("torchjd", reason="the extra `torchjd` is not installed")
    monkeypatch.setattr(make_pictures, "FOLDER", tmp_path)
    make_pictures.main()
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    shown = {name for text in PAGES.values() for name in re.findall(r"\(pictures/([\w.]+)\)", text)}
    assert shown == made.keys() == {path.name for path in (FOLDER / "pictures").iterdir()}
    for name, text in made.items():
        assert len(text.encode()) < 30_000, name
        kept = (FOLDER / "pictures" / name).read_text(encoding="utf-8")
        labels = [re.findall(r"<text[^>]*>([^<]*)</text>", each) for each in (text, kept)]
        assert labels[0] == labels[1], f"{name}: run python -m docs.methods.make_pictures"
