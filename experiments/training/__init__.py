"""One training run of an agent, from its settings to its evaluation."""
