"""Recurrent encoders: a parameter is used at every time step, and the graph is long."""

import pytest
import torch
from torch import Tensor, nn

from tests.outside.reference import TASKS, batch, check, every_balancer, every_engine


class Recurrent(nn.Module):
    """A recurrent encoder with one head per task, some of which read the last state and some all of them."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = kind(2, 4, layers, batch_first=True, bidirectional=bidirectional)
        self.heads = nn.ModuleList(nn.Linear(4 * (1 + bidirectional), 1) for _ in range(TASKS))
        self.double()

    def losses(self, step: int) -> list[Tensor]:
        states, _ = self.encoder(batch(step, 3 * 5, 2).view(3, 5, 2))
        reads = [states[:, -1], states.mean(1), states]
        return [
            (head(read) - 2 * task).pow(2).mean()
            for task, (head, read) in enumerate(zip(self.heads, reads, strict=True))
        ]


def shared(model: Recurrent) -> list[Tensor]:
    return list(model.encoder.parameters())


def measured(model: Recurrent) -> Tensor:
    return next(p for name, p in reversed(list(model.encoder.named_parameters())) if name.startswith("weight"))


@every_balancer
@every_engine
def test_an_lstm(name: str, low_memory: bool) -> None:
    check(Recurrent(nn.LSTM), lambda model, step: model.losses(step), shared, name, low_memory, measured=measured)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@every_engine
def test_layers_in_both_directions(kind: type[nn.RNNBase], low_memory: bool) -> None:
    check(
        Recurrent(kind, 2, bidirectional=True),
        lambda model, step: model.losses(step),
        shared,
        "rgb",
        low_memory,
        measured=measured,
    )


class Cells(nn.Module):
    """A loop over time with a cell: one node per time step leads to the same weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.LSTMCell(2, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(TASKS))
        self.double()

    def losses(self, step: int, length: int = 30) -> list[Tensor]:
        x = batch(step, length * 3, 2).view(length, 3, 2)
        state = None
        losses = torch.zeros(TASKS, dtype=torch.float64).unbind()
        for index in range(length):
            state = self.cell(x[index], state)
            losses = [
                loss + (head(state[0]) - task).pow(2).mean() / length
                for task, (head, loss) in enumerate(zip(self.heads, losses, strict=True))
            ]
        return losses


@every_balancer
@every_engine
def test_a_loop_over_time_with_a_loss_at_every_step(name: str, low_memory: bool) -> None:
    check(
        Cells(),
        lambda model, step: model.losses(step),
        lambda model: list(model.cell.parameters()),
        name,
        low_memory,
        measured=lambda model: model.cell.weight_hh,
    )


@every_engine
def test_truncated_backpropagation_detaches_the_state(low_memory: bool) -> None:
    """A state that was detached carries no graph of the segment before."""
    states: dict[int, Tensor] = {}

    def losses(model: Cells, step: int) -> list[Tensor]:
        state = states.get(id(model))
        following = model.cell(batch(step, 3, 2), None if state is None else (state.detach(), torch.zeros_like(state)))
        states[id(model)] = following[0]
        return [(head(following[0]) - task).pow(2).mean() for task, head in enumerate(model.heads)]

    check(
        Cells(),
        losses,
        lambda model: list(model.cell.parameters()),
        "gradnorm",
        low_memory,
        steps=3,
        measured=lambda model: model.cell.weight_hh,
    )
