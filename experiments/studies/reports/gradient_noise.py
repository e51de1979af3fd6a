"""Noise and conflict of task gradients during a training, and how much of each balancer's update goes downhill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents import MultiTaskDQN
from experiments.analysis.looks import COLOURS
from experiments.analysis.plots.style import RC
from experiments.program.figures import save
from experiments.program.flags import UsageError, parse_seeds
from experiments.program.outputs import write_json
from experiments.program.terminal import progress
from experiments.program.versions import versions
from experiments.shared_dqn.config import SharedDQNConfig
from experiments.studies.command import refuse_existing, writing
from experiments.studies.gradient_noise import GradientNoiseConfig
from experiments.training.make_agent import make_agent
from mtrl import DirectionMemory, make_balancer
from mtrl.files import replacing
from mtrl.gradients import TaskGradients
from mtrl.rl.update import SharedUpdate

MEMORY = "+memory"
FIGURE = "gradient_noise.png"


@dataclass(frozen=True)
class Measured:
    """What was found at one moment of a training; cosines are means over tasks or pairs of tasks.

    Attributes:
        step: environment steps so far.
        within: the cosine between the gradients of one task on two batches. 1 means no noise.
        seen: the cosine between the gradients of two tasks, each on one batch.
        conflict: the cosine between the gradients of two tasks without noise; below 0 they conflict.
        downhill: for each balancer, the mean cosine between its update and the true gradient of the summed losses.
    """

    step: int
    within: float
    seen: float
    conflict: float
    downhill: Mapping[str, float]


def cosines(rows: Tensor) -> tuple[float, float, float]:
    """The cosines `within`, `seen` and `conflict` of `Measured` from the gradients (B, T, D) of B batches.

    The squared norm of a mean gradient is estimated without bias from products of different batches. Batches of
    different tasks are independent in any case.
    """
    batches, tasks = rows.shape[:2]
    unit = torch.nn.functional.normalize(rows, dim=2)
    total, units = rows.sum(0), unit.sum(0)  # (T, D)
    pairs = batches * (batches - 1)
    within = (units.square().sum(1) - batches) / pairs
    others = [(i, j) for i in range(tasks) for j in range(i)]
    seen = [(units[i] @ units[j] / batches**2).item() for i, j in others]
    squares = (total.square().sum(1) - rows.square().sum((0, 2))) / pairs  # |mean gradient|^2
    lengths = squares.clamp(min=torch.finfo(rows.dtype).tiny).sqrt()
    conflict = [(total[i] @ total[j] / batches**2 / (lengths[i] * lengths[j])).item() for i, j in others]
    bounded = [max(-1.0, min(1.0, cosine)) for cosine in conflict]
    return within.mean().item(), fmean(seen) if seen else math.nan, fmean(bounded) if bounded else math.nan


def downhill(updates: Tensor, rows: Tensor) -> float:
    """The mean cosine between updates (N, D) and the gradient that the summed gradients (B, D) of batches estimate.

    The mean of B batches is noisy itself, which makes every cosine smaller by a factor; the factor is estimated and
    divided out.
    """
    batches, mean = len(rows), rows.mean(0)
    square = mean.square().sum()
    noise = (rows.square().sum(1).mean() - square) / (batches - 1)  # of the mean: |mean|^2 is too large by this
    reliability = (1 - noise / square).clamp(min=0.01).sqrt()
    plain = torch.nn.functional.normalize(updates, dim=1) @ torch.nn.functional.normalize(mean, dim=0)
    return max(-1.0, min(1.0, (plain.mean() / reliability).item()))


class Probe:
    """Draws batches from the replay of an agent and measures; the training goes on as if nothing had been drawn.

    Args:
        agent: an agent with a shared network.
        config: how much is drawn.
    """

    def __init__(self, agent: MultiTaskDQN, config: GradientNoiseConfig) -> None:
        assert isinstance(agent.update, SharedUpdate)
        self._agent, self._update, self._config = agent, agent.update, config

    def measure(self) -> Measured:
        """Measure with the weights as they are."""
        config = self._config
        with self._aside():
            half = config.batches // 2
            rows = torch.stack([self._gradients().jacobian.clone() for _ in range(config.batches)])
            within, seen, conflict = cosines(rows)
            truth = rows[half:].sum(1)
            found = {name: downhill(self._updates(name, half), truth) for name in config.balancers}
        return Measured(self._agent.num_timesteps, within, seen, conflict, found)

    def _updates(self, name: str, number: int) -> Tensor:
        """The updates (N, D) of a new balancer, after it has seen the warm-up."""
        balancer = make_balancer(name.removesuffix(MEMORY), self._update.num_tasks)
        memory = DirectionMemory() if name.endswith(MEMORY) else None
        if balancer.wants_guidance:
            balancer.set_guidance(None)
        kept = []
        for index in range(self._config.warm_up + number):
            gradients = self._gradients()
            with torch.no_grad():
                update = balancer(gradients).update(gradients)
                update = update if memory is None else memory.turn_(update)
            if index >= self._config.warm_up:
                kept.append(update.clone())
        return torch.stack(kept)

    def _gradients(self) -> TaskGradients:
        return self._update.task_gradients(self._agent.replay_buffer.sample(self._agent.batch_size))

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Leave the generator of the replay as it was."""
        generator = self._agent.replay_buffer.generator
        before = generator.get_state()
        try:
            yield
        finally:
            generator.set_state(before)


