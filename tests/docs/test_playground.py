"""The interactive page about balancers: its rules are those of `mtrl.balancers`, and readers can use it."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.analysis.looks import COLOURS, OTHER_COLOURS, TASK_COLOURS
from experiments.analysis.report.colours import contrast, on_dark, on_light
from mtrl import DirectionMemory
from mtrl.balancers import make_balancer
from mtrl.balancers.pcgrad import SMALLEST, project

FOLDER = Path(__file__).parents[2] / "docs" / "_static" / "playground"
SCRIPTS = ("balancers.js", "methods.js", "state.js", "drawing.js", "playground.js")
GRAVE = 1e-9  # of numbers of about 1; both sides compute in double precision
RULES = (
    *("equal", "equal_memory", "static", "normalised", "memory", "gradnorm", "pcgrad", "gradnorm_pcgrad"),
    *("rgb", "aim", "mgda", "upgrad", "cagrad"),
)
OF_TORCHJD = {"mgda": "torchjd:MGDA", "upgrad": "torchjd:UPGrad", "cagrad": "torchjd:CAGrad"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page of the documentation holds, without the theme around it."""
    path = tmp_path_factory.mktemp("page") / "playground.html"
    head = f'<link rel="stylesheet" href="{(FOLDER / "playground.css").as_uri()}">'
    scripts = "".join(f'<script src="{(FOLDER / name).as_uri()}"></script>' for name in SCRIPTS)
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = f'<body style="margin: 8px"><div id="playground"></div>{scripts}</body>'
    path.write_text(f"<!doctype html><html lang=en><head>{meta}<title>x</title>{head}</head>{body}</html>")
    return path


def problems():
    """Gradients of two and three tasks in the plane, long and short, in agreement and in conflict, with settings."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(60):
        num_tasks = 2 + index % 2
        g = rng.normal(size=(num_tasks, 2)) * 10 ** rng.uniform(-1, 1, size=(num_tasks, 1))
        angle = rng.uniform(0, 2 * math.pi)
        settings = {
            "weights": rng.uniform(0.1, 3, size=num_tasks).tolist(),
            "losses": rng.uniform(0.05, 1.5, size=num_tasks).tolist(),
            "alpha": rng.uniform(0, 3),
            "steps": int(rng.integers(0, 400)),
            "calls": int(rng.integers(1, 30)),
            "tau": rng.uniform(-1, 1),
            "k": rng.uniform(1, 30),
            "memory": [math.cos(angle), math.sin(angle)],
            "angle": rng.uniform(0, math.pi / 2),
        }
        found.append((g, settings))
    found += [(g * [[1.0, 0.0]], settings) for g, settings in found[:4]]  # all on one line
    found.append((np.array([[1.0, 0.5], [0.0, 0.0]]), found[0][1]))
    return found


PROBLEMS = problems()


def pcgrad_over_orders(gramian):
    """The coefficients of PCGrad, averaged over every order in which each task can meet the others."""
    tasks = range(len(gramian))
    each = [list(itertools.permutations([j for j in tasks if j != i])) for i in tasks]
    answers = [project(gramian.tolist(), [list(o) for o in order], SMALLEST)[0] for order in itertools.product(*each)]
    return np.mean(answers, axis=0)


def settled_gradnorm(g, settings):
    """GradNorm with its warm-up behind it, after `steps` updates with the same gradients and losses."""
    balancer = make_balancer("gradnorm", len(g), alpha=settings["alpha"])
    balancer.initial_losses.fill_(1.0)
    balancer.steps.fill_(balancer.warmup_steps)
    for _ in range(settings["steps"]):
        balancer.combine(torch.tensor(g), torch.tensor(settings["losses"]))
    return balancer


def expected(name, g, settings):
    """The update of the project's own balancer."""
    jacobian, losses = torch.tensor(g), torch.ones(len(g), dtype=torch.float64)
    if name in ("pcgrad", "gradnorm_pcgrad"):
        w = np.ones(len(g)) if name == "pcgrad" else settled_gradnorm(g, settings).weights.numpy()
        rows = g * w[:, None]
        return pcgrad_over_orders(rows @ rows.T) @ rows
    if name == "gradnorm":
        return settled_gradnorm(g, settings).combine(jacobian, torch.tensor(settings["losses"])).numpy()
    if name == "equal_memory":
        turn = DirectionMemory(settings["angle"])
        turn.direction = torch.tensor(settings["memory"], dtype=torch.float64)
        return turn.turn_(make_balancer("equal", len(g)).combine(jacobian, losses)).numpy()
    arguments = {"static": {"weights": settings["weights"]}, "memory": {"angle": settings["angle"]}}.get(name, {})
    if name == "aim":
        arguments = {"tau": "scalar", "k": settings["k"], "guidance": "none"}
    balancer = make_balancer(OF_TORCHJD.get(name, name), len(g), **arguments)
    if name == "memory":
        balancer.direction = torch.tensor(settings["memory"], dtype=torch.float64)
    if name == "aim":
        balancer.tau.fill_(settings["tau"])
    for _ in range(settings["calls"] - 1 if name == "rgb" else 0):
        balancer.combine(jacobian, losses)
    return balancer.combine(jacobian, losses).numpy()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_the_page_is_that_of_the_balancer(visit, page, name):
    if name in OF_TORCHJD:
        pytest.importorskip("torchjd", reason="the extra `torchjd` is not installed")
    # CAGrad's solver in TorchJD stops at its own tolerance.
    tolerance = 1e-4 if name == "cagrad" else GRAVE
    asked = [[name, g.tolist(), settings] for g, settings in PROBLEMS]
    answers = visit(page).tab.evaluate("asked => asked.map(words => Balancers.answer(...words).update)", asked)
    for (g, settings), answer in zip(PROBLEMS, answers, strict=True):
        scale = np.linalg.norm(g, axis=1).sum()
        np.testing.assert_allclose(answer, expected(name, g, settings), rtol=0, atol=tolerance * scale)


def test_every_rule_is_tested(visit, page):
    assert sorted(visit(page).tab.evaluate("Balancers.names")) == sorted(RULES)
