"""Lifting: from what a network computes on one window to what it computes at every window of a larger image.

A value that depends on the image is a pair of a *map* (any size; neighbouring windows share its positions) and an
*index* that says, for one window, which `(channel, position)` of the window's part of the map each element is. Shape
operators move the index alone, so no size is baked in and no flatten order is assumed.

`values` defines these values; `grid` describes maps, and `index` recognises what an index asks for. A front end reads
its graph as *neutral operators* (`operators`), gives an implementation of the operations on maps (`emitter`), and lets
the `rules` lift each operator with what the `lifter` offers. Nothing here imports a framework: PyTorch's front end is
`onebyone.pytorch.lift`, and the tests have one on NumPy (`tests/lifting/numpy_front_end.py`).
"""