class Measuring(BaseCallback):
    """Measures at evenly spaced moments of a training.

    Attributes:
        found: what was measured.
    """

    def __init__(self, config: GradientNoiseConfig, note: Callable[[int], None]) -> None:
        super().__init__()
        self._config = config
        self._note = note
        self.found: list[Measured] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        due = (len(self.found) + 1) * self._config.total_steps / self._config.measurements
        self._note(self.num_timesteps)
        if self.num_timesteps >= due and len(self.found) < self._config.measurements:
            assert isinstance(self.model, MultiTaskDQN)
            self.found.append(Probe(self.model, self._config).measure())


def study(config: GradientNoiseConfig) -> None:
    """Train, measure, and write the report, the numbers and the figure.

    Raises:
        UsageError: a balancer is unknown, or the output folder holds a study. Nothing has been trained then.
    """
    refuse_existing(config.output_dir, config.overwrite)
    for name in config.balancers:
        try:
            make_balancer(name.removesuffix(MEMORY), 3)
        except ValueError as error:
            raise UsageError(str(error)) from None
    found: dict[int, list[Measured]] = {}
    with progress(config.quiet) as bar:
        for seed in parse_seeds(config.seeds):
            row = bar.add_task(f"seed {seed}", total=config.total_steps)
            settings = SharedDQNConfig(variant=config.variant, seed=seed, total_steps=config.total_steps)
            with make_agent(settings) as (agent, _):
                measuring = Measuring(config, lambda step, row=row: bar.update(row, completed=step))  # type: ignore[misc]
                agent.learn(config.total_steps, measuring)
            found[seed] = measuring.found
    text = report(config, found)
    with writing(config.output_dir, config.overwrite):
        write(config, found, text, config.output_dir)
    if not config.quiet:
        print(f"\n{text}")
    print(f"results in {config.output_dir}")


def write(config: GradientNoiseConfig, found: Mapping[int, Sequence[Measured]], text: str, folder: Path) -> None:
    """Write report.md, results.json and the figure."""
    with mpl.rc_context(RC):
        save(draw(config, found), folder / FIGURE)
    numbers = {str(seed): [asdict(each) for each in of_seed] for seed, of_seed in found.items()}
    plain = json.loads(json.dumps(config.settings, default=str))
    write_json(
        folder / "results.json",
        {"settings": plain, "versions": versions("mtrl", "torch", "numpy"), "measured": numbers},
    )
    with replacing(folder / "report.md") as file:
        file.write(text.encode())


def report(config: GradientNoiseConfig, found: Mapping[int, Sequence[Measured]]) -> str:
    """The report in Markdown: what was measured, by moment and by balancer, as means over seeds."""
    moments = list(zip(*found.values(), strict=True))
    lines = [
        "# Gradient noise against gradient conflict",
        "",
        f"Equal weights train ({config.variant}, seeds {', '.join(map(str, found))}, {config.total_steps:,} steps). "
        f"At each of {config.measurements} moments {config.batches} batches are drawn with the weights as they are.",
        "",
        "| environment steps | one task, two batches | two tasks, as seen | two tasks, without noise |",
        "| --- | --- | --- | --- |",
    ]
    for moment in moments:
        cells = (fmean(getattr(each, name) for each in moment) for name in ("within", "seen", "conflict"))
        lines.append(f"| {moment[0].step:,} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    lines += [
        "",
        "Cosines, means over tasks and seeds. The first column of cosines is 1 where there is no noise; the last one "
        "is below 0 where tasks conflict.",
        "",
        "| balancer | cosine between its update and the true gradient | by seed |",
        "| --- | --- | --- |",
    ]
    by_seed = downhill_by_seed(found)
    for name, values in sorted(by_seed.items(), key=lambda pair: -fmean(pair[1])):
        lines.append(f"| {name} | {fmean(values):.3f} | {', '.join(f'{value:.3f}' for value in values)} |")
    return "\n".join([*lines, "", f"Means over all moments. ![figure]({FIGURE})", ""])


def downhill_by_seed(found: Mapping[int, Sequence[Measured]]) -> dict[str, list[float]]:
    """For each balancer and seed, the mean over all moments."""
    names = next(iter(found.values()))[0].downhill
    return {name: [fmean(each.downhill[name] for each in of_seed) for of_seed in found.values()] for name in names}


def draw(config: GradientNoiseConfig, found: Mapping[int, Sequence[Measured]]) -> Figure:
    """Cosines during the training, and how much of each balancer's update goes downhill."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [each.step / 1000 for each in next(iter(found.values()))]
    kinds = {"within": ("one task, two batches", "#332288"), "conflict": ("two tasks, without noise", "#CC6677")}
    for name, (label, colour) in {**kinds, "seen": ("two tasks, as an update sees them", "#999999")}.items():
        for of_seed in found.values():
            left.plot(steps, [getattr(each, name) for each in of_seed], color=colour, alpha=0.35, linewidth=0.8)
        mean = [fmean(getattr(each, name) for each in moment) for moment in zip(*found.values(), strict=True)]
        left.plot(steps, mean, "o-", color=colour, label=label, markersize=4)
    left.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    left.set_xlabel("environment steps (thousands)")
    left.set_ylabel("cosine between gradients")
    left.legend()
    by_seed = sorted(downhill_by_seed(found).items(), key=lambda pair: fmean(pair[1]))
    for place, (name, values) in enumerate(by_seed):
        colour = COLOURS.get({"equal": "shared_dqn"}.get(name, name), "#4477AA")
        right.plot(values, [place] * len(values), ".", color=colour, alpha=0.5)
        right.plot([fmean(values)], [place], "o", color=colour)
    right.set_yticks(range(len(by_seed)), [name for name, _ in by_seed])
    right.set_xlim(0, None)
    right.grid(axis="y", color="0.93", linewidth=0.8)
    right.set_xlabel("cosine between update and true gradient")
    figure.suptitle(f"Noise and conflict while equal weights train ({config.variant}, {len(found)} seeds)")
    return figure
