"""The four tasks' terms: where they are zero, their units, their gradients, and what the aggregator makes of them."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.distributions import Normal
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from mtrl import RGB
from mtrl.losses import (
    TASKS,
    TOTALS,
    AdversarialLoss,
    ELBOLoss,
    LossAggregator,
    PerceiverLoss,
    PredictiveLoss,
    assignment_kl,
    expected_log_weights,
    loss_metrics,
    parameter_groups,
    perplexity,
)

B, T, C, H, W = 2, 4, 3, 5, 6
D, K, S, F, h, w, M, E, V = 4, 3, 3, 5, 2, 3, 4, 6, 8
# In the reference's order, with what this project adds.
TERMS = [
    "recon_loss", "kl_z", "hierarchical_kl", "attention_kl", "cluster_entropy", "gram_enc_loss", "total_vae_loss",
    "vq_commitment_loss", "vq_codebook_loss", "perceiver_recon_loss", "codebook_perplexity", "perceiver_loss",
    "attention_dynamics_loss", "attention_diversity", "attention_loss",
    "generator_loss", "feature_matching_loss", "adversarial_loss",
]  # fmt: skip
NON_NEGATIVE = [name for name in TERMS if name != "total_vae_loss"]


def example(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Any], Tensor]:
    """Outputs of every kind, leaves of the graph, and observations."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def maps(frames: int) -> Tensor:
        return randn(B, frames, S, h * w).softmax(-1).view(B, frames, S, h, w)

    outputs: dict[str, Any] = {
        "reconstruction": randn(B, T, C, H, W),
        "latent_mean": randn(B, T, D),
        "latent_log_variance": randn(B, T, D),
        "prior_mean": randn(K, D),
        "prior_log_variance": randn(K, D),
        "responsibilities": randn(B, T, K).softmax(-1),
        "stick_a": randn(B, T, K - 1).exp(),
        "stick_b": randn(B, T, K - 1).exp(),
        "slots": randn(B, T, S, F),
        "attention": maps(T),
        "attention_prior": maps(T),
        "predicted_attention": maps(T - 1),
        "token_encoding": randn(B, T, M, E),
        "token_code": randn(B, T, M, E),
        "perceiver_reconstruction": randn(B, T, C, H, W),
        "fake_logits": randn(B, T, 1, 2, 2),
    }
    outputs = {name: value.to(dtype).requires_grad_() for name, value in outputs.items()}
    for name in ("real_features", "fake_features"):
        outputs[name] = [randn(2, n).to(dtype).requires_grad_() for n in (3, 5)]
    outputs["token_index"] = torch.randint(V, (B, T, M), generator=generator)
    return outputs, randn(B, T, C, H, W).to(dtype)


def losses_of(outputs: dict[str, Any], observations: Tensor, **weights: float) -> dict[str, Tensor]:
    return LossAggregator().compute_losses(outputs, observations, **weights)[0]


def test_names_order_and_shapes():
    outputs, observations = example()
    losses, task_losses = LossAggregator().compute_losses(outputs, observations)
    assert set(losses) == set(TERMS)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    assert TASKS == ("elbo", "perceiver", "predictive", "adversarial")
    assert [TOTALS[task] for task in TASKS] == [
        "total_vae_loss", "perceiver_loss", "attention_loss", "adversarial_loss",
    ]  # fmt: skip
    for loss, total in zip(task_losses, TOTALS.values(), strict=True):
        assert loss is losses[total]


def test_without_a_discriminator_there_are_three_tasks():
    outputs, observations = example()
    complete = losses_of(outputs, observations)
    for name in ("fake_logits", "real_features", "fake_features"):
        del outputs[name]
    losses, task_losses = LossAggregator().compute_losses(outputs, observations)
    assert len(task_losses) == 3
    assert set(complete) - set(losses) == {"generator_loss", "feature_matching_loss", "adversarial_loss"}
    assert all(torch.equal(losses[name], complete[name]) for name in losses)


def test_features_are_matched_where_there_are_any():
    outputs, observations = example()
    del outputs["real_features"], outputs["fake_features"]
    losses = losses_of(outputs, observations, lambda_gan=0.5)
    assert "feature_matching_loss" not in losses
    torch.testing.assert_close(losses["adversarial_loss"], 0.5 * losses["generator_loss"])


