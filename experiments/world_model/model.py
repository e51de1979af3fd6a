"""The world model: its outputs for a video, and its predictions of the frames that follow."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from experiments.world_model.frames import Decoder, Features, ModelSettings, Trunk
from experiments.world_model.layers import MapDynamics, Points, SlotAttention
from experiments.world_model.tokens import NextTokens, Tokenizer, Tokens
from mtrl.losses import ModelOutputs, expected_log_weights, gaussian_kl

FIRST_LOG_VARIANCE = -4.0  # of prior and posterior; with little noise, the decoder uses the latents from the beginning


class Prior(NamedTuple):
    """p(z_t | past): a mixture of K Gaussians whose weights come from stick breaking."""

    mean: Tensor  # (..., K, D)
    log_variance: Tensor  # (..., K, D)
    stick_a: Tensor  # (..., K - 1)
    stick_b: Tensor  # (..., K - 1)

    @property
    def weights(self) -> Tensor:
        """The weights of the components (..., K), in proportion to exp E[log pi]."""
        return expected_log_weights(self.stick_a, self.stick_b).softmax(-1)

    @property
    def expected(self) -> Tensor:
        """The mean of the mixture, (..., D)."""
        return (self.weights.unsqueeze(-1) * self.mean).sum(-2)

    def responsibilities(self, mean: Tensor, log_variance: Tensor, hidden: Tensor) -> Tensor:
        """The posterior probabilities q(component) of each latent, (..., K).

        Args:
            mean: the mean (..., D) of the latent's posterior.
            log_variance: the log-variance (..., D) of the latent's posterior.
            hidden: (..., 1), bool. The responsibilities of hidden frames are the weights of the mixture.
        """
        log_weights = expected_log_weights(self.stick_a, self.stick_b)
        distances = gaussian_kl(mean.unsqueeze(-2), log_variance.unsqueeze(-2), self.mean, self.log_variance)
        return torch.where(hidden, log_weights.softmax(-1), (log_weights - distances).softmax(-1))


class WorldModel(nn.Module):
    """A video model in the manner of SVG-LP (Denton and Fergus 2018, https://arxiv.org/abs/1802.07687).

    A frame's latent z_t describes the change from the frame before it. The first frame counts as its own predecessor.
    The encoder sees frame t; the prior sees the frames up to t - 1 and the actions up to a_(t-1), in a recurrent state.
    Predictions use the prior's mean. The tokenizer rebuilds each frame from its tokens alone, one for each
    patch, and the tokens of the next frame are predicted from them and the state.

    Args:
        settings: the sizes of the model.
        mean_frame: the mean of the training frames, (C, H, W).
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
        self.known = H + 2 * settings.points  # length of the summary of a frame
        state = H + 2 * settings.points + settings.actions
        self.first_state = nn.Parameter(torch.zeros(state))
        self.memory = nn.GRUCell(self.known + settings.actions, H)
        self.posterior = nn.Sequential(nn.Linear(self.known + state, H), nn.ReLU(), _quiet(nn.Linear(H, 2 * D)))
        self.prior_hidden = nn.Sequential(nn.Linear(state, H), nn.ReLU())
        # The expected latent has its own parameters. It cancels in every KL divergence, so the large gradients of those
        # divergences do not enter Adam's averages for these parameters and drown the reconstruction's gradients.
        self.expectation = nn.Linear(H, D)
        self.components = _quiet(nn.Linear(H, 2 * K * D))
        self.sticks = nn.Linear(H, 2 * (K - 1))
        self.map_dynamics = MapDynamics(state, S)
        self.decoder = Decoder(settings)
        self.tokenizer = Tokenizer(F, settings.grid, settings.codes, settings.code_size, settings.channels)
        self.next_tokens = NextTokens(state, settings.code_size, settings.codes, F, settings.grid)

    @property
    def shared(self) -> list[nn.Parameter]:
        """The parameters that compute features and slots. A balancer combines the gradients on these."""
        return [*self.trunk.parameters(), *self.position.parameters(), *self.slot_attention.parameters()]

    def forward_sequence(
        self,
        observations: Tensor,
        actions: Tensor,
        hidden: Tensor | None = None,
        generator: torch.Generator | None = None,
        unroll: int = 0,
    ) -> ModelOutputs:
        """Compute all outputs except the adversarial ones.

        Args:
            observations: frames (B, T, C, H, W), from 0 to 1.
            actions: one-hot actions (B, T, A). The action of a frame leads to the next frame.
            hidden: which frames are hidden, (B, T), bool. Default: none of them.
            generator: the source of the latents' noise. Default: PyTorch's global generator.
            unroll: how many frames at the end, below T, are also predicted from the model's own frames. Default 0.
        """
        B, T = observations.shape[:2]

        def steps(flat: Tensor) -> Tensor:
            return torch.unflatten(flat, 0, (B, T))

        seen, slots, maps = self.look(observations.flatten(0, 1))
        seen_before = features_before(seen, B, T)
        summary = steps(self.summarise(slots, seen, seen_before))  # (B, T, known)
        states = self.remember(summary, actions)  # (B, T + 1, ...)
        prior = self.prior(states[:, :-1])
        unseen = torch.zeros(B, T, 1, dtype=torch.bool) if hidden is None else hidden.unsqueeze(-1)
        mean, log_variance = self.infer(prior, summary, states[:, :-1], unseen)
        latent = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        predicted = steps(self.map_dynamics(states[:, 1:].flatten(0, 1), maps.detach()))[:, :-1]
        tokens, drawn = self.tokenizer(seen.patches.flatten(2).mT, seen.frames)
        present = Tokens(*(steps(each)[:, :-1].flatten(0, 1) for each in tokens))
        logits = self.next_tokens(present, states[:, 1:-1].flatten(0, 1))
        attention = steps(maps)
        uniform = torch.full_like(attention[:, :1], 1 / maps[0, 0].numel())
        outputs: ModelOutputs = {
            "reconstruction": steps(self.decoder(latent.flatten(0, 1), seen_before)),
            "latent_mean": mean,
            "latent_log_variance": log_variance,
            "prior_mean": prior.mean,
            "prior_log_variance": prior.log_variance,
            "responsibilities": prior.responsibilities(mean, log_variance, unseen),
            "stick_a": prior.stick_a,
            "stick_b": prior.stick_b,
            "slots": steps(slots),
            "attention": attention,
            "attention_prior": torch.cat([uniform, predicted.detach()], 1),
            "predicted_attention": predicted,
            "encoder_features": steps(seen.patches.flatten(2).mT),
            "token_encoding": steps(tokens.encoding),
            "token_code": steps(tokens.code),
            "token_index": steps(tokens.chosen),
            "next_token_logits": torch.unflatten(logits, 0, (B, T - 1)),
            "perceiver_reconstruction": steps(drawn),
        }
        if unroll:
            last = Features(*(steps(each)[:, -unroll - 1] for each in seen))
            outputs["unrolled"] = self.imagine(states[:, T - unroll], last, actions[:, T - unroll : -1])
        return outputs

    def infer(self, prior: Prior, summary: Tensor, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The means and log-variances (..., D) of the posterior q(z_t).

        The posterior of a hidden frame has the prior's mean. The ELBO is a valid bound for any posterior q, and this
        choice lets the prior learn to predict from the reconstruction loss. The posterior keeps its own variance:
        noise with the prior's variance would teach the prior to have none.

        Args:
            prior: the prior of the latents.
            summary: the summaries of the frames, (..., known).
            state: the states before the frames, (..., state).
            hidden: which frames are hidden, (..., 1).
        """
        surprise, log_variance = self.posterior(torch.cat([summary.masked_fill(hidden, 0.0), state], -1)).chunk(2, -1)
        return prior.expected + surprise.masked_fill(hidden, 0.0), log_variance

    def summarise(self, slots: Tensor, seen: Features, seen_before: Features) -> Tensor:
        """Summaries of frames (N, known).

        Args:
            slots: the slots of the frames, (N, S, F).
            seen: the features of the frames.
            seen_before: the features of the frames before them.
        """
        motion = self.motion(torch.cat([seen.patches, seen_before.patches], 1))
        summary = self.summary(torch.cat([slots.flatten(1), motion.flatten(1)], -1))
        return torch.cat([summary, self.points(seen.frames, seen_before.frames)], -1)

    def remember(self, known: Tensor, actions: Tensor) -> Tensor:
        """States (B, T + 1, ...): the first is before the first frame, each other one after a frame and its action."""
        state = self.first_state.expand(len(known), -1)
        states = [state]
        for seen, action in zip(known.unbind(1), actions.unbind(1), strict=True):
            state = self.advance(state, seen, action)
            states.append(state)
        return torch.stack(states, 1)

    def advance(self, state: Tensor, known: Tensor, action: Tensor) -> Tensor:
        """The state after one more frame, with the summary `known`, and its action."""
        H = self.memory.hidden_size
        memory = self.memory(torch.cat([known, action], -1), state[:, :H])
        return torch.cat([memory, known[:, H:], action], -1)

    def prior(self, state: Tensor) -> Prior:
        """The prior of the next latent, given the state."""
        hidden = self.prior_hidden(state)
        components = torch.unflatten(self.components(hidden), -1, (2, self.settings.components, -1))
        offset, log_variance = components.unbind(-3)  # (..., K, D)
        mean = self.expectation(hidden).unsqueeze(-2) + offset
        stick_a, stick_b = (softplus(self.sticks(hidden)) + 0.3).chunk(2, -1)
        return Prior(mean, log_variance, stick_a, stick_b)

    @torch.no_grad()
    def next_frames(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Predict for each frame the next one, (B, T, C, H, W), from all frames and actions so far.

        Args:
            observations: frames (B, T, C, H, W).
            actions: actions (B, T, A).
        """
        B, T = observations.shape[:2]
        seen, slots, _ = self.look(observations.flatten(0, 1))
        summary = torch.unflatten(self.summarise(slots, seen, features_before(seen, B, T)), 0, (B, T))
        latent = self.prior(self.remember(summary, actions)[:, 1:]).expected
        frames: Tensor = self.decoder(latent.flatten(0, 1), seen)
        return torch.unflatten(frames, 0, (B, T)).clamp(0, 1)

    @torch.no_grad()
    def roll_out(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Predict the L frames (B, L, C, H, W) that follow. Each predicted frame is an input for the next one.

        Args:
            observations: the frames of the context, (B, T, C, H, W).
            actions: the actions of the context and the L - 1 actions after it, (B, T + L - 1, A).
        """
        B, T = observations.shape[:2]
        seen, slots, _ = self.look(observations.flatten(0, 1))
        summary = torch.unflatten(self.summarise(slots, seen, features_before(seen, B, T)), 0, (B, T))
        state = self.remember(summary, actions[:, :T])[:, -1]
        last = Features(*(torch.unflatten(each, 0, (B, T))[:, -1] for each in seen))
        return self.imagine(state, last, actions[:, T:]).clamp(0, 1)

    def imagine(self, state: Tensor, seen: Features, actions: Tensor) -> Tensor:
        """Predict L frames (B, L, C, H, W), which are not clamped, each from the model's own frame before it.

        Args:
            state: the states after the last true frame and its action, (B, ...).
            seen: the features of the last true frame.
            actions: the actions of all predicted frames but the last, (B, L - 1, A).
        """
        following = [self.decoder(self.prior(state).expected, seen)]
        for action in actions.unbind(1):
            before = seen
            seen, slots, _ = self.look(following[-1].clamp(0, 1))
            state = self.advance(state, self.summarise(slots, seen, before), action)
            following.append(self.decoder(self.prior(state).expected, seen))
        return torch.stack(following, 1)

    def look(self, frames: Tensor) -> tuple[Features, Tensor, Tensor]:
        """Features of frames (N, C, H, W), slots (N, S, F), and the slots' maps (N, S, h, w)."""
        seen: Features = self.trunk(frames)
        slots, maps = self.slot_attention(seen.patches.flatten(2).mT + self.position(self.places))
        return seen, slots, torch.unflatten(maps, -1, self.settings.grid)


def frames_before(sequence: Tensor) -> Tensor:
    """Shift a sequence (B, T, ...) by one frame, so that each place has the frame before. The first frame stays."""
    return torch.cat([sequence[:, :1], sequence[:, :-1]], 1)


def features_before(seen: Features, sequences: int, frames: int) -> Features:
    """Features of the frames before, given the features (B T, ...) of B sequences of T frames."""
    return Features(*(frames_before(torch.unflatten(each, 0, (sequences, frames))).flatten(0, 1) for each in seen))


def places(grid: tuple[int, int], waves: int = 3) -> Tensor:
    """An encoding of each position (h w, 4 waves): sines and cosines of 1/2, 1, 2, ... waves down and across."""
    axes = [(torch.arange(size) + 0.5) / size for size in grid]
    down, across = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    angles = torch.stack([place * math.pi * 2**wave for place in (down, across) for wave in range(waves)], -1)
    return torch.cat([angles.sin(), angles.cos()], -1)


@torch.no_grad()
def _quiet(layer: nn.Linear) -> nn.Linear:
    """Set the first weights of `layer` so that its outputs are small means and low log-variances."""
    layer.weight *= 0.1
    layer.bias[: len(layer.bias) // 2] = 0.0
    layer.bias[len(layer.bias) // 2 :] = FIRST_LOG_VARIANCE
    return layer
