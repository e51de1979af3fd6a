"""Training on a GPU follows training on the CPU."""

from functools import partial

import pytest
import torch

from agents import BRC, IndependentDQN, MultiTaskDQN
from tests.support import make_agent

make = partial(make_agent, batch_size=16, gradient_steps=1)


def test_auto_takes_what_is_there():
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert make(MultiTaskDQN, device="auto").device.type == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("balancer", ["equal", "gradnorm", "pcgrad", "rgb", "aim", "gradnorm_pcgrad", "random"])
def test_cpu_and_cuda_agree_over_100_updates(balancer, layer_norm):
    check(MultiTaskDQN, balancer=balancer, policy_kwargs={"layer_norm": layer_norm})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("kind", [BRC, IndependentDQN])
def test_other_agents_agree(kind):
    check(kind)


def check(kind, **kwargs):
    """The same transitions, updated on for 100 batches: weights must agree to 1e-4."""
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu, cuda = make(kind, device="cpu", **kwargs), make(kind, device="cuda", **kwargs)
    cpu.learn(60)  # no update yet, so that both have seen the same
    cuda.learn(60)
    assert cpu._n_updates == cuda._n_updates == 0
    for _ in range(100):
        cpu.train(1, 16)
        cuda.train(1, 16)
    for name, weights in cpu.policy.state_dict().items():
        torch.testing.assert_close(cuda.policy.state_dict()[name].cpu(), weights, rtol=1e-4, atol=1e-4, msg=name)
