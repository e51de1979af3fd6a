"""Multi-task agents for Stable-Baselines3."""
