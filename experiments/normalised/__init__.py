"""Normalised DQN: one shared network, task gradients of equal length summed. A control."""
