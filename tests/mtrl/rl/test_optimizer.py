"""The optimizer's short way against torch.optim's own."""

import copy

import pytest
import torch

from mtrl.rl.optimizer import FlatAdam


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_steps_of_adamw(weight_decay):
    start = torch.randn(50, generator=torch.Generator().manual_seed(0))
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    flat = FlatAdam(mine, 1e-2, weight_decay)
    reference = torch.optim.AdamW([theirs], 1e-2, weight_decay=weight_decay, fused=True)
    for seed in range(20):
        gradient = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        for optimizer in (flat, reference):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + seed)
        flat.update(gradient)
        theirs.grad = gradient.clone()
        reference.step()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert mine.grad is None
    if weight_decay == 0:
        adam = torch.optim.Adam([other := torch.nn.Parameter(start.clone())], 1e-2, fused=True)
        again = FlatAdam(same := torch.nn.Parameter(start.clone()), 1e-2)
        for _ in range(3):
            other.grad = gradient.clone()
            adam.step()
            again.update(gradient)
        torch.testing.assert_close(same, other, rtol=0, atol=0)


def test_a_state_without_a_step_begins_anew():
    flat = FlatAdam(mine := torch.nn.Parameter(torch.ones(4)), 0.1)
    other = torch.optim.Adam([theirs := torch.nn.Parameter(torch.ones(4))], 0.1, fused=True)
    flat.update(torch.arange(4.0))
    flat.load_state_dict({"state": {}, "param_groups": flat.state_dict()["param_groups"]})
    with torch.no_grad():
        mine.fill_(1.0)
    flat.update(torch.arange(4.0))
    theirs.grad = torch.arange(4.0)
    other.step()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_its_state_goes_on_where_it_was():
    one = FlatAdam(first := torch.nn.Parameter(torch.ones(4)), 0.1)
    one.update(torch.arange(4.0))
    two = FlatAdam(second := torch.nn.Parameter(first.detach().clone()), 0.1)
    two.load_state_dict(copy.deepcopy(one.state_dict()))  # the tensors in it are the optimizer's own
    for optimizer in (one, two):
        optimizer.update(torch.ones(4))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