def test_the_defaults_are_the_documented_ones():
    parameters = inspect.signature(LossAggregator.compute_losses).parameters
    documented = {
        "beta": 1.0, "lambda_recon": 1.0, "entropy_weight": 0.1, "lambda_gram": 0.05, "lambda_att_dyn": 0.1,
        "lambda_gan": 0.1,
    }  # fmt: skip
    assert {name: parameters[name].default for name in documented} == documented
    assert inspect.signature(parameter_groups).parameters["perceiver_lr_multiplier"].default == 1.5


@pytest.mark.parametrize("seed", range(3))
def test_totals_are_their_formulas(seed):
    outputs, observations = example(seed)
    names = [
        "beta", "lambda_recon", "entropy_weight", "lambda_gram", "commitment_weight", "lambda_att_dyn",
        "lambda_diversity", "lambda_gan", "lambda_features",
    ]  # fmt: skip
    values = torch.rand(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    x = dict(zip(names, values, strict=True))
    L = losses_of(outputs, observations, **x)
    kl = L["kl_z"] + L["hierarchical_kl"] + L["attention_kl"]
    expected = {
        "total_vae_loss": x["lambda_recon"] * L["recon_loss"] + x["beta"] * kl
        - x["entropy_weight"] * L["cluster_entropy"] + x["lambda_gram"] * L["gram_enc_loss"],
        "perceiver_loss": L["perceiver_recon_loss"] + L["vq_codebook_loss"]
        + x["commitment_weight"] * L["vq_commitment_loss"],
        "attention_loss": x["lambda_att_dyn"] * L["attention_dynamics_loss"]
        + x["lambda_diversity"] * L["attention_diversity"],
        "adversarial_loss": x["lambda_gan"]
        * (L["generator_loss"] + x["lambda_features"] * L["feature_matching_loss"]),
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(L[name], value)


def test_every_term_is_zero_where_there_is_nothing_to_do():
    outputs, observations = example()
    outputs |= {
        "reconstruction": observations,
        "perceiver_reconstruction": observations,
        "prior_mean": outputs["latent_mean"].unsqueeze(2).expand(B, T, K, D),
        "prior_log_variance": outputs["latent_log_variance"].unsqueeze(2).expand(B, T, K, D),
        "attention_prior": outputs["attention"],
        "predicted_attention": outputs["attention"][:, 1:],
        "slots": torch.eye(F, dtype=torch.float64)[:S].expand(B, T, S, F),
        "token_code": outputs["token_encoding"],
        "fake_features": outputs["real_features"],
        "fake_logits": torch.full((2, 3), 800.0),
    }
    losses = losses_of(outputs, observations)
    zero = [name for name in TERMS if name not in (*TOTALS.values(), "hierarchical_kl", "cluster_entropy")]
    for name in zero:
        if name not in ("codebook_perplexity", "attention_diversity"):
            assert losses[name].item() == pytest.approx(0, abs=1e-12), name

    # One sure component, said by sticks that cannot be in doubt; maps that share no position.
    outputs["responsibilities"] = one_hot(torch.zeros(B, T, dtype=torch.long), K).double()
    outputs["stick_a"], outputs["stick_b"] = (torch.full((B, T, K - 1), x, dtype=torch.float64) for x in (1e4, 1e-2))
    outputs["attention"] = one_hot(torch.arange(S), h * w).double().view(S, h, w).expand(B, T, S, h, w)
    losses = ELBOLoss()(outputs, observations) | PredictiveLoss()(outputs, observations)
    assert losses["cluster_entropy"].item() == pytest.approx(0, abs=1e-10)
    assert losses["attention_diversity"].item() == pytest.approx(0, abs=1e-12)


def test_hierarchical_kl_is_zero_for_the_priors_own_sticks_and_weights():
    a, b = (torch.full((B, T, K - 1), x, dtype=torch.float64) for x in (1.0, 2.0))
    outputs, observations = example()
    outputs |= {"stick_a": a, "stick_b": b}
    loss = ELBOLoss(concentration=2.0)
    terms = loss(outputs, observations)
    # What is left is the mean KL of the responsibilities, smallest where they are softmax(E[log pi]).
    expected = assignment_kl(outputs["responsibilities"], expected_log_weights(a, b)).mean()
    torch.testing.assert_close(terms["hierarchical_kl"], expected, rtol=1e-6, atol=1e-8)
    best = outputs | {"responsibilities": expected_log_weights(a, b).softmax(-1)}
    assert loss(best, observations)["hierarchical_kl"] < expected


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_reconstruction_is_in_nats_per_frame(sigma):
    outputs, observations = example()
    terms = ELBOLoss(observation_std=sigma)(outputs, observations)
    log_p = Normal(outputs["reconstruction"], sigma).log_prob(observations).sum((-3, -2, -1))
    constant = C * H * W * math.log(sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(terms["recon_loss"], -log_p.mean() - constant)
    perceiver = PerceiverLoss(observation_std=sigma)(outputs, observations)["perceiver_recon_loss"]
    expected = (outputs["perceiver_reconstruction"] - observations).square().mean() / sigma**2
    torch.testing.assert_close(perceiver, expected)


def test_terms_are_means_over_sequences():
    """The same sequences twice change nothing; their order changes nothing."""
    outputs, observations = example()
    expected = losses_of(outputs, observations)

    def take(value: Any, index: Tensor) -> Any:
        return [take(layer, index) for layer in value] if isinstance(value, list) else value[index]

    shared = {name: outputs[name] for name in ("prior_mean", "prior_log_variance")}
    for index in (torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0])):
        rearranged = {name: take(value, index) for name, value in outputs.items()} | shared
        losses = losses_of(rearranged, observations[index])
        for name in TERMS:
            torch.testing.assert_close(losses[name], expected[name], msg=name)


def test_kls_are_sums_over_dimensions_and_slots():
    outputs, observations = example()
    once = losses_of(outputs, observations)
    doubled = dict(outputs)
    for name in ("latent_mean", "latent_log_variance", "prior_mean", "prior_log_variance"):
        doubled[name] = torch.cat([outputs[name]] * 2, -1)
    for name in ("attention", "attention_prior", "predicted_attention", "slots"):
        doubled[name] = torch.cat([outputs[name]] * 2, 2)
    twice = losses_of(doubled, observations)
    for name in ("kl_z", "attention_kl", "attention_dynamics_loss"):
        torch.testing.assert_close(twice[name], 2 * once[name])


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_slots_and_components_have_no_order(order):
    outputs, observations = example()
    expected = losses_of(outputs, observations)
    turned = dict(outputs)
    for name in ("slots", "attention", "attention_prior", "predicted_attention"):
        turned[name] = outputs[name][:, :, order]
    for name in ("prior_mean", "prior_log_variance"):
        turned[name] = outputs[name][order]
    turned["responsibilities"] = outputs["responsibilities"][..., order]
    losses = losses_of(turned, observations)
    for name in TERMS:
        if name not in ("hierarchical_kl", "total_vae_loss"):  # sticks are broken in their order
            torch.testing.assert_close(losses[name], expected[name], msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_bounds(seed):
    outputs, observations = example(seed)
    losses = losses_of(outputs, observations)
    assert all(losses[name] >= 0 for name in NON_NEGATIVE)
    assert losses["total_vae_loss"] >= -0.1 * math.log(K)
    assert losses["cluster_entropy"] <= math.log(K)
    assert losses["attention_diversity"] <= 1
    assert losses["gram_enc_loss"] <= 1
    assert 1 <= losses["codebook_perplexity"] <= V
    del outputs["attention_prior"]
    assert losses_of(outputs, observations)["attention_kl"] <= S * math.log(h * w)


def test_extremes_of_overlap_gram_entropy_and_perplexity():
    outputs, observations = example()
    outputs["attention"] = outputs["attention"][:, :, :1].expand(B, T, S, h, w)
    outputs["slots"] = outputs["slots"][:, :, :1] * torch.tensor([1.0, -2.0, 3.0]).view(3, 1)
    outputs["responsibilities"] = torch.eye(K, dtype=torch.float64)[torch.arange(6) % K].view(2, 3, K)
    outputs["responsibilities"] = torch.cat([outputs["responsibilities"], torch.full((2, 1, K), 1 / K)], 1)
    losses = losses_of(outputs, observations)
    assert losses["attention_diversity"].item() == pytest.approx(1)
    assert losses["gram_enc_loss"].item() == pytest.approx(1)
    assert losses["cluster_entropy"].item() == pytest.approx(math.log(K))
    assert perplexity(torch.full((3, 4), 7)).item() == 1
    assert perplexity(torch.arange(40).view(5, 8) % V).item() == pytest.approx(V)
    assert perplexity(torch.tensor([0, 0, 0, 5])).item() == pytest.approx(4 / 3**0.75)


def test_one_slot_overlaps_nothing():
    outputs, observations = example()
    for name in ("slots", "attention", "attention_prior", "predicted_attention"):
        outputs[name] = outputs[name][:, :, :1]
    losses = losses_of(outputs, observations)
    assert losses["attention_diversity"] == losses["gram_enc_loss"] == 0


def test_lists_of_steps_are_taken_too():
    outputs, observations = example()
    expected = losses_of(outputs, observations)
    plain = ("prior_mean", "prior_log_variance", "fake_logits", "real_features", "fake_features")
    lists = {name: value if name in plain else list(value.unbind(1)) for name, value in outputs.items()}
    losses = losses_of(lists, list(observations.unbind(1)))
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name], msg=name)


