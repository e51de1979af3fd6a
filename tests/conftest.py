"""Settings for every test session."""

import torch

torch.set_num_threads(1)  # one process per core: two threads are slower at these sizes
