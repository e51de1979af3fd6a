"""Shared DQN: one network for all tasks, task gradients summed. The baseline."""
