"""The report of a comparison, opened in a browser."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import analyze_results
from experiments.analysis import tables
from experiments.analysis.comparison import analyse
from experiments.analysis.figures import FIGURES
from experiments.analysis.looks import COLOURS, GREY, OTHER_COLOURS, TASK_COLOURS, looks_of
from experiments.analysis.replicates import as_methods
from experiments.analysis.runs import load_runs

pytest.importorskip("plotly", reason="the extra `report` is not installed")

from experiments.analysis import report
from experiments.analysis.report import page as page_module
from experiments.analysis.report.charts import charts
from experiments.analysis.report.colours import DARK, LIGHT, contrast, on_dark, on_light

REFERENCE_RUNS = Path(__file__).parents[2] / "results" / "reference"
NAMES = ("shared_dqn", "shared_dqn_blind", "rgb", "aim", "aim_blind", "gradnorm")
WICKED = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def copy_run(root, name, seed, called=None):
    """A reference run as if of another seed: its returns are moved by some points."""
    folder = root / ("renamed" if called else name) / f"seed_{seed}"
    place = shutil.copytree(REFERENCE_RUNS / name / "seed_0", folder)
    rng = np.random.default_rng([seed, *name.encode()])
    config = json.loads((place / "config.json").read_text())
    config["settings"]["seed"] = seed
    config["run"] = called or name
    if called:
        config["settings"]["gamma"] = f"</script>{called}"
    (place / "config.json").write_text(json.dumps(config))
    evaluation = json.loads((place / "evaluation.json").read_text())
    for result in evaluation["tasks"].values():
        result["mean"] += 20 * rng.normal()
    (place / "evaluation.json").write_text(json.dumps(evaluation))
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for key in line:
            if re.fullmatch("eval/.*/return", key):
                line[key] += 20 * rng.normal()
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def analysis_of(folder):
    runs, broken = load_runs(folder)
    assert not broken
    return analyse(list(as_methods(runs).values()))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    """Three seeds of some methods and one of a method with a bad name."""
    root = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        for seed in range(3):
            copy_run(root, name, seed)
    copy_run(root, "pcgrad", 0, WICKED)
    return analysis_of(root)


@pytest.fixture(scope="module")
def made(analysis, tmp_path_factory):
    """The report of that comparison."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report.write(analysis, path, command=f"python {WICKED}", skipped=[f"{WICKED}: not finished"])


@pytest.fixture
def visit(visit):
    """Opens a page, and waits until its plots can be drawn."""

    def visit_and_wait(*args, **options):
        view = visit(*args, **options)
        wait_until(view.tab, "window.Plotly")
        return view

    return visit_and_wait


def scroll_through(tab, *ids):
    """Bring the plots of these charts (default: all) into view, and wait until they are drawn."""
    places = ", ".join(f"#{chart}-plots" for chart in ids) or "main"
    for plot in tab.locator(places).locator(".plot").all():
        if plot.evaluate("p => p.checkVisibility()"):  # `:visible` is also what lies in closed sections
            plot.scroll_into_view_if_needed()
    wait_until(
        tab,
        "[...document.querySelectorAll('.plot')].every(p => p.data || !p.checkVisibility() || !p.closest(places))",
        places,
    )


def wait_until(tab, condition, places=""):
    """As `wait_for_function` does, which the page's policy does not let evaluate text."""
    deadline = time.monotonic() + 300
    while not tab.evaluate(f"places => {condition}", places):
        assert time.monotonic() < deadline, condition
        tab.wait_for_timeout(50)


def press(element):
    """A click without a pointer: on a busy machine a tap may be taken for a long press."""
    element.evaluate("element => element.click()")


def shown_traces(tab, chart, method):
    """How many lines, dots and bands of a method are to be seen in a chart."""
    return tab.evaluate(
        """([chart, method]) => [...document.querySelectorAll(`#${chart}-plots .plot`)]
        .filter(p => p.checkVisibility()).flatMap(p => p.data)
        .filter(t => t.visible && t.legendgroup === method).length""",
        [chart, method],
    )


def key_of(analysis, name):
    return f"m{[method.name for method in analysis.methods].index(name)}"


# In a browser


