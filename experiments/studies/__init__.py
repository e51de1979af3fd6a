"""AIM's studies: the harm of conflicting gradients, the effect of a fixed rule, and the effect of learned thresholds.

There are five programs, `python -m experiments.studies.<name>` with the names `interference`, `static_heuristics`,
`sabotage`, `mixed_signals` and `toy`. The notebook `walkthrough.ipynb` explains the first four and shows their results.
`toy` follows every balancer through the toy problem of CAGrad and Nash-MTL.
"""
