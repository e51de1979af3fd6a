"""AIM DQN: one shared network, interventions between task gradients learned on held-out transitions."""
