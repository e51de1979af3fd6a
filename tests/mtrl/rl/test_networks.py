import pytest
import torch

from agents import SharedQNetwork
from mtrl.rl.networks import TaskEmbedding


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_published_ones():
    assert count(SharedQNetwork(11, 4, num_tasks=3)) == 37_788
    assert count(SharedQNetwork(8, 4)) == 35_716


def test_embedding_equals_a_look_up():
    layer = TaskEmbedding(3, 8)
    state, task = torch.randn(20, 8), torch.randint(3, (20,))
    out = layer(torch.cat((state, torch.nn.functional.one_hot(task, 3).float()), 1))
    torch.testing.assert_close(out, torch.cat((state, layer.weight[task]), 1))


def test_last_shared_layer_is_the_last_hidden_one():
    assert SharedQNetwork(11, 4, num_tasks=3).last_shared_layer.weight.shape == (128, 256)
    assert SharedQNetwork(8, 4, hidden_dims=(32,)).last_shared_layer.weight.shape == (32, 8)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="hidden_dims is"):
        SharedQNetwork(8, 4, hidden_dims=(0,))
    with pytest.raises(ValueError, match="embedding_dim is 0"):
        SharedQNetwork(11, 4, num_tasks=3, embedding_dim=0)


def test_layer_norm_adds_no_parameters_and_makes_the_values_independent_of_the_first_layers_scale():
    plain, normed = (SharedQNetwork(8, 4, layer_norm=layer_norm) for layer_norm in (False, True))
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in normed.parameters()) == 35_716
    observations = torch.randn(5, 8)
    before = normed(observations)
    with torch.no_grad():
        normed.layers[0].weight.mul_(3)
        normed.layers[0].bias.mul_(3)
    torch.testing.assert_close(normed(observations), before, rtol=1e-3, atol=1e-3)
