"""Save and load training state without pickle, atomically.

A checkpoint is one uncompressed zip file with two members:

- `state.json`: the structure, in strict JSON, with a reference in the place of each tensor;
- `tensors.safetensors`: every tensor and array, named by its key path, so that any safetensors reader can open it.

JSON represents `None`, `bool`, `int`, `str`, finite `float` and `list` directly. Every other value is an
object with one key, its tag: `{"dict": [[key, value], ...]}`, `{"tuple": [...]}`, `{"float": hexadecimal}` for NaN and
infinities, and `{"tensor" | "array" | "scalar": name}` for a PyTorch tensor, a NumPy array or a NumPy scalar.

    save("run/checkpoint.zip", {"policy": policy.state_dict(), "step": 1000})
    state = load("run/checkpoint.zip")
"""

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from mtrl.files import IrregularFileError, one_line, open_regular, replacing

__all__ = ["CheckpointError", "load", "save"]

FORMAT = "mtrl-checkpoint"
VERSION = 1
STATE, TENSORS = "state.json", "tensors.safetensors"
LARGEST_STATE = 32 * 2**20  # bytes of JSON; once they are read, they take about thirty times as much memory
LARGEST_HEADER = 2**23  # bytes of the list of tensors, enough for about 100,000 of them; in memory it is much larger
LARGEST_KEY = 2**53  # of a dictionary's integers, if it has many; larger ones can be chosen to have the same hash
MANY_KEYS = 10_000
LARGEST_DIRECTORY = 2**16  # bytes of the zip file's list of members; a checkpoint has two members
INTEGERS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
REALS = ("float16", "float32", "float64")
ARRAY_DTYPES = frozenset(np.dtype(name) for name in INTEGERS + REALS)
TENSOR_DTYPES = frozenset(getattr(torch, name) for name in (*INTEGERS, *REALS, "bfloat16"))


class CheckpointError(ValueError):
    """A file that is not a readable checkpoint. The message is one line: the file and what is wrong with it."""


class _DefectError(Exception):
    """A file is defective. It is raised where the name of the file is not known, and `load` adds the name."""


