"""The documentation's pages, opened from files in a browser."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sphinx.util.inventory import InventoryFile

import mtrl
import mtrl.balancers
import mtrl.losses
import mtrl.rl
from tests.docs.blocks import DOCS

Visit = Callable[..., Any]
PUBLIC = sorted({name for module in (mtrl, mtrl.balancers, mtrl.losses, mtrl.rl) for name in module.__all__})
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
WALK = [
    *("index", "start", "tutorials/comparing", "how-to/videos"),
    *("reference/balancers", "reference/settings", "results", "support"),
]


def pages_of(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def test_every_page_of_the_source_is_there(site: Path) -> None:
    sources = [path for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    assert len(sources) > 40
    for path in sources:
        assert (site / path.relative_to(DOCS)).with_suffix(".html").is_file()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    found = {
        name.rpartition(".")[2] for kind in inventory.data if kind.startswith("py:") for name in inventory.data[kind]
    }
    assert len(PUBLIC) > 80
    assert not sorted(set(PUBLIC) - found)


def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    for path in pages_of(site):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"([^\"]*)\"", text)
        loaded += re.findall(r"<link\b[^>]*rel=\"(?:stylesheet|preload|icon)\"[^>]*href=\"([^\"]*)\"", text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], path
    for path in (site / "_static").rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_pages_fit_their_window_and_ask_for_files_only(site: Path, visit: Visit, width: int, scheme: str) -> None:
    view = visit(site / "index.html", width=width, height=844, color_scheme=scheme)
    for page in WALK:
        view.tab.goto((site / f"{page}.html").as_uri())
        assert view.tab.evaluate("document.documentElement.scrollWidth") <= width, page
    dark = view.tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith(("file:", "data:"))] == []


def test_no_page_is_wider_than_a_phone(site: Path, visit: Visit) -> None:
    view = visit(site / "index.html", width=390, height=844)
    for path in pages_of(site):
        view.tab.goto(path.as_uri())
        assert view.tab.evaluate("document.documentElement.scrollWidth") <= 390, path
    assert view.complaints == []


def test_a_search_finds_pages_from_files(site: Path, visit: Visit) -> None:
    view = visit(site / "index.html", width=1280)
    view.tab.locator("input[name=q]").first.fill("GradNorm")
    view.tab.locator("input[name=q]").first.press("Enter")
    view.tab.locator("#search-results ul.search li a").first.wait_for()
    links = view.tab.locator("#search-results ul.search li a").all_inner_texts()
    assert any("GradNorm" in text for text in links), links
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith(("file:", "data:"))] == []
