"""A world model in training: its updates, and the state that is kept between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.program.balancer_options import balancer_from
from experiments.world_model.config import WorldModelConfig
from experiments.world_model.discriminator import Hearing, PairDiscriminator, accuracy, judged, judgements
from experiments.world_model.frames import ModelSettings
from experiments.world_model.model import WorldModel
from experiments.world_model.recording import ACTIONS, CHANNELS, HEIGHT, WIDTH, Video
from experiments.world_model.saving import save
from experiments.world_model.teacher import Teacher
from mtrl import Balancer
from mtrl.files import one_line
from mtrl.losses import (
    TASKS,
    Cosine,
    ELBOLoss,
    Linear,
    LossAggregator,
    ModelOutputs,
    PerceiverLoss,
    parameter_groups,
)
from mtrl.states import Number, Whole, check_adam, check_form

DISCRIMINATOR_RATE = 0.5  # share of the model's learning rate; a discriminator that is always right teaches nothing
TOKENIZER_RATE = 3.0  # the tokenizer's learning rate, as a multiple of the model's
# Gradients through several unrolled frames have spikes. Without a limit, they would fill Adam's averages.
LARGEST_NORM = 100.0
LAST_RATE = 0.05  # learning rate at the end, as a share of the first one


class Trainer:
    """Trains the model and the discriminator.

    All random numbers depend on `config.seed` alone, and are the same for every balancer.

    Args:
        config: the settings of the run.
        video: the video to train on.

    Attributes:
        steps: the number of updates so far.

    Raises:
        UsageError: the balancer or one of its options is wrong, or the video is too short.
    """

    def __init__(self, config: WorldModelConfig, video: Video) -> None:
        self.config = config
        self.video = video
        self.balancer = find_balancer(config)
        self.steps = 0
        with torch.random.fork_rng(devices=[]):  # PyTorch's global generator is not changed
            torch.manual_seed(config.seed)
            self.model = WorldModel(ModelSettings(HEIGHT, WIDTH, CHANNELS, ACTIONS), video.mean_frame())
            self.discriminator = PairDiscriminator(CHANNELS)
        self.teacher = Teacher(self.model.trunk)
        self.hearing = Hearing(round(config.warm_up * config.steps))
        elbo = ELBOLoss(config.observation_std, gram="teacher")
        self.aggregator = LossAggregator(elbo, PerceiverLoss(config.observation_std))
        groups = parameter_groups(self.model, self.model.tokenizer, config.learning_rate, TOKENIZER_RATE)
        self._optimizer = torch.optim.Adam(groups)
        self._judge_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), DISCRIMINATOR_RATE * config.learning_rate
        )
        self._beta = Linear(0.0, config.beta, max(1, round(config.annealing * config.steps)))
        most = min(config.unroll, config.length - 1)
        self._unroll = Linear(min(1.0, most), most, max(1, round(config.unroll_ramp * config.steps)))
        rate = Cosine(1.0, LAST_RATE, config.steps)
        self._rates = [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in self._optimizers]
        self._starts = video.windows(config.length, held_out=False)
        self._generator = torch.Generator().manual_seed(config.seed)

    @property
    def _optimizers(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        return self._optimizer, self._judge_optimizer

    def update(self) -> dict[str, Tensor]:
        """Update the model and the discriminator once, and return all losses from before the update, each ()."""
        config, generator = self.config, self._generator
        chosen = torch.randint(len(self._starts), (config.sequences,), generator=generator).numpy()
        observations, actions = self.video.sequences(self._starts[chosen], config.length)
        hidden = torch.rand(observations.shape[:2], generator=generator) < config.hidden_share
        hidden[:, 0] = False  # the first frame has no past to predict it from
        outputs = self.model.forward_sequence(observations, actions, hidden, generator, self.unrolled)
        losses = self.update_model(outputs, observations)
        self.model.tokenizer.revive(outputs["token_encoding"], outputs["token_index"], generator)
        self.teacher.follow(self.model.trunk)
        losses["discriminator_loss"] = self.update_discriminator(outputs, observations)
        for rate in self._rates:
            rate.step()
        self.steps += 1
        return {name: loss.detach() for name, loss in losses.items()}

    @property
    def unrolled(self) -> int:
        """The number of frames that the model predicts from its own frames in the next update."""
        return int(self._unroll(self.steps))

    def update_model(self, outputs: ModelOutputs, observations: Tensor) -> dict[str, Tensor]:
        """Update the model alone with the balanced gradient, and return its losses.

        The adversarial objective is among them only while the discriminator is listened to; see `Hearing`.
        """
        outputs["teacher_features"] = self.teacher.patches(observations)
        if self.hearing.heard:
            outputs = judged(outputs, self.discriminator, observations)
        losses, task_losses = self.aggregator.compute_losses(
            outputs,
            observations,
            beta=self._beta(self.steps),
            lambda_gan=self.config.lambda_gan,
            lambda_unroll=self.config.lambda_unroll,
        )
        self._optimizer.zero_grad()
        missing = [None] * (len(TASKS) - len(task_losses))
        self.balancer.backward([*task_losses, *missing], self.model.shared)  # other parameters get ordinary gradients
        for group in self._optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], LARGEST_NORM)
        self._optimizer.step()
        return losses

    def update_discriminator(self, outputs: ModelOutputs, observations: Tensor) -> Tensor:
        """Update the discriminator alone, and return its loss (); its accuracy decides whether it is listened to."""
        real, fake = judgements(self.discriminator, outputs, observations)
        self.hearing.follow(accuracy(real, fake), self.steps)
        loss = self.aggregator.adversarial.discriminator(real, fake)
        self._judge_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._judge_optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Everything that the remaining updates depend on."""
        return {
            "steps": self.steps,
            "model": self.model.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "teacher": self.teacher.state_dict(),
            "hearing": {"accuracy": self.hearing.accuracy, "heard": self.hearing.heard},
            "balancer": self.balancer.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state is that of another trainer, or malformed.
        """
        self._check(state)
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.teacher.load_state_dict(state["teacher"])
        self.hearing.accuracy, self.hearing.heard = state["hearing"]["accuracy"], state["hearing"]["heard"]
        self.balancer.load_state_dict(state["balancer"])
        self.balancer.check_state(sum(weight.numel() for weight in self.model.shared))
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for rate in self._rates:
            rate.last_epoch = self.steps
        self._generator.set_state(state["generator"])

    def _check(self, state: dict[str, Any]) -> None:
        """Check a state from a file, except for the balancer's part."""
        form = {
            "steps": Whole(self.config.steps + 1),
            "model": dict(self.model.state_dict()),
            "discriminator": dict(self.discriminator.state_dict()),
            "teacher": dict(self.teacher.state_dict()),
            "hearing": {"accuracy": Number(0, 1), "heard": bool},
            "balancer": dict,
            "optimizers": [Any, Any],
            "generator": self._generator.get_state(),
        }
        check_form("the trainer", state, form)
        if (names := state["balancer"].get("task_names", TASKS)) != tuple(TASKS):
            raise ValueError(f"the balancer is of the tasks {one_line(names)}")
        for name, optimizer, saved in zip(("model", "judge"), self._optimizers, state["optimizers"], strict=True):
            check_adam(f"the optimizer of the {name}", saved, optimizer)

    def save(self, path: Path) -> None:
        """Write the model and the discriminator to a file that `load_model` reads."""
        save(path, self.model, self.discriminator)


def find_balancer(config: WorldModelConfig) -> Balancer:
    """Make the balancer for the four objectives.

    Raises:
        UsageError: its name or an option is unknown, or the value of an option is wrong.
    """
    return balancer_from(config.balancer, len(TASKS), config.balancer_options)