def save(
    path: str | Path | BinaryIO | io.BufferedIOBase, state: Mapping[str, Any], *, previous: str | Path | None = None
) -> None:
    """Write `state` to `path`. The same state always gives the same bytes.

    Args:
        path: the file, or a stream opened for binary writing. A file is replaced in one step: whatever happens, `path`
            holds either the old checkpoint or the new one, complete. Missing parent folders are created.
        state: mappings with `str` or `int` keys, lists, tuples, dense tensors and arrays of any shape (bool, integer
            and real dtypes), NumPy scalars, `bool`, `int`, `float`, `str` and `None`, nested in any way. `load` returns
            them bit for bit and with their types, except that every mapping becomes a plain `dict`, and every tensor
            becomes contiguous, detached and on the CPU.
        previous: a name in the same folder under which the replaced file is kept. At every moment at least one of the
            two files is complete. Default: the replaced file is not kept.

    Raises:
        TypeError: `state` holds a value of another type; the message names its place, as in
            `cannot save state['policy']['fn']: function`. Nothing is written.
        ValueError: `state` without its tensors and arrays is too large: put large data in tensors or arrays; or it has
            more than about 100,000 tensors. Nothing is written.
        OSError: the file cannot be written. The old file is untouched.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"cannot save state: {type(state).__name__}; the outermost object must be a mapping")
    tensors: dict[str, torch.Tensor] = {}
    document = {"format": FORMAT, "version": VERSION, "state": _encode(state, "state", tensors)}
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(text) > LARGEST_STATE:
        raise ValueError(f"cannot save state: without tensors it takes {len(text)} bytes of at most {LARGEST_STATE}")
    members = {STATE: text, TENSORS: _serialize(tensors)}
    if (length := _header_length(members[TENSORS])) > LARGEST_HEADER:
        raise ValueError(f"cannot save state: the list of its tensors takes {length} bytes of at most {LARGEST_HEADER}")
    if isinstance(path, (str, os.PathLike)):
        with replacing(Path(path), None if previous is None else Path(previous)) as file:
            _write(file, members)
    else:
        _write(path, members)


def load(path: str | Path | BinaryIO | io.BufferedIOBase, *, max_bytes: int = 16 * 2**30) -> dict[str, Any]:
    """Read the state that `save` wrote to `path`, executing nothing from the file and extracting nothing to disk.

    Args:
        path: the file, or a seekable stream opened for binary reading.
        max_bytes: the largest total size of the members, default 16 GiB. A file with larger members is refused before
            they are read. Members that claim to be larger than the file are refused, too, so that loading takes memory
            in proportion to the size of the file.

    Raises:
        CheckpointError: there is no such file, or it is not a regular file, or it is not a complete, unaltered
            checkpoint of this format and version.
        OSError: the file cannot be read.
    """
    name = repr(os.fspath(path) if isinstance(path, (str, os.PathLike)) else getattr(path, "name", "stream"))
    try:
        if isinstance(path, (str, os.PathLike)):
            with open_regular(path, follow_link=True) as file:
                return _parse(_read(file, max_bytes))
        return _parse(_read(path, max_bytes))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"no checkpoint at {name}") from None
    except IrregularFileError as error:
        raise CheckpointError(f"cannot load checkpoint {name}: {error.strerror}") from None
    except IsADirectoryError:
        raise CheckpointError(f"cannot load checkpoint {name}: it is a folder") from None
    except ValueError as error:  # a wrong path; an error within the file is a _DefectError
        raise CheckpointError(f"no checkpoint at {name}: {error}") from None
    except _DefectError as defect:
        raise CheckpointError(f"cannot load checkpoint {name}: {one_line(defect)}") from defect


def _encode(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Turn `value` into JSON and put its tensors into `tensors`, under their key paths, which begin with `place`."""
    # The type must match exactly: a subclass (an enum, a named tuple, a masked array) would not be restored as such.
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": struct.pack(">d", value).hex()}
    if kind in (list, tuple):
        items = [_encode(item, f"{place}[{index}]", tensors) for index, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"cannot save {place}[{key!r}]: its key is {type(key).__name__}, not str or int")
        return {"dict": [[key, _encode(item, f"{place}[{key!r}]", tensors)] for key, item in value.items()]}
    if isinstance(value, torch.Tensor):
        if value.dtype not in TENSOR_DTYPES or value.layout is not torch.strided or value.is_meta:
            raise TypeError(f"cannot save {place}: {value.layout} tensor of {value.dtype} on {value.device}")
        # safetensors refuses tensors that share memory, so each tensor is copied.
        tensors[place] = value.detach().resolve_neg().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": place}
    if kind is np.ndarray or isinstance(value, np.generic):
        if value.dtype not in ARRAY_DTYPES:
            raise TypeError(f"cannot save {place}: numpy {kind.__name__} of dtype {value.dtype}")
        tensors[place] = torch.from_numpy(np.array(value, order="C"))  # np.ascontiguousarray loses shape ()
        return {"array" if kind is np.ndarray else "scalar": place}
    raise TypeError(f"cannot save {place}: {kind.__name__}")


