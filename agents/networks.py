"""Q-networks that all tasks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtrl.gradients import LayerRule, Saved, Scratch, TaskRows, register_rule


class TaskEmbedding(nn.Module):
    """Replaces the one-hot of T tasks at the end of the input by a learned vector: (N, S + T) to (N, S + E).

    Args:
        num_tasks: T.
        dim: E.
    """

    def __init__(self, num_tasks: int, dim: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        # nn.Embedding starts at standard deviation 1, where it would drown the state, whose values are below that:
        # a tenth lets the tasks start out alike and part where they have to.
        self.weight = nn.Parameter(0.1 * torch.randn(num_tasks, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Look the task's vector up, as a product so that it is one operation."""
        return torch.cat((x[:, : -self.num_tasks], x[:, -self.num_tasks :] @ self.weight), 1)


class _TaskEmbeddingRule(LayerRule):
    def forward(self, layer: TaskEmbedding, x: Tensor, scratch: Scratch | None) -> tuple[Tensor, Saved]:
        return layer(x), (x,)

    def backward(
        self,
        layer: TaskEmbedding,
        saved: Saved,
        grad: Tensor,
        rows: TaskRows,
        scratch: Scratch | None,
        needs_input: bool,
    ) -> Tensor | None:
        tasks, dim = layer.weight.shape
        one_hot = saved[0][:, -tasks:].reshape(rows.num_tasks, -1, tasks)  # (T, B, tasks)
        embedded = grad[:, -dim:].reshape(rows.num_tasks, -1, dim)  # (T, B, dim)
        rows.add_product(layer.weight, one_hot.mT, embedded)
        if not needs_input:
            return None
        return torch.cat((grad[:, :-dim], grad[:, -dim:] @ layer.weight.t()), 1)


register_rule(TaskEmbedding, _TaskEmbeddingRule())


class SharedQNetwork(nn.Module):
    """Action values of all tasks: a multi-layer perceptron with ReLU, over the task's embedding where it is told.

    With the defaults 37,788 parameters for three tasks (aware) and 35,716 (blind), on 8 state values and 4 actions.

    Args:
        observation_size: O; in the aware variant the last `num_tasks` of them are the task's one-hot.
        num_actions: A.
        num_tasks: tasks in the one-hot, 0 for the blind variant.
        embedding_dim: size of the task embedding. Default 8.
        hidden_dims: widths of the hidden layers. Default (256, 128).

    Raises:
        ValueError: no hidden layer, or a width below 1.
    """

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int = 0,
        embedding_dim: int = 8,
        hidden_dims: Sequence[int] = (256, 128),
    ) -> None:
        super().__init__()
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims is {tuple(hidden_dims)}; it needs at least one width, each at least 1")
        if num_tasks and embedding_dim < 1:
            raise ValueError(f"embedding_dim is {embedding_dim}; it must be at least 1")
        layers: list[nn.Module] = []
        width = observation_size
        if num_tasks:
            layers.append(TaskEmbedding(num_tasks, embedding_dim))
            width += embedding_dim - num_tasks
        for hidden in hidden_dims:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_actions))

    @property
    def last_shared_layer(self) -> nn.Module:
        """The last hidden layer, whose weights norm-balancing methods measure gradients on."""
        return self.layers[-3]

    def forward(self, observations: Tensor) -> Tensor:
        """(N, O) to action values (N, A)."""
        values: Tensor = self.layers(observations)
        return values
