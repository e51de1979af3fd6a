"""Memory DQN: one shared network, gradients of equal length, their sum turned towards past ones. A control."""
