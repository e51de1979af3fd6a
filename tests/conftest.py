"""Settings for every test session."""

import signal

import pytest
import torch

torch.set_num_threads(1)  # one process per core: two threads are slower at these sizes
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Each test begins as a process does: training in an earlier one has turned subnormal numbers off."""
    torch.set_flush_denormal(False)
