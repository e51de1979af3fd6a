"""What W&B wrote, read back without W&B."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BLOCK = 32 * 1024


@dataclass
class WandbRun:
    """The contents of one offline run."""

    run: Any = None  # the protobuf message of its beginning
    lines: list[dict[str, Any]] = field(default_factory=list)  # what was logged, without W&B's own keys
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric or pattern -> its x axis
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None  # None: it was not finished

    @property
    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for item in self.run.config.update}


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, after W&B's header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415 - optional

    data, position, begun = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (left := BLOCK - position % BLOCK) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        begun += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            begun = b""
            yield record


def read_wandb_runs(folder: Path) -> list[WandbRun]:
    """The offline runs in `folder`, in the order in which they began."""
    runs = []
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        run = WandbRun()
        for record in wandb_records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    run.run = record.run
                case "history":
                    items = {("/".join(item.nested_key) or item.key): item.value_json for item in record.history.item}
                    run.lines.append({key: json.loads(value) for key, value in items.items() if key[0] != "_"})
                case "summary":
                    items = {("/".join(item.nested_key) or item.key): item.value_json for item in record.summary.update}
                    run.summary |= {key: json.loads(value) for key, value in items.items() if key[0] != "_"}
                case "metric":
                    run.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
                case "artifact":
                    run.artifacts.append(record.artifact)
                case "exit":
                    run.exit_code = record.exit.exit_code
        runs.append(run)
    return sorted(runs, key=lambda run: run.run.start_time.ToNanoseconds())


@pytest.fixture
def wandb_runs(tmp_path, monkeypatch):
    """Reads offline runs back; W&B itself finds no login and writes nothing to the user's home."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    return read_wandb_runs
