"""Random weights: one shared network, task gradients weighted by random numbers. A control."""
