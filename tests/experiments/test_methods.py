"""Every method package, found by its train.py: its programs as a user runs them, in one process and small."""

import dataclasses
import importlib
import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import imageio.v2 as imageio
import pytest
import torch
import tyro

import agents
import experiments
from agents import load_agent
from experiments import analyze_results
from experiments.methods import METHODS
from experiments.program.flags import parse
from experiments.torchjd.config import TorchJDConfig
from experiments.training.algorithms import DQNTrainConfig
from experiments.training.config import EvaluateConfig, run_name
from mtrl import balancers
from mtrl.balancers import make_balancer
from tests.support import fails

FOLDER = Path(experiments.__file__).parent
QUICK = [
    *("--total-steps", "1500", "--envs-per-task", "2", "--learning-starts", "600", "--batch-size", "8"),
    *("--gradient-steps", "1", "--eval-interval", "700", "--eval-episodes", "1", "--final-episodes", "1", "--quiet"),
]


def parts(method):
    """The method's programs and configurations."""
    return SimpleNamespace(
        train=importlib.import_module(f"experiments.{method}.train").main,
        evaluate=importlib.import_module(f"experiments.{method}.evaluate").main,
        presets=METHODS[method].presets,
        config=METHODS[method].config_type,
        evaluate_config=METHODS[method].evaluate_config_type,
    )


def flags(config_type):
    """The flags that a configuration has, and those of its fixed fields."""
    hints = get_type_hints(config_type, include_extras=True)
    names = [field.name for field in dataclasses.fields(config_type)]
    fixed = [name for name in names if tyro.conf.Fixed in getattr(hints[name], "__metadata__", ())]
    return [f"--{name.replace('_', '-')}" for name in names if name not in fixed], [
        f"--{name.replace('_', '-')}" for name in fixed
    ]


VARIANTS = [
    (m, v) for m in METHODS for v in ("aware", "blind") if v == "aware" or "--variant" in flags(parts(m).config)[0]
]


def variant_flags(method, variant):
    return ["--variant", variant] if "--variant" in flags(parts(method).config)[0] else []


