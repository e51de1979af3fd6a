"""Q-networks that all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mtrl.gradients import LayerRule, Saved, Step, TaskRows, register_rule, register_step
from mtrl.limits import (
    LARGEST_EMBEDDING,
    MOST_LAYERS,
    WIDEST_LAYER,
    check_choice,
    check_integer,
    check_parameters,
    perceptron_parameters,
)

HEADS = ("shared", "per_task")


class TaskEmbedding(nn.Module):
    """Replaces the one-hot of T tasks at the end of the input by a learned vector: (N, S + T) becomes (N, S + E).

    Args:
        num_tasks: T.
        dim: E.
    """

    def __init__(self, num_tasks: int, dim: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        # nn.Embedding starts with standard deviation 1, which would outweigh the smaller values of the state. With a
        # tenth of it the tasks begin nearly alike, and training separates them as far as necessary.
        self.weight = nn.Parameter(0.1 * torch.randn(num_tasks, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Replace the one-hot by its task's vector. A product with the weights does this in one operation."""
        return torch.cat((x[:, : -self.num_tasks], x[:, -self.num_tasks :] @ self.weight), 1)


class _TaskEmbeddingRule(LayerRule):
    def forward(self, layer: TaskEmbedding, x: Tensor) -> tuple[Tensor, Saved]:
        return layer(x), (x,)

    def backward(
        self, layer: TaskEmbedding, saved: Saved, grad: Tensor, rows: TaskRows, needs_input: bool
    ) -> Tensor | None:
        tasks, dim = layer.weight.shape
        one_hot = saved[0][:, -tasks:].reshape(rows.num_tasks, -1, tasks)  # (T, B, tasks)
        embedded = grad[:, -dim:].reshape(rows.num_tasks, -1, dim)  # (T, B, dim)
        rows.add_product(layer.weight, one_hot.mT, embedded)
        if not needs_input:
            return None
        return torch.cat((grad[:, :-dim], grad[:, -dim:] @ layer.weight.t()), 1)


class _TaskEmbeddingStep(Step):
    def __init__(self, layer: TaskEmbedding, x: Tensor) -> None:
        self.layer, self.weight = layer, layer.weight.detach()
        self.state, self.one_hot = x[:, : -layer.num_tasks], x[:, -layer.num_tasks :]
        dim = self.weight.shape[1]
        self.y = x.new_empty(len(x), self.state.shape[1] + dim)
        self.y_state, self.y_embedded = self.y[:, :-dim], self.y[:, -dim:]

    def forward(self) -> None:
        self.y_state.copy_(self.state)
        torch.mm(self.one_hot, self.weight, out=self.y_embedded)

    def backward(
        self, grad: Tensor, rows: TaskRows | None, needs_input: bool
    ) -> tuple[Tensor | None, Callable[[], object]]:
        dim = self.weight.shape[1]
        if rows is None:
            return self._back_to_input(grad, dim)
        assert not needs_input, "observations have no gradient: the embedding comes first"
        weight_rows = rows.of(self.layer.weight)
        one_hot_t = self.one_hot.view(rows.num_tasks, -1, self.layer.num_tasks).mT  # (T, tasks, B)
        grad_embedded = grad.view(rows.num_tasks, -1, grad.shape[1])[..., -dim:]  # (T, B, dim)
        return None, partial(torch.bmm, one_hot_t, grad_embedded, out=weight_rows)

    def _back_to_input(self, grad: Tensor, dim: int) -> tuple[Tensor, Callable[[], object]]:
        grad_x = grad.new_empty(len(grad), self.state.shape[1] + self.layer.num_tasks)
        of_state, of_one_hot = grad_x[:, : -self.layer.num_tasks], grad_x[:, -self.layer.num_tasks :]

        def run() -> None:
            of_state.copy_(grad[:, :-dim])
            torch.mm(grad[:, -dim:], self.weight.t(), out=of_one_hot)

        return grad_x, run


register_rule(TaskEmbedding, _TaskEmbeddingRule())
register_step(TaskEmbedding, _TaskEmbeddingStep)


def check_widths(hidden_dims: Sequence[int]) -> None:
    """Check the widths of the hidden layers.

    Raises:
        ValueError: they are no list of integers, or there are more than 100, or one is out of its limits.
    """
    limits = f"of at most {MOST_LAYERS} widths, each between 1 and {WIDEST_LAYER}"
    if isinstance(hidden_dims, str) or not isinstance(hidden_dims, Sequence):
        raise ValueError(f"hidden_dims is {hidden_dims!r}; it must be a list {limits}")
    count = len(hidden_dims)
    if not (count <= MOST_LAYERS and all(type(w) is int and 1 <= w <= WIDEST_LAYER for w in hidden_dims)):
        shown = f"{tuple(hidden_dims)}" if count <= MOST_LAYERS else f"{count} widths"
        raise ValueError(f"hidden_dims is {shown}; it must be a list {limits}")


