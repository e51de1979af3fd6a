"""The report's page: its template filled with tables, plots, videos and settings."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from plotly.colors import diverging
from plotly.offline import get_plotlyjs

import mtrl
from experiments.analysis import tables
from experiments.analysis.comparison import INDIFFERENT, Analysis
from experiments.analysis.figure_parts import method_keys
from experiments.analysis.goals import success_note
from experiments.analysis.looks import DIVERGING
from experiments.analysis.report.charts import BAND, FAINT, Figure, charts, dash
from experiments.analysis.report.colours import on_dark, on_light, themes
from experiments.analysis.report.ranking import Cell, breakable, ranking

EMBEDDED = 8_000_000
"""Most bytes of videos that go into the page; further videos are linked."""


@dataclass(frozen=True)
class Video:
    """A film, and where the page finds it."""

    caption: str
    source: str  # a data URI, or a path relative to the page
    embedded: bool


@dataclass(frozen=True)
class Setting:
    """A setting, and which methods have which value."""

    name: str
    values: Sequence[tuple[str, str]]  # a value, and the methods that have it; "" if all have it


def render(
    analysis: Analysis, folder: Path, *, command: str, skipped: Sequence[str], videos: Mapping[Path, str]
) -> str:
    """The page as HTML.

    Args:
        analysis: the results that the page shows.
        folder: the folder of the page, relative to which videos are linked.
        command: the command line that makes the page.
        skipped: for each folder that was left out, a line that says why.
        videos: captions of mp4 files, by path.
    """
    # The template language escapes every value except `Markup`, which is only made in this module.
    environment = Environment(
        loader=PackageLoader("experiments.analysis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = partial(_source, environment)
    keys = method_keys(analysis)
    sections = _sections(tables.markdown(analysis), {key.name: key.id for key in keys})
    found = charts(analysis)
    figures: dict[str, Figure] = {}
    places: dict[int, str] = {}
    for chart in found:
        for plot in chart.plots:
            places[id(plot)] = f"plot-{len(figures)}"
            figures[places[id(plot)]] = plot.figure
    shown = themes((key.look.colour for key in keys), (BAND, FAINT))
    script, library = _lines_of_html(source("page.js")), _lines_of_html(get_plotlyjs())
    return environment.get_template("page.html").render(
        analysis=analysis,
        methods=keys,
        seeds=sorted({seed for method in analysis.methods for seed in method.seeds}),
        charts=found,
        dash=dash,
        place=lambda plot: places[id(plot)],
        sections=sections,
        ranking=ranking(analysis, keys),
        extent=_html(tables.extent(analysis)),
        verdicts=[_html(verdict) for verdict in tables.verdicts(analysis)],
        gradient=Markup(", ".join(getattr(diverging, DIVERGING))),
        settings=_settings([(m.name, run.settings) for m in analysis.methods for run in m.runs], INDIFFERENT),
        versions=_settings([(m.name, _versions(run.config)) for m in analysis.methods for run in m.runs]),
        tools={"mtrl": mtrl.__version__, "plotly": version("plotly")},
        videos=_videos(videos, folder),
        limit=f"{EMBEDDED / 1e6:.0f} MB",
        skipped=skipped,
        command=command,
        success=success_note(analysis.solved, analysis.methods),
        on_light=on_light,
        on_dark=on_dark,
        packed={"data": _packed(json.dumps({"figures": figures, "themes": shown})), "library": _packed(library)},
        style=Markup(source("page.css")),
        script=Markup(script),
        hashes=[_hash(script), _hash(library)],
    )


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(script: str) -> str:
    """The hash by which the page's content security policy allows a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _lines_of_html(script: str) -> str:
    """The script with the line ends that a browser makes of all others before it hashes what stands in a page."""
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _packed(text: str) -> str:
    """Text in a third of its size, for the page's script to unpack."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


# Tables


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    # Names of methods are plain text: nothing in them may become a link or a picture.
    reader.disable(["link", "image", "autolink", "html_inline", "html_block", "entity", "reference"])
    return reader


def _html(markdown: str) -> Markup:
    """Sentences in Markdown as a paragraph of HTML."""
    return Markup(_reader().render(markdown))


def _sections(markdown: str, keys: Mapping[str, str]) -> dict[str, Markup]:
    """The sections of table.md as HTML, by heading, without what comes before the first one."""
    reader = _reader()
    _, *others = re.split(r"^## ", markdown, flags=re.MULTILINE)
    parts = dict(part.split("\n", 1) for part in others)
    return {
        title: Markup(reader.renderer.render(_accessible(reader.parse(text), keys, title), reader.options, {}))
        for title, text in parts.items()
    }


def _accessible(tokens: Sequence[Token], keys: Mapping[str, str], title: str) -> list[Token]:
    """Make tables scroll sideways, mark the headers of rows and columns, and set intervals in small letters."""
    found: list[Token] = []
    first = False
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            found.append(_raw(f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}: table">'))
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "tr_open":
            first = True
        elif token.type == "td_open" and first:
            first, token.tag = False, "th"
            token.attrSet("scope", "row")
            name = _plain(tokens[place + 1])
            if name in keys:
                token.attrSet("data-key", keys[name])
                tokens[place + 1].children = _breaks(name)
            next(other for other in tokens[place:] if other.type == "td_close").tag = "th"
        elif token.type == "inline" and (cell := Cell.of(_plain(token))).interval:
            small = _raw("<small>"), _text(cell.interval), _raw("</small>")
            token.children = [_text(cell.value + " "), *small, _text(cell.rest)]
        found.append(token)
        if token.type == "table_close":
            found.append(_raw("</div>"))
    return found


def _breaks(name: str) -> list[Token]:
    """A name that a line may break at `_` and `-`, and nowhere else."""
    first, *others = breakable(name)
    return [_text(first), *(token for part in others for token in (_raw("<wbr>"), _text(part)))]


def _plain(inline: Token) -> str:
    """What the reader of a cell sees."""
    return "".join(child.content for child in inline.children or ())


def _raw(html: str) -> Token:
    return Token("html_inline", "", 0, content=html)


def _text(text: str) -> Token:
    return Token("text", "", 0, content=text)


# Settings


def _settings(of_runs: Iterable[tuple[str, Mapping[str, Any]]], left_out: Iterable[str] = ()) -> list[Setting]:
    """The settings of runs, beginning with those that differ.

    Args:
        of_runs: for each run, the name of its method and its settings.
        left_out: names of settings that are not shown.
    """
    runs = list(of_runs)
    totals = Counter(method for method, _ in runs)
    found = []
    for name in dict.fromkeys(key for _, settings in runs for key in settings):
        if name in left_out:
            continue
        who: dict[str, list[str]] = {}  # for each value, the method of each run that has it
        for method, settings in runs:
            if name in settings:
                who.setdefault(_shown(settings[name]), []).append(method)
        everyone = any(len(methods) == len(runs) for methods in who.values())
        values = [(value, "" if everyone else _counted(methods, totals)) for value, methods in who.items()]
        found.append(Setting(name, values))
    return sorted(found, key=lambda setting: setting.values[0][1] == "")


def _counted(methods: Sequence[str], totals: Mapping[str, int]) -> str:
    """Names of methods; if only some runs of a method are meant, with the number of these runs."""
    counts = Counter(methods)
    names = [name if n == totals[name] else f"{name} ({n} of {totals[name]} runs)" for name, n in counts.items()]
    return ", ".join(names)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _versions(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The versions of the packages that a run was made with, and its base environment."""
    versions = config.get("versions")
    return {**(versions if isinstance(versions, dict) else {}), "environment": config.get("base_environment")}


# Videos


def _videos(captions: Mapping[Path, str], folder: Path) -> list[Video]:
    """The films in order. As many as `EMBEDDED` allows are inside the page."""
    found, total = [], 0
    for path, caption in captions.items():
        size = path.stat().st_size
        if embedded := total + size <= EMBEDDED:
            total += size
            source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
        else:
            source = quote(Path(os.path.relpath(path, folder)).as_posix())
        found.append(Video(caption, source, embedded))
    return found
