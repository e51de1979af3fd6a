"""Settings for every test session."""

import pytest
import torch

torch.set_num_threads(1)  # one process per core: two threads are slower at these sizes


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Each test begins as a process does: training in an earlier one has turned subnormal numbers off."""
    torch.set_flush_denormal(False)
