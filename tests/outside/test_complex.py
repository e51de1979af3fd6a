"""Complex parameters and complex numbers inside a real model."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.outside.reference import (
    TASKS,
    assert_same_gradients,
    backward_by_hand,
    batch,
    check,
    eager,
    every_balancer,
    every_engine,
    right_or_refused,
)


class Spectral(nn.Module):
    """A layer that multiplies frequencies with weights: complex ones, shared or of one task."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 8).double()
        self.filter = nn.Parameter(torch.randn(5, dtype=torch.complex128 if kind != "real" else torch.float64))
        self.kind = kind
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(TASKS)).double()

    def losses(self, step: int) -> list[Tensor]:
        z = self.encoder(batch(step)).tanh()
        filtered = torch.fft.irfft(torch.fft.rfft(z) * self.filter, n=8)
        inputs = [filtered, filtered if self.kind != "private" else z, filtered if self.kind != "private" else z]
        return [
            (head(x) - 2 * task).pow(2).mean() for task, (head, x) in enumerate(zip(self.heads, inputs, strict=True))
        ]


@every_balancer
@every_engine
def test_complex_numbers_inside_a_model_of_real_parameters(name: str, low_memory: bool) -> None:
    check(
        Spectral("real"),
        lambda model, step: model.losses(step),
        lambda model: [*model.encoder.parameters(), model.filter],
        name,
        low_memory,
        measured=lambda model: model.encoder.weight,
    )


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("name", ["equal", "gradnorm", "pcgrad"])
@every_engine
def test_a_private_complex_parameter_has_its_ordinary_gradient(name: str, low_memory: bool, given: bool) -> None:
    model = Spectral("private")
    twin = copy.deepcopy(model)
    backward_by_hand(
        eager(name), twin.losses(0), list(twin.encoder.parameters()), [twin.filter, *twin.heads.parameters()]
    )
    with right_or_refused("complex"):
        eager(name).backward(model.losses(0), model.encoder.parameters() if given else None, low_memory=low_memory)
        assert_same_gradients(model, twin)


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("name", ["equal", "gradnorm", "pcgrad", "rgb"])
@every_engine
def test_a_shared_complex_parameter_works_or_is_refused(name: str, low_memory: bool, given: bool) -> None:
    """Right is what `torch.view_as_real` gives: a complex number is two real ones."""

    class Twin(Spectral):
        def __init__(self, of: Spectral) -> None:
            super().__init__("shared")
            self.load_state_dict(of.state_dict())
            self.halves = nn.Parameter(torch.view_as_real(of.filter.detach()).clone())
            del self.filter
            self.filter = None

        def losses(self, step: int) -> list[Tensor]:
            z = self.encoder(batch(step)).tanh()
            filtered = torch.fft.irfft(torch.fft.rfft(z) * torch.view_as_complex(self.halves), n=8)
            return [(head(filtered) - 2 * task).pow(2).mean() for task, head in enumerate(self.heads)]

    model = Spectral("shared")
    twin = Twin(model)
    with right_or_refused("complex"):
        backward_by_hand(
            eager(name),
            twin.losses(0),
            [*twin.encoder.parameters(), twin.halves],
            twin.heads.parameters(),
            twin.encoder.weight,
        )
        shared = [*model.encoder.parameters(), model.filter]
        eager(name).backward(model.losses(0), shared if given else None, model.encoder, low_memory=low_memory)
        assert model.filter.grad is not None
        torch.testing.assert_close(torch.view_as_real(model.filter.grad), twin.halves.grad)
        assert_same_gradients(model.encoder, twin.encoder)
        assert_same_gradients(model.heads, twin.heads)
