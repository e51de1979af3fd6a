"""Any TorchJD aggregator by name, in the place of this project's balancers."""
