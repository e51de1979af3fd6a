"""Train, evaluate and compare multi-task agents: the command lines of the project and what they share."""
