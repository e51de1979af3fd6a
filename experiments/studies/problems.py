"""The problems of the studies: synthetic regressions, generated messages, and two losses over a plane."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.studies.fitting import Phase, joined, split
from experiments.supervised.data import Samples
from mtrl.models import MultiTaskModel, generate_synthetic_multi_task_data

Array = NDArray[np.float64]

VALIDATION = 512  # rows of every validation set

TEXTS = Path(__file__).with_name("texts.tsv")
SENTIMENTS = ("negative", "positive")  # in the order of the classes
KINDS = ("ham", "spam")  # in the order of the classes
OWN_TONE = 0.8  # the share of spam that sounds positive, and the share of other messages that sounds negative


def regressions(names: Sequence[str], input_dim: int, hidden: Sequence[int], shared_dim: int) -> MultiTaskModel:
    """A model for regression tasks of these names."""
    return MultiTaskModel(input_dim, hidden, shared_dim, [{"name": name, "type": "regression"} for name in names])


def related_tasks(
    seed: int, *, tasks: int, input_dim: int, relatedness: float, train: int, guidance: int, steps: int
) -> Phase:
    """Regressions whose teachers read features of cosine `relatedness`. Targets have mean 0 and deviation 1."""
    features, targets = generate_synthetic_multi_task_data(
        train + guidance + VALIDATION, input_dim, [None] * tasks, seed=seed, relatedness=relatedness
    )
    return split(in_float64(Samples(features, targets)), train, guidance, steps)


def in_float64(samples: Samples) -> Samples:
    """The same rows, with every number that is not a class in float64."""
    targets = [target.double() if target.is_floating_point() else target for target in samples.targets]
    return Samples(samples.features.double(), targets)


def with_noise_task(phase: Phase, seed: int) -> Phase:
    """The phase with one more task, whose targets are standard normal numbers, independent of the inputs."""
    generator = torch.Generator().manual_seed(seed)

    def more(samples: Samples) -> Samples:
        return Samples(samples.features, [*samples.targets, torch.randn(len(samples), generator=generator).double()])

    return Phase(more(phase.train), more(phase.guidance), more(phase.validation), phase.steps)


def drifting_tasks(seed: int, *, input_dim: int, degrees: float, train: int, guidance: int, steps: int) -> list[Phase]:
    """Two linear regressions that want the same feature in the first phase and different ones in the second.

    Targets are y_i = (t_i.x + e) / sqrt(1 + 0.1^2), with unit vectors t_i and noise e of deviation 0.1. The t_i are
    equal in the first phase and `degrees` apart in the second. A model with one shared feature can serve both tasks in
    the first phase, and has to compromise in the second.
    """
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(input_dim, 2, generator=generator))
    one, across = basis.T
    angle = math.radians(degrees)
    phases = []
    for other in (one, math.cos(angle) * one + math.sin(angle) * across):
        features = torch.randn(train + guidance + VALIDATION, input_dim, generator=generator)
        noise = 0.1 * torch.randn(2, len(features), generator=generator)
        targets = [(features @ t + e) / math.hypot(1.0, 0.1) for t, e in zip((one, other), noise, strict=True)]
        phases.append(split(in_float64(Samples(features, targets)), train, guidance, steps))
    return phases


class Valley(nn.Module):
    """Two losses over two shared parameters. Their sum is a steep, curved valley with a long, flat floor.

    With r_1 = theta_1 / 2 + tanh(theta_2) and r_2 = theta_1 / 2 - tanh(theta_2) + 2, the losses are the means over the
    rows of 20 log(1 + 1000 (r_1 + e_1)^2) and 25 log(1 + 1000 (r_2 + e_2)^2): the landscape of Yu et al. 2020
    (https://arxiv.org/abs/2001.06782, figure 1), made smooth. The data are the noise e, so that rows can be held out.
    The gradients conflict, one of them is often far longer than the other, and the curvature is high.

    Args:
        start: the first value of theta, (2,).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(start.clone())

    def losses(self, samples: Samples) -> list[Tensor]:
        """The two losses, each a scalar. The features of `samples` are the noise (B, 2)."""
        return list(valley(self.theta, samples.features))


def valley(theta: Tensor, noise: Tensor) -> Tensor:
    """The two losses of `Valley` (2, ...) at `theta` (2, ...), averaged over the rows of `noise` (B, 2)."""
    bend = torch.tanh(theta[1])
    residuals = torch.stack([0.5 * theta[0] + bend, 0.5 * theta[0] - bend + 2.0])  # (2, ...)
    noisy = residuals[..., None] + noise.T.reshape(2, *(1,) * (residuals.ndim - 1), -1)
    scale = torch.tensor([20.0, 25.0], dtype=theta.dtype).reshape(2, *(1,) * (residuals.ndim - 1))
    return scale * torch.log1p(1000.0 * noisy.square()).mean(-1)


def valley_problem(seed: int, *, train: int, guidance: int, steps: int) -> tuple[Valley, Phase]:
    """A start drawn uniformly from [-8, -6] x [-2.5, -1.5], and data with noise of deviation 0.01."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(2, generator=generator) * torch.tensor([2.0, 1.0]) - torch.tensor([8.0, 2.5])
    noise = 0.01 * torch.randn(train + guidance + VALIDATION, 2, generator=generator)
    return Valley(start.double()), split(in_float64(Samples(noise, [])), train, guidance, steps)


@dataclass(frozen=True)
class Messages:
    """Messages as bags of words, with two tasks: the sentiment of a message, and whether it is spam."""

    phase: Phase
    words: tuple[str, ...]  # (V,), the word that each feature counts
    lanes: tuple[Array, Array]  # for each task 1 for its own words and 0 for others, (V,); no word belongs to both

    @property
    def num_words(self) -> int:
        """The size V of the vocabulary."""
        return len(self.words)


def messages(seed: int, *, train: int, guidance: int, steps: int) -> Messages:
    """Messages of two sentences from `texts.tsv`: one sentence has a tone, and the other is spam or not.

    Words that occur in sentences of both sorts are left out, so that the tasks have disjoint feature sets. Counts are
    divided by their standard deviation over the training and guidance rows. In those rows, four out of five spam
    messages are positive, and four out of five other messages are negative. In the validation rows, tone and kind are
    independent, so that a model that judges the tone by the words of spam makes mistakes there.
    """
    generator = np.random.default_rng(seed)
    sentences: dict[str, list[frozenset[str]]] = {name: [] for name in (*SENTIMENTS, *KINDS)}
    for line in TEXTS.read_text(encoding="utf-8").splitlines():
        label, text = line.split("\t")
        sentences[label].append(frozenset(re.findall(r"[a-z]+", text.lower())))
    by_task = [frozenset().union(*(s for name in names for s in sentences[name])) for names in (SENTIMENTS, KINDS)]
    both = by_task[0] & by_task[1]
    words = tuple(sorted((by_task[0] | by_task[1]) - both))

    def write(count: int, tone_follows: float) -> Samples:
        kind = generator.integers(2, size=count)
        tone = np.where(generator.random(count) < tone_follows, kind, 1 - kind)
        rows = np.zeros((count, len(words)), np.float32)
        for row, labels in zip(rows, zip(tone, kind, strict=True), strict=True):
            for names, label in zip((SENTIMENTS, KINDS), labels, strict=True):
                choice = sentences[names[label]]
                sentence = choice[int(generator.integers(len(choice)))]
                row[[words.index(word) for word in sentence - both]] += 1.0
        return Samples(torch.from_numpy(rows).double(), [torch.from_numpy(tone), torch.from_numpy(kind)])

    parts = [write(train, OWN_TONE), write(guidance, OWN_TONE), write(VALIDATION, 0.5)]
    spread = joined(parts[0], parts[1]).features.std(0)
    spread[spread == 0] = 1.0  # the word occurs in validation messages only
    training, held_out, validation = (Samples(part.features / spread, part.targets) for part in parts)
    phase = Phase(training, held_out, validation, steps)
    in_lane = [np.array([word in own for word in words], float) for own in by_task]
    return Messages(phase, words, (in_lane[0], in_lane[1]))


def classifications(
    names: Sequence[str], tasks: Sequence[int], input_dim: int, hidden: Sequence[int], shared_dim: int
) -> MultiTaskModel:
    """A model for classifications with two classes. `tasks` are the indices of its tasks in `names`."""
    chosen = [{"name": names[task], "type": "classification", "num_classes": 2} for task in tasks]
    return MultiTaskModel(input_dim, hidden, shared_dim, chosen)


def word_use(model: MultiTaskModel, features: Tensor) -> Array:
    """Effect of each word on each task's answer: the mean over messages of |d (logit_1 - logit_0) / d x|, (T, V)."""
    inputs = features.clone().requires_grad_()
    use = []
    for logits in model(inputs):
        (slope,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), inputs, retain_graph=True)
        use.append(slope.abs().mean(0).double().numpy())
    return np.stack(use)


