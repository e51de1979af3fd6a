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
    for index in range(24):
        num_tasks = 2 + index % 2
        g = rng.normal(size=(num_tasks, 2)) * 10 ** rng.uniform(-1, 1, size=(num_tasks, 1))
        angle = rng.uniform(0, 2 * math.pi)
        settings = {
            "weights": rng.uniform(0.1, 3, size=num_tasks).tolist(),
            "losses": rng.uniform(0.05, 1.5, size=num_tasks).tolist(),
            "alpha": rng.uniform(0, 3),
            "steps": int(rng.integers(0, 150)),
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


@pytest.fixture(scope="module")
def answers(browser, page):
    """The updates that the page gives for all problems, by rule."""
    tab = browser.new_page()
    tab.goto(page.as_uri())
    asked = [[g.tolist(), settings] for g, settings in PROBLEMS]
    ask = "([names, asked]) => names.map(name => asked.map(words => Balancers.answer(name, ...words).update))"
    names = tab.evaluate("Balancers.names")
    given = dict(zip(names, tab.evaluate(ask, [names, asked]), strict=True))
    tab.close()
    return given


def test_the_page_of_the_documentation_loads_these_files():
    text = (FOLDER.parents[1] / "methods" / "playground.md").read_text()
    assert re.findall(r'src="../_static/playground/(\w+\.js)"', text) == list(SCRIPTS)
    assert {path.name for path in FOLDER.iterdir()} == {*SCRIPTS, "playground.css"}


def test_every_rule_is_tested(answers):
    assert sorted(answers) == sorted(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_the_page_is_that_of_the_balancer(answers, name):
    if name in OF_TORCHJD:
        pytest.importorskip("torchjd", reason="the extra `torchjd` is not installed")
    # CAGrad's solver in TorchJD stops at its own tolerance.
    tolerance = 1e-4 if name == "cagrad" else GRAVE
    for (g, settings), answer in zip(PROBLEMS, answers[name], strict=True):
        scale = np.linalg.norm(g, axis=1).sum()
        np.testing.assert_allclose(answer, expected(name, g, settings), rtol=0, atol=tolerance * scale)


# For readers


def gradient(tab, name="g1"):
    """A gradient as the address of the page writes it down."""
    (found,) = re.findall(rf"[#&]{name}=([^&]*)", tab.url)
    return [float(number) for number in found.split(",")]


def middle(tab, name):
    box = tab.locator(f"[data-handle={name}] .pg-grip").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def length_of(tab, method):
    return float(tab.locator(f"tr[data-method={method}] td[data-label=length]").inner_text())


def test_an_arrow_is_dragged_and_the_numbers_follow(visit, page):
    view = visit(page)
    tab, before = view.tab, gradient(view.tab)
    x, y = middle(tab, "g1")
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 30, y - 40, steps=4)
    now = middle(tab, "g1")
    assert now == pytest.approx((x + 30, y - 40), abs=2)  # the tip is under the pointer
    tab.mouse.up()
    after = gradient(tab)
    assert after[0] > before[0]
    assert after[1] > before[1]
    total = np.add(after, gradient(tab, "g2"))
    assert length_of(tab, "equal") == pytest.approx(math.hypot(*total), abs=0.01)
    assert view.complaints == []
    assert all(url.startswith("file:") for url in view.requests)


def test_an_arrow_is_dragged_by_touch(visit, page):
    tab = visit(page, width=390, height=800, has_touch=True, is_mobile=True).tab
    before, (x, y) = gradient(tab), middle(tab, "g1")
    session = tab.context.new_cdp_session(tab)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x - 20, "y": y - 30}]),
        ("touchMove", [{"x": x - 40, "y": y - 60}]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    after = gradient(tab)
    assert after[0] < before[0]
    assert after[1] > before[1]
    assert tab.evaluate("scrollY") == 0


def test_the_arrow_keys_move_the_tip_that_has_the_focus(visit, page):
    tab = visit(page).tab
    before = gradient(tab)
    tab.locator("[data-handle=g1]").focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowUp"):
        tab.keyboard.press(key)
    assert gradient(tab) == pytest.approx([before[0] + 0.2, before[1] + 0.5])
    assert "x 2.4" in tab.locator("[data-handle=g1]").get_attribute("aria-valuetext")
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowDown")
    assert gradient(tab, "g2") == pytest.approx([-0.8, 0.6])


def test_a_link_shows_the_same_picture(visit, page):
    tab = visit(page).tab
    tab.get_by_role("button", name="three tasks").click()
    for name in ("static", "aim", "memory"):
        tab.locator(f"input[data-method={name}]").check()
    tab.locator("input[data-setting=weights]").nth(1).fill("2.5")
    tab.locator("input[data-setting=tau]").fill("0.4")
    tab.locator("[data-handle=d]").focus()
    tab.keyboard.press("ArrowUp")
    address, table = tab.url, tab.locator("table").inner_text()
    assert "task 3" in tab.get_by_role("button", name="remove").inner_text()
    tab.goto("about:blank")
    tab.goto(address)
    assert tab.locator("table").inner_text() == table
    assert tab.url == address


def test_a_broken_link_shows_the_first_picture(visit, page):
    view = visit(page)
    first = view.tab.url
    for words in (
        "g1=1&g2=x,y&tau=high",
        "show=%00&g1=1e999,2&g2=,",
        "d=0,0&weights=&show=equal,normalised,pcgrad,rgb",
        "%%%",
    ):
        view.tab.goto("about:blank")
        view.tab.goto(f"{page.as_uri()}#{words}")
        assert view.tab.url.partition("&show")[0] == first.partition("&show")[0]
    view.tab.goto("about:blank")
    view.tab.goto(f"{page.as_uri()}#show=rgb,<b>,none")
    assert view.tab.locator("tbody th").all_inner_texts() == ["rgb"]
    assert view.complaints == []


def test_methods_with_the_same_answer_share_an_arrow_and_a_label(visit, page):
    tab = visit(page).tab
    tab.get_by_role("button", name="agree", exact=True).click()
    labels = tab.locator(".pg-label").all_text_contents()
    assert any("equal" in label and "= pcgrad" in label for label in labels)
    assert tab.locator("tr[data-method=pcgrad] td").last.inner_text() == "none"
    tab.get_by_role("button", name="conflict", exact=True).click()
    assert tab.locator("tr[data-method=equal] td").last.inner_text() == "task 2"
    assert "equal" in tab.locator(".pg-label").all_text_contents()


def test_what_the_page_tells_readers_to_try_is_seen(visit, page):
    tab = visit(page).tab

    def worse(preset, method):
        tab.get_by_role("button", name=preset, exact=True).click()
        tab.locator(f"input[data-method={method}]").check()
        return tab.locator(f"tr[data-method={method}] td").last.inner_text()

    assert (worse("conflict", "equal"), worse("conflict", "pcgrad")) == ("task 2", "none")
    assert (worse("three tasks", "normalised"), worse("three tasks", "rgb")) == ("task 2", "task 2")
    assert worse("three tasks", "upgrad") == "none"
    assert worse("one ten times longer", "equal") == "task 2"
    g = [gradient(tab, name) for name in ("g1", "g2")]
    assert 8 < math.hypot(*g[0]) / math.hypot(*g[1]) < 12
    worse("one ten times longer", "mgda")
    assert length_of(tab, "mgda") <= math.hypot(*g[1])  # near the short gradient


@pytest.mark.parametrize("width", [390, 760, 1280])
def test_nothing_is_hidden_and_nothing_scrolls_sideways(visit, page, width):
    tab = visit(page, width=width).tab
    for box in tab.locator("input[data-method]").all():
        box.check()
    for preset in ("agree", "conflict", "one ten times longer", "three tasks"):
        tab.get_by_role("button", name=preset, exact=True).click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        plane = tab.locator(".pg svg").bounding_box()
        boxes = [label.bounding_box() for label in tab.locator(".pg-label").all()]
        for box in boxes:
            assert plane["x"] <= box["x"]
            assert box["x"] + box["width"] <= plane["x"] + plane["width"]
        for one, other in itertools.combinations(boxes, 2):
            apart_x = max(one["x"], other["x"]) - min(one["x"] + one["width"], other["x"] + other["width"])
            apart_y = max(one["y"], other["y"]) - min(one["y"] + one["height"], other["y"] + other["height"])
            assert max(apart_x, apart_y) > -6, (preset, one, other)


def test_the_theme_is_that_of_the_page_or_of_the_system(visit, page):
    for scheme, switch, dark in (("light", None, False), ("dark", None, True), ("light", "dark", True)):
        tab = visit(page, color_scheme=scheme).tab
        if switch is not None:
            tab.evaluate("theme => document.body.setAttribute('data-theme', theme)", switch)
        ground = tab.evaluate("getComputedStyle(document.querySelector('.pg svg')).backgroundColor")
        assert (ground == "rgb(21, 24, 30)") == dark


def test_colours_are_those_of_the_figures():
    style = (FOLDER / "playground.css").read_text()
    found = dict(re.findall(r"--pg-(\w+): (light-dark\(.*?\));", style))
    own = {
        "equal": COLOURS["shared_dqn"],
        "equal_memory": COLOURS["independent_dqn"],
        "upgrad": COLOURS["torchjd_upgrad"],
        "mgda": OTHER_COLOURS[3],
        "cagrad": COLOURS["brc"],
        **{f"task{i}": TASK_COLOURS[i] for i in range(3)},
    }
    for name in (*RULES, "task0", "task1", "task2"):
        colour = own.get(name) or COLOURS[name]
        assert found[name] == f"light-dark({on_light(colour)}, {on_dark(colour)})", name
    for text in ("text", "muted"):
        pairs = [found[part].removeprefix("light-dark(").rstrip(")").split(", ") for part in (text, "ground")]
        assert all(contrast(*pair) >= 4.5 for pair in zip(*pairs, strict=True))
