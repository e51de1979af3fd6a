"""What the library does, shown on something small: each command prints and ends within seconds.

* `rgb_balancing`: RGB on synthetic gradients that conflict;
* `loss_aggregation`: every loss term of a tiny random model;
* `mtl_flow`: the whole way from frames to a balanced step, some hundred times.
"""
