"""Results as text: Markdown with explanations, and CSV for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence

from experiments.analysis.comparison import Analysis, Result, told_apart
from experiments.analysis.goals import goal_name, goals_of, success_note
from experiments.analysis.intervals import Estimate, Summary
from experiments.analysis.markdown import cell, count, number, plain, table

CSV_COLUMNS = (
    *("method", "variant", "quantity", "task", "statistic", "unit"),
    *("seeds", "value", "low", "high", "interval", "baseline"),
)

MOST_NAMED = 6  # methods that a verdict names as not told apart; of more, it gives the number


def returns_table(analysis: Analysis) -> str:
    """A row per method: mean return on each task, over tasks and on the worst task, and the share of successes."""
    header = ["method", "seeds", *map(plain, analysis.tasks), "mean", "worst task", "success"]
    rows = []
    for result in analysis.results:
        rows.append([*_who(result), *_summary_cells(result, result.mean, analysis.tasks), _success(result)])
    return table(header, rows)


def _success(result: Result) -> str:
    """The share of successful episodes, with the counts if they are known; a dash if nothing says what success is."""
    if result.success is None:
        return "-"
    share, counts = f"{result.success.overall.value:.0%}", result.method.successes
    return share if counts is None else f"{share} ({counts[0]:,} of {counts[1]:,})"


def verdicts(analysis: Analysis) -> list[str]:
    """What can be concluded from the comparison and what cannot, in one or two sentences per baseline."""
    sentences = []
    if analysis.all_one_seed:
        sentences.append(
            "One seed of every method: there are no intervals and no tests, and no two methods can be told apart."
        )
    elif analysis.one_seed:
        who = ", ".join(map(plain, analysis.one_seed))
        sentences.append(
            f"One seed only of {who}: without intervals and tests, nothing can be said about which method is better."
        )
    for baseline in dict.fromkeys(result.baseline for result in analysis.results if result.baseline):
        sentences += _verdict(analysis, baseline)
    return sentences


def _verdict(analysis: Analysis, baseline: str) -> list[str]:
    tested = [r for r in analysis.results if r.baseline == baseline and r.comparison and r.comparison.p is not None]
    if not tested:
        return []
    found: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for result in tested:
        assert result.comparison is not None
        better = result.comparison.difference.value > 0
        kind = "not told apart" if not told_apart(result) else "better" if better else "worse"
        found[kind].append(plain(result.method.name))
    named = {kind: ", ".join(names) or "none" for kind, names in found.items()}
    if (rest := len(found["not told apart"])) > MOST_NAMED:
        named["not told apart"] = f"the other {rest}" if rest < len(tested) else f"all {rest} others"
    text = "; ".join(f"{kind}: {names}" for kind, names in named.items())
    smallest = [result.detectable for result in tested if result.detectable is not None]
    low, high = round(min(smallest)), round(max(smallest))
    points = f"{low} points" if low == high else f"{low} to {high} points, depending on the method,"
    return [
        f"Against {plain(baseline)}, mean over tasks: {text}. With these seeds a true difference has to be {points} "
        "to be found with probability 0.8; smaller differences may exist all the same."
    ]


def markdown(analysis: Analysis) -> str:
    """The contents of table.md."""
    parts = ["# Comparison of methods", extent(analysis), *verdicts(analysis)]
    parts += [f"**Careful:** {plain(warning)}" for warning in analysis.warnings]
    parts += ["## Ranking", RANKING, ranking_table(analysis)]
    note = RETURNS.format(success=success_note(analysis.solved, analysis.methods))
    parts += ["## Returns", note, returns_table(analysis)]
    parts += ["## Interquartile means", IQM, _summary_table(analysis, lambda result: result.iqm, "all tasks")]
    if any(result.baseline for result in analysis.results):
        tests = count(analysis.comparisons, "comparison")
        if not analysis.comparisons:
            tests = "none here, as a test takes two seeds"
        parts += ["## Against the baseline", COMPARISON.format(tests=tests), comparison_table(analysis)]
    if analysis.scale is not None and any(result.normalised_mean for result in analysis.results):
        ends = ", ".join(
            f"{task} {analysis.scale.random[task]:.1f} and {analysis.scale.reference[task]:.1f}"
            for task in analysis.scale.random
        )
        seeds = analysis.scale.reference_seeds
        which = "one seed" if seeds == 1 else f"{seeds} seeds"
        reference = (
            "is the return that counts as solved in the task" if seeds is None else REFERENCE.format(seeds=which)
        )
        note = NORMALISED.format(ends=ends, reference=reference)
        numbers = _summary_table(analysis, lambda result: result.normalised_mean, form="{:.2f}")
        parts += ["## Normalised returns", note, numbers]
    if any(result.steps_to for result in analysis.results):
        note = SOLUTION if "solved" in goals_of(analysis.solved) else EFFICIENCY
        parts += ["## Sample efficiency", note, _efficiency_table(analysis)]
    parts += ["## Size and speed", SIZE, _size_table(analysis)]
    return "\n\n".join(parts) + "\n"


def extent(analysis: Analysis) -> str:
    """How many methods, runs and environment steps the comparison rests on."""
    runs = [run for method in analysis.methods for run in method.runs]
    steps = {run.settings.get("total_steps") for run in runs}
    (budget,) = steps if len(steps) == 1 else (None,)
    of = f" of {budget:,} environment steps" if isinstance(budget, int) else ""
    return (
        f"{count(len(analysis.results), 'method')}, {count(len(runs), 'run')}{of}. "
        "Made by `python -m experiments.analyze_results`; table.csv has every number."
    )


RANKING = """\
Methods by their difference to the baseline of their variant: the mean return over tasks, paired by seed, with its 95 %
interval. Only a verdict of better or worse says that the order is more than chance. The other columns are explained
below."""

RETURNS = """\
Mean return per task, averaged over seeds, with its interval in brackets. The return of a seed is the mean over its
greedy episodes after the last step of training, not at its best evaluation. Of 100 intervals made in this way, 95
contain the mean over all possible seeds. One seed has no interval. *mean* is the mean over tasks; *worst task* is the
lowest task of each seed, averaged over seeds; *success* is the share of episodes {success}, and how
many these are."""

IQM = """\
The same returns, without the lowest and the highest quarter of the values: one failed seed of ten does not move this
mean."""

COMPARISON = """\
*P(better)* is the probability that a run of the method beats a run of the baseline, averaged over tasks; 0.5 is a draw.
*difference* is the mean over tasks minus that of the baseline, taken for each common seed and then averaged. *p* comes
from a paired t-test. *p (Holm)* is the one to decide by; it is corrected for {tests}. *detectable* is the true
difference in points that such a test would find with probability 0.8 with this number of seeds."""

NORMALISED = """\
0 is a policy that acts at random; 1 {reference}.
These two returns are {ends}. Both are taken as known, so the intervals cover the method alone. Mean
over seeds, with 95 % intervals."""

REFERENCE = "are the independent agents, which have a network for each task ({seeds})"

EFFICIENCY = """\
Environment steps over all tasks after which the greedy return, averaged over tasks, first reached the number: the
median over seeds with its 95 % interval (from 6 seeds on), and how many of the seeds reached it. It is measured at
those evaluations for the learning curves that all methods have in common, so it is no finer than their spacing."""

SOLUTION = """\
Environment steps over all tasks after which the greedy returns of all tasks at once first reached what counts as solved
in them: the median over seeds with its 95 % interval (from 6 seeds on), and how many of the seeds reached it. It is
measured at those evaluations for the learning curves that all methods have in common, so it is no finer than their
spacing."""

SIZE = """\
*parameters* are those of the network that was trained. Times are means over seeds and depend
on the machine; *ms per update* includes environment steps and evaluations."""


def _summary_table(
    analysis: Analysis, of: Callable[[Result], Summary | None], overall: str = "mean", form: str = "{:.1f}"
) -> str:
    """A row per method: a cell for each task, for all tasks together and for the worst task; dashes if unknown."""
    rows = [[*_who(result), *_summary_cells(result, of(result), analysis.tasks, form)] for result in analysis.results]
    return table(["method", "seeds", *map(plain, analysis.tasks), overall, "worst task"], rows)


RANKING_COLUMNS = ("method", "seeds", "difference", "verdict", "mean", "worst task", "success")


def ranking(analysis: Analysis) -> list[tuple[Result, list[str]]]:
    """Every result with its row of the ranking, the largest difference to the baseline first.

    Those without a baseline come last. Names in the rows are escaped for Markdown.
    """
    baselines = {result.baseline for result in analysis.results}

    def place(result: Result) -> tuple[bool, float, float]:
        known = result.comparison is not None or result.method.name in baselines
        difference = result.comparison.difference.value if result.comparison else 0.0
        return not known, -difference, -result.mean.overall.value

    rows = []
    for result in sorted(analysis.results, key=place):
        comparison = result.comparison
        difference = "-" if comparison is None else cell(comparison.difference, "{:+.1f}")
        numbers = [cell(estimate, "{:.1f}") for estimate in (result.mean.overall, result.mean.worst)]
        told = "baseline" if result.method.name in baselines else _told(result)
        rows.append((result, [*_who(result), difference, told, *numbers, _success(result)]))
    return rows


def ranking_table(analysis: Analysis) -> str:
    """A row per method, the largest difference to the baseline first."""
    return table(RANKING_COLUMNS, [row for _, row in ranking(analysis)])


def _told(result: Result) -> str:
    """What the comparison with the baseline says."""
    comparison = result.comparison
    if comparison is None:
        return "cannot tell"
    if comparison.p is None:
        return "one seed: cannot tell"
    if not told_apart(result):
        return "not told apart"
    return "better" if comparison.difference.value > 0 else "worse"


def comparison_table(analysis: Analysis) -> str:
    """A row per method that has a baseline: the paired difference, its test, and what the verdict is."""
    header = ["method", "baseline", "common seeds", "P(better)", "difference", "p", "p (Holm)", "detectable", "verdict"]
    rows = []
    for result in analysis.results:
        if result.baseline is None:
            continue
        names = (plain(result.method.name), plain(result.baseline))
        improvement = cell(result.improvement, "{:.2f}")
        comparison = result.comparison
        if comparison is None:
            rows.append([*names, "none", improvement, "-", "-", "-", "-", _told(result)])
            continue
        numbers = [
            number(p, "{:.3f}" if p is None or p >= 0.001 else "< 0.001") for p in (comparison.p, comparison.p_holm)
        ]
        rows.append(
            [
                *(*names, _seeds(comparison.seeds), improvement),
                *(cell(comparison.difference, "{:+.1f}"), *numbers, number(result.detectable, "{:.0f}"), _told(result)),
            ]
        )
    return table(header, rows)


def _efficiency_table(analysis: Analysis) -> str:
    rows, goals = [], goals_of(analysis.solved)
    for result in analysis.results:
        cells = []
        for goal in goals:
            reached = result.steps_to.get(goal)
            if reached is None:
                cells.append("-")
            else:
                thousands = _divided(reached.median, 1000)
                cells.append(f"{cell(thousands, '{:,.0f}k')} ({reached.reached} of {reached.seeds})")
        rows.append([*_who(result), *cells])
    return table(["method", "seeds", *(f"to {goal_name(goal)}" for goal in goals)], rows)


def _size_table(analysis: Analysis) -> str:
    rows = []
    for result in analysis.results:
        method = result.method
        times = (method.ms_per_update(), method.steps_per_s(), method.minutes())
        numbers = [number(value, form) for value, form in zip(times, ("{:.2f}", "{:,.0f}", "{:.1f}"), strict=True)]
        rows.append([*_who(result), number(result.parameters, "{:,}"), *numbers])
    return table(["method", "seeds", "parameters", "ms per update", "steps/s", "minutes"], rows)


def _who(result: Result) -> tuple[str, str]:
    return plain(result.method.name), _seeds(result.method.seeds)


def _summary_cells(result: Result, summary: Summary | None, tasks: Sequence[str], form: str = "{:.1f}") -> list[str]:
    """A cell for each of `tasks`, then for all tasks together and for the worst task; dashes for unknown values."""
    if summary is None:
        return ["-"] * (len(tasks) + 2)
    by_task = dict(zip(result.method.tasks, summary.tasks, strict=True))
    return [cell(estimate, form) for estimate in (*map(by_task.get, tasks), summary.overall, summary.worst)]


def _divided(estimate: Estimate, unit: float) -> Estimate:
    interval = estimate.interval and (estimate.interval[0] / unit, estimate.interval[1] / unit)
    return Estimate(estimate.value / unit, interval, estimate.kind)


def _seeds(seeds: Sequence[int]) -> str:
    """Seeds as `0, 1`, or as `0-9` if there are three or more without a gap."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def to_csv(analysis: Analysis) -> str:
    """The contents of table.csv: a number per line, with its interval.

    Columns:
        method, variant: the name of the run, and `aware` or `blind`.
        quantity: `return`, `normalised return`, `success rate`, `steps to 50` (...), `probability of improvement`,
            `difference`, `p`, `p holm`, `detectable difference`, `parameters`, `ms per update`, `steps per s`,
            `minutes`.
        task: the name of a task, `all`, or `worst` for the lowest task of each seed.
        statistic: `mean`, `iqm` or `median` over seeds; empty for other numbers.
        unit: the unit of value, low and high; empty for a number without a unit.
        seeds: the number of seeds that the value rests on.
        value: the number; `inf` for steps to a return that was never reached.
        low, high, interval: the 95 % interval and how it was made (see `intervals.py`); empty without an interval.
        baseline: the method that was compared with.

    A name that a spreadsheet would take for a formula has a `'` before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in analysis.results:
        variant = "blind" if result.method.blind else "aware"
        for row in _csv_rows(result):
            writer.writerow(map(_inert, (result.method.name, variant, *row)))
    return text.getvalue()


Row = tuple[str | int | float, ...]


def _inert(value: str | float) -> str | float:
    """A cell of a CSV file that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _csv_rows(result: Result) -> Iterator[Row]:
    seeds = len(result.method.runs)

    def row(quantity: str, task: str, statistic: str, unit: str, estimate: Estimate, of: int = seeds) -> Row:
        low, high = estimate.interval or ("", "")
        return (quantity, task, statistic, unit, of, estimate.value, low, high, estimate.kind or "", "")

    for quantity, statistic, unit, summary in (
        ("return", "mean", "points", result.mean),
        ("return", "iqm", "points", result.iqm),
        ("normalised return", "mean", "", result.normalised_mean),
        ("normalised return", "iqm", "", result.normalised_iqm),
        ("success rate", "mean", "", result.success),
    ):
        if summary is not None:
            names = (*(result.method.rated if summary is result.success else result.method.tasks), "all", "worst")
            for task, estimate in zip(names, (*summary.tasks, summary.overall, summary.worst), strict=True):
                yield row(quantity, task, statistic, unit, estimate)
    for goal, reached in result.steps_to.items():
        yield row(f"steps to {goal_name(goal)}", "all", "median", "environment steps", reached.median, reached.seeds)

    if result.improvement is not None:
        yield (*row("probability of improvement", "all", "", "", result.improvement)[:-1], result.baseline or "")
    if (comparison := result.comparison) is not None:
        common = len(comparison.seeds)
        found = row("difference", "all", "mean", "points", comparison.difference, common)
        yield (*found[:-1], result.baseline or "")
        for quantity, value, unit in (
            ("p", comparison.p, ""),
            ("p holm", comparison.p_holm, ""),
            ("detectable difference", result.detectable, "points"),
        ):
            if value is not None:
                yield (quantity, "all", "", unit, common, value, "", "", "", result.baseline or "")

    method = result.method
    for quantity, value, statistic, unit in (
        ("parameters", result.parameters, "", ""),
        ("ms per update", method.ms_per_update(), "mean", "ms"),
        ("steps per s", method.steps_per_s(), "mean", "1/s"),
        ("minutes", method.minutes(), "mean", "min"),
    ):
        if value is not None:
            yield (quantity, "all", statistic, unit, seeds, value, "", "", "", "")
