"""Supervised multi-task learning: one shared encoder, a head per task, and any balancer between them."""
