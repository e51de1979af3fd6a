"""Independent DQN: one network per task, nothing shared. The baseline that sharing has to beat."""
