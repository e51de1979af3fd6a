"""Supervised multi-task learning with one shared encoder, one head per task, and any balancer."""