def accuracies(model: MultiTaskModel, samples: Samples) -> Array:
    """Each task's share of right answers, (T,)."""
    with torch.no_grad():
        outputs = model(samples.features)
    return np.array(
        [
            float((logits.argmax(1) == target).double().mean())
            for logits, target in zip(outputs, samples.targets, strict=True)
        ]
    )


def bowls() -> dict[str, tuple[Array, Array]]:
    """Pairs of round bowls s_i |theta - m_i|^2 / 2, by title: their minima m (2, 2) and their steepness s (2,)."""

    def at(degrees: float) -> list[float]:
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    minima = np.array([at(10.0), at(150.0)])
    return {
        "opposed: 140 degrees apart": (minima, np.array([1.0, 1.0])),
        "opposed and unequal: one four times as long": (minima, np.array([1.0, 4.0])),
    }


def opposed_pairs(seed: int, count: int, *, dimensions: int) -> list[Array]:
    """Pairs of gradients (2, D), of length 1 and log-uniform in [1, 30], with cosines uniform in [-0.9, -0.3]."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        basis, _ = np.linalg.qr(generator.normal(size=(dimensions, 2)))
        cosine, length = generator.uniform(-0.9, -0.3), 30 ** generator.uniform()
        other = cosine * basis[:, 0] + math.sqrt(1 - cosine**2) * basis[:, 1]
        pairs.append(np.stack([basis[:, 0], length * other]))
    return pairs
