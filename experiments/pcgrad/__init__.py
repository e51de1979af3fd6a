"""PCGrad DQN: one shared network, conflicting task gradients projected onto each other's normal planes."""