def test_everything_is_there_and_nothing_is_asked_for(visit, made, analysis):
    view = visit(made)
    scroll_through(view.tab)
    assert view.complaints == []
    assert [url for url in view.requests if not url.startswith("data:")] == [made.as_uri()]
    found = charts(analysis)
    names = {chart.id.replace("-", "_") for chart in found}
    assert names == set(FIGURES)
    for chart in found:
        drawn = view.tab.evaluate(
            f"[...document.querySelectorAll('#{chart.id}-plots .plot')].filter(p => p.checkVisibility())"
            ".map(p => [p.data.length, p.querySelectorAll('.main-svg').length > 0])"
        )
        assert drawn == [[len(plot.figure["data"]), True] for plot in chart.plots]
    headings = view.tab.locator("h2").all_inner_texts()
    assert {"Ranking", "Returns", "Against the baseline", "Settings", "Versions"} <= set(headings)
    for link in view.tab.locator("nav a").all():
        assert view.tab.locator(link.get_attribute("href")).count() == 1


def test_the_table_is_that_of_table_md(visit, made, analysis):
    rows = visit(made).tab.locator("#returns tr").all()
    lines = [line for index, line in enumerate(tables.returns_table(analysis).splitlines()) if index != 1]
    shown = [re.sub(r"\\(.)", r"\1", line[2:-2]) for line in lines]  # what Markdown makes of a backslash
    assert [" | ".join(row.locator("th, td").all_inner_texts()) for row in rows] == shown
    assert all(row.locator("th[scope=row]").count() == 1 for row in rows[1:])
    assert all(cell.get_attribute("scope") == "col" for cell in rows[0].locator("th").all())


def test_methods_are_switched_off_by_the_legend_everywhere(visit, made, analysis):
    view = visit(made)
    rgb, shared = key_of(analysis, "rgb"), key_of(analysis, "shared_dqn")
    ids = ("learning-curves", "final-returns", "performance-profiles")
    scroll_through(view.tab, *ids)
    assert [shown_traces(view.tab, chart, rgb) for chart in ids] == [9, 10, 1]  # with lines or dots of single seeds
    panel = view.tab.locator(f"#task-weights-plots [data-of={rgb}]")
    assert panel.is_visible()

    entry = view.tab.locator(f"#legend button[data-key={rgb}]")
    assert entry.get_attribute("aria-pressed") == "true"
    entry.click()
    assert entry.get_attribute("aria-pressed") == "false"
    assert view.tab.locator("#shown").inner_text() == "6 of 7 shown"
    assert not panel.is_visible()
    scroll_through(view.tab, *ids)
    assert [shown_traces(view.tab, chart, rgb) for chart in ids] == [0, 0, 0]
    assert [shown_traces(view.tab, chart, shared) for chart in ids] == [9, 10, 1]

    entry.focus()
    view.tab.keyboard.press("Enter")
    assert panel.is_visible()
    view.tab.get_by_role("button", name="blind", exact=True).click()
    assert view.tab.locator("#shown").inner_text() == "2 of 7 shown"
    view.tab.locator("#task-weights-plots").get_by_role("button", name="Windy").click()
    view.tab.get_by_role("button", name="all", exact=True).click()
    scroll_through(view.tab, "task-weights")
    assert shown_traces(view.tab, "task-weights", "t0") > 0
    assert shown_traces(view.tab, "task-weights", "t1") == 0
    assert view.complaints == []


def test_a_panel_without_anything_to_see_is_hidden(visit, made):
    view = visit(made)
    panels = view.tab.locator("#learning-curves-plots figure")
    view.tab.get_by_role("button", name="blind", exact=True).click()
    shown = [panel.locator("figcaption").inner_text() for panel in panels.all() if panel.is_visible()]
    assert shown == ["Standard, blind", "Windy, blind", "Heavy, blind"]
    nothing = view.tab.locator("#learning-curves-plots .nothing")
    assert not nothing.is_visible()
    view.tab.get_by_role("button", name="none", exact=True).click()
    assert nothing.is_visible()
    assert not any(panel.is_visible() for panel in panels.all())
    view.tab.get_by_role("button", name="all", exact=True).click()
    assert all(panel.is_visible() for panel in panels.all())
    assert not nothing.is_visible()


