"""A checkpoint gives back exactly what was saved, or a one-line error; and saving never harms the file before it."""

import io
import json
import math
import os
import pickle
import stat
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mtrl import checkpoint
from mtrl.checkpoint import CheckpointError, load, save

ARRAY_DTYPES = sorted(checkpoint.ARRAY_DTYPES, key=str)
TENSOR_DTYPES = sorted(checkpoint.TENSOR_DTYPES, key=str)
SMALL = {"step": 3, "weight": torch.arange(4.0), "range": (1, [math.inf]), "state": np.arange(3, dtype=np.uint8)}


def assert_identical(a: Any, b: Any) -> None:
    """Equal bit for bit, with equal types; NaNs are compared by their bits too."""
    assert type(a) is type(b)
    match a:
        case dict():
            assert list(a) == list(b)
            assert [type(key) for key in a] == [type(key) for key in b]
            for key in a:
                assert_identical(a[key], b[key])
        case list() | tuple():
            assert len(a) == len(b)
            for left, right in zip(a, b, strict=True):
                assert_identical(left, right)
        case torch.Tensor():
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert bits(a) == bits(b)
        case np.ndarray() | np.generic():
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        case float():
            assert struct.pack(">d", a) == struct.pack(">d", b)
        case _:
            assert a == b


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def through_bytes(state: dict[str, Any]) -> dict[str, Any]:
    stream = io.BytesIO()
    save(stream, state)
    stream.seek(0)
    return load(stream)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of every dtype with random bits, of any shape up to 3 dimensions, half of them not contiguous."""
    dtype = draw(st.sampled_from(TENSOR_DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = torch.empty((), dtype=dtype).element_size()
    raw = draw(st.binary(min_size=size * math.prod(shape), max_size=size * math.prod(shape)))
    if dtype == torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    # torch.frombuffer accepts no empty buffer.
    tensor = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
    return tensor.T if draw(st.booleans()) and tensor.dim() == 2 else tensor


def arrays() -> st.SearchStrategy[Any]:
    shapes = npst.array_shapes(min_dims=0, min_side=0, max_side=3)
    return st.sampled_from(ARRAY_DTYPES).flatmap(lambda dtype: npst.arrays(dtype, shapes))


leaves = (
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats() | st.text() | tensors()
    | arrays() | arrays().filter(lambda a: a.size > 0).map(lambda a: a.flat[0])
)  # fmt: skip
keys = st.text(st.characters(), max_size=5) | st.integers()
states = st.dictionaries(
    keys,
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=10,
    ),
    max_size=4,
)


@settings(deadline=None)
@given(states)
def test_a_state_comes_back_bit_for_bit_with_its_types(state: dict[str, Any]) -> None:
    assert_identical(through_bytes(state), state)


@settings(deadline=None, max_examples=30)
@given(states)
def test_the_same_state_gives_the_same_bytes(state: dict[str, Any]) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    save(first, state)
    save(second, through_bytes(state))
    assert first.getvalue() == second.getvalue()


def test_views_of_one_storage_come_back_apart() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"all": base, "again": base, "transposed": base.T, "row": base[1], "strided": base[:, ::2]}
    loaded = through_bytes(state)
    assert_identical(loaded, state)
    loaded["all"].zero_()
    assert_identical(loaded["row"], base[1])


def test_special_tensors_and_arrays() -> None:
    assert_identical(through_bytes({"p": torch.nn.Parameter(torch.ones(2))}), {"p": torch.ones(2)})
    negated = torch.tensor([1 + 2j, 3 - 4j]).conj().imag  # lazily negated: its memory holds +2, -4
    assert_identical(through_bytes({"n": negated}), {"n": torch.tensor([-2.0, 4.0])})
    reverse = np.arange(6).reshape(2, 3)[::-1, ::-1]
    assert_identical(through_bytes({"r": reverse}), {"r": reverse.copy()})
    frozen = np.ones(2)
    frozen.flags.writeable = False
    loaded = through_bytes({"f": frozen, "t": torch.ones(1)})
    loaded["f"] += 1
    loaded["t"] += 1


@pytest.mark.parametrize("generator", [np.random.PCG64(7), np.random.MT19937(7), np.random.Philox(7)])
def test_generator_states_continue_the_same_stream(generator: Any) -> None:
    generator.random_raw(5)
    other = type(generator)(0)
    other.state = through_bytes({"state": generator.state})["state"]
    assert (other.random_raw(10) == generator.random_raw(10)).all()


def test_training_continues_bitwise_from_a_checkpoint(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        return model, torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)

    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()

    model, optimizer = build()
    train(model, optimizer, 5)
    path = tmp_path / "run.zip"
    save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()})
    train(model, optimizer, 5)

    resumed, resumed_optimizer = build()
    state = load(path)
    resumed.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    train(resumed, resumed_optimizer, 5)
    assert_identical(dict(resumed.state_dict()), dict(model.state_dict()))
    assert_identical(resumed_optimizer.state_dict(), optimizer.state_dict())


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"policy": {"fn": test_special_tensors_and_arrays}}, "cannot save state['policy']['fn']: function"),
        ({"a": [1, (2, {3: object()})]}, "cannot save state['a'][1][1][3]: object"),
        ({"a": {True: 1}}, "cannot save state['a'][True]: its key is bool, not str or int"),
        ({"a": {"b": {1.5}}}, "cannot save state['a']['b']: set"),
        ({"a": b"bytes"}, "cannot save state['a']: bytes"),
        ({"a": Pair(1, 2)}, "cannot save state['a']: Pair"),
        ({"a": np.array(["x"])}, "cannot save state['a']: numpy ndarray of dtype <U1"),
        ({"a": np.zeros(2, ">f4")}, "cannot save state['a']: numpy ndarray of dtype >f4"),
        ({"a": np.ma.masked_array([1.0], [True])}, "cannot save state['a']: MaskedArray"),
        ({"a": torch.ones(2) * 1j}, "cannot save state['a']: torch.strided tensor of torch.complex64 on cpu"),
        ({"a": torch.eye(2).to_sparse()}, "cannot save state['a']: torch.sparse_coo tensor of torch.float32 on cpu"),
        ([1], "cannot save state: list; the outermost object must be a mapping"),
    ],
)  # fmt: skip
def test_an_unsupported_value_is_named_and_nothing_is_written(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(TypeError) as error:
        save(tmp_path / "new" / "run.zip", state)
    assert str(error.value) == message
    assert not (tmp_path / "new").exists()


def test_other_mappings_come_back_as_dicts() -> None:
    assert_identical(through_bytes({"a": OrderedDict(b=1)}), {"a": {"b": 1}})


# ------------------------------------------------------------------------------------------------------------- writing


def test_parent_folders_are_made_and_permissions_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "run.zip"
    before = os.umask(0o027)
    try:
        save(str(path), SMALL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_identical(load(str(path)), SMALL)
    assert os.listdir(path.parent) == ["run.zip"]


def test_the_file_that_is_replaced_can_be_kept(tmp_path: Path) -> None:
    path, previous = tmp_path / "run.zip", tmp_path / "previous.zip"
    for step in range(3):
        save(path, {"step": step}, previous=previous)
        assert load(path) == {"step": step}
        assert (load(previous) if step else None) == ({"step": step - 1} if step else None)
    assert {*os.listdir(tmp_path)} == {"run.zip", "previous.zip"}


@pytest.mark.parametrize("nth", [1, 2])
def test_of_a_file_and_the_one_before_it_one_is_always_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    path, previous = tmp_path / "run.zip", tmp_path / "previous.zip"
    save(path, {"step": 0}, previous=previous)
    save(path, {"step": 1}, previous=previous)
    replace, calls = os.replace, iter((1, 2))

    def fail(*arguments: Any) -> None:
        if next(calls) == nth:
            raise OSError(5, "Input/output error")
        replace(*arguments)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        save(path, {"step": 2}, previous=previous)
    assert load(path if nth == 1 else previous) == {"step": 1}


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "run.zip"
    save(path, SMALL)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        save(path, {"step": 4})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["run.zip"]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.zip"
    save(path, SMALL)

    def interrupt(archive: zipfile.ZipFile, *_: object) -> None:
        assert archive.fp is not None
        archive.fp.write(b"half a member")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(path, {"step": 4})
    assert_identical(load(path), SMALL)
    assert os.listdir(tmp_path) == ["run.zip"]


# ------------------------------------------------------------------------------------------------------------- reading


def error_of(path: str | Path, **kwargs: Any) -> str:
    """The message of the CheckpointError that loading `path` must raise: one line that names the file."""
    with pytest.raises(CheckpointError) as error:
        load(path, **kwargs)
    message = str(error.value)
    assert repr(str(path)) in message
    assert len(message.splitlines()) == 1
    return message


def error_of_zip(path: Path, members: dict[str, bytes | str], **kwargs: Any) -> str:
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return error_of(path)


def contents_of(stream: io.BytesIO) -> list[bytes]:
    with zipfile.ZipFile(stream) as archive:
        return [archive.read(name) for name in archive.namelist()]


@pytest.fixture
def members() -> dict[str, bytes | str]:
    """The two members of a good checkpoint, to be spoilt."""
    stream = io.BytesIO()
    save(stream, SMALL)
    return dict(zip(["state.json", "tensors.safetensors"], contents_of(stream), strict=True))


def document_with(**fields: Any) -> str:
    return json.dumps({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "state": {"dict": []}} | fields)


def test_no_file(tmp_path: Path) -> None:
    assert error_of(tmp_path / "x.zip") == f"no checkpoint at {str(tmp_path / 'x.zip')!r}"
    (tmp_path / "file").write_text("")
    assert error_of(tmp_path / "file" / "x.zip").startswith("no checkpoint at ")
    assert error_of(tmp_path).endswith("it is a folder")


def test_every_truncation_is_refused() -> None:
    stream = io.BytesIO()
    save(stream, SMALL)
    whole = stream.getvalue()
    for length in range(len(whole)):
        with pytest.raises(CheckpointError, match=r"^cannot load checkpoint 'stream': ") as error:
            load(io.BytesIO(whole[:length]))
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("flip", [0x01, 0x08, 0x80, 0xFF])
def test_every_flipped_byte_is_refused_or_does_not_matter(flip: int) -> None:
    stream = io.BytesIO()
    save(stream, SMALL)
    whole = stream.getvalue()
    contents = [whole.index(part) + index for part in contents_of(stream) for index in range(len(part))]
    for position in range(len(whole)):
        damaged = io.BytesIO(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
        try:
            state = load(damaged)
        except CheckpointError:
            continue
        assert position not in contents  # it is a date, a permission or the like
        assert_identical(state, SMALL)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        load(io.BytesIO(content))


def test_foreign_zips(tmp_path: Path, members: dict[str, bytes | str]) -> None:
    path = tmp_path / "x.zip"
    sb3: dict[str, bytes | str] = {"data": "{}", "policy.pth": pickle.dumps({}), "_stable_baselines3_version": "2"}
    assert "not a checkpoint: it has no member 'state.json'" in error_of_zip(path, sb3)
    assert "not a checkpoint" in error_of_zip(path, {})
    assert "member 'tensors.safetensors' is missing" in error_of_zip(path, {"state.json": "{}"})
    assert "3 members instead of 2" in error_of_zip(path, members | {"../evil": "boo"})
    assert "is compressed" in error_of_zip(path, members, compression=zipfile.ZIP_DEFLATED)
    assert not (tmp_path.parent / "evil").exists()
    error_of_zip(path, members | {"other.json": "{}"})
    path.write_bytes(path.read_bytes().replace(b"other.json", b"state.json"))
    assert "3 members instead of 2" in error_of(path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "state.json is not JSON"),
        (b"\xff\xfe\xfd", "state.json is not JSON"),
        ("[" * 100_000, "state.json is not JSON"),
        ("[]", "does not say that it is of format"),
        ("{}", "does not say that it is of format"),
        (document_with(format="other"), "does not say that it is of format"),
        (document_with(version=99), "its format version is 99; this release reads version 1"),
        (document_with(state=[]), "the state is not a mapping"),
        (document_with(state=None), "the state is not a mapping"),
        (document_with(state={"code": "import os"}), "unknown tag 'code'"),
        (document_with(state={"dict": [1]}), "state.json is malformed"),
        (document_with(state={"dict": [[[], 1]]}), "state.json is malformed"),
        (document_with(state={"dict": 3}), "unknown tag"),
        (document_with(state={"float": "00"}), "state.json is malformed"),
        (document_with(state={"dict": [["w", {"tensor": "a\\nb"}]]}), "that tensors.safetensors does not hold: 'a"),
        (document_with(), "a tensor that state.json does not refer to: \"state['state']\""),
    ],
)  # fmt: skip
def test_bad_structure(tmp_path: Path, members: dict[str, bytes | str], document: str | bytes, message: str) -> None:
    assert message in error_of_zip(tmp_path / "x.zip", members | {"state.json": document})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2) + b"{}" + b"trailing",
        b'\x3a\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}    ',
    ],
)
def test_bad_tensors(tmp_path: Path, members: dict[str, bytes | str], content: bytes) -> None:
    assert "tensors.safetensors is malformed" in error_of_zip(
        tmp_path / "x.zip", members | {"tensors.safetensors": content}
    )


def test_a_huge_declared_size_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    save(path, SMALL)
    size = path.stat().st_size
    assert "above the limit of 100" in error_of(path, max_bytes=100)
    assert_identical(load(path, max_bytes=size), SMALL)

    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last member in the directory; its two sizes lie at offset 20
    content[entry + 20 : entry + 28] = struct.pack("<LL", 2**31 - 2, 2**31 - 2)
    path.write_bytes(content)
    assert "above the limit of 1000000" in error_of(path, max_bytes=10**6)
    assert "damaged" in error_of(path)


def test_loading_uses_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "run.zip"
    save(path, SMALL)
    script = """
import sys, torch, mtrl.checkpoint
import pickle, _pickle

def refuse(*args, **kwargs):
    raise AssertionError("pickle was used")

for module in pickle, _pickle:
    for name in "load", "loads", "dump", "dumps", "Unpickler", "Pickler":
        setattr(module, name, refuse)
print(mtrl.checkpoint.load(sys.argv[1])["step"])
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
