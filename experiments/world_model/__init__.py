"""A video world model of the landers. It has four objectives, and a balancer combines their gradients."""