def test_the_page_opens_with_the_verdicts_and_a_ranking_with_pictures(visit, made, analysis):
    tab = visit(made).tab
    best = tab.locator("#ranking tbody tr").first
    for part in (tab.locator(".verdicts"), best, best.locator(".picture circle")):
        box = part.bounding_box()
        assert box["y"] + box["height"] < 600  # in the first view of any screen
    verdicts = tab.locator(".verdicts").inner_text()
    assert verdicts.count("Against shared_dqn") == 2
    rows = tab.locator("#ranking tbody tr").all()
    assert len(rows) == len(analysis.methods)
    differences = [row.locator(".difference").inner_text().split()[0] for row in rows]
    known = [0.0 if text == "-" else float(text) for text in differences]
    assert known == sorted(known, reverse=True)
    dots = [float(row.locator("circle").get_attribute("cx")) for row in rows]
    assert dots == sorted(dots, reverse=True)
    zero = float(rows[0].locator(".zero").get_attribute("x1"))
    for row, text, dot in zip(rows, differences, dots, strict=True):
        name = row.locator("th").inner_text()
        (result,) = (result for result in analysis.results if result.method.name == name)
        told = row.locator("td").nth(1).inner_text() in ("better", "worse")
        assert row.locator("circle.told").count() == told
        assert row.locator("td").nth(4).inner_text() == "{:.0%} ({} of {})".format(
            result.success.overall.value, *result.method.successes
        )
        if text == "-":
            assert (dot, row.locator("td").nth(1).inner_text()) == (zero, "baseline")
            continue
        assert (dot - zero) * float(text) >= 0
        if result.comparison.difference.interval is not None:
            low, high = (float(row.locator(".interval").get_attribute(end)) for end in ("x1", "x2"))
            assert 0 <= low < dot < high <= 160
            assert told == (result.comparison.p_holm <= 0.05)


def test_a_table_is_sorted_by_any_of_its_columns(visit, made):
    view = visit(made)
    head = view.tab.locator("#ranking thead th").nth(3)
    column = view.tab.locator("#ranking tbody tr > :nth-child(4)")
    for key, order, sign in (("Enter", "descending", -1), ("Space", "ascending", 1)):
        head.locator("button").focus()
        view.tab.keyboard.press(key)
        assert head.get_attribute("aria-sort") == order
        means = [float(text.split()[0]) for text in column.all_inner_texts()]
        assert means == sorted(means, key=lambda mean: sign * mean)
    for _ in range(2):
        view.tab.locator("#ranking thead th").nth(1).locator("button").click()
        differences = view.tab.locator("#ranking tbody tr .difference").all_inner_texts()
        assert differences[-1].strip() == "-"  # of the baselines, last in both directions
    assert head.get_attribute("aria-sort") is None
    first = view.tab.locator("#ranking thead th").first
    first.locator("button").click()
    assert first.get_attribute("aria-sort") == "ascending"  # words begin with A
    names = view.tab.locator("#ranking tbody th").all_inner_texts()
    assert names[1:] == sorted(names[1:])  # the first is the bad name
    assert view.complaints == []


def test_the_band_of_a_method_is_shown_while_the_pointer_or_the_focus_is_on_it(visit, made, analysis):
    view = visit(made)
    scroll_through(view.tab, "performance-profiles")
    rgb = key_of(analysis, "rgb")
    bands = (
        "document.querySelector('#performance-profiles-plots .plot').data"  # aware; the other has two lines, and bands
        ".filter(t => t.fill && t.visible).map(t => t.legendgroup).join()"
    )
    assert view.tab.evaluate(bands) == ""
    plot = view.tab.locator("#performance-profiles-plots .plot").first
    x, y = plot.evaluate(
        """(p, key) => {
            const { x, y } = p.data.find(t => t.legendgroup === key && !t.fill);
            const { xaxis, yaxis, _size } = p._fullLayout;
            const last = y.findLastIndex(share => share > 0.05);  // there no other line is near
            const box = p.getBoundingClientRect();
            return [box.x + _size.l + xaxis.d2p(x[last]), box.y + _size.t + yaxis.d2p(y[last])];
        }""",
        rgb,
    )
    view.tab.mouse.move(x - 5, y)
    view.tab.mouse.move(x, y)
    wait_until(view.tab, f"{bands} === '{rgb}'")
    view.tab.mouse.move(5, 5)
    wait_until(view.tab, f"{bands} === ''")
    view.tab.locator(f"#legend button[data-key={rgb}]").focus()
    wait_until(view.tab, f"{bands} === '{rgb}'")
    view.tab.keyboard.press("Tab")
    wait_until(view.tab, f"{bands} !== '{rgb}'")
    assert view.complaints == []


def test_axes_of_steps_have_a_tick_at_the_last_step(visit, made):
    view = visit(made)
    charts_of_steps = ("learning-curves", "sample-efficiency", "task-weights")
    scroll_through(view.tab, *charts_of_steps)
    for chart in charts_of_steps:
        for plot in view.tab.locator(f"#{chart}-plots .plot").all():
            assert "600k" in plot.locator(".xtick text").all_text_contents()


