"""A video world model of the landers: four objectives on one encoder, their gradients combined by a balancer."""
