"""The extension that lets Sphinx read this project's docstrings, which are written as plain text."""

import importlib.util
import inspect
from pathlib import Path

import pytest

import mtrl
from mtrl.balancers import TorchJD, make_balancer, names

docutils_core = pytest.importorskip("docutils.core", reason="docutils is not installed")

PATH = Path(__file__).parents[2] / "docs" / "_ext" / "plain_docstrings.py"


@pytest.fixture(scope="module")
def as_rst():
    spec = importlib.util.spec_from_file_location("plain_docstrings", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.as_rst


def rendered(lines):
    """The text of a document, as XML; a warning of docutils is an error."""
    settings = {"halt_level": 2, "report_level": 5, "output_encoding": "unicode"}
    return docutils_core.publish_string("\n".join(lines), writer="pseudoxml", settings_overrides=settings)


KINDS = [*(type(make_balancer(name, 2)) for name in names()), TorchJD, mtrl.DirectionMemory]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_docstring_of_a_balancer_is_read_without_a_warning(as_rst, kind):
    lines = inspect.getdoc(kind).partition("\nArgs:")[0].splitlines()  # napoleon reads the sections
    text = rendered(as_rst(lines))
    for line in lines:
        if line.startswith("    ") and "<-" in line:
            assert " ".join(line.split()) in " ".join(text.split())


def test_formulas_code_and_stars_keep_their_text(as_rst):
    text = rendered(
        as_rst(
            [
                "With |g_i| the *raw* length and a * b,",
                "",
                "    d  <-  |g| * w,   *not* emphasised,",
                "",
                "`c_i` is a **factor**:",
                "",
                "* `a|b` of |x|; **Until `b` is there**, 2 ** 3.",
                "",
                "num_tasks: T.",
            ]
        )
    )
    words = " ".join(text.split())
    for part in (
        "With |g_i| the",
        "d <- |g| * w, *not* emphasised,",
        "a * b,",
        "a|b",
        "of |x|; Until",
        "is there, 2 ** 3.",
        "num_tasks: T.",
    ):
        assert part in words, part
    assert words.count("<emphasis>") == 1
    assert words.count("<strong>") == 1
    assert words.count("<literal>") == 3
    assert words.count("<literal_block") == 1