def folder_of(method, variant):
    """Where the method's default run should go."""
    return run_name({"torchjd": "torchjd_upgrad"}.get(method, method), variant)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One finished run of every method and variant."""
    folder = tmp_path_factory.mktemp("results") / "runs"
    for method, variant in VARIANTS:
        assert parts(method).train([*QUICK, *variant_flags(method, variant), "--results-dir", str(folder)]) == 0
    return folder


def test_the_list_has_every_package_that_trains_an_agent():
    balanced = {"shared_dqn", "gradnorm", "pcgrad", "rgb", "aim", "gradnorm_pcgrad", "torchjd"}
    controls = {"static", "normalised", "memory", "random"}
    assert set(METHODS) == balanced | controls | {"independent_dqn", "brc"}
    with_evaluate = {path.parent.name for path in FOLDER.glob("*/evaluate.py")}
    assert set(METHODS) == with_evaluate - {"world_model"}  # which trains no agent
    for name, method in METHODS.items():
        assert name == method.name
        assert len(method.summary.splitlines()) == 1
        assert issubclass(method.config_type, DQNTrainConfig)
        assert issubclass(method.evaluate_config_type, EvaluateConfig)
        assert method.config_type.__module__ == f"experiments.{name}.config"


@pytest.mark.parametrize("method", METHODS)
def test_a_package_is_named_after_its_method_and_says_what_it_is(method):
    config = parts(method).config
    assert config.method == method
    assert importlib.import_module(f"experiments.{method}").__doc__
    assert inspect.getdoc(config).startswith("Train ")
    for program in ("train", "evaluate"):
        module = importlib.import_module(f"experiments.{method}.{program}")
        assert module.__doc__ == f"`python -m experiments.{method}.{program}`."


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_help_explains_every_flag(method, program, capsys):
    part = parts(method)
    main, config = (part.train, part.config) if program == "train" else (part.evaluate, part.evaluate_config)
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    own, fixed = flags(config)
    words = set(re.findall(r"--[\w-]+", printed))
    assert words >= set(own)
    for flag in fixed:  # nowhere, or only inside another flag's explanation
        assert not re.search(rf"^\W*{flag}\b", printed, re.MULTILINE)
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", printed).split())
    for name, explanation in field_docstrings(config).items():
        if f"--{name.replace('_', '-')}" in own:
            assert " ".join(explanation.split()) in text, name


def field_docstrings(config_type):
    """The docstring under each field, the nearest class first."""
    field = re.compile(r'^    (\w+): [^\n]*\n    """(.*?)"""', re.MULTILINE | re.DOTALL)
    found = {}
    for kind in config_type.__mro__[:-1]:
        for name, text in field.findall(inspect.getsource(kind)):
            found.setdefault(name, text)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_field_has_a_docstring(method):
    for config in (parts(method).config, parts(method).evaluate_config):
        own, _ = flags(config)
        assert {f"--{name.replace('_', '-')}" for name in field_docstrings(config)} >= set(own)


@pytest.mark.parametrize(("method", "variant"), VARIANTS)
def test_a_run_leaves_its_files_in_the_folder_of_its_name(results, method, variant):
    name = folder_of(method, variant)
    folder = results / name / "seed_0"
    files = {"config.json", "metrics.jsonl", "model.zip", "evaluation.json", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == files
    described = json.loads((folder / "config.json").read_text())
    assert described["run"] == name
    assert described["settings"]["variant"] == variant
    agent = load_agent(folder / "model.zip", device="cpu")
    assert type(agent).__name__ == described["agent"] == parts(method).config.agent
    assert agent.variant == variant
    assert agent._n_updates == 150  # the same number for all
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["env_step"] == 1500
    if method != "independent_dqn":  # nothing shared, nothing in conflict
        assert {"balancer/conflict_share", "balancer/cosine/Standard_Windy"} <= last.keys()


@pytest.mark.parametrize(("method", "variant"), VARIANTS)
def test_evaluate_repeats_what_training_found(results, method, variant, capsys):
    arguments = [*variant_flags(method, variant), "--results-dir", str(results), "--episodes", "1"]
    assert parts(method).evaluate(arguments) == 0
    printed = capsys.readouterr().out
    evaluation = json.loads((results / folder_of(method, variant) / "seed_0/evaluation.json").read_text())
    assert folder_of(method, variant) in printed
    for task, result in evaluation["tasks"].items():
        row = next(line for line in printed.splitlines() if task in line)
        assert f"{result['mean']:.1f}" in row


def test_analysis_compares_all_methods(results, tmp_path, capsys):
    output = tmp_path / "analysis"
    assert analyze_results.main(["--results-dir", str(results), "--output-dir", str(output)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    names = [line.split("|")[1].strip() for line in printed.out.splitlines() if line.startswith("|")][2:]
    assert sorted(names) == sorted(folder_of(method, variant) for method, variant in VARIANTS)
    for name in ("learning_curves.png", "task_weights.png"):
        assert imageio.imread(output / name).std() > 5


@pytest.mark.parametrize("method", METHODS)
def test_analysis_of_one_method_alone(results, method, tmp_path, capsys):
    arguments = ["--results-dir", str(results), "--output-dir", str(tmp_path / "analysis"), "--method"]
    assert analyze_results.main([*arguments, folder_of(method, "aware")]) == 0
    assert f"| {folder_of(method, 'aware')} | 0 |" in capsys.readouterr().out


def test_labels_tell_apart_runs_of_one_method(tmp_path, capsys):
    for variant, label, angle in (("aware", "slow", "0"), ("blind", "slow", "0"), ("blind", "turned.1", "0.8")):
        words = ["--variant", variant, "--label", label, "--memory-angle", angle, "--results-dir", str(tmp_path)]
        assert parts("rgb").train([*QUICK, *words]) == 0
        assert parts("rgb").evaluate([*words[:4], *words[6:], "--episodes", "1"]) == 0
    printed = capsys.readouterr().out
    names = ["rgb-slow", "rgb-slow_blind", "rgb-turned.1_blind"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(f"{name}, seed 0" in printed for name in names)
    analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path / "analysis")])
    printed = capsys.readouterr()
    assert all(f"| {name} | 0 |" in printed.out for name in names)
    assert "skipped" not in printed.err
    line = fails(parts("rgb").evaluate, ["--label", "fast", "--results-dir", tmp_path], capsys)
    assert line.endswith(f"experiments.rgb.train --variant aware --label fast --seed 0 --results-dir {tmp_path}\n")


@pytest.mark.parametrize("label", ["a b", "../x", "x/y", "-x", "x.", "a_blind", "ä", "x" * 41])
def test_a_label_that_cannot_be_a_part_of_a_name_is_refused(label, tmp_path, capsys):
    for program in (parts("rgb").train, parts("rgb").evaluate):
        assert "label is" in fails(program, [f"--label={label}", "--results-dir", tmp_path / "runs"], capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_model_is_answered_by_the_command_that_makes_it(method, tmp_path, capsys):
    part = parts(method)
    arguments = ["--results-dir", tmp_path, "--seed", "3"]
    if method == "torchjd":
        arguments += ["--aggregator", "MGDA"]
    if variant_flags(method, "blind"):
        arguments += ["--variant", "blind"]
    line = fails(part.evaluate, arguments, capsys)
    missing = re.search(r"no model at '(.*)'; train it: python -m (\S+) (.*)$", line.strip())
    assert missing[2] == f"experiments.{method}.train"
    config = parse(part.config, shlex.split(missing[3]), prog="train")
    assert str(config.run_dir / "model.zip") == missing[1]
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "checkpoint.zip").touch()
    assert f"'{config.run_dir}' holds an unfinished run" in fails(part.evaluate, arguments, capsys)


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_those_of_agent_network_and_balancer(method):
    config = parts(method).config()
    kind = getattr(agents, config.agent)
    defaults = dataclasses.asdict(kind.settings_type())
    del defaults["memory_angle"]  # depends on the balancer; see tests/mtrl/rl/test_settings.py
    assert {name: config.agent_kwargs[name] for name in defaults} == defaults

    policy = kind.policy_aliases["MlpPolicy"]
    parameters = inspect.signature(policy.make_network).parameters
    for name, value in config.policy_kwargs.items():
        assert (tuple(value) if name == "net_arch" else value) == parameters[name].default, name

    if method == "torchjd":
        assert config.balancer_kwargs == {"seed": 0}  # its own defaults
        return
    balancer = inspect.signature(type(make_balancer(config.balancer_name, 3, **config.balancer_kwargs))).parameters
    different = {name for name, value in config.balancer_kwargs.items() if value != balancer[name].default}
    # A range of returns depends on the environment; a step of AIM's policy costs a backward pass.
    assert different <= {"return_range"} | ({"policy_interval"} if method == "aim" else set())


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_of_agent_network_and_balancer_is_a_flag(method):
    config = parts(method).config()
    kind = getattr(agents, config.agent)
    settings = {field.name for field in dataclasses.fields(kind.settings_type)}
    known = {*inspect.signature(kind).parameters, *settings}
    elsewhere = {"policy", "env", "settings", "_init_setup_model", "tensorboard_log", "verbose"}  # the runner's
    assert config.agent_kwargs.keys() == known - elsewhere
    if method != "torchjd":
        balancer = inspect.signature(type(make_balancer(config.balancer_name, 3, **config.balancer_kwargs))).parameters
        # `scale` is a factor that Adam removes; without it, methods keep to one scale.
        assert config.balancer_kwargs.keys() == balancer.keys() - {"num_tasks", "scale"}


@pytest.mark.parametrize("method", METHODS)
def test_seed_and_settings_reach_the_agent(method):
    config = parts(method).config
    made = config(seed=5, gamma=0.5, guidance_share=0.2, conflict_interval=7)
    assert made.agent_kwargs["seed"] == 5
    assert (made.agent_kwargs["gamma"], made.agent_kwargs["guidance_share"]) == (0.5, 0.2)
    assert made.agent_kwargs["conflict_interval"] == 7
    if hasattr(make_balancer(made.balancer_name, 3, **made.balancer_kwargs), "seed"):
        assert made.balancer_kwargs["seed"] == 5  # random choices differ from run to run


def test_every_balancer_has_its_method():
    used = {
        parts(method).config.balancer: method
        for method in METHODS
        if method not in ("brc", "independent_dqn", "torchjd")
    }
    assert set(balancers.names()) == used.keys()
    for name, method in used.items():
        assert method == {"equal": "shared_dqn"}.get(name, name)
    for method in ("brc", "independent_dqn"):
        assert parts(method).config.balancer == "equal"
    assert parts("torchjd").config(aggregator="MGDA").balancer_name == "torchjd:MGDA"


@pytest.mark.parametrize("method", METHODS)
def test_presets(method):
    part = parts(method)
    assert part.presets.keys() == {"default", "notes", "notes-literal"}
    assert part.presets["default"] == part.config()
    notes = part.presets["notes"]
    assert (notes.preset, notes.episodes_per_task, notes.exploration_decay) == ("notes", 500, 0.995)
    assert notes.target_update_unit == "episodes"
    own_network = part.config() if method == "brc" else DQNTrainConfig(learning_rate=5e-4)
    for name in ("learning_rate", "embedding_dim", "hidden_dims"):
        assert getattr(notes, name) == getattr(own_network, name)


def test_settings_of_a_method_reach_what_it_runs(tmp_path):
    def train(method, *arguments):
        arguments = [*QUICK, "--total-steps", "60", "--results-dir", str(tmp_path), *arguments]
        parts(method).train(arguments)
        return load_agent(next(tmp_path.glob(f"{method}*/seed_0/model.zip")), device="cpu")

    brc = train("brc", "--width", "16", "--depth", "1", "--num-bins", "11", "--weight-decay", "0.5", "--v-max", "3")
    assert (brc.policy.q_net.last.weight.shape, len(brc.policy.q_net.blocks)) == ((44, 16), 1)
    assert brc.policy.optimizer.param_groups[0]["weight_decay"] == brc.settings.weight_decay == 0.5
    assert brc.policy.q_net.support[-1] == 3
    aim = train("aim", "--thresholds", "scalar", "--policy-lr", "0.5", "--guidance", "none", "--k", "3").balancer
    assert (aim.tau.shape, aim.lr, aim.guidance, aim.k) == (torch.Size([]), 0.5, "none", 3)
    rgb = train("rgb", "--magnitude", "unit", "--mu", "0.5", "--lambd", "2", "--alpha-steps", "1").balancer
    assert (rgb.magnitude, rgb.mu, rgb.lambd, rgb.alpha_steps) == ("unit", 0.5, 2, 1)
    both = train("gradnorm_pcgrad", "--alpha", "0.7", "--weight-floor", "0.2").balancer
    assert (both.gradnorm.alpha, both.gradnorm.weight_floor) == (0.7, 0.2)
    independent = train("independent_dqn", "--hidden-dims", "8").policy.q_net
    assert [tuple(weight.shape) for weight in independent.weights] == [(3, 8, 8), (3, 4, 8)]


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("independent_dqn", "--variant blind", "unrecognized argument '--variant'; see --help"),
        ("independent_dqn", "--embedding-dim 4", "unrecognized argument '--embedding-dim'"),
        ("independent_dqn", "--varian blind", "unrecognized argument '--varian'"),
        ("brc", "--td-loss mse", "unrecognized argument '--td-loss'"),
        ("brc", "--hidden-dims 64", "unrecognized argument '--hidden-dims'"),
        ("brc", "--dept 3", "unrecognized argument '--dept'; did you mean --depth?"),
        ("brc", "--gamma 1", "gamma is 1.0; it must be at least 0 and below 1"),
        ("brc", "--num-bins 1", "num_bins is 1; it must be between 2 and 100000"),
        ("brc", "--width 0", "width is 0"),
        ("brc", "--weight-decay -1", "weight_decay is -1.0"),
        ("aim", "--thresholds vector", "invalid choice 'vector'; choose from matrix, scalar"),
        ("aim", "--k 0", "k is 0.0; it must be above 0"),
        ("aim", "--gate --thresholds scalar", "gate is True, which needs tau='matrix'"),
        ("aim", "--guidance-loss mean", "invalid choice 'mean'; choose from sum, log_sum, unit_norm"),
        ("aim", "--policy-interval 0", "policy_interval is 0"),
        ("aim", "--guidance-share 1", "guidance_share is 1.0; it must be above 0 and below 1"),
        ("aim", "--progress-weight nan", "progress_weight is nan"),
        ("rgb", "--magnitude huge", "invalid choice 'huge'; choose from unit, mean_norm, sum_norm"),
        ("rgb", "--mu 1.5", "mu is 1.5"),
        ("rgb", "--update-interval 0", "update_interval is 0"),
        ("gradnorm_pcgrad", "--alpha -1", "alpha is -1.0"),
        ("pcgrad", "--conflict-interval 0", "conflict_interval is 0; it must be at least 1"),
        ("torchjd", "--aggregator UPGard", "unknown TorchJD aggregator 'UPGard'; aggregators are"),
        ("torchjd", "--aggregator Constant", "needs the argument 'weights'"),
        ("torchjd", "--aggregator CAGrad --aggregator-args c", "aggregator argument 'c' is not of the form name=value"),
        ("torchjd", "--aggregator-args =3", "aggregator argument '=3' is not of the form name=value"),
        ("torchjd", "--aggregator-args c=1", "has no argument 'c'; it has"),
        ("torchjd", "--aggregator CAGrad --aggregator-args c=-1", "torchjd:CAGrad"),
        ("torchjd", "--aggregator CAGrad --aggregator-args c=[", "torchjd:CAGrad"),
        ("torchjd", "--aggregator Constant --aggregator-args weights=[1,2]", "torchjd:Constant with 3 tasks"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_trace(method, arguments, message, tmp_path, capsys):
    line = fails(parts(method).train, ["--results-dir", tmp_path / "runs", *arguments.split()], capsys)
    assert message in line
    for flag in flags(parts(method).config)[1]:
        assert f"did you mean {flag}" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", METHODS)
def test_no_suggestion_is_a_flag_that_does_not_exist(method, capsys):
    own, fixed = flags(parts(method).config)
    for flag in (*own, *fixed):
        for misspelt in (f"{flag}x", flag[:-1], flag):
            if misspelt in own:
                continue
            line = fails(parts(method).train, [misspelt, "1"], capsys)
            suggested = re.search(r"did you mean (.*)\?", line)
            if suggested:
                assert set(suggested[1].split(" or ")) <= {*own, *(f"--no-{name[2:]}" for name in own)}


def test_torchjd_is_an_extra(tmp_path, monkeypatch, capsys):
    for name in ("torchjd", "torchjd.aggregation"):
        monkeypatch.setitem(sys.modules, name, None)
    line = fails(parts("torchjd").train, ["--results-dir", tmp_path / "runs"], capsys)
    assert "needs TorchJD: pip install 'mtrl-balance[torchjd]'" in line
    assert list(tmp_path.iterdir()) == []
    assert parts("pcgrad").config().balancer == "pcgrad"  # the others do without


def test_arguments_of_aggregators():
    words = ("c=0.5", "weights=[1, 2, 3]", "name=UPGrad", "flag=True", "nothing=None", "odd={[]: 1}", "a=b=c")
    assert TorchJDConfig(aggregator_args=words, seed=4).balancer_kwargs == {
        "seed": 4,
        "c": 0.5,
        "weights": [1, 2, 3],
        "name": "UPGrad",
        "flag": True,
        "nothing": None,
        "odd": "{[]: 1}",
        "a": "b=c",
    }
    assert TorchJDConfig(aggregator_args=("seed=9",)).balancer_kwargs == {"seed": 9}
    assert TorchJDConfig(aggregator="IMTLG").run_name == "torchjd_imtlg"
    assert TorchJDConfig(aggregator="IMTLG", variant="blind").run_name == "torchjd_imtlg_blind"
