"""A transformer whose output layer is its embedding: one parameter at both ends of the graph."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.outside.reference import TASKS, check, every_balancer, every_engine


class Tied(nn.Module):
    """Task 0 predicts tokens with the tied matrix, the others read a pooled state."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.Linear(8, 11, bias=False)
        self.decoder.weight = self.embedding.weight
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(TASKS - 1))
        self.double()

    def losses(self, step: int, padding: int = 0) -> list[Tensor]:
        tokens = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(step))
        mask = torch.zeros(2, 5, dtype=torch.bool)
        mask[:, 5 - padding :] = padding > 0
        torch.manual_seed(step)  # of dropout
        z = self.body(self.embedding(tokens), src_key_padding_mask=mask if padding else None)
        losses = [functional.cross_entropy(self.decoder(z).flatten(0, 1), tokens.roll(1, 1).flatten())]
        return losses + [(head(z.mean(1)) - 3 * task).pow(2).mean() for task, head in enumerate(self.heads)]


def shared(model: Tied) -> list[Tensor]:
    return [model.embedding.weight, *model.body.parameters()]


def measured(model: Tied) -> Tensor:
    weight: Tensor = model.body.layers[1].linear2.weight
    return weight


@every_balancer
@every_engine
def test_tied_weights(name: str, low_memory: bool) -> None:
    check(Tied(), lambda model, step: model.losses(step), shared, name, low_memory, measured=measured)


@pytest.mark.parametrize("name", ["equal", "pcgrad", "rgb"])
@every_engine
def test_tied_weights_are_found_in_the_graph(name: str, low_memory: bool) -> None:
    check(Tied(), lambda model, step: model.losses(step), shared, name, low_memory, given=False)


@pytest.mark.parametrize("name", ["gradnorm", "rgb"])
@every_engine
def test_dropout_and_a_padding_mask(name: str, low_memory: bool) -> None:
    model = Tied(dropout=0.3)
    check(model, lambda model, step: model.losses(step, padding=2), shared, name, low_memory, measured=measured)


@every_engine
def test_scaled_dot_product_attention(low_memory: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.qkv = nn.Linear(8, 24)
            self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(TASKS))
            self.double()

        def losses(self, step: int) -> list[Tensor]:
            x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            q, k, v = self.qkv(x)[:, None].chunk(3, -1)
            z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
            return [(head(z) - task).pow(2).mean() for task, head in enumerate(self.heads)]

    for name in ("pcgrad", "rgb"):
        check(
            Attention(),
            lambda model, step: model.losses(step),
            lambda model: list(model.qkv.parameters()),
            name,
            low_memory,
            given=False,
        )