def test_sticks_of_the_data_set_are_said_once():
    outputs, observations = example()
    a, b = (outputs[name][0, 0] for name in ("stick_a", "stick_b"))
    per_frame = outputs | {"stick_a": a.expand(B, T, K - 1), "stick_b": b.expand(B, T, K - 1)}
    each = ELBOLoss()(per_frame, observations)["hierarchical_kl"]
    said = {
        n: ELBOLoss(num_frames=n)(outputs | {"stick_a": a, "stick_b": b}, observations)["hierarchical_kl"]
        for n in (None, 1, B * T, 10**9)
    }
    torch.testing.assert_close(said[1], each)
    torch.testing.assert_close(said[None], said[B * T])
    sticks = (said[1] - said[10**9]) / (1 - 1e-9)
    torch.testing.assert_close(said[B * T], said[10**9] + sticks * (1 / (B * T) - 1e-9))


def test_all_totals_pass_gradcheck():
    outputs, observations = example()
    # Not the tensors that a term holds fixed: the difference would show them as moving.
    names = [
        name for name, value in outputs.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not name.startswith("token")
    ]  # fmt: skip
    aggregator = LossAggregator(predictive=PredictiveLoss(detach_target=False))

    def totals(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(aggregator.compute_losses(outputs | dict(zip(names, values, strict=True)), observations)[1])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert gradcheck(totals, [outputs[name] for name in names], fast_mode=True, atol=1e-4)


def test_what_is_held_fixed_gets_no_gradient():
    outputs, observations = example()
    losses = losses_of(outputs, observations)

    def reached(term: str) -> set[str]:
        leaves = {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.requires_grad}
        gradients = torch.autograd.grad(losses[term], list(leaves.values()), retain_graph=True, allow_unused=True)
        return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None}

    assert reached("vq_commitment_loss") == {"token_encoding"}
    assert reached("vq_codebook_loss") == {"token_code"}
    assert reached("attention_dynamics_loss") == {"predicted_attention"}
    assert reached("attention_diversity") == {"attention"}
    assert reached("generator_loss") == {"fake_logits"}
    assert reached("kl_z") == {
        "latent_mean", "latent_log_variance", "prior_mean", "prior_log_variance", "responsibilities",
    }  # fmt: skip
    assert not losses["codebook_perplexity"].requires_grad
    real = outputs["real_features"]
    assert torch.autograd.grad(losses["feature_matching_loss"], real, allow_unused=True) == (None, None)

    moving = PredictiveLoss(detach_target=False)(outputs, observations)["attention_dynamics_loss"]
    assert torch.autograd.grad(moving, outputs["attention"])[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_have_finite_losses_and_gradients(dtype):
    outputs, observations = example(dtype=dtype)
    sure = one_hot(torch.zeros(B, T, S, dtype=torch.long), h * w).to(dtype).view(B, T, S, h, w)
    outputs |= {
        "attention": sure,
        "attention_prior": sure.flip(-1),
        "predicted_attention": sure[:, 1:].flip(-1),
        "responsibilities": one_hot(torch.full((B, T), 2), K).to(dtype),
        "slots": torch.zeros(B, T, S, F, dtype=dtype),
        "latent_log_variance": torch.full((B, T, D), -1e5, dtype=dtype),
        "prior_log_variance": torch.full((K, D), 1e5, dtype=dtype),
        "stick_a": torch.full((K - 1,), 1e-3, dtype=dtype),
        "stick_b": torch.full((K - 1,), 1e4, dtype=dtype),
        "fake_logits": torch.tensor([-1e4, 1e4, 0], dtype=dtype),
    }
    leaves = {name: value.detach().requires_grad_() for name, value in outputs.items()
              if isinstance(value, Tensor) and value.is_floating_point()}  # fmt: skip
    losses, task_losses = LossAggregator().compute_losses(outputs | leaves, observations)
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(task_losses).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    outputs, observations = example(dtype=dtype)
    losses = losses_of(outputs, observations)
    exact = losses_of(*example())
    for name in TERMS:
        assert losses[name].dtype is torch.float32
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.05, abs=0.05), name


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("latent_mean", (B, 5, D), r"latent_mean has the shape \(2, 5, 4\); expected \(B, T, D\) with B = 2, T = 4"),
        ("latent_log_variance", (B, T, D + 1), r"latent_log_variance .*\(B, T, D\) with B = 2, T = 4, D = 4"),
        ("prior_mean", (K, D + 1), r"prior_mean .*expected \(K, D\) or \(B, T, K, D\)"),
        ("prior_log_variance", (K + 1, D), r"prior_log_variance .*with B = 2, T = 4, D = 4, K = 3"),
        ("responsibilities", (B, T, K + 1), r"responsibilities .*\(B, T, K\)"),
        ("stick_a", (K,), r"stick_a has the shape \(3,\); expected \(K-1\) or \(B, T, K-1\) with .*K = 3"),
        ("slots", (B, T, F), r"slots .*\(B, T, S, F\)"),
        ("attention", (B, T, S, h * w), r"attention .*\(B, T, S, h, w\)"),
        ("attention_prior", (B, T, S, w, h), r"attention_prior .*h = 2, w = 3"),
        ("predicted_attention", (B, T, S, h, w), r"predicted_attention .*\(B, T-1, S, h, w\) with .*T = 4"),
        ("reconstruction", (B, T, C, H, W + 1), r"reconstruction .*W = 6"),
        ("perceiver_reconstruction", (B, T, C, H), r"perceiver_reconstruction has the shape"),
        ("token_encoding", (0, E), r"token_encoding is torch.float32 of the shape \(0, 6\)"),
        ("token_code", (B, T, M, E + 1), r"token_code .*expected that of token_encoding, \(2, 4, 4, 6\)"),
        ("token_index", (B, T), r"token_index .*\(2, 4, 4\)"),
        ("fake_logits", (0,), r"fake_logits is torch.float32 of the shape \(0,\)"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_named_with_what_was_expected(name, shape, message):
    outputs, observations = example()
    with pytest.raises(ValueError, match=message):
        LossAggregator().compute_losses(outputs | {name: torch.zeros(shape)}, observations)


@pytest.mark.parametrize("name", [*example()[0]])
def test_what_is_missing_is_named(name):
    outputs, observations = example()
    del outputs[name]
    if name in ("attention_prior", "fake_logits"):
        LossAggregator().compute_losses(outputs, observations)
        return
    with pytest.raises(ValueError, match=name):
        LossAggregator().compute_losses(outputs, observations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_mean": "mean"}, "latent_mean is a str; expected a tensor"),
        ({"latent_mean": torch.zeros(B, T, D, dtype=torch.long)}, "latent_mean is of torch.int64; expected floating"),
        ({"latent_mean": [torch.zeros(B, D), torch.zeros(B, D + 1)]}, "latent_mean is a list of tensors of the shapes"),
        ({"token_index": torch.zeros(B, T, M)}, "token_index is of torch.float32; expected integers"),
        ({"fake_features": [torch.zeros(2, 3)]}, "real_features have the shapes .* expected the same"),
        ({"fake_features": None}, "real_features and no fake_features; give both or neither"),
    ],
)
def test_other_mistakes_are_named(change, message):
    outputs, observations = example()
    with pytest.raises(ValueError, match=message):
        LossAggregator().compute_losses(outputs | change, observations)