def test_on_a_phone_all_but_the_answer_is_folded(visit, made):
    tab = visit(made, 390, 844, is_mobile=True, has_touch=True).tab
    folds = tab.locator("details.fold")
    assert not any(fold.get_attribute("open") is not None for fold in folds.all())
    assert tab.evaluate("document.documentElement.scrollHeight") < 4000
    assert tab.locator("#ranking .picture circle").first.is_visible()
    assert tab.locator("#legend .keys").is_visible()
    assert folds.first.locator("h2").text_content() == "Final returns"
    press(folds.first.locator("summary"))
    assert folds.first.get_attribute("open") is not None
    scroll_through(tab, "final-returns")
    tab.locator("#final-returns-plots .main-svg").first.wait_for(state="visible")
    tab.evaluate("location.hash = 'learning-curves-plots'")  # as a link does
    wait_until(tab, "document.querySelector('#learning-curves-plots .fold').open")
    legend, title = (tab.locator(at).bounding_box() for at in ("#legend", "#learning-curves-plots h2"))
    assert title["y"] >= legend["y"] + legend["height"]  # which stays at the top


def test_on_a_wide_screen_all_is_open(visit, made):
    # A test of its own: of two pages that are open at once, one is behind the other, where nothing needs to be drawn.
    folds = visit(made).tab.locator("details.fold").all()
    assert folds
    assert all(fold.get_attribute("open") is not None for fold in folds)


def test_a_phone_breaks_names_between_words_only(visit, made):
    tab = visit(made, 390, 844, is_mobile=True, has_touch=True).tab
    for fold in tab.locator("#numbers details").all():
        fold.evaluate("fold => fold.open = true")
    lines = tab.evaluate(
        """() => [...document.querySelectorAll('th[data-key]')].flatMap(head => [...head.childNodes])
        .filter(node => node.nodeType === Node.TEXT_NODE && node.data.trim() && !node.data.includes(' '))
        .map(node => {
            const range = document.createRange();
            range.selectNodeContents(node);
            return [node.data, range.getClientRects().length];
        })"""
    )
    assert len(lines) > 20
    assert [name for name, count in lines if count != 1] == []


def test_a_point_says_what_it_is(visit, made):
    view = visit(made)
    plot = view.tab.locator("#final-returns-plots .plot").first
    plot.scroll_into_view_if_needed()
    plot.locator(".points path").last.hover(force=True)
    label = plot.locator(".hoverlayer .hovertext")
    label.wait_for()
    assert re.search(r"return -?\d+\.\d", label.text_content())


def test_a_phone_scrolls_in_one_direction(visit, made):
    view = visit(made, 390, 844, is_mobile=True, has_touch=True)
    scroll_through(view.tab)
    assert view.tab.evaluate("document.documentElement.scrollWidth") == 390
    assert view.tab.evaluate("Math.max(...[...document.querySelectorAll('.plot')].map(p => p.offsetWidth))") <= 390
    table = view.tab.locator("#ranking .scroll")
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")  # on its own
    press(view.tab.locator("#legend summary"))
    assert not view.tab.locator("#legend .keys").is_visible()
    assert view.complaints == []


def test_names_are_text_and_no_script_but_its_own_runs(visit, made):
    view = visit(made)
    scroll_through(view.tab)
    assert view.complaints == []
    for place in ("#returns", "#legend", "#skipped", "footer", "#settings", "#final-returns-plots"):
        assert view.tab.locator(place).filter(has_text="<script>").count() == 1, place
    assert view.tab.locator("main img").count() == 0

    # Were a name not escaped, its script would not run, nor be heard elsewhere.
    view.tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    view.tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 2\">')")
    heard = view.tab.evaluate("fetch('https://example.org').then(() => 'heard', () => 'not heard')")
    assert (view.tab.evaluate("window.ran"), heard) == (None, "not heard")


def test_the_dark_theme_has_lines_that_are_seen_and_paper_is_white(visit, made, analysis):
    view = visit(made, color_scheme="dark")
    scroll_through(view.tab, "learning-curves")
    black = key_of(analysis, "shared_dqn")
    colour = (
        f"document.querySelector('#learning-curves-plots .plot').data"
        f".findLast(t => t.line && t.legendgroup === '{black}').line.color"
    )
    assert view.tab.evaluate(colour) == "#ffffff"
    view.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert view.tab.evaluate(colour) == "#000000"
    assert view.tab.evaluate("document.querySelector('#learning-curves-plots .panels').offsetWidth") == 700
    view.tab.evaluate("dispatchEvent(new Event('afterprint'))")
    wait_until(view.tab, f"{colour} === '#ffffff'")
    assert view.complaints == []


# Without one


def test_lines_have_the_colours_of_the_figures(analysis):
    (curves,) = (chart for chart in charts(analysis) if chart.id == "learning-curves")
    lines = {
        trace["legendgroup"]: trace["line"] for plot in curves.plots for trace in plot.figure["data"] if "line" in trace
    }
    assert len(lines) == len(analysis.methods)
    looks = looks_of(method.family for method in analysis.methods)
    for index, method in enumerate(analysis.methods):
        assert lines[f"m{index}"]["color"] == looks[method.family].colour
        assert lines[f"m{index}"]["dash"] == ("dash" if method.blind else "solid")


