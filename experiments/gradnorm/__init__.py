"""GradNorm DQN: one network for all tasks, task gradients weighted so that all train at similar rates."""
