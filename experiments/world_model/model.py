"""The world model: what it makes of a video, and how it goes on with it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from experiments.world_model.frames import Decoder, Features, ModelSettings, Trunk
from experiments.world_model.layers import MapDynamics, Points, SlotAttention, Tokenizer
from mtrl.losses import ModelOutputs, expected_log_weights, gaussian_kl

FIRST_LOG_VARIANCE = -4.0  # of prior and posterior: with little noise, latents are listened to from the beginning


class Prior(NamedTuple):
    """p(z_t | past): a mixture whose weights come from broken sticks."""

    mean: Tensor  # (..., K, D)
    log_variance: Tensor  # (..., K, D)
    stick_a: Tensor  # (..., K - 1)
    stick_b: Tensor  # (..., K - 1)

    @property
    def weights(self) -> Tensor:
        """Of the components, (..., K), in proportion to exp E[log pi]."""
        return expected_log_weights(self.stick_a, self.stick_b).softmax(-1)

    @property
    def expected(self) -> Tensor:
        """Mean of the mixture, (..., D)."""
        return (self.weights.unsqueeze(-1) * self.mean).sum(-2)


class WorldModel(nn.Module):
    """A video model in the manner of SVG-LP (Denton and Fergus 2018, https://arxiv.org/abs/1802.07687).

    A frame's latent z_t says what changes from the frame before it; the first frame is given, and has itself before it.
    The encoder sees frame t; the prior sees the frames up to t - 1 and the actions up to a_(t-1), in a recurrent state.
    Prediction draws the prior's mean. The tokenizer rebuilds each frame from its tokens alone.

    Args:
        settings: sizes.
        mean_frame: (C, H, W), of the training frames.
    """

    mean_frame: Tensor
    places: Tensor

    def __init__(self, settings: ModelSettings, mean_frame: Tensor) -> None:
        super().__init__()
        F, S, D, K, H = settings.features, settings.slots, settings.latent, settings.components, settings.state
        self.settings = settings
        self.register_buffer("mean_frame", mean_frame)
        self.register_buffer("places", places(settings.grid), persistent=False)
        self.trunk = Trunk(settings.channels, F)
        self.position = nn.Linear(self.places.shape[1], F)
        self.slot_attention = SlotAttention(S, F)
        self.motion = nn.Sequential(nn.Conv2d(2 * F, F, 3, 1, 1), nn.ReLU(), nn.Conv2d(F, F // 4, 1), nn.ReLU())
        self.points = Points(settings.channels, settings.points)
        self.summary = nn.Sequential(nn.Linear(S * F + F // 4 * len(self.places), H), nn.ReLU())
        self.known = H + 2 * settings.points  # numbers that are known of a frame
        state = H + 2 * settings.points + settings.actions
        self.first_state = nn.Parameter(torch.zeros(state))
        self.memory = nn.GRUCell(self.known + settings.actions, H)
        self.posterior = nn.Sequential(nn.Linear(self.known + state, H), nn.ReLU(), _quiet(nn.Linear(H, 2 * D)))
        self.prior_hidden = nn.Sequential(nn.Linear(state, H), nn.ReLU())
        # What is expected has parameters of its own: it cancels in every KL, whose large gradients would drown the
        # reconstruction's in Adam's averages.
        self.expectation = nn.Linear(H, D)
        self.components = _quiet(nn.Linear(H, 2 * K * D))
        self.sticks = nn.Linear(H, 2 * (K - 1))
        self.map_dynamics = MapDynamics(state, S)
        self.decoder = Decoder(settings)
        self.tokenizer = Tokenizer(
            F, settings.grid, settings.tokens, settings.codes, settings.code_size, settings.channels
        )

    @property
    def shared(self) -> list[nn.Parameter]:
        """The parameters that make features and slots: what a balancer balances."""
        return [*self.trunk.parameters(), *self.position.parameters(), *self.slot_attention.parameters()]

    def forward_sequence(
        self,
        observations: Tensor,
        actions: Tensor,
        hidden: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ModelOutputs:
        """Everything but the adversarial outputs.

        A frame that is hidden has the prior's mean for its posterior's: the bound is one for any q, and so the prior
        learns from the reconstruction to predict. The variance stays the posterior's own, as noise of the prior's size
        would teach the prior to have none.

        Args:
            observations: (B, T, C, H, W), from 0 to 1.
            actions: (B, T, A), one-hot: the action of a frame leads to the next one.
            hidden: (B, T), bool. Default: none is.
            generator: of the latents' noise. Default: PyTorch's own.
        """
        B, T = observations.shape[:2]

        def steps(flat: Tensor) -> Tensor:
            return torch.unflatten(flat, 0, (B, T))

        seen, flat, slots, maps = self.look(observations.flatten(0, 1))
        seen_before = features_before(seen, B, T)
        summary = steps(self.summarise(slots, seen, seen_before))  # (B, T, known)
        states = self.remember(summary, actions)  # (B, T + 1, ...), the first before the first frame
        prior = self.prior(states[:, :-1])
        unseen = torch.zeros(B, T, 1, dtype=torch.bool) if hidden is None else hidden.unsqueeze(-1)
        surprise, log_variance = self.posterior(
            torch.cat([summary.masked_fill(unseen, 0.0), states[:, :-1]], -1)
        ).chunk(2, -1)
        mean = prior.expected + surprise.masked_fill(unseen, 0.0)  # what was expected, and how it differs from that
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        latent = mean + (0.5 * log_variance).exp() * noise

        log_weights = expected_log_weights(prior.stick_a, prior.stick_b)
        distances = gaussian_kl(mean.unsqueeze(-2), log_variance.unsqueeze(-2), prior.mean, prior.log_variance)
        responsibilities = (log_weights - distances).softmax(-1)
        if hidden is not None:
            responsibilities = torch.where(hidden.unsqueeze(-1), log_weights.softmax(-1), responsibilities)

        reconstruction = self.decoder(latent.flatten(0, 1), seen_before)
        predicted = self.map_dynamics(states[:, 1:].flatten(0, 1), maps.detach())
        encoding, code, index, drawn = self.tokenizer(flat)
        attention = steps(maps)
        predicted_attention = steps(predicted)[:, :-1]
        uniform = torch.full_like(attention[:, :1], 1 / maps[0, 0].numel())
        return {
            "reconstruction": steps(reconstruction),
            "latent_mean": mean,
            "latent_log_variance": log_variance,
            "prior_mean": prior.mean,
            "prior_log_variance": prior.log_variance,
            "responsibilities": responsibilities,
            "stick_a": prior.stick_a,
            "stick_b": prior.stick_b,
            "slots": steps(slots),
            "attention": attention,
            "attention_prior": torch.cat([uniform, predicted_attention.detach()], 1),
            "predicted_attention": predicted_attention,
            "token_encoding": steps(encoding),
            "token_code": steps(code),
            "token_index": steps(index),
            "perceiver_reconstruction": steps(drawn + self.mean_frame),
        }

    def summarise(self, slots: Tensor, seen: Features, seen_before: Features) -> Tensor:
        """What is known of a frame, (N, known), of its slots (N, S, F), its features and those before."""
        motion = self.motion(torch.cat([seen.patches, seen_before.patches], 1))
        summary = self.summary(torch.cat([slots.flatten(1), motion.flatten(1)], -1))
        return torch.cat([summary, self.points(seen.frames, seen_before.frames)], -1)

    def remember(self, known: Tensor, actions: Tensor) -> Tensor:
        """States (B, T + 1, ...): before the first frame, and after each with its action."""
        state = self.first_state.expand(len(known), -1)
        states = [state]
        for seen, action in zip(known.unbind(1), actions.unbind(1), strict=True):
            state = self.advance(state, seen, action)
            states.append(state)
        return torch.stack(states, 1)

    def advance(self, state: Tensor, known: Tensor, action: Tensor) -> Tensor:
        """The state after a frame of which this is known, and its action: memory, and both as they are."""
        H = self.memory.hidden_size
        memory = self.memory(torch.cat([known, action], -1), state[:, :H])
        return torch.cat([memory, known[:, H:], action], -1)

    def prior(self, state: Tensor) -> Prior:
        """Of the next latent, given the state."""
        hidden = self.prior_hidden(state)
        components = torch.unflatten(self.components(hidden), -1, (2, self.settings.components, -1))
        offset, log_variance = components.unbind(-3)  # (..., K, D)
        mean = self.expectation(hidden).unsqueeze(-2) + offset
        stick_a, stick_b = (softplus(self.sticks(hidden)) + 0.3).chunk(2, -1)
        return Prior(mean, log_variance, stick_a, stick_b)

    @torch.no_grad()
    def next_frames(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What is predicted for each next frame, (B, T, C, H, W), of the frames up to it and their actions.

        Args:
            observations: (B, T, C, H, W).
            actions: (B, T, A).
        """
        B, T = observations.shape[:2]
        seen, _, slots, _ = self.look(observations.flatten(0, 1))
        summary = torch.unflatten(self.summarise(slots, seen, features_before(seen, B, T)), 0, (B, T))
        latent = self.prior(self.remember(summary, actions)[:, 1:]).expected
        frames: Tensor = self.decoder(latent.flatten(0, 1), seen)
        return torch.unflatten(frames, 0, (B, T)).clamp(0, 1)

    @torch.no_grad()
    def roll_out(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Frames (B, L, C, H, W) that follow the given ones if the actions are taken: each is looked at for the next.

        Args:
            observations: (B, T, C, H, W), the context.
            actions: (B, T + L - 1, A): those of the context, and the L - 1 after it.
        """
        B, T = observations.shape[:2]
        seen, _, slots, _ = self.look(observations.flatten(0, 1))
        summary = torch.unflatten(self.summarise(slots, seen, features_before(seen, B, T)), 0, (B, T))
        state = self.remember(summary, actions[:, :T])[:, -1]
        seen = Features(*(torch.unflatten(each, 0, (B, T))[:, -1] for each in seen))
        following = []
        for action in [*actions[:, T:].unbind(1), None]:
            frame = self.decoder(self.prior(state).expected, seen).clamp(0, 1)
            following.append(frame)
            if action is not None:
                before = seen
                seen, _, slots, _ = self.look(frame)
                state = self.advance(state, self.summarise(slots, seen, before), action)
        return torch.stack(following, 1)

    def look(self, frames: Tensor) -> tuple[Features, Tensor, Tensor, Tensor]:
        """Features of frames (N, C, H, W), placed patches (N, P, F), slots (N, S, F) and maps (N, S, h, w)."""
        seen = self.trunk(frames)
        patches = seen.patches.flatten(2).mT + self.position(self.places)
        slots, maps = self.slot_attention(patches)
        return seen, patches, slots, torch.unflatten(maps, -1, self.settings.grid)


def frames_before(sequence: Tensor) -> Tensor:
    """Of (B, T, ...) the frames before, (B, T, ...); the first has itself."""
    return torch.cat([sequence[:, :1], sequence[:, :-1]], 1)


def features_before(seen: Features, sequences: int, frames: int) -> Features:
    """Of the features of B sequences of T frames, (B T, ...), those of the frames before."""
    return Features(*(frames_before(torch.unflatten(each, 0, (sequences, frames))).flatten(0, 1) for each in seen))


def places(grid: tuple[int, int], waves: int = 3) -> Tensor:
    """Where each position is, (h w, 4 waves): sines and cosines of 1/2, 1, 2, ... waves down and across."""
    axes = [(torch.arange(size) + 0.5) / size for size in grid]
    down, across = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    angles = torch.stack([place * math.pi * 2**wave for place in (down, across) for wave in range(waves)], -1)
    return torch.cat([angles.sin(), angles.cos()], -1)


@torch.no_grad()
def _quiet(layer: nn.Linear) -> nn.Linear:
    """`layer`, whose outputs begin as small means and low log-variances."""
    layer.weight *= 0.1
    layer.bias[: len(layer.bias) // 2] = 0.0
    layer.bias[len(layer.bias) // 2 :] = FIRST_LOG_VARIANCE
    return layer
