"""Sparse gradients of embeddings: private ones pass untouched, shared ones work or are refused by name."""

import copy

import pytest
import torch
from torch import Tensor, nn

import mtrl
from tests.outside.reference import (
    CLOSE,
    TASKS,
    backward_by_hand,
    batch,
    eager,
    every_engine,
    right_or_refused,
)


class Users(nn.Module):
    """A recommender: item features are shared, and each task has an embedding of its own, or all have one."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 4)
        count = 1 if shared else TASKS
        self.embeddings = nn.ModuleList(nn.EmbeddingBag(7, 4, sparse=True, mode="sum") for _ in range(count))
        if not shared:
            self.embeddings[1] = nn.Embedding(7, 4, sparse=True)
        self.double()

    def losses(self, step: int) -> list[Tensor]:
        z = self.encoder(batch(step, 4))
        users = torch.tensor([[1], [3], [3], [step]])
        embedded = [embedding(users).view(4, 4) for embedding in self.embeddings] * (TASKS // len(self.embeddings))
        return [((z * e).sum(1) - 2 * task).pow(2).mean() for task, e in enumerate(embedded)]


def gradients(model: Users) -> list[Tensor]:
    return [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("given", [True, False], ids=["given", "found"])
@pytest.mark.parametrize("name", ["equal", "gradnorm", "pcgrad", "rgb", "aim"])
@every_engine
def test_private_embeddings_keep_their_sparse_gradients(name: str, low_memory: bool, given: bool) -> None:
    model = Users(shared=False)
    twin = copy.deepcopy(model)
    by_hand, balancer = eager(name), eager(name)
    for step in range(2):
        model.zero_grad()
        twin.zero_grad()
        torch.stack(twin.losses(step)).sum().backward()
        twin.encoder.weight.grad = twin.encoder.bias.grad = None
        backward_by_hand(by_hand, twin.losses(step), list(twin.encoder.parameters()), [])
        balancer.backward(model.losses(step), model.encoder.parameters() if given else None, low_memory=low_memory)
        for actual, expected in zip(gradients(model), gradients(twin), strict=True):
            torch.testing.assert_close(actual, expected, **CLOSE)
    for embedding in model.embeddings:
        assert embedding.weight.grad is not None
        assert embedding.weight.grad.is_sparse


@every_engine
def test_sparse_adam_steps_over_private_embeddings(low_memory: bool) -> None:
    model = Users(shared=False)
    optimizer = torch.optim.SparseAdam(list(model.embeddings.parameters()), 0.1)
    before = [embedding.weight.detach().clone() for embedding in model.embeddings]
    mtrl.RGB(TASKS).backward(model.losses(0), model.encoder.parameters(), low_memory=low_memory)
    optimizer.step()
    for embedding, old in zip(model.embeddings, before, strict=True):
        changed = (embedding.weight != old).any(1)
        assert changed.tolist() == [True, True, False, True, False, False, False]


@pytest.mark.parametrize("name", ["equal", "gradnorm", "pcgrad", "rgb"])
@every_engine
def test_a_shared_sparse_embedding_works_or_is_refused(name: str, low_memory: bool) -> None:
    model = Users(shared=True)
    twin = copy.deepcopy(model)
    twin.embeddings[0].sparse = False
    shared = [*twin.encoder.parameters(), twin.embeddings[0].weight]
    with right_or_refused("sparse"):
        backward_by_hand(eager(name), twin.losses(0), shared, [], twin.encoder.weight)
        eager(name).backward(
            model.losses(0),
            [*model.encoder.parameters(), model.embeddings[0].weight],
            model.encoder,
            low_memory=low_memory,
        )
        for actual, expected in zip(gradients(model), gradients(twin), strict=True):
            torch.testing.assert_close(actual, expected, **CLOSE)


@every_engine
def test_a_shared_sparse_embedding_that_is_found_works_or_is_refused(low_memory: bool) -> None:
    model = Users(shared=True)
    with right_or_refused("sparse"):
        mtrl.EqualWeights(TASKS).backward(model.losses(0), low_memory=low_memory)
        twin = copy.deepcopy(model)
        twin.zero_grad()
        torch.stack(twin.losses(0)).sum().backward()
        for actual, expected in zip(gradients(model), gradients(twin), strict=True):
            torch.testing.assert_close(actual, expected, **CLOSE)


@every_engine
def test_products_with_a_sparse_input_are_dense_in_their_gradients(low_memory: bool) -> None:
    """As in graph networks: the adjacency is sparse, the weights are not."""
    torch.manual_seed(0)
    adjacency = torch.eye(6, dtype=torch.float64).roll(1, 0).to_sparse()
    weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(TASKS)).double()

    def losses() -> list[Tensor]:
        z = torch.sparse.mm(adjacency, batch(0, 6) @ weight).tanh()
        return [(head(z) - task).pow(2).mean() for task, head in enumerate(heads)]

    mtrl.EqualWeights(TASKS).backward(losses(), low_memory=low_memory)
    actual = weight.grad
    weight.grad = None
    torch.stack(losses()).sum().backward()
    assert actual is not None
    torch.testing.assert_close(actual, weight.grad)
