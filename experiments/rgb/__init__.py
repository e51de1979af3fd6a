"""RGB DQN: one shared network, task gradients rotated towards their consensus."""
