"""Static weights: one shared network, task gradients weighted by fixed numbers."""
