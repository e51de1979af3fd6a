"""Terms that a model asks for by an output of its own: unrolled frames, next tokens, the encoder's moving average."""

import math

import pytest
import torch

from mtrl.losses import ELBOLoss, LossAggregator, gram_distance
from tests.mtrl.test_losses import B, C, H, M, T, V, W, example, losses_of

P, F = 6, 5


def test_unrolled_frames_count_as_reconstructions_of_the_last_frames():
    outputs, observations = example()
    without = losses_of(outputs, observations)
    outputs["unrolled"] = outputs["reconstruction"][:, 1:]
    losses = losses_of(outputs, observations, lambda_unroll=0.5)
    of_last = 0.5 * (outputs["unrolled"] - observations[:, 1:]).square().sum((-3, -2, -1)).mean()
    torch.testing.assert_close(losses["unrolled_loss"], of_last)
    torch.testing.assert_close(losses["total_vae_loss"], without["total_vae_loss"] + 0.5 * of_last)
    outputs["unrolled"] = observations[:, -2:]
    assert losses_of(outputs, observations)["unrolled_loss"] == 0


def test_the_next_tokens_are_those_of_the_next_frame():
    outputs, observations = example()
    without = losses_of(outputs, observations)
    outputs["next_token_logits"] = torch.zeros(B, T - 1, M, V).requires_grad_()
    losses = losses_of(outputs, observations, lambda_next_token=2.0)
    assert losses["next_token_loss"].item() == pytest.approx(math.log(V))
    torch.testing.assert_close(losses["perceiver_loss"], without["perceiver_loss"] + 2 * losses["next_token_loss"])
    right = torch.nn.functional.one_hot(outputs["token_index"][:, 1:], V) * 100.0
    assert losses_of(outputs | {"next_token_logits": right}, observations)["next_token_loss"] < 1e-6
    present = torch.nn.functional.one_hot(outputs["token_index"][:, :-1], V) * 100.0
    assert losses_of(outputs | {"next_token_logits": present}, observations)["next_token_loss"] > 1


def test_the_encoder_is_held_to_the_similarities_of_its_moving_average():
    outputs, observations = example()
    generator = torch.Generator().manual_seed(1)
    features, teacher = (
        torch.randn(B, T, P, F, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    )
    outputs |= {"encoder_features": features, "teacher_features": teacher}
    losses, _ = LossAggregator(ELBOLoss(gram="teacher")).compute_losses(outputs, observations)
    losses["gram_enc_loss"].backward()
    assert features.grad.abs().sum() > 0
    assert teacher.grad is None
    turn = torch.linalg.qr(torch.randn(F, F, generator=generator, dtype=torch.float64)).Q
    assert gram_distance(features, 3 * features @ turn) < 1e-12  # angles alone count


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("unrolled", (B, T, C, H, W), r"unrolled has 4 frames; a sequence has 4 frames, so it must have fewer"),
        ("unrolled", (B, 2, C, H, W + 1), r"unrolled .*\(B, U, C, H, W\)"),
        ("next_token_logits", (B, T, M, V), r"next_token_logits have the shape \(2, 4, 4, 8\); expected \(2, 3, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(name, shape, message):
    outputs, observations = example()
    with pytest.raises(ValueError, match=message):
        LossAggregator().compute_losses(outputs | {name: torch.zeros(shape)}, observations)
