"""The shared encoder with its heads, their losses, and synthetic tasks that are as related as they claim."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mtrl import EqualWeights, MultiTaskModel, SharedEncoder, TaskHead, make_balancer
from mtrl import generate_synthetic_multi_task_data as generate
from mtrl.models import _teacher_features, multi_task_loss, task_losses

CLASSIFICATIONS = [{"type": "classification", "num_classes": 3}, {"type": "classification", "num_classes": 2}]
MIXED = [CLASSIFICATIONS[0], {"name": "height", "type": "regression"}]


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_the_documented_example():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task_configs = [{"type": "classification", "num_classes": 3}, {"type": "classification", "num_classes": 2}]
    model = MultiTaskModel(input_dim=16, shared_hidden=[64, 64], shared_dim=32, task_configs=task_configs).to(device)
    features, labels_list = generate(100, 16, [3, 2], device, seed=42)
    logits_list = model(features)
    loss = multi_task_loss(logits_list, labels_list, weights=[1.0, 1.0])
    loss.backward()
    assert loss.ndim == 0
    assert [tuple(logits.shape) for logits in logits_list] == [(100, 3), (100, 2)]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_parts_have_the_shapes_they_say():
    assert [tuple(layer.weight.shape) for layer in SharedEncoder(16, [64, 8], 4) if hasattr(layer, "weight")] == [
        (64, 16),
        (8, 64),
        (4, 8),
    ]
    assert SharedEncoder(5, [], 4)(torch.zeros(7, 5)).shape == (7, 4)
    assert TaskHead(4, 3)(torch.zeros(7, 4)).shape == (7, 3)
    assert TaskHead(4)(torch.zeros(7, 4)).shape == (7,)
    model = MultiTaskModel(5, [6], 4, MIXED)
    assert model.task_names == ["task_0", "height"]
    assert [tuple(output.shape) for output in model(torch.zeros(7, 5))] == [(7, 3), (7,)]


def test_a_head_learns_from_its_own_task_alone_and_the_encoder_from_all():
    model = MultiTaskModel(6, [8], 4, MIXED)
    features, targets = generate(32, 6, [3, None])
    task_losses(model(features), targets)[0].backward()
    found = gradients(model)
    assert all((found[name] is None) == name.startswith("heads.1") for name in found)


def test_losses_are_cross_entropy_and_squared_error():
    torch.manual_seed(0)
    logits, classes = torch.randn(9, 3), torch.randint(3, (9,))
    values, targets = torch.randn(9), torch.randn(9)
    first, second = task_losses([logits, values], [classes, targets])
    by_hand = -(logits[torch.arange(9), classes] - logits.logsumexp(1)).mean()
    torch.testing.assert_close(first, by_hand)
    torch.testing.assert_close(second, ((values - targets) ** 2).mean())
    torch.testing.assert_close(multi_task_loss([logits, values], [classes, targets]), first + second)
    for dtype in (torch.int32, torch.int16, torch.uint8):  # of labels that come from NumPy
        torch.testing.assert_close(task_losses([logits], [classes.to(dtype)])[0], first)
    torch.testing.assert_close(
        task_losses([logits[:, :2]], [classes > 0])[0], task_losses([logits[:, :2]], [(classes > 0).long()])[0]
    )
    weighted = multi_task_loss([logits, values], [classes, targets], [0.5, 2.0])
    torch.testing.assert_close(weighted, 0.5 * first + 2 * second)


def test_equal_weights_give_the_gradient_of_the_summed_loss():
    model = MultiTaskModel(6, [8], 4, MIXED)
    features, targets = generate(32, 6, [3, None])
    multi_task_loss(model(features), targets).backward()
    expected = gradients(model)
    model.zero_grad()
    EqualWeights().backward(task_losses(model(features), targets), model.encoder.parameters())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize("name", ["gradnorm", "pcgrad", "rgb", "aim"])
def test_any_balancer_trains_it(name):
    torch.manual_seed(0)
    model, balancer = MultiTaskModel(6, [16], 4, MIXED), make_balancer(name, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    features, targets = generate(128, 6, [3, None], relatedness=1.0)
    before = multi_task_loss(model(features), targets).item()
    for _ in range(60):
        optimizer.zero_grad()
        balancer.backward(task_losses(model(features), targets), model.encoder.parameters())
        optimizer.step()
    assert multi_task_loss(model(features), targets).item() < 0.6 * before


@given(st.integers(1, 4), st.integers(0, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_teachers_features_are_as_related_as_they_claim(num_tasks, extra, relatedness, seed):
    generator = torch.Generator().manual_seed(seed)
    features = _teacher_features(num_tasks + 1 + extra, num_tasks, relatedness, generator)  # (T, input_dim, H)
    count = features.shape[2]
    assert count == (num_tasks + 1 + extra) // (num_tasks + 1)
    products = torch.einsum("tih,uik->tuhk", features, features)
    wanted = torch.full((num_tasks, num_tasks), relatedness)
    wanted.fill_diagonal_(1.0)
    torch.testing.assert_close(
        products, wanted[:, :, None, None] * torch.eye(count).expand_as(products), atol=1e-4, rtol=0
    )


@given(
    st.integers(5, 200),
    st.lists(st.none() | st.integers(2, 5), min_size=1, max_size=3),
    st.floats(0, 1),
    st.floats(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_synthetic_data_are_balanced_standardised_and_reproducible(num_samples, num_classes, relatedness, noise):
    options = {"seed": 3, "relatedness": relatedness, "noise": noise}
    features, targets = generate(num_samples, 8, num_classes, **options)
    torch.rand(1)  # the global generator plays no part
    again, targets_again = generate(num_samples, 8, num_classes, "cpu", **options)
    assert torch.equal(features, again)
    assert features.shape == (num_samples, 8)
    for target, other, classes in zip(targets, targets_again, num_classes, strict=True):
        assert torch.equal(target, other)
        assert target.shape == (num_samples,)
        if classes is None:
            assert abs(float(target.mean())) < 1e-4
            assert abs(float(target.std(correction=0)) - 1) < 1e-3
        else:
            counts = torch.bincount(target, minlength=classes)
            assert counts.max() - counts.min() <= 1
            assert len(counts) == classes


def test_other_seeds_give_other_data():
    assert not torch.equal(generate(10, 4, [2], seed=0)[0], generate(10, 4, [2], seed=1)[0])


def test_more_noise_leaves_less_to_be_learned():
    def explained(noise):
        features, (target,) = generate(2000, 8, [None], noise=noise)
        fit = features @ torch.linalg.lstsq(features, target[:, None]).solution[:, 0]
        return 1 - float(functional.mse_loss(fit, target))

    shares = [explained(noise) for noise in (0.0, 0.5, 2.0, 100.0)]
    assert shares[0] > 0.7
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.05


@pytest.mark.parametrize(
    ("relatedness", "low", "high"),
    [(0.0, 0.0, 0.15), (1.0, 0.95, 1.0)],
)
def test_related_tasks_depend_on_the_same_directions_of_the_input(relatedness, low, high):
    # Of a regression's gradient with respect to the input, estimated by Stein's lemma E[x y], within the other's span.
    features, (first, second) = generate(50_000, 12, [None, None], seed=1, relatedness=relatedness, noise=0.0)
    teachers = _teacher_features(12, 2, relatedness, torch.Generator().manual_seed(1))
    direction = features.T @ first / len(first)  # (input_dim,)
    own, others = (float((teacher.T @ direction).norm() / direction.norm()) for teacher in teachers)
    assert own > 0.95
    assert low <= others <= high + 1e-3
    assert second.shape == first.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiTaskModel(4, [], 2, []), "task_configs is empty"),
        (lambda: MultiTaskModel(0, [], 2, MIXED), "input_dim is 0"),
        (lambda: MultiTaskModel(4, [3, 0], 2, MIXED), "hidden is 0"),
        (lambda: MultiTaskModel(4, [], 0, MIXED), "output_dim is 0"),
        (lambda: MultiTaskModel(4, [], 2, [{"type": "ranking"}]), "task 0 has the type 'ranking'; types are classif"),
        (lambda: MultiTaskModel(4, [], 2, [{"type": "classification"}]), "task 0 has num_classes None"),
        (
            lambda: MultiTaskModel(4, [], 2, [{"type": "classification", "num_classes": 1}]),
            "num_classes of task 0 is 1",
        ),
        (lambda: MultiTaskModel(4, [], 2, [MIXED[1] | {"num_classes": 2}]), "task 0 is a regression"),
        (lambda: MultiTaskModel(4, [], 2, [{"type": "regression", "classes": 2}]), "unknown key 'classes'; keys are"),
        (lambda: TaskHead(4, 1), "num_classes is 1"),
        (lambda: task_losses([], []), "outputs of 0 tasks"),
        (lambda: task_losses([torch.zeros(3)], []), "outputs of 1 tasks and targets of 0"),
        (lambda: task_losses([torch.zeros(3, 1)], [torch.zeros(3)]), r"task 0 has outputs \(3, 1\) for targets \(3,\)"),
        (lambda: task_losses([torch.zeros(3, 2)], [torch.zeros(3, 1).long()]), "task 0 has logits"),
        (lambda: task_losses([torch.zeros(3, 2)], [torch.zeros(3)]), r"if they are classes, give integers"),
        (lambda: task_losses([torch.zeros(3)], [torch.zeros(3).int()]), r"for a regression, give targets.float\(\)"),
        (lambda: task_losses([torch.zeros(3, 2)], [torch.arange(3)]), "task 0 has classes from 0 to 2 for 2 logits"),
        (lambda: task_losses([torch.zeros(3, 2)], [[0, 1, 1]]), "the targets of task 0 are a list"),
        (lambda: MultiTaskModel(4, 8, 2, MIXED), r"hidden is 8; it must be a list"),
        (lambda: multi_task_loss([torch.zeros(3)], [torch.zeros(3)], [1.0, 2.0]), "2 weights for 1 tasks"),
        (lambda: generate(10, 2, [2, 2]), "input_dim is 2; teachers of 2 tasks need at least 3"),
        (lambda: generate(0, 4, [2]), "num_samples is 0"),
        (lambda: generate(10, 4, []), "num_tasks is 0"),
        (lambda: generate(10, 4, [1]), "num_classes has 1"),
        (lambda: generate(10, 4, [11]), "num_classes has 11"),
        (lambda: generate(10, 4, [2], relatedness=1.5), "relatedness is 1.5"),
        (lambda: generate(10, 4, [2], noise=float("nan")), "noise is nan"),
        (lambda: generate(10, 4, [2], noise=-1.0), "noise is -1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
