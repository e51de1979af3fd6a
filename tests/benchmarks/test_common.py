import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.common import (
    NoAnswerError,
    bytes_of_update,
    ceilings,
    flops_of_update,
    in_own_process,
    interleaved,
    parameters_of,
    peak_memory,
    restart_peak_memory,
    write_json,
)


def test_cases_take_turns_and_the_first_round_only_warms_up() -> None:
    calls: list[str] = []
    cases = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = interleaved(cases, rounds=2, updates=3)
    assert calls == ["a"] * 3 + ["b"] * 3 + (["a"] * 3 + ["b"] * 3) * 2
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert all(value > 0 for values in seconds.values() for value in values)


def test_floors_against_counts_by_hand() -> None:
    # Two layers, 3 -> 5 -> 2, 7 rows: products of 2 * 7 * 15 = 210 and 2 * 7 * 10 = 140 operations.
    sizes, rows = (3, 5, 2), 7
    backward = 210 + 140 + 140  # both weights, and the input of the second layer
    assert flops_of_update(sizes, rows, double_q=None) == 350 + backward
    assert flops_of_update(sizes, rows, double_q=False) == 2 * 350 + backward
    assert flops_of_update(sizes, rows, double_q=True) == 3 * 350 + backward
    assert parameters_of(sizes) == 3 * 5 + 5 + 5 * 2 + 2
    assert bytes_of_update(sizes, rows) == 4 * (3 * 32 + 4 * 7 * 10)


def test_the_floor_of_the_agents_network() -> None:
    assert parameters_of((8, 256, 128, 4)) == 35_716
    # 54 MFLOP, as design notes say of one update with one forward pass for the targets
    assert flops_of_update((8, 256, 128, 4), 192, double_q=False) == pytest.approx(54e6, rel=0.02)


def test_floating_point_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(7, 3)).sum().backward()
    assert counter.get_total_flops() == flops_of_update((3, 5, 2), 7, double_q=None)


def test_ceilings_are_positive_and_no_matrix_product_beats_them_by_far() -> None:
    best = ceilings(repeats=2)
    assert best.gflops > 0
    assert best.gbytes_per_second > 0
    a = torch.randn(512, 512)
    start = time.perf_counter()
    a @ a
    assert 2 * 512**3 / (time.perf_counter() - start) / 1e9 < 3 * best.gflops  # 3: a busy machine


def test_a_process_answers_is_ended_at_its_limit_and_may_die() -> None:
    assert in_own_process(os.getenv, "BENCHMARK", limit=60, environment={"BENCHMARK": "x"}) == "x"
    assert "BENCHMARK" not in os.environ
    with pytest.raises(NoAnswerError, match=r"took more than 0\.1 s"):
        in_own_process(time.sleep, 60, limit=0.1)
    with pytest.raises(NoAnswerError, match="exit status 3"):
        in_own_process(os._exit, 3, limit=60)


def rise_of_peak_memory() -> int:
    """By how many bytes the peak rises with a block of 64 MiB that is freed at once."""
    restart_peak_memory()
    before = peak_memory()
    block = bytearray(64 * 2**20)
    del block
    return peak_memory() - before


def test_peak_memory_sees_what_was_freed_again() -> None:
    # In a process of its own, as `benchmarks.memory` measures: where the peak cannot be reset, an earlier one would
    # hide the block.
    assert in_own_process(rise_of_peak_memory, limit=60) > 60 * 2**20


def test_json_has_settings_versions_and_figures(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Config:
        rounds: int
        json: Path

    path = tmp_path / "new" / "figures.json"
    write_json(path, Config(3, path), {"speed": 1.5})
    content = json.loads(path.read_text())
    assert content["settings"] == {"rounds": 3, "json": str(path)}
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0] or content["versions"]["torch"]
    assert content["speed"] == 1.5
    assert [file.name for file in path.parent.iterdir()] == ["figures.json"]