def _serialize(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The tensors in the safetensors format.

    For every size in bytes that is new to it, `safetensors.torch.save` creates ctypes types of about 5 kB, which are
    never freed. `safetensors.numpy.save` gives the same bytes without that, but it does not support bfloat16.
    """
    if any(tensor.dtype is torch.bfloat16 for tensor in tensors.values()):
        return safetensors.torch.save(dict(tensors))
    return safetensors.numpy.save({name: tensor.numpy() for name, tensor in tensors.items()})


def _header_length(content: bytes) -> int:
    """The length of the list of tensors with which a member of tensors begins."""
    return int.from_bytes(content[:8], "little")


def _decode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `_encode`. It removes each tensor that it uses from `tensors`."""
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    match list(node.items()):
        case [("dict", list(pairs))]:
            if len(pairs) > MANY_KEYS and any(isinstance(key, int) and abs(key) > LARGEST_KEY for key, _ in pairs):
                raise _DefectError(f"{STATE} has more than {MANY_KEYS:,} keys and an integer beyond 2 ** 53 among them")
            return {key: _decode(item, tensors) for key, item in pairs}
        case [("tuple", list(items))]:
            return tuple(_decode(item, tensors) for item in items)
        case [("float", str(digits))]:
            return struct.unpack(">d", bytes.fromhex(digits))[0]
        case [("tensor" | "array" | "scalar" as kind, str(place))]:
            if place not in tensors:
                raise _DefectError(f"{STATE} refers to a tensor that {TENSORS} does not hold: {place!r}")
            tensor = tensors.pop(place)
            return tensor if kind == "tensor" else tensor.numpy() if kind == "array" else tensor.numpy()[()]
    raise ValueError(f"unknown tag {', '.join(node)!r}")


def _write(file: BinaryIO | io.BufferedIOBase, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's date is fixed: 1980-01-01


def _read(file: BinaryIO | io.BufferedIOBase, max_bytes: int) -> dict[str, bytes]:
    """Return the two members of the zip file, with their checksums verified."""
    try:
        size = file.seek(0, os.SEEK_END)
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if STATE not in names:
                raise _DefectError(f"it is a zip file but not a checkpoint: it has no member {STATE!r}")
            if TENSORS not in names:
                raise _DefectError(f"member {TENSORS!r} is missing")
            if len(names) != 2:
                raise _DefectError(f"it has {len(names)} members instead of 2: {', '.join(map(repr, names))}")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                    raise _DefectError(f"member {member.filename!r} is compressed")
            if (claimed := sum(member.file_size for member in members)) > max_bytes:
                raise _DefectError(f"its members claim {claimed} bytes, above the limit of {max_bytes}")
            first, second = sorted(members, key=lambda member: member.header_offset)
            if first.header_offset + first.file_size > second.header_offset:
                raise _DefectError("its members overlap")
            if claimed > size:
                raise _DefectError(f"it is damaged: its members claim {claimed} bytes, and it has {size}")
            if (length := archive.getinfo(STATE).file_size) > LARGEST_STATE:
                raise _DefectError(f"member {STATE!r} has {length} bytes, above the limit of {LARGEST_STATE}")
            return {member.filename: archive.read(member) for member in members}  # read() verifies the checksum
    # The type of error that zipfile raises depends on which bytes are damaged.
    except (zipfile.BadZipFile, struct.error, EOFError, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise _DefectError(f"it is damaged or not a zip file ({error or type(error).__name__})") from error


def _check_directory(file: BinaryIO | io.BufferedIOBase, size: int) -> None:
    """Refuse a long list of members, because `ZipFile` would read all of it. `size` is the size of the file."""
    file.seek(max(size - 98, 0))
    tail = file.read(98).rjust(98, b"\0")
    # `ZipFile` looks here first. A zip file ends with a record of 22 bytes. In a large file a locator of 20 bytes and
    # another record of 56 bytes come before it.
    if tail[-22:-18] != b"PK\5\6":
        # `ZipFile` would go on to look for a record that a comment follows, which `save` never writes.
        raise _DefectError("it is damaged or not a zip file (it does not end as one)")
    (length,) = struct.unpack("<L", tail[-10:-6])
    if tail[-42:-38] == b"PK\6\7":
        length = max(length, *struct.unpack("<Q", tail[40:48]))
    if length > LARGEST_DIRECTORY:
        raise _DefectError(f"its list of members claims {length} bytes, above the limit of {LARGEST_DIRECTORY}")


def _parse(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the state that the members hold."""
    try:
        document = json.loads(members[STATE])
    except (ValueError, RecursionError) as error:
        raise _DefectError(f"{STATE} is not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _DefectError(f"{STATE} does not say that it is of format {FORMAT!r}")
    if document.get("version") != VERSION:
        raise _DefectError(f"its format version is {document.get('version')!r}; this release reads version {VERSION}")
    length = _header_length(members[TENSORS])
    if LARGEST_HEADER < length <= len(members[TENSORS]):
        raise _DefectError(f"the list of its tensors has {length} bytes, above the limit of {LARGEST_HEADER}")
    try:
        tensors = safetensors.torch.load(members[TENSORS])
    except Exception as error:  # safetensors raises a different type for each kind of malformed content
        raise _DefectError(f"{TENSORS} is malformed ({error!r})") from error
    try:
        state = _decode(document.get("state"), tensors)
    except (ValueError, TypeError, RecursionError, struct.error) as error:
        raise _DefectError(f"{STATE} is malformed ({error})") from error
    if not isinstance(state, dict):
        raise _DefectError(f"{STATE} is malformed (the state is not a mapping)")
    if tensors:
        raise _DefectError(f"{TENSORS} holds a tensor that {STATE} does not refer to: {min(tensors)!r}")
    return state
