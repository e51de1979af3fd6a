"""The toy problem of CAGrad and Nash-MTL: its losses, its Pareto set, the paths, the program."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.studies.reports import toy as toy_study
from experiments.studies.toy import ToyConfig, main
from experiments.studies.toy_problem import LEARNING_RATE, LOWER_BOUND, STARTS, STEPS, Formula, ParetoSet, Toy
from mtrl.balancers import make_balancer, names

QUICK = ("--quick", "--quiet", "--steps", "20")


def reference(theta: torch.Tensor, formula: Formula) -> torch.Tensor:
    """The formulas of the papers in PyTorch."""
    x, y = theta
    sign = 1 if formula == "program" else -1
    f1 = torch.log(torch.clamp((0.5 * (-x - 7) - torch.tanh(-y)).abs(), min=5e-6)) + 6
    f2 = torch.log(torch.clamp((0.5 * (-x + 3) + sign * torch.tanh(-y) + 2).abs(), min=5e-6)) + 6
    g1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    g2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    c1, c2 = torch.clamp(torch.tanh(0.5 * y), min=0), torch.clamp(torch.tanh(-0.5 * y), min=0)
    return torch.stack([0.1 * (c1 * f1 + c2 * g1), c1 * f2 + c2 * g2])


def points(count: int) -> list[tuple[float, float]]:
    drawn = np.random.default_rng(0).uniform(-11, 11, (count, 2)).tolist()
    return [*STARTS, *((x, y) for x, y in drawn)]


# ---------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("formula", ["program", "paper"])
def test_losses_and_gradients_are_those_of_a_float64_reference(formula: Formula) -> None:
    toy = Toy(formula=formula)
    for point in points(300):
        theta = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        expected = reference(theta, formula)
        rows = [torch.autograd.grad(loss, theta, retain_graph=True)[0].tolist() for loss in expected]
        losses, gradients = toy.losses_and_gradients(*point)
        np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(gradients, rows, rtol=1e-9, atol=1e-12)
        assert toy.losses(*point) == losses


def test_gradients_are_finite_differences() -> None:
    toy, step = Toy(), 1e-6
    for x, y in points(300):
        _, gradients = toy.losses_and_gradients(x, y)
        if abs(y) < 1e-3 or np.abs(gradients).max() > 100:  # a kink, or the ravine itself
            continue
        ahead, behind = np.array(toy.losses(x + step, y)), np.array(toy.losses(x - step, y))
        up, down = np.array(toy.losses(x, y + step)), np.array(toy.losses(x, y - step))
        slopes = np.stack([ahead - behind, up - down], 1) / (2 * step)
        np.testing.assert_allclose(gradients, slopes, rtol=1e-4, atol=1e-5)


def test_the_bottom_of_a_ravine_is_bounded_and_flat() -> None:
    y = 5.0
    losses, gradients = Toy().losses_and_gradients(2 * math.tanh(y) - 7, y)
    assert losses[0] == pytest.approx(0.1 * math.tanh(2.5) * (math.log(5e-6) + 6))
    assert gradients[0][0] == 0.0


def test_the_lower_bound_is_below_all_losses() -> None:
    grid = Toy(scale=1.0).grid(np.linspace(-15, 15, 151), np.linspace(-15, 15, 151))
    assert LOWER_BOUND < grid.min() < LOWER_BOUND + 0.1


def test_a_grid_and_a_path_hold_the_losses_of_their_points() -> None:
    toy = Toy()
    grid = toy.grid(np.array([1.0, 2.0, 3.0]), np.array([-4.0, 5.0]))
    assert grid.shape == (2, 2, 3)
    assert tuple(grid[:, 1, 0]) == toy.losses(1.0, 5.0)
    assert [tuple(row) for row in toy.along(np.array([[1.0, 5.0]]))] == [toy.losses(1.0, 5.0)]


# ------------------------------------------------------------------------------------------------------- the front


def test_at_the_pareto_set_the_gradients_are_opposed() -> None:
    front = ParetoSet(29)
    toy = Toy()
    for x, y in front.points.tolist():
        _, (first, second) = toy.losses_and_gradients(x, y)
        norms = math.hypot(*first) * math.hypot(*second)
        dot, cross = first[0] * second[0] + first[1] * second[1], first[0] * second[1] - first[1] * second[0]
        assert abs(cross) <= 1e-9 * max(norms, 1e-3)
        assert dot <= 1e-9  # at the ends, one of them is 0
    assert front.points[14].tolist() == pytest.approx([0.0, -8.3551], abs=1e-4)
    assert not np.any(np.array(toy.losses_and_gradients(*front.points[-1])[1][0]).round(9))


def test_no_point_of_the_plane_is_better_than_the_front_in_both_losses() -> None:
    toy, front = Toy(), ParetoSet()
    best = toy.along(front.points)
    assert np.all(np.diff(best[:, 0]) < 0)
    assert np.all(np.diff(best[:, 1]) > 0)
    first, second = toy.grid(np.linspace(-11, 11, 89), np.linspace(-11, 11, 89)).reshape(2, -1)
    reachable = first >= best[-1, 0]  # elsewhere the first loss would be below its minimum
    assert np.all(first >= best[-1, 0] - 1e-9)
    least = np.interp(first[reachable], *best[::-1].T)  # the second loss of the front, at the same first loss
    assert np.all(second[reachable] >= least - 1e-4)


def test_the_distance_is_that_of_the_nearest_point_of_the_front() -> None:
    front = ParetoSet()
    for x, y in [(0.0, -8.0), (7.5, -9.0), (-12.0, 3.0), (3.3, -8.3), (9.0, 9.0)]:
        nearest = np.hypot(*(front.points - [x, y]).T).min()
        assert front.distance(x, y) == pytest.approx(nearest, rel=2e-3, abs=2e-3)
    assert front.distance(*front.points[100].tolist()) == 0.0


# ---------------------------------------------------------------------------------------------------------- paths


def test_the_defaults_are_the_published_settings() -> None:
    config = ToyConfig()
    assert (config.steps, config.learning_rate, config.scale) == (35_000, 1e-3, 0.1) == (STEPS, LEARNING_RATE, 0.1)
    assert STARTS == ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))


def test_a_path_of_equal_weights_is_that_of_pytorchs_adam_on_the_sum() -> None:
    path = toy_study.descend(make_balancer("equal", 2), STARTS[0], Toy(), ParetoSet(), ToyConfig(steps=200))
    theta = torch.tensor(STARTS[0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=1e-3)
    for _ in range(200):
        (theta.grad,) = torch.autograd.grad(reference(theta, "program").sum(), theta)
        optimizer.step()
    np.testing.assert_allclose(path.points[-1], theta.detach().numpy(), rtol=1e-9)
    assert path.points.shape == (201, 2)
    assert path.arrived is None


@pytest.mark.parametrize("name", [*names(), "torchjd:IMTLG", "torchjd:ConFIG"])
def test_a_path_is_the_same_each_time_and_its_steps_are_adams(name: str) -> None:
    first, second = (
        toy_study.descend(make_balancer(name, 2), STARTS[3], Toy(), ParetoSet(), ToyConfig(steps=150)) for _ in range(2)
    )
    assert np.array_equal(first.points, second.points)
    lengths = [math.dist(a, b) for a, b in pairwise(first.points.tolist())]
    assert 0 < max(lengths) <= 3e-3


def test_a_path_ends_some_time_after_it_has_reached_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_study, "SETTLED", 30)
    config = ToyConfig(learning_rate=0.05)
    path = toy_study.descend(make_balancer("equal", 2), (0.0, -5.0), Toy(), ParetoSet(), config)
    assert path.arrived is not None
    assert len(path.points) - 1 == path.arrived + 30
    distances = [ParetoSet().distance(x, y) for x, y in path.points.tolist()]
    assert distances[path.arrived] <= 0.1 < min(distances[: path.arrived])


def test_the_gap_is_what_both_losses_could_still_fall() -> None:
    toy, front = Toy(), ParetoSet()

    def gap(x: float, y: float) -> float:
        return toy_study.gap(toy_study.Path2D(np.array([[x, y]]), None), toy, front)

    assert gap(*front.points[700].tolist()) == pytest.approx(0.0, abs=1e-9)
    low, best = np.array(toy.losses(0.0, -6.0)), np.array(toy.losses(*front.points[700].tolist()))
    assert gap(0.0, -6.0) == pytest.approx(low[1] - best[1], rel=1e-3)  # the problem is symmetric but for the factor
    assert low[0] - best[0] == pytest.approx(0.1 * (low[1] - best[1]))


def test_only_torchjds_weights_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = toy_study.ask

    def counting(balancer: Any, *arguments: Any) -> Any:
        asked.append(type(balancer).__name__)
        return ask(balancer, *arguments)

    monkeypatch.setattr(toy_study, "ask", counting)
    for name in ("pcgrad", "torchjd:IMTLG", "torchjd:ConFIG"):  # ConFIG has no weights to hold
        toy_study.descend(make_balancer(name, 2), STARTS[4], Toy(), ParetoSet(), ToyConfig(steps=40, hold=20))
    assert [asked.count(kind) for kind in ("PCGrad", "TorchJD")] == [40, 2 + 40]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_nash_mtl_comes_to_the_middle_of_the_front_and_equal_weights_to_the_larger_loss() -> None:
    """At ten times the published rate, from (0, 0)."""
    front = ParetoSet()

    def end(name: str) -> tuple[float, float]:
        config = ToyConfig(steps=6000, learning_rate=1e-2)
        x, y = toy_study.descend(make_balancer(name, 2), STARTS[1], Toy(), front, config).points[-1]
        return float(x), float(y)

    nash, equal = end("torchjd:NashMTL"), end("equal")
    assert front.distance(*nash) <= 0.1
    assert front.distance(*equal) <= 0.2
    assert abs(nash[0]) < 0.5
    assert equal[0] == pytest.approx(-7 * (1 - 0.1) / (1 + 0.1), abs=0.01)


# ------------------------------------------------------------------------------------------------------- program


def test_a_quick_run_writes_its_report_figures_and_numbers_and_will_not_replace_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    arguments = ["--quick", "--steps", "20", "--balancers", "equal", "torchjd:IMTLG", "--output-dir", str(folder)]
    assert main(arguments) == 0
    text = (folder / "report.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"report.md", "results.json", "paths.png", "losses.png"}
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"]["steps"] == 20
    assert list(results["paths"]) == ["equal", "torchjd:IMTLG"]
    for of in results["paths"].values():
        assert [tuple(path["start"]) for path in of] == list(STARTS)
        assert all(path["updates"] == 20 and path["arrived"] is None for path in of)
    assert "| equal | - | - | - | - | - | 0 of 5 |" in text

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--overwrite" in error
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_by_default_all_balancers_and_six_of_torchjds_take_part(tmp_path: Path) -> None:
    assert main([*QUICK[:3], "2", "--output-dir", str(tmp_path)]) == 0
    known = json.loads((tmp_path / "results.json").read_text())["paths"]
    assert list(known) == [*names(), *toy_study.THEIRS]
    assert len(toy_study.THEIRS) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps is 0; it must be between 1 and 1000000"),
        (["--hold", "0"], "hold is 0; it must be between 1 and 1000000"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--scale", "-1"], "scale is -1.0"),
        (["--tolerance", "inf"], "tolerance is inf"),
        (["--formula", "book"], "book"),
        (["--balancers", "pcgard"], "unknown balancer 'pcgard'"),
        (["--balancers", "torchjd:Krum"], "torchjd:Krum"),
        (["--stesp", "1"], "did you mean --steps"),
        (["--output-dir", "{file}/deeper"], "is a file; results need a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main([argument.format(file=tmp_path / "file") for argument in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_path_that_leaves_the_plane_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main([*QUICK, "--balancers", "equal", "--learning-rate", "1e30", "--output-dir", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "equal: the path from (-8.5, 7.5) left the plane; a lower --learning-rate may help" in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from experiments.studies.toy import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "    sys.exit(stop.code or ' '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--formula" in done.stdout
