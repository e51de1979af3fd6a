"""A file from a stranger runs no code, leaves its folder alone, takes no memory beyond its size, and is refused."""

import ast
import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from agents import MultiTaskDQN, load_agent
from envs import get_tasks, make_task_vec_env
from experiments.analysis.runs import find_runs
from mtrl import checkpoint
from mtrl.checkpoint import CheckpointError, load, save

ROOT = Path(__file__).parents[2]
STATE, TENSORS = "state.json", "tensors.safetensors"
GOOD = {"step": 3, "weights": torch.arange(5000.0), "range": (1, [2.5]), "bytes": np.arange(300, dtype=np.uint8)}
ROOM = 256 * 2**20  # bytes of address space that a refusal may take, far less than what these files claim


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Inside, the process may grow by `ROOM` and no more: an allocation of a declared size fails."""
    if not Path("/proc/self/statm").exists():  # no such measure: then it is no more than a test of the message
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(source: Path | io.BytesIO, read: Callable[[Any], Any] = load) -> str:
    """The line that `source` is refused with, in little memory."""
    with little_memory(), pytest.raises(CheckpointError) as error:
        read(source)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    return message


def whole() -> bytes:
    stream = io.BytesIO()
    save(stream, GOOD)
    return stream.getvalue()


def good_members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(whole())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def raw_zip(*members: tuple[str, bytes, dict[str, Any]], directory_size: int | None = None) -> bytes:
    """A zip file written by hand, whose list of members says what it is told to."""
    body, directory = b"", b""
    for name, content, told in members:
        says = {"method": 0, "flags": 0, "packed": len(content), "size": len(content), "at": len(body)}
        says |= {"extra": b"", "mode": 0, "listed": name} | told
        crc, encoded = zlib.crc32(content), name.encode()
        body += struct.pack("<4s5HLLLHH", b"PK\3\4", 20, says["flags"], says["method"], 0, 33, crc,
                            len(content), len(content), len(encoded), 0) + encoded + content  # fmt: skip
        listed = says["listed"].encode()
        directory += struct.pack("<4s6HLLLHHHHHLL", b"PK\1\2", 0x031E, 20, says["flags"], says["method"], 0, 33, crc,
                                 says["packed"], says["size"], len(listed), len(says["extra"]), 0, 0, 0, says["mode"],
                                 says["at"]) + listed + says["extra"]  # fmt: skip
    length = len(directory) if directory_size is None else directory_size
    return body + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), length, len(body), 0)


def with_members(state: bytes | None = None, tensors: bytes | None = None, **told: Any) -> bytes:
    """A good checkpoint but for what is given; `told` is about the first member."""
    good = good_members()
    return raw_zip(
        (STATE, good[STATE] if state is None else state, told),
        (TENSORS, good[TENSORS] if tensors is None else tensors, {}),
    )


def document(state: str) -> bytes:
    return f'{{"format":"{checkpoint.FORMAT}","version":{checkpoint.VERSION},"state":{state}}}'.encode()


def safetensors_of(header: str, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + content


def torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    return stream.getvalue()


def deflated(name: str, size: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in (STATE, TENSORS):
            archive.writestr(member, b"\0" * (size if member == name else 10))
    return stream.getvalue()


def overlapping() -> bytes:
    """The tensors' bytes begin in the middle of the structure's."""
    inner = raw_zip((TENSORS, good_members()[TENSORS], {}))
    outer = raw_zip((STATE, inner, {}), (TENSORS, b"", {"at": 30 + len(STATE), "packed": 9, "size": 9}))
    return outer


HUGE64 = struct.pack("<HHQQ", 1, 16, 2**62, 2**62)  # the extra field of a member beyond 4 GiB
NEST = '{"tuple":[' * 300 + "]}" * 300
HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "pickle": lambda: pickle.dumps({"policy": [1, 2, 3]}),
    "torch file": torch_file,
    "name that climbs": lambda: with_members(listed="../../evil"),
    "one more, that climbs": lambda: raw_zip(
        *((name, content, {}) for name, content in good_members().items()), ("../../evil", b"boo", {})
    ),
    "absolute name": lambda: raw_zip(("/tmp/evil", b"{}", {}), (TENSORS, good_members()[TENSORS], {})),
    "name with a backslash": lambda: raw_zip(("..\\state.json", b"{}", {}), (TENSORS, b"", {})),
    "another name in the list": lambda: with_members(listed="state.jsom"),
    "symbolic link": lambda: with_members(state=b"/etc/passwd", mode=0o120777 << 16),
    "folder": lambda: raw_zip(("state.json/", b"", {}), (TENSORS, b"", {})),
    "bomb in the structure": lambda: deflated(STATE, 2**26),
    "bomb in the tensors": lambda: deflated(TENSORS, 2**26),
    "stored, and said to unpack to 4 GiB": lambda: with_members(size=0xFFFFFFF0),
    "said to hold 4 GiB": lambda: with_members(size=0xFFFFFFF0, packed=0xFFFFFFF0),
    "said to hold 2**62 bytes": lambda: with_members(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=HUGE64),
    "encrypted": lambda: with_members(flags=1),
    "unknown compression": lambda: with_members(method=99),
    "a list of members of 4 GiB": lambda: raw_zip((STATE, b"{}", {}), directory_size=0xFFFFFFF0),
    "a million members": lambda: whole()[:-22] + (b"PK\1\2" + b"\0" * 42) * 10**6 + struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, 46 * 10**6, len(whole()), 0
    ),
    "twice the same name": lambda: raw_zip((STATE, b"{}", {}), (STATE, b"{}", {})),
    "twice the same name, and tensors": lambda: raw_zip((STATE, b"{}", {}), (STATE, b"{}", {}), (TENSORS, b"", {})),
    "both at one place": lambda: raw_zip(
        (STATE, good_members()[STATE], {}), (TENSORS, good_members()[TENSORS], {"at": 0})
    ),
    "overlapping": overlapping,
    "member before the file": lambda: with_members(at=0xFFFFFF00),
    "deep lists": lambda: with_members(state=document("[" * 100_000)),
    "deep tuples": lambda: with_members(state=document('{"tuple":[' * 50_000 + "]}" * 50_000)),
    "deep, for the decoder alone": lambda: with_members(state=document(NEST)),
    "integer of 10,000 digits": lambda: with_members(state=document(f'{{"dict":[["a",{"9" * 10_000}]]}}')),
    "integer as version": lambda: with_members(
        state=document("null").replace(b'"version":1', b'"version":' + b"9" * 4000)
    ),
    "structure of 40 MB": lambda: with_members(state=document("[" + "{}," * (40 * 2**20 // 3) + "{}]")),
    "keys that are no keys": lambda: with_members(state=document('{"dict":[[{"dict":[]},1]]}')),
    "a tag with a long name": lambda: with_members(state=document(json.dumps({"x" * 100_000: 1}))),
    "tensor header of 2**60 bytes": lambda: with_members(tensors=struct.pack("<Q", 2**60) + b"{}"),
    "tensor of 4 TB in 8 bytes": lambda: with_members(
        tensors=safetensors_of(
            '{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}', b"8" * 8
        )
    ),
    "tensor of 4 TB said to take 8 bytes": lambda: with_members(
        tensors=safetensors_of('{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,8]}}', b"8" * 8)
    ),
    "shape that overflows": lambda: with_members(
        tensors=safetensors_of('{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}')
    ),
    "negative shape": lambda: with_members(
        tensors=safetensors_of('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234")
    ),
    "two tensors on the same bytes": lambda: with_members(
        tensors=safetensors_of(
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234",
        )
    ),
    "deep tensor header": lambda: with_members(tensors=safetensors_of("[" * 10_000)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = folder / "model.zip"
    path.write_bytes(HOSTILE[kind]())
    before = path.stat()
    started = time.process_time()
    message = refusal(path)
    assert time.process_time() - started < 5
    assert message.startswith(f"cannot load checkpoint {str(path)!r}: ")
    assert refusal(path, load_agent).startswith("cannot load")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["a", "b", "model.zip"]
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_the_builder_of_these_files_can_build_a_good_one() -> None:
    assert load(io.BytesIO(with_members()))["step"] == 3


def test_truncations_and_flipped_bits_are_refused_or_do_not_matter() -> None:
    content, good = whole(), load(io.BytesIO(whole()))
    with little_memory():
        for length in range(0, len(content), 97):
            with pytest.raises(CheckpointError):
                load(io.BytesIO(content[:length]))
        rng = random.Random(0)
        for _ in range(300):
            damaged = bytearray(content)
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            try:
                state = load(io.BytesIO(damaged))
            except CheckpointError as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017 - or the file is good, see below
            else:  # a date, a permission or the like
                assert torch.equal(state["weights"], good["weights"])
                assert state.keys() == good.keys()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "zero.zip").symlink_to("/dev/zero")
    (tmp_path / "loop.zip").symlink_to("loop.zip")
    (tmp_path / "folder.zip").mkdir()
    for read in (load, load_agent):
        for name in ("pipe.zip", "zero.zip"):
            assert refusal(tmp_path / name, read).endswith("it is not a regular file")
        assert refusal(tmp_path / "folder.zip", read).endswith("it is a folder")
        assert refusal(tmp_path / "gone.zip", read).startswith("no checkpoint at ")
    assert "null" in refusal(Path("a\0b"))
    with pytest.raises(OSError, match="symbolic links"):
        load(tmp_path / "loop.zip")


def test_a_structure_too_large_to_be_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LARGEST_STATE", 1000)
    with pytest.raises(ValueError, match="of at most 1000"):
        save(tmp_path / "run.zip", {"numbers": list(range(1000))})
    assert not list(tmp_path.iterdir())
    save(tmp_path / "run.zip", {"numbers": np.arange(10**5)})
    load(tmp_path / "run.zip")


# ---------------------------------------------------------------------------------------------------- models, replays


@pytest.fixture(scope="module")
def agent() -> MultiTaskDQN:
    env = make_task_vec_env(get_tasks(["Standard", "Windy"]), 1, seed=0)
    agent = MultiTaskDQN(
        "MlpPolicy", env, "gradnorm", buffer_size=200, batch_size=4, learning_starts=8, seed=0, device="cpu"
    )
    return agent.learn(60)


def altered(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """`state` with another value at one place; `...` deletes it."""
    key, *rest = path
    changed = dict(state)
    if value is ... and not rest:
        del changed[key]
    else:
        changed[key] = altered(state[key], tuple(rest), value) if rest else value
    return changed


# What a stranger may write into a model: each must be refused in one line. Sizes are those that would fill the memory.
MODELS: dict[str, tuple[tuple[str, ...], Any]] = {
    "another agent": (("agent",), "os.system"),
    "an agent of many lines": (("agent",), "a\nb" * 1000),
    "an agent that is no name": (("agent",), [1]),
    "no settings": (("settings",), ...),
    "settings that are no mapping": (("settings",), 3),
    "a device": (("settings", "device"), "cuda:7"),
    "a number of another kind": (("settings", "n_step"), 1.5),
    "an unknown setting": (("settings", "custom_objects"), {"a": 1}),
    "a setting of another type": (("settings", "batch_size"), "many"),
    "an unknown balancer": (("settings", "balancer"), "os"),
    "a huge replay": (("settings", "buffer_size"), 10**15),
    "a huge statistic": (("settings", "stats_window_size"), 10**30),
    "a huge layer": (("settings", "policy_kwargs"), {"net_arch": [10**6, 10**6], "embedding_dim": 8}),
    "a huge embedding": (("settings", "policy_kwargs"), {"net_arch": [256, 128], "embedding_dim": 10**10}),
    "a layer that is not in the file": (("settings", "policy_kwargs"), {"net_arch": [9000, 9000], "embedding_dim": 8}),
    "300 layers": (("settings", "policy_kwargs"), {"net_arch": [1] * 300, "embedding_dim": 8}),
    "a network of the stranger's choice": (("settings", "policy_kwargs"), {"features_extractor_class": "os.system"}),
    "a folder for logs": (("settings", "tensorboard_log"), "/tmp/evil"),
    "no tasks": (("task_names",), ()),
    "100,000 tasks": (("task_names",), tuple(map(str, range(10**5)))),
    "tasks that are no names": (("task_names",), 7),
    "huge actions": (("num_actions",), 10**12),
    "no actions": (("num_actions",), -1),
    "huge one-hot": (("one_hot_size",), 10**9),
    "no observation": (("observation_low",), np.zeros((0,), np.float32)),
    "another observation": (("observation_low",), np.zeros((3,), np.float32)),
    "twice the same task": (("task_names",), ("Standard", "Standard")),
    "no weights": (("policy",), {}),
    "weights of another shape": (("policy",), {"q_net.layers.0.embedding": torch.zeros(2)}),
    "no optimizer": (("optimizer",), ...),
    "an optimizer of another kind": (("optimizer",), {"state": 3}),
    "an optimizer of another size": (("optimizer", "state", 0, "exp_avg"), torch.zeros(3)),
    "an optimizer with other settings": (("optimizer", "param_groups"), [{"params": [0], "lr": 1.0, "hook": "os"}]),
    "no balancer's state": (("balancer",), ...),
    "a method in the place of a number": (("progress",), {"learn": 3}),
    "progress that is no mapping": (("progress",), [1]),
    "progress of another kind": (("progress", "exploration_rates"), np.zeros((2, 2), np.int8)),
    "no number of steps": (("progress", "num_timesteps"), ...),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_hostile_model_is_refused_in_one_line(kind: str, agent: MultiTaskDQN, tmp_path: Path) -> None:
    path, (place, value) = tmp_path / "model.zip", MODELS[kind]
    save(path, altered(agent.saved_state(), place, value))
    assert refusal(path, lambda p: load_agent(p, device="cpu"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.zip"]


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever could run code from data raises."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    import cloudpickle  # noqa: PLC0415 - what Stable-Baselines3 loads by

    for module in (pickle, cloudpickle):
        for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    monkeypatch.setattr("_pickle.load", refuse)
    monkeypatch.setattr("_pickle.loads", refuse)
    monkeypatch.setattr("_pickle.Unpickler", refuse)
    for name in ("load", "jit.load", "package.PackageImporter", "serialization.load"):
        monkeypatch.setattr(f"torch.{name}", refuse)
    monkeypatch.setattr("numpy.load", refuse)
    monkeypatch.setattr("marshal.loads", refuse)


def test_nothing_is_unpickled_where_something_is_loaded(
    agent: MultiTaskDQN, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "gradnorm" / "seed_0"
    agent.save(folder / "model.zip")
    agent.save_replay_buffer(folder / "replay.zip")
    result = {"returns": [1.0], "mean": 1.0, "standard_deviation": 0.0, "success_rate": 0.0}
    evaluation = {"tasks": {"Standard": result}, "mean": 1.0, "worst_task": {"name": "Standard", "mean": 1.0}}
    (folder / "config.json").write_text(json.dumps({"run": "gradnorm", "settings": {"seed": 0}}))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "metrics.jsonl").write_text('{"env_step": 1}\n')
    save(tmp_path / "state.zip", GOOD)

    request.getfixturevalue("no_code")
    loaded = load_agent(folder / "model.zip", device="cpu")
    loaded.load_replay_buffer(folder / "replay.zip")
    MultiTaskDQN.load(folder / "model.zip", device="cpu")
    load(tmp_path / "state.zip")
    (run,) = find_runs(tmp_path)
    assert not isinstance(run, Exception)
    assert [(key, values.tolist()) for key, (_, values) in run.columns.items()] == [("env_step", [1.0])]
    with pytest.raises(AssertionError, match="unpickled"):  # the traps are set
        pickle.loads(b"")


REPLAYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "no replay": (("replay",), ...),
    "rows of another shape": (("replay", "rows"), np.zeros((2, 10**6, 3), np.float32)),
    "more rows than fit": (("replay", "rows"), np.zeros((2, 10**5, 23), np.float32)),
    "no rows": (("replay", "rows"), ...),
    "rows that are no array": (("replay", "rows"), [1.0]),
    "a place beyond the ring": (("replay", "position"), 10**12),
    "a place before the ring": (("replay", "position"), -5),
    "full, without the rows": (("replay", "full"), "yes"),
    "not full, with more rows": (("replay", "position"), 3),
    "rows of another dtype": (("replay", "rows"), np.zeros((2, 30, 23), np.float64)),
    "a generator of another kind": (("replay", "generator"), torch.zeros(3, dtype=torch.uint8)),
}


@pytest.mark.parametrize("kind", REPLAYS)
def test_a_hostile_replay_is_refused_and_the_replay_stays(kind: str, agent: MultiTaskDQN, tmp_path: Path) -> None:
    agent.save(tmp_path / "model.zip")
    other = load_agent(tmp_path / "model.zip", device="cpu")
    agent.save_replay_buffer(tmp_path / "good.zip")
    other.load_replay_buffer(tmp_path / "good.zip")
    before = {name: copy.deepcopy(value) for name, value in other.replay_buffer.state_dict().items()}
    save(tmp_path / "bad.zip", altered(load(tmp_path / "good.zip"), *REPLAYS[kind]))
    with pytest.raises(ValueError, match=r"^.+$"):  # one line
        other.load_replay_buffer(tmp_path / "bad.zip")
    after = other.replay_buffer.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)


# ---------------------------------------------------------------------------------------------------- the source itself

PACKAGES = ("mtrl", "envs", "agents", "experiments", "benchmarks")
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pd.read_pickle", "os.system", "os.popen",
}  # fmt: skip
ALLOWED = {  # (file, what it calls), each with the reason why it cannot run code from data
    ("experiments/supervised/own_data.py", "np.load"),  # arrays of the user's own, with the next
    ("experiments/supervised/own_data.py", "allow_pickle"),  # False
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of attributes of a name, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def test_no_source_file_could_run_code_from_data() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    found = set()
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {(name, alias.name) for alias in node.names if alias.name.split(".")[0] in UNPICKLERS}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
                found.add((name, str(node.module)))
            elif isinstance(node, ast.Call):
                if dotted(node.func) in CALLS:
                    found.add((name, dotted(node.func)))
                found |= {(name, word.arg) for word in node.keywords if word.arg in ("allow_pickle", "shell")}
    assert found == ALLOWED


def test_keys_that_collide_and_very_many_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the list of its tensors takes \d+ bytes of at most 8388608"):
        save(tmp_path / "x.zip", {"many": [torch.empty(0)] * 150_000})
    assert not (tmp_path / "x.zip").exists()
    step = 2**61 - 1  # integers this far apart have the same hash
    pairs = ",".join(f"[{step * number},0]" for number in range(1, 100_000))
    state = f'{{"format":"mtrl-checkpoint","version":1,"state":{{"dict":[["k",{{"dict":[{pairs}]}}]]}}}}'
    members = {"state.json": state, "tensors.safetensors": safetensors.torch.save({})}
    assert refusal(zipped(tmp_path / "keys.zip", members)).endswith("keys and an integer beyond 2 ** 53 among them")
    entry = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    header = "{%s}" % ",".join(entry.format(number) for number in range(200_000))  # noqa: UP031 - braces
    members["tensors.safetensors"] = len(header).to_bytes(8, "little") + header.encode()
    assert "bytes, above the limit of 8388608" in refusal(zipped(tmp_path / "many.zip", members))


def zipped(path: Path, members: dict[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path
