"""The smallest world model that has every output that the losses need, and a video to train it on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from experiments.world_model.discriminator import PairDiscriminator
from mtrl.losses import ModelOutputs, expected_log_weights, gaussian_kl

SIDE = 16  # height and width of a frame, in pixels
MAP = SIDE // 4  # height and width of an attention map, in positions
FEATURES = 16


def moving_squares(sequences: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A video of two squares of 3 x 3 pixels on a torus. Actions move the bright one; the other drifts by itself.

    Args:
        sequences: the number of sequences B.
        frames: the number of frames T in each sequence.
        generator: the source of the random places and actions.

    Returns:
        Frames (B, T, 1, 16, 16) from 0 to 1, and actions (B, T, 2), which are -1, 0 or 1 pixels down and right. The
        action of a frame leads to the next frame.
    """
    actions = torch.randint(-1, 2, (sequences, frames, 2), generator=generator)
    drift = torch.randint(-1, 2, (sequences, 1, 2), generator=generator).expand(-1, frames, -1)
    video = torch.zeros(sequences, frames, SIDE, SIDE)
    for brightness, moves in ((0.5, drift), (1.0, actions)):
        start = torch.randint(SIDE, (sequences, 1, 2), generator=generator)
        place = start + torch.cat([torch.zeros_like(start), moves[:, :-1].cumsum(1)], 1)  # (B, T, 2)
        away = (torch.arange(SIDE) - place.unsqueeze(-1)) % SIDE < 3  # (B, T, 2, 16)
        video = torch.where(away[..., 0, :, None] & away[..., 1, None, :], brightness, video)
    return video.unsqueeze(2), actions.float()


class TinyWorldModel(nn.Module):
    """Convolutions, slots, a mixture prior of broken sticks, attention dynamics, and a tokenizer with a codebook.

    Args:
        latent: the size D of a frame's latent. Default 16.
        components: the number K of components of the prior. Default 4.
        slots: the number S of slots. Default 3.
        codes: the size of the codebook. Default 32.
    """

    def __init__(self, latent: int = 16, components: int = 4, slots: int = 3, codes: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, FEATURES, 4, 2, 1), nn.ReLU(), nn.Conv2d(FEATURES, FEATURES, 4, 2, 1), nn.ReLU()
        )
        self.position = nn.Parameter(0.1 * torch.randn(MAP * MAP, FEATURES))
        self.norm = nn.LayerNorm(FEATURES)
        self.queries = nn.Parameter(torch.randn(slots, FEATURES))
        self.to_latent = nn.Linear(FEATURES * MAP * MAP, 2 * latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, FEATURES * MAP * MAP),
            nn.ReLU(),
            nn.Unflatten(1, (FEATURES, MAP, MAP)),
            nn.ConvTranspose2d(FEATURES, FEATURES, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(FEATURES, 1, 4, 2, 1),  # a sigmoid would saturate on dark frames
        )
        self.prior_mean = nn.Parameter(torch.randn(components, latent))
        self.prior_log_variance = nn.Parameter(torch.zeros(components, latent))
        self.sticks = nn.Parameter(torch.zeros(2, components - 1))
        self.dynamics = nn.Sequential(nn.Linear(slots * MAP * MAP + 2, 64), nn.ReLU(), nn.Linear(64, slots * MAP * MAP))
        self.tokenizer = Tokenizer(codes)

    @property
    def shared(self) -> list[nn.Parameter]:
        """The parameters that compute the features, on which every task's loss depends."""
        return [*self.encoder.parameters(), self.position, *self.norm.parameters()]

    def forward_sequence(self, observations: Tensor, actions: Tensor) -> ModelOutputs:
        """Compute all outputs except the adversarial ones.

        Args:
            observations: frames (B, T, 1, 16, 16).
            actions: actions (B, T, 2).
        """
        B, T = observations.shape[:2]
        features = self.norm(self.encoder(observations.flatten(0, 1)).flatten(2).mT + self.position)  # (B T, h w, F)
        attention = (self.queries @ features.mT / FEATURES**0.5).softmax(-1)  # (B T, S, h w)
        mean, log_variance = self.to_latent(features.flatten(1)).chunk(2, -1)  # (B T, D)
        latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)

        stick_a, stick_b = softplus(self.sticks) + 0.3
        distances = gaussian_kl(
            mean.unsqueeze(1), log_variance.unsqueeze(1), self.prior_mean, self.prior_log_variance
        )  # (B T, K)
        responsibilities = (expected_log_weights(stick_a, stick_b) - distances).softmax(-1)

        maps = attention.view(B, T, -1)
        logits = self.dynamics(torch.cat([maps, actions], -1)[:, :-1])  # (B, T - 1, S h w)
        predicted = logits.view(B, T - 1, -1, MAP * MAP).softmax(-1)

        encoding, code, index, rebuilt = self.tokenizer(features)

        def steps(flat: Tensor) -> Tensor:
            return flat.view(B, T, *flat.shape[1:])

        return {
            "reconstruction": steps(self.decoder(latent)),
            "latent_mean": steps(mean),
            "latent_log_variance": steps(log_variance),
            "prior_mean": self.prior_mean,
            "prior_log_variance": self.prior_log_variance,
            "responsibilities": steps(responsibilities),
            "stick_a": stick_a,
            "stick_b": stick_b,
            "slots": steps(attention @ features),
            "attention": attention.view(B, T, -1, MAP, MAP),
            "predicted_attention": predicted.view(B, T - 1, -1, MAP, MAP),
            "token_encoding": steps(encoding),
            "token_code": steps(code),
            "token_index": steps(index),
            "perceiver_reconstruction": steps(rebuilt),
        }


class Tokenizer(nn.Module):
    """Learned queries gather a frame's features (Jaegle et al. 2021), and a codebook makes them discrete tokens.

    Args:
        codes: the size of the codebook.
        tokens: the number of tokens per frame. Default 4.
    """

    def __init__(self, codes: int, tokens: int = 4) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, FEATURES))
        self.codebook = nn.Parameter(0.5 * torch.randn(codes, FEATURES))
        self.decoder = nn.Sequential(
            nn.Linear(tokens * FEATURES, 128), nn.ReLU(), nn.Linear(128, SIDE * SIDE), nn.Sigmoid()
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (N, M, F), their codes (N, M, F), indices (N, M) and frames (N, 1, 16, 16) of features (N, h w, F)."""
        encoding = (self.queries @ features.mT / FEATURES**0.5).softmax(-1) @ features
        index = torch.cdist(encoding.detach(), self.codebook.detach()).argmin(-1)
        code = self.codebook[index]
        straight_through = encoding + (code - encoding).detach()
        return encoding, code, index, self.decoder(straight_through.flatten(1)).view(-1, 1, SIDE, SIDE)


def tiny_discriminator() -> PairDiscriminator:
    """A discriminator of the video's frames, with two layers of 16 features."""
    return PairDiscriminator(1, (FEATURES, FEATURES))