def test_every_chart_says_how_many_seeds(analysis, tmp_path):
    assert all("some methods one seed" in chart.note or "3 seeds" in chart.note for chart in charts(analysis))
    copy_run(tmp_path, "rgb", 4)
    alone = charts(analysis_of(tmp_path))
    assert "aim-thresholds" not in [chart.id for chart in alone]
    assert all(
        "one seed" in chart.note.lower() and "seeds" not in chart.note.replace("Share of seeds", "") for chart in alone
    )


def test_lines_are_seen_in_both_themes_and_stay_different():
    colours = {*COLOURS.values(), *OTHER_COLOURS, *TASK_COLOURS, GREY}
    for shown, ground in ((on_light, LIGHT), (on_dark, DARK)):
        found = {shown(colour) for colour in colours}
        assert len(found) == len(colours)
        assert min(contrast(colour, ground) for colour in found) >= 3
    assert all(on_light(colour) == colour for colour in colours if contrast(colour, LIGHT) >= 3)
    # Two pinks of one hue differ in their lightness on both grounds, the darker one on paper being the lighter on a
    # dark ground.
    wine, rose = on_dark("#882255"), on_dark("#CC6677")
    assert contrast(wine, rose) > 1.5
    assert contrast(wine, DARK) > contrast(rose, DARK)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_text_is_read_in_both_themes():
    style = Path(report.__file__).with_name("page.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{([^}]*)\}", style)]
    assert [theme["ground"] for theme in themes] == [LIGHT, DARK]
    for theme in themes:
        for text in ("text", "muted", "link"):
            for ground in ("ground", "raised"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        assert contrast(theme["text"], theme["line"]) >= 4.5  # of a button under the pointer


def test_videos_are_inside_the_page_while_they_are_small(analysis, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "EMBEDDED", 2500)
    films = tmp_path / "my films"
    films.mkdir()
    for name, size in (("a", 2000), ("b", 1000), ("c#1", 300)):
        (films / f"{name}.mp4").write_bytes(bytes(size))
    (films / "secret.mp4").symlink_to(__file__)
    path = report.write(analysis, tmp_path / "out" / "report.html", command="", video_dir=films)
    text = path.read_text()
    assert text.count('src="data:video/mp4;base64,AAAA') == 2
    assert re.findall(r'<li><a href="([^"]*)">', text) == ["../my%20films/b.mp4"]
    assert "<figcaption>c#1</figcaption>" in text
    assert "secret" not in text


def test_the_same_comparison_is_the_same_page(analysis, made, tmp_path):
    again = report.write(
        analysis, tmp_path / "report.html", command=f"python {WICKED}", skipped=[f"{WICKED}: not finished"]
    )
    assert again.read_bytes() == made.read_bytes()
    assert len(made.read_bytes()) < 3_000_000


def test_the_command_writes_the_page_beside_the_figures(tmp_path, capsys):
    copy_run(tmp_path / "runs", "rgb", 0)
    (tmp_path / "runs/rgb/seed_1").mkdir()
    (tmp_path / "runs/rgb/seed_0/landing.mp4").write_bytes(b"film")
    words = ["--results-dir", str(tmp_path / "runs"), "--output-dir", str(tmp_path / "my out"), "--html"]
    assert analyze_results.main(words) == 0
    assert "report.html" in capsys.readouterr().out.splitlines()[-1]
    text = (tmp_path / "my out" / "report.html").read_text()
    for part in ("my out&#39; --html", "config.json is missing", "rgb, seed 0: landing", "stable-baselines3"):
        assert part in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--html", "--video-dir", "nowhere"], "'nowhere' is not a folder"),
        (["--video-dir", "."], "--video-dir is for the report"),
        (["--html", "--output-dir", "taken"], "'taken/report.html' is a folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_trace(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        analyze_results.main(["--results-dir", str(REFERENCE_RUNS), *words])
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out, len(printed.err.splitlines())) == (2, "", 1)
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("package", ["plotly", "jinja2", "markdown_it"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        analyze_results.main(["--results-dir", str(REFERENCE_RUNS), "--output-dir", str(output), "--html"])
    printed = capsys.readouterr()
    assert (stop.value.code, len(printed.err.splitlines())) == (2, 1)
    assert f"--html needs the package {package}: pip install 'mtrl-balance[report]'" in printed.err
    assert not output.exists()
