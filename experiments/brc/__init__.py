"""BRC: a bigger, regularized, categorical value function in the place of gradient balancing."""