class TaskHeads(nn.Linear):
    """The last layer of each of T tasks, from the features that they share to the task's own A action values.

    Args:
        num_tasks: T.
        width: the number of features.
        num_actions: A.
    """

    def __init__(self, num_tasks: int, width: int, num_actions: int) -> None:
        super().__init__(width, num_tasks * num_actions)
        self.num_tasks, self.num_actions = num_tasks, num_actions

    def layer_of_tasks(self) -> tuple[Tensor, Tensor]:
        """The weights (T, A, width) and biases (T, A) of the tasks' layers, which share the parameters' memory."""
        weight, bias = self.weight, self.bias
        return weight.view(self.num_tasks, self.num_actions, -1), bias.view(self.num_tasks, self.num_actions)

    def forward(self, features: Tensor, one_hot: Tensor) -> Tensor:  # type: ignore[override] # which head is needed
        """Action values (N, A) for features (N, width) of the tasks in the one-hot (N, T)."""
        values = super().forward(features).view(-1, self.num_tasks, self.num_actions)
        return values[torch.arange(len(values), device=values.device), one_hot.argmax(1)]


class SharedQNetwork(nn.Module):
    """Action values of all tasks: a multi-layer perceptron, with a task embedding in the aware variant.

    With the defaults, 8 state values and 4 actions, it has 37,788 parameters for three tasks (aware) or 35,716 (blind).

    Args:
        observation_size: O; in the aware variant the last `num_tasks` of them are the task's one-hot.
        num_actions: A.
        num_tasks: tasks in the one-hot, 0 for the blind variant.
        embedding_dim: size of the task embedding. Default 8.
        hidden_dims: widths of the hidden layers; none for a linear network. Default (256, 128).
        layer_norm: normalise each hidden layer before its activation (Ba et al. 2016,
            https://arxiv.org/abs/1607.06450), without learned scale and shift, so that the number of parameters does
            not change. Default True.
        activation_fn: the class of the activations. Default `nn.ReLU`, which is also the fastest here.
        heads: `"shared"`, or `"per_task"` for a last layer of each task's own. What belongs to a single task is not
            balanced, and its gradient is the ordinary one. Default `"shared"`.

    Attributes:
        layers: all layers, or with own heads all layers before them.
        heads: the own heads; None if the last layer is shared.

    Raises:
        ValueError: there are more than 100 hidden layers, a width is below 1 or above 65,536, the embedding is above
            4,096, there would be over 100,000,000 parameters, or own heads have no one-hot to go by or no hidden layer
            before them. Nothing has been allocated then.
    """

    def __init__(
        self,
        observation_size: int,
        num_actions: int,
        num_tasks: int = 0,
        embedding_dim: int = 8,
        hidden_dims: Sequence[int] = (256, 128),
        layer_norm: bool = True,
        activation_fn: type[nn.Module] = nn.ReLU,
        heads: str = "shared",
    ) -> None:
        super().__init__()
        check_widths(hidden_dims)
        check_choice("heads", heads, HEADS)
        if not (isinstance(activation_fn, type) and issubclass(activation_fn, nn.Module)):
            raise ValueError(f"activation_fn is {activation_fn!r}; it must be a class such as torch.nn.Tanh")
        width = observation_size
        if num_tasks:
            check_integer("embedding_dim", embedding_dim, 1, LARGEST_EMBEDDING)
            width += embedding_dim - num_tasks
        outputs = num_actions
        if own := heads == "per_task":
            if not num_tasks:
                raise ValueError("heads='per_task' need the task's one-hot: use the variant 'aware'")
            if not hidden_dims:
                raise ValueError("heads='per_task' need a hidden layer that the tasks share; net_arch is empty")
            outputs *= num_tasks
        check_parameters(num_tasks * embedding_dim + perceptron_parameters(width, *hidden_dims, outputs))
        layers: list[nn.Module] = [TaskEmbedding(num_tasks, embedding_dim)] if num_tasks else []
        for hidden in hidden_dims:
            layers.append(nn.Linear(width, hidden))
            if layer_norm:
                layers.append(nn.LayerNorm(hidden, elementwise_affine=False))
            layers.append(activation_fn())
            width = hidden
        self.num_tasks, self.num_hidden = num_tasks, len(hidden_dims)
        self.layers = nn.Sequential(*layers, *(() if own else (nn.Linear(width, num_actions),)))
        self.heads = TaskHeads(num_tasks, width, num_actions) if own else None

    @property
    def last_shared_layer(self) -> nn.Module:
        """The last hidden layer, or the only layer. Methods that balance norms measure the gradients of its weights."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return linear[max(self.num_hidden - 1, 0)]

    @property
    def shared(self) -> nn.Module:
        """The part that tasks share, whose gradients are balanced."""
        return self if self.heads is None else self.layers

    def forward(self, observations: Tensor) -> Tensor:
        """Action values (N, A) for observations (N, O)."""
        values: Tensor = self.layers(observations)
        return values if self.heads is None else self.heads(values, observations[:, -self.num_tasks :])


def shared_part(network: nn.Module) -> nn.Module:
    """The part of a network that tasks share: its `shared`, or all of it."""
    part: nn.Module = getattr(network, "shared", network)
    return part


def private_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that belong to single tasks."""
    shared = set(shared_part(network).parameters())
    return [parameter for parameter in network.parameters() if parameter not in shared]


def in_order(network: nn.Module) -> list[nn.Parameter]:
    """All parameters of a network, those that the tasks share first."""
    return [*shared_part(network).parameters(), *private_parameters(network)]
