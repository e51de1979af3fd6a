"""AIM's studies: the harm of conflicting gradients, the effect of a fixed rule, and the effect of learned thresholds.

There are four programs, `python -m experiments.studies.{interference,static_heuristics,sabotage,mixed_signals}`. The
notebook `walkthrough.ipynb` explains them and shows their results.
"""
