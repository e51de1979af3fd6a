import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scaling
from benchmarks.growth import Exponents, fit_exponents
from benchmarks.perceptron import BALANCERS, CHAIN, LOW_MEMORY, PLAIN, TORCHJD, Problem, Shape
from benchmarks.scaling import exponents, main

CASES = (PLAIN, *BALANCERS, CHAIN, LOW_MEMORY, TORCHJD)


def test_fitted_exponents_are_those_of_a_power_law() -> None:
    tasks, parameters = (np.repeat([2, 3, 10, 50], 3), np.tile([1e4, 1e6, 1e8], 4))
    found = fit_exponents(tasks, parameters, 3e-9 * tasks**0.5 * parameters**1.25)
    assert found.tasks == pytest.approx(0.5)
    assert found.parameters == pytest.approx(1.25)


def test_what_was_not_varied_has_no_exponent() -> None:
    assert fit_exponents([2, 2], [10, 100], [1, 100]) == Exponents(None, pytest.approx(2.0))
    assert fit_exponents([1, 4], [10, 10], [3, 6]) == Exponents(pytest.approx(0.5), None)
    nothing = Exponents(None, None)
    assert fit_exponents([], [], []) == fit_exponents([2], [10], [1]) == nothing
    assert fit_exponents([2, 4, 8], [10, 100, 1000], [1, 2, 4]) == nothing  # both only together


def test_exponents_leave_out_what_is_missing_or_tiny() -> None:
    measurements = []
    for tasks in (2, 8):
        for parameters in (100, 10_000):
            one = scaling.Measurement(tasks, 8, 4, parameters, 1, 1, 1.0, 1.0)
            one.cases["case"] = scaling.Figures(mebibytes=0.5, seconds=tasks * parameters**0.5)
            measurements.append(one)
    one = scaling.Measurement(50, 8, 4, 100, 1, 1, 1.0, 1.0)
    one.cases["case"] = scaling.Figures(note="left out")
    found = exponents([*measurements, one], ["case"])["case"]
    assert found["seconds"] == Exponents(pytest.approx(1.0), pytest.approx(0.5))
    assert found["mebibytes"] == Exponents(None, None)


@pytest.mark.parametrize("case", ["equal", CHAIN, LOW_MEMORY, TORCHJD])
def test_every_way_leads_to_the_gradient_of_the_same_losses(case: str) -> None:
    problem = Problem(Shape(tasks=3, width=8, batch_size=5))
    torch.testing.assert_close(problem.losses(), torch.stack(problem.losses_one_by_one()))
    # One task's batch for all: nothing conflicts, and every method here gives the sum.
    problem.x[:] = problem.x[:5].repeat(3, 1)
    problem.targets[:] = problem.targets[:5].repeat(3, 1)
    gradients = []
    for name in (PLAIN, case):
        problem.update(name)()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in problem.network.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_no_update_adds_to_the_one_before(case: str) -> None:
    problem = Problem(Shape(tasks=2, width=8, batch_size=4))
    update = problem.update(case)
    norms = []
    for _ in range(3):
        update()
        norms.append(sum(float(p.grad.square().sum()) for p in problem.network.parameters() if p.grad is not None))
    assert max(norms) < 2 * min(norms)


def test_the_command_prints_and_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "BALANCERS", ("pcgrad",))  # a process each
    monkeypatch.setattr(scaling, "has_torchjd", lambda: False)
    path = tmp_path / "scaling.json"
    argv = "--tasks 2 --widths 64 512 --batch-size 8 --rounds 1 --seconds 0.05 --max-gib 0.002 --json"
    assert main([*argv.split(), str(path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    small, large = content["tables"]
    assert small["parameters"] == 16 * 64 + 64 + 64 * 32 + 32 + 32 * 4 + 4
    assert list(small["cases"]) == [PLAIN, "pcgrad", CHAIN, LOW_MEMORY]
    for found in small["cases"].values():
        assert found["seconds"] > 0
        assert found["mebibytes"] >= 0
        assert found["relative_to_plain"] > 0
        assert found["times_floor_of_flops"] > 0
        assert found["times_floor_of_bytes"] > 0
        assert not found["note"]
    assert small["cases"][PLAIN]["relative_to_plain"] == 1
    assert "left out: it would hold about" in large["cases"]["pcgrad"]["note"]
    assert large["cases"]["pcgrad"]["seconds"] is None
    assert set(content["exponents"][PLAIN]) == {"seconds", "mebibytes"}
    assert small["gflops"] > 0
    assert small["gbytes_per_second"] > 0
    assert "TorchJD is not installed" in printed
    assert "byte floor" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--json /", "'/' is a folder; figures need a file"),
        ("--json /dev/null/x", "'/dev/null' is a file; figures need a folder"),
        ("--tasks 0", "tasks are (0,); give at least one, each at least 1"),
        ("--widths", "widths are (); give at least one, each at least 2"),
        ("--limit 0", "limit is 0.0; it must be above 0"),
        ("--rounds 0", "rounds is 0; it must be at least 1"),
        ("--width 3", "unrecognized argument '--width'; did you mean --widths?"),
    ],
)
def test_bad_flags_get_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"benchmarks.scaling: {message}\n"
