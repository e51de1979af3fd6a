"""Small demonstrations of the library. Each command prints its results and ends within seconds.

* `rgb_balancing`: RGB on synthetic gradients that conflict;
* `loss_aggregation`: every loss term of a tiny random model;
* `mtl_flow`: training of a tiny world model, from video frames to balanced updates.
"""
