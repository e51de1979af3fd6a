"""AIM's studies: what gradient interference does, what a fixed rule makes of it, and what learned thresholds do.

Four programs, `python -m experiments.studies.{interference,static_heuristics,sabotage,mixed_signals}`, and
`walkthrough.ipynb`, which tells the story with them. A fifth one, `toy`, follows every balancer through the toy problem
of CAGrad and Nash-MTL.
"""