def test_observations_are_checked():
    outputs, observations = example()
    for wrong in (observations[0], observations.byte(), observations[:, :0]):
        with pytest.raises(ValueError, match="observations"):
            LossAggregator().compute_losses(outputs, wrong)
    with pytest.raises(ValueError, match="1 frame; attention dynamics need at least 2"):
        PredictiveLoss()(outputs, observations[:, :1])


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["beta", "lambda_recon", "entropy_weight", "lambda_gan"])
def test_weights_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        LossAggregator().compute_losses(*example(), **{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELBOLoss(observation_std=0), "observation_std is 0"),
        (lambda: ELBOLoss(concentration=-1.0), "concentration is -1.0"),
        (lambda: ELBOLoss(num_frames=0), "num_frames is 0"),
        (lambda: PerceiverLoss(observation_std=math.inf), "observation_std is inf"),
        (lambda: AdversarialLoss("wgan"), "unknown kind 'wgan'; choose from non_saturating, hinge"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_adversarial_losses_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    real, fake = (4 * torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    loss = AdversarialLoss()
    torch.testing.assert_close(loss.generator(fake), binary_cross_entropy_with_logits(fake, ones))
    expected = binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(loss.discriminator(real, fake), expected)
    hinge = AdversarialLoss("hinge")
    torch.testing.assert_close(hinge.generator(fake), -fake.mean())
    torch.testing.assert_close(hinge.discriminator(real, fake), (1 - real).relu().mean() + (1 + fake).relu().mean())
    for kind in (loss, hinge):
        sure = torch.full((3,), 900.0)
        assert kind.discriminator(sure, -sure) == 0
        assert kind.discriminator(-sure, sure).isfinite()
        with pytest.raises(ValueError, match="real_logits is"):
            kind.discriminator(torch.zeros(0), fake)


def test_the_discriminators_loss_teaches_it_and_the_generators_loss_teaches_the_generator():
    """Each with its own step, each loss falls under its own step."""
    torch.manual_seed(0)
    generator, discriminator = nn.Linear(3, 2), nn.Linear(2, 1)
    noise, real, loss = torch.randn(64, 3), torch.randn(64, 2) + 3, AdversarialLoss()

    def judged() -> Tensor:
        return loss.discriminator(discriminator(real), discriminator(generator(noise).detach()))

    first = judged()
    first.backward()
    assert all(p.grad is None for p in generator.parameters())
    with torch.no_grad():
        for p in discriminator.parameters():
            p.sub_(0.1 * p.grad)
    assert judged() < first

    discriminator.requires_grad_(False)
    made = loss.generator(discriminator(generator(noise)))
    discriminator.zero_grad()
    made.backward()
    assert all(p.grad is None for p in discriminator.parameters())
    with torch.no_grad():
        for p in generator.parameters():
            p.sub_(0.1 * p.grad)
    assert loss.generator(discriminator(generator(noise))) < made


def test_a_balancer_takes_the_task_losses():
    outputs, observations = example()
    shared = torch.ones(1, dtype=torch.float64, requires_grad=True)
    scaled = {
        name: value * shared if isinstance(value, Tensor) and value.requires_grad else value
        for name, value in outputs.items()
    }
    _, task_losses = LossAggregator().compute_losses(scaled, observations)
    weights = RGB().backward(task_losses, [shared])
    assert weights.shape == (4,)
    assert shared.grad.isfinite()
    assert outputs["token_code"].grad.abs().sum() > 0


def test_metrics_are_detached_numbers():
    losses = losses_of(*example())
    metrics = loss_metrics(losses)
    assert metrics == {name: loss.item() for name, loss in losses.items()}
    assert all(type(value) is float for value in metrics.values())
    assert loss_metrics({}) == {}


def test_parameter_groups_hold_each_parameter_once():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    for perceiver in (model[1], nn.Linear(4, 4)):
        groups = parameter_groups(model, perceiver, lr=0.1)
        assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.15])
        assert {id(p) for p in groups[1]["params"]} == {id(p) for p in perceiver.parameters()}
        together = [id(p) for group in groups for p in group["params"]]
        assert len(together) == len(set(together))
        assert set(together) == {id(p) for module in (model, perceiver) for p in module.parameters()}
        torch.optim.Adam(groups)
