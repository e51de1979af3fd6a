"""AIM's studies: the harm of conflicting gradients, the effect of a fixed rule, and the effect of learned thresholds.

`python -m experiments.studies.<name>` with the names `interference`, `static_heuristics`, `sabotage`, `mixed_signals`
and `original` trains and reports; `original` repeats the experiments of AIM's document as they are described there.
`document_claims` then prints every claim of the document with what these five found of it. The notebook
`walkthrough.ipynb` explains the five and shows their results. `toy` follows every balancer through the toy problem of
CAGrad and Nash-MTL, and `gradient_noise` measures the gradients of an agent in training.
"""
