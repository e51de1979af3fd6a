"""The options of the losses that are the public original's, each against a few lines in float64 by another way."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from mtrl import RGB
from mtrl.losses import (
    AdversarialLoss,
    ELBOLoss,
    LossAggregator,
    PerceiverLoss,
    PredictiveLoss,
    centres,
    gamma_kl,
    gradient_penalty,
    published_losses,
    sampled_mixture_kl,
)
from tests.mtrl.test_losses import B, D, F, K, M, S, T, V, example, h, w

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "losses.md").read_text(encoding="utf-8")


def everything() -> tuple[dict[str, Any], Tensor]:
    """Outputs for every option, leaves of the graph, and observations, in float64."""
    outputs, observations = example()
    randn = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=randn, dtype=torch.float64)

    more = {
        "reconstruction_nll": numbers(B, T),
        "mixing_weights": numbers(B, T, K).softmax(-1),
        "concentration_shape": numbers(B, T).exp(),
        "concentration_rate": numbers(B, T).exp(),
        "predicted_movement": 2 * numbers(B, T - 1, S, 2),
        "token_logits": numbers(B, T, M, V),
    }
    outputs |= {name: value.requires_grad_() for name, value in more.items()}
    outputs["encoder_features"] = [numbers(B, T, places, F).requires_grad_() for places in (3, 5)]
    outputs["teacher_features"] = [numbers(B, T, places, F).requires_grad_() for places in (3, 5)]
    return outputs, observations


def array(value: Tensor) -> np.ndarray:
    return value.detach().numpy()


def density(z: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """Of a Gaussian with a diagonal covariance."""
    return float(np.prod(np.exp(-((z - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)))


def test_the_table_of_differences_names_every_option_with_both_values():
    ours, published = LossAggregator(), LossAggregator.published()
    parts = [
        (getattr(ours, name), getattr(published, name)) for name in ("elbo", "perceiver", "predictive", "adversarial")
    ]
    rows = [row for row in PAGE.splitlines() if row.startswith("| ")]
    named = set()
    for one, other in [*parts, (ours, published)]:
        for field in dataclasses.fields(one):
            values = getattr(one, field.name), getattr(other, field.name)
            if values[0] != values[1] and not dataclasses.is_dataclass(values[0]):
                words = [field.name, *(repr(value).replace("'", '"') for value in values)]
                assert any(re.search(".*".join(f"`{word}`" for word in words), row) for row in rows), words
                named.add(field.name)
    options = {name for row in rows for name in re.findall(r"^\| [^|]*: `(\w+)` \|", row)}
    assert named | {"lambda_diversity"} == options


def test_the_latents_kl_to_the_mixture_by_samples():
    outputs, _ = everything()
    mean, variance = array(outputs["latent_mean"]), np.exp(array(outputs["latent_log_variance"]))
    centre, spread = array(outputs["prior_mean"]), np.exp(array(outputs["prior_log_variance"]))
    weights = array(outputs["mixing_weights"])
    noise = torch.randn(3, B, T, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    total = 0.0
    for i, j, n in np.ndindex(B, T, 3):
        z = mean[i, j] + np.sqrt(variance[i, j]) * array(noise)[n, i, j]
        own = density(z, mean[i, j], variance[i, j])
        total += math.log(own / sum(weights[i, j, k] * density(z, centre[k], spread[k]) for k in range(K)))
    names = ("latent_mean", "latent_log_variance", "prior_mean", "prior_log_variance", "mixing_weights")
    kl = sampled_mixture_kl(*(outputs[name] for name in names), noise)
    assert kl.item() == pytest.approx(total / (3 * B * T), rel=1e-9)
    # Many samples come close to the integral, which lies below the bound by the same weights.
    one = {name: outputs[name][:1, :1, ..., :1] for name in names[:2]} | {n: outputs[n][:, :1] for n in names[2:4]}
    one["mixing_weights"] = outputs["mixing_weights"][:1, :1]
    q = stats.norm(array(one["latent_mean"]).item(), np.exp(0.5 * array(one["latent_log_variance"]).item()))

    def integrand(x: float) -> float:
        p = array(one["mixing_weights"])[0, 0] * stats.norm(centre[:, 0], np.sqrt(spread[:, 0])).pdf(x)
        return q.pdf(x) * (q.logpdf(x) - math.log(p.sum()))

    exact = integrate.quad(integrand, q.ppf(1e-12), q.ppf(1 - 1e-12))[0]
    many = torch.randn(40_000, 1, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert sampled_mixture_kl(*(one[name] for name in names), many).item() == pytest.approx(exact, abs=0.03)


def test_the_entropys_two_parts():
    outputs, observations = everything()
    two = ELBOLoss(cluster_entropy="two_parts")(outputs, observations)["cluster_entropy"]
    parts = [stats.entropy(array(outputs[name]), axis=-1).mean() for name in ("responsibilities", "mixing_weights")]
    assert two.item() == pytest.approx(sum(parts), rel=1e-9)


def test_the_gram_loss_against_a_teacher():
    outputs, observations = everything()
    loss = ELBOLoss(gram="teacher")(outputs, observations)["gram_enc_loss"]
    total = 0.0
    for features, teacher in zip(outputs["encoder_features"], outputs["teacher_features"], strict=True):
        squares = []
        for a, b in zip(array(features.flatten(0, 1)), array(teacher.flatten(0, 1)), strict=True):
            cosines = [x @ x.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1)) for x in (a, b)]
            squares += [(np.maximum(cosines[0], 0) - np.maximum(cosines[1], 0)) ** 2]
        total += np.mean(squares)
    assert loss.item() == pytest.approx(total, rel=1e-9)
    leaves = [*outputs["encoder_features"], *outputs["teacher_features"]]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert [gradient is None for gradient in gradients] == [False, False, True, True]
    turn = torch.linalg.qr(torch.randn(F, F, dtype=torch.float64))[0]
    alike = outputs | {"teacher_features": [3 * level @ turn for level in outputs["encoder_features"]]}
    assert ELBOLoss(gram="teacher")(alike, observations)["gram_enc_loss"].item() == pytest.approx(0, abs=1e-20)


def test_the_hierarchy_with_a_posterior_of_the_concentration_and_without_assignments():
    outputs, observations = everything()
    for name in ("concentration_shape", "concentration_rate"):
        del outputs[name]
    whole = ELBOLoss(concentration=2.0)(outputs, observations)["hierarchical_kl"]
    sticks = ELBOLoss(concentration=2.0, assignments=False)(outputs, observations)["hierarchical_kl"]
    assert whole > sticks > 0
    # A posterior that is sure of alpha = 2 gives the same KL of the sticks, and its own.
    sure = torch.full((B, T), 1e8, dtype=torch.float64)
    outputs |= {"concentration_shape": 2 * sure, "concentration_rate": sure}
    known = ELBOLoss(assignments=False)(outputs, observations)["hierarchical_kl"]
    assert (known - gamma_kl(2 * sure, sure).mean()).item() == pytest.approx(sticks.item(), rel=1e-6)
    # Any posterior gives the expectation over alpha, here by quadrature for one stick.
    shape, rate = 3.0, 1.5
    alphas, mass = stats.gamma(shape, scale=1 / rate).ppf((np.arange(2000) + 0.5) / 2000), 1 / 2000
    one = {name: torch.full((B, T), value, dtype=torch.float64) for name, value in
           (("concentration_shape", shape), ("concentration_rate", rate))}  # fmt: skip
    mean = ELBOLoss(assignments=False)(outputs | one, observations)["hierarchical_kl"].item()
    a, b = (array(outputs[name]) for name in ("stick_a", "stick_b"))
    base = {name: value for name, value in outputs.items() if not name.startswith("concentration")}
    at = [
        ELBOLoss(concentration=x, assignments=False)(base, observations)["hierarchical_kl"].item() for x in (1.0, 2.0)
    ]
    assert a.shape == b.shape == (B, T, K - 1)
    # The KL is c0 - (K - 1) log alpha + c1 alpha: two values give c0 and c1.
    c1 = at[1] - at[0] + (K - 1) * math.log(2.0)
    expected = mass * sum(at[0] - c1 - (K - 1) * math.log(x) + c1 * x for x in alphas)
    posterior = stats.gamma(shape, scale=1 / rate)
    kl = integrate.quad(lambda x: posterior.pdf(x) * (posterior.logpdf(x) - stats.gamma(1.0).logpdf(x)), 0, 60)[0]
    assert mean == pytest.approx(expected + kl, rel=1e-3)
    assert gamma_kl(torch.tensor(shape), torch.tensor(rate)).item() == pytest.approx(kl, rel=1e-5)


def test_the_attention_kls_place_and_its_prediction():
    outputs, observations = everything()
    outputs["attention_prior"] = outputs["predicted_attention"]
    p, q = array(outputs["attention"])[:, 1:], array(outputs["predicted_attention"])
    kl = (p * np.log(p / q)).sum((-3, -2, -1)).mean()
    here, there = (
        LossAggregator(attention_kl_in=task).compute_losses(outputs, observations, beta=0.7)[0]
        for task in ("elbo", "predictive")
    )
    assert here["attention_kl"].item() == pytest.approx(kl, rel=1e-9)
    assert (here["total_vae_loss"] - there["total_vae_loss"]).item() == pytest.approx(0.7 * kl, rel=1e-9)
    assert (there["attention_loss"] - here["attention_loss"]).item() == pytest.approx(0.7 * kl, rel=1e-9)


def test_the_dynamics_of_centres_of_mass():
    outputs, observations = everything()
    maps, predicted = array(outputs["attention"]), array(outputs["predicted_movement"])
    y, x = np.mgrid[:h, :w]
    places = np.stack([(maps * x).sum((-2, -1)), (maps * y).sum((-2, -1))], -1)
    np.testing.assert_allclose(array(centres(outputs["attention"])), places)
    error = np.abs(predicted - np.diff(places, axis=1))
    smooth = np.where(error < 1, error**2 / 2, error - 0.5)
    assert (error > 1).any()
    loss = PredictiveLoss(dynamics="movement", detach_target=False)(outputs, observations)["attention_dynamics_loss"]
    assert loss.item() == pytest.approx(smooth[..., 0].mean() + smooth[..., 1].mean(), rel=1e-9)
    assert torch.autograd.grad(loss, outputs["attention"])[0].abs().sum() > 0


def test_the_diversity_by_squares_of_cosines():
    outputs, observations = everything()
    loss = PredictiveLoss(diversity="squared_cosine")(outputs, observations)["attention_diversity"]
    rows = array(outputs["attention"]).reshape(B * T, S, h * w)
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    away = [((u @ u.T - np.eye(S)) ** 2).sum() / (S * (S - 1)) for u in unit]
    assert loss.item() == pytest.approx(np.mean(away), rel=1e-9)


def test_the_reconstruction_as_predicted_tokens_and_as_any_likelihood():
    outputs, observations = everything()
    loss = PerceiverLoss(reconstruction="tokens", label_smoothing=0.1)(outputs, observations)["perceiver_recon_loss"]
    log_p = np.log(array(outputs["token_logits"].softmax(-1))).reshape(-1, V)
    target = 0.9 * np.eye(V)[outputs["token_index"].flatten().numpy()] + 0.1 / V
    assert loss.item() == pytest.approx(-(target * log_p).sum(-1).mean(), rel=1e-9)
    nll = ELBOLoss()(outputs, observations)["recon_loss"]
    assert nll.item() == pytest.approx(array(outputs["reconstruction_nll"]).mean())


def test_the_wasserstein_losses_and_the_gradient_penalty():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, -1.5])
    loss = AdversarialLoss("wasserstein")
    assert loss.discriminator(real, fake).item() == pytest.approx(-0.5 - 2.0)
    assert loss.generator(fake).item() == pytest.approx(0.5)
    slope = torch.tensor([[3.0, 0.0, 4.0]], dtype=torch.float64)  # of length 5 in each of T frames
    x, y = (torch.randn(B, T, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    penalty = gradient_penalty(lambda frames: (frames * slope).sum(-1), x, y)
    assert penalty.item() == pytest.approx((5 * math.sqrt(T) - 1) ** 2)
    curved = gradient_penalty(lambda frames: frames.square().sum((1, 2)), x, y, torch.Generator().manual_seed(2))
    u = torch.rand(B, 1, 1, generator=torch.Generator().manual_seed(2)).double()
    lengths = np.linalg.norm(array(2 * (u * x + (1 - u) * y)).reshape(B, -1), axis=1)
    assert curved.item() == pytest.approx(((lengths - 1) ** 2).mean())


def test_all_options_together_give_gradients_to_a_balancer():
    outputs, observations = everything()
    outputs["attention_prior"] = outputs["predicted_attention"]
    for name in ("reconstruction", "slots", "perceiver_reconstruction"):
        del outputs[name]
    losses, tasks = LossAggregator.published().compute_losses(outputs, observations, lambda_diversity=1.0)
    assert len(tasks) == 4
    assert all(loss.isfinite() for loss in losses.values())
    shared = [outputs[name] for name in ("attention", "latent_mean", "token_encoding", "fake_logits")]
    coefficients = RGB.published().backward(tasks, shared)
    assert coefficients.shape == (4,)
    assert outputs["attention"].grad.abs().sum() > 0


def test_losses_that_a_model_has_computed_are_added_up_as_in_the_original():
    generator = torch.Generator().manual_seed(0)
    names = ("reconstruction_losses", "kl_latents", "kumaraswamy_kl_losses", "attention_losses", "cluster_entropies",
             "gram_enc", "attention_diversity_losses")  # fmt: skip
    lists = {name: list(torch.rand(T, generator=generator, dtype=torch.float64)) for name in names}
    scalars = {
        name: torch.rand((), dtype=torch.float64) for name in ("perceiver_total_loss", "attention_dynamics_loss")
    }
    losses, tasks = published_losses(lists | scalars, 0.7, 0.2, 1.5, 0.3, 0.4)
    recon, kl, sticks, attention, clusters, gram, diversity = (np.mean([float(x) for x in lists[n]]) for n in names)
    dynamics = scalars["attention_dynamics_loss"].item()
    expected = [
        1.5 * recon + 0.7 * kl + 0.7 * sticks - 0.2 * clusters + 0.4 * gram,
        scalars["perceiver_total_loss"].item(),
        0.7 * attention + 0.3 * dynamics + diversity,
    ]
    assert [task.item() for task in tasks] == pytest.approx(expected, rel=1e-12)
    assert losses["total_elbo"].item() == pytest.approx(expected[0] + 0.7 * attention, rel=1e-12)
    assert losses["total_predictive"] is losses["attention_loss"]
    few = published_losses({"kl_latents": lists["kl_latents"], "gram_enc": []})[0]
    assert few["total_vae_loss"].item() == pytest.approx(kl)
    assert few["attention_loss"].item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, x: published_losses({}), "the outputs have none of reconstruction_losses, kl_latents"),
        (lambda o, x: published_losses({"gram_enc": [0.5]}), "gram_enc must be a scalar tensor, or a list"),
        (lambda o, x: published_losses({}, entropy_weight=-1.0), "entropy_weight is -1.0; it must be at least 0"),
        (lambda o, x: LossAggregator().compute_losses({"reconstruction_losses": []}, x), "losses.published_losses"),
        (lambda o, x: LossAggregator(attention_kl_in="prior"), "unknown attention_kl_in 'prior'; choose from elbo"),
        (lambda o, x: ELBOLoss(gram="student"), "unknown gram 'student'; choose from orthogonal, teacher"),
        (lambda o, x: ELBOLoss(kl_samples=0), "kl_samples is 0; it must be at least 1"),
        (lambda o, x: PredictiveLoss(dynamics="flow"), "unknown dynamics 'flow'; choose from maps, movement"),
        (lambda o, x: PerceiverLoss(label_smoothing=1.0), "label_smoothing is 1.0; it must be"),
        (lambda o, x: ELBOLoss(gram="teacher")(o | {"teacher_features": None}, x), "no 'teacher_features'"),
        (lambda o, x: ELBOLoss(gram="teacher")(o | {"teacher_features": o["slots"]}, x), "the same but for F"),
        (lambda o, x: ELBOLoss(latent_kl="sampled")(o | {"mixing_weights": None}, x), "no 'mixing_weights'"),
        (lambda o, x: PerceiverLoss(reconstruction="tokens")(o | {"token_logits": None}, x), "no 'token_logits'"),
        (lambda o, x: PerceiverLoss(reconstruction="tokens")(o | {"token_logits": o["slots"]}, x), "one logit for"),
        (
            lambda o, x: PredictiveLoss(dynamics="movement")(o | {"predicted_movement": o["predicted_attention"]}, x),
            r"expected \(B, T-1, S, 2\)",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, message):
    outputs, observations = everything()
    with pytest.raises(ValueError, match=message):
        call(outputs, observations)
