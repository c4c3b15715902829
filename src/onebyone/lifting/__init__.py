"""Lifting: from what a network computes on one window to what it computes at every window of a larger image.

A value that depends on the image is a pair of a *map* (any size; neighbouring windows share its places) and an
*index* that says, for one window, which `(channel, place)` of the window's part of the map each element is. Shape
operators move the index alone, so no size is baked in and no flatten order is assumed.

`grid` describes maps, `index` reads indices, `plans` turns them into what a front end must do. Integers and NumPy only:
both front ends drive it.
"""
