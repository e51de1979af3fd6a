"""GradNorm and PCGrad in one: learned weights for the magnitudes, projections for the directions."""
