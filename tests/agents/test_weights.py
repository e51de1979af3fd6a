"""A network alone in a safetensors file: it plays as the agent did, is small, and a damaged file is refused."""

import json
import pickle
import random
import struct

import numpy as np
import pytest
import safetensors.torch
import torch

from agents import BRC, IndependentDQN, MultiTaskDQN, load_agent
from experiments.methods import METHODS
from experiments.training.config import PRETRAINED_DIR
from mtrl.checkpoint import CheckpointError
from tests.support import make_agent

KINDS = {MultiTaskDQN: {}, IndependentDQN: {}, BRC: {"policy_kwargs": {"width": 16, "depth": 1}}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "agent.safetensors"
    make_agent(MultiTaskDQN, balancer="rgb", policy_kwargs={"net_arch": [16, 8]}).learn(300).save_weights(file)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_it_plays_as_the_agent_did(kind, tmp_path):
    agent = make_agent(kind, **KINDS[kind]).learn(400)
    agent.save_weights(tmp_path / "agent.safetensors")
    loaded = load_agent(tmp_path / "agent.safetensors", device="cpu")
    assert type(loaded) is kind
    assert (loaded.task_names, loaded.variant) == (agent.task_names, agent.variant)
    observations = np.concatenate([agent.env.reset() for _ in range(5)])
    expected = agent.predict(observations, deterministic=True)[0]
    assert np.array_equal(loaded.predict(observations, deterministic=True)[0], expected)


def test_the_default_network_has_less_than_200_kb(tmp_path):
    make_agent(MultiTaskDQN).save_weights(tmp_path / "agent.safetensors")
    assert (tmp_path / "agent.safetensors").stat().st_size < 200_000


def test_any_tool_reads_the_tensors(weights):
    tensors = safetensors.torch.load_file(weights)
    agent = load_agent(weights, device="cpu")
    for name, tensor in agent.policy.q_net.state_dict().items():
        assert torch.equal(tensors[f"q_net.{name}"], tensor)
    assert not any("target" in name for name in tensors)


def rewritten(weights, change):
    """The file with its metadata changed."""
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    said = json.loads(header["__metadata__"]["agent"])
    header["__metadata__"]["agent"] = json.dumps(change(said))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


CHANGES = {
    "another class": lambda said: {**said, "agent": "str"},
    "an unknown setting": lambda said: {**said, "settings": {**said["settings"], "evil": 1}},
    "a wrong setting": lambda said: {**said, "settings": {**said["settings"], "gamma": "x"}},
    "another network": lambda said: {**said, "settings": {**said["settings"], "policy_kwargs": {"net_arch": [9]}}},
    "a huge network": lambda said: {**said, "settings": {**said["settings"], "policy_kwargs": {"net_arch": [10**9]}}},
    "no tasks": lambda said: {**said, "task_names": []},
    "one task twice": lambda said: {**said, "task_names": ["a", "a", "b"]},
    "a number for tasks": lambda said: {**said, "task_names": 3},
    "many actions": lambda said: {**said, "num_actions": 10**9},
    "a missing part": lambda said: {name: said[name] for name in said if name != "num_actions"},
    "a list": lambda said: [said],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_says_something_else_is_refused(change, weights, tmp_path):
    file = tmp_path / "changed.safetensors"
    file.write_bytes(rewritten(weights, CHANGES[change]))
    with pytest.raises(CheckpointError) as error:
        load_agent(file, device="cpu")
    assert len(str(error.value).splitlines()) == 1


def test_a_network_with_nan_is_refused(weights, tmp_path):
    tensors = safetensors.torch.load_file(weights)
    with safetensors.safe_open(weights, "pt") as file:
        metadata = file.metadata()
    next(iter(tensors.values())).fill_(float("nan"))
    safetensors.torch.save_file(tensors, tmp_path / "nan.safetensors", metadata)
    with pytest.raises(CheckpointError):
        load_agent(tmp_path / "nan.safetensors", device="cpu")


def test_damaged_files_are_refused_or_harmless(weights, tmp_path):
    content, file, draws = weights.read_bytes(), tmp_path / "damaged.safetensors", random.Random(0)
    cases = [content[:n] for n in range(0, len(content), 197)] + [b"", b"PK", pickle.dumps(print)]
    for _ in range(150):
        place = draws.randrange(8 + int.from_bytes(content[:8], "little"))
        cases.append(content[:place] + bytes([content[place] ^ 1 << draws.randrange(8)]) + content[place + 1 :])
    refusals = []
    for case in cases:
        file.write_bytes(case)
        try:
            load_agent(file, device="cpu")
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > len(cases) / 2
    assert not any("\n" in refusal for refusal in refusals)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("none.safetensors", "folder.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_agent(tmp_path / name)


def test_a_pretrained_agent_is_played(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.training.config.PRETRAINED_DIR", tmp_path)
    with pytest.raises(SystemExit) as stop:
        METHODS["rgb"].evaluate(["--pretrained"])
    assert stop.value.code == 2
    assert "no agent 'rgb' comes with the project; there are none" in capsys.readouterr().err
    make_agent(MultiTaskDQN, balancer="rgb").save_weights(tmp_path / "rgb.safetensors")
    assert METHODS["rgb"].evaluate(["--pretrained", "--episodes", "1", "--task", "Windy"]) == 0
    assert "rgb, pretrained: 1 greedy" in capsys.readouterr().out


def test_the_agents_of_the_checkout_land(tmp_path, monkeypatch, capsys):
    """What the first page shows: in any folder, without a training."""
    monkeypatch.chdir(tmp_path)
    for file in sorted(PRETRAINED_DIR.glob("*.safetensors")):
        method = file.stem.removesuffix("_blind")
        flags = ["--pretrained", "--episodes", "2", "--variant", "blind" if file.stem.endswith("_blind") else "aware"]
        assert METHODS[method].evaluate(flags) == 0
        assert capsys.readouterr().out.count("100%") == 3
