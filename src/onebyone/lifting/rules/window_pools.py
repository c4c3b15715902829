"""Pools over a window's places: at stride 1 on a larger map; over the image by choice; or left out for a class map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from onebyone.laws.geometry import Sliding
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.exported_graph import module_path
from onebyone.pytorch.lift.lifter import Lifted, Walk, op_name
from onebyone.records import Change


def _full(value: Lifted, kernel: tuple[int, ...]) -> bool:
    return kernel == value.grid.nominal


def pooled(walk: Walk, node: fx.Node, value: Lifted, kernel: tuple[int, ...], name: str) -> Lifted:
    """The map pooled over `kernel` places at stride 1: each window's own pool.

    A pool over the whole window is the network's head (`head="cam"` leaves it out) or a context (`context="image"`
    takes it over the image).
    """
    places = int(np.prod(kernel))
    if places == 1 or value.grid.image_wide:
        return replace(value, index=None, handle=value.handle.abs() if "norm" in name else value.handle)
    full = _full(value, kernel)
    ops = [Sliding(k) for k in kernel]
    if full and node.name in walk.image_wide:
        handle = _image_pool(walk, value.handle, name, places)
        grid = replace(
            value.grid.through(ops), sizes=((1,) * len(value.grid.sizes[0]),) * walk.axes, image_wide=True
        )
        return Lifted(handle, grid, None, value.pooled | {node.name})
    if full and name == "mean" and walk.head == "cam" and node.name not in walk.context_nodes:
        return _left_out(walk, node, value, kernel)
    handle = _window_pool(value.handle, kernel, name)
    by = "×".join(str(k) for k in kernel)
    walk.changes.append(
        Change(
            module_path(node),
            op_name(node.target),
            "global pool = pool over the window",
            "pool over the map",
            f"{by} pool at stride 1",
        )
    )
    names = {node.name} if full else set()
    return Lifted(handle, value.grid.through(ops), None, value.pooled | names)


def _window_pool(handle: Any, kernel: tuple[int, ...], name: str) -> Any:
    places = float(np.prod(kernel))
    if name == "amax":
        return emitter.window_max(handle, kernel)
    if name == "amin":
        return -emitter.window_max(-handle, kernel)
    if name == "mean":
        return emitter.window_mean(handle, kernel)
    if name == "sum":
        return emitter.window_mean(handle, kernel) * places
    if name == "linalg_vector_norm":
        return (emitter.window_mean(handle * handle, kernel) * places).sqrt()
    raise AssertionError(name)


def _image_pool(walk: Walk, handle: Any, name: str, places: int) -> Any:
    """Over the whole image; sums and norms as if the image had the window's number of places."""
    if name == "amax":
        return emitter.image_max(handle, walk.axes)
    if name == "amin":
        return -emitter.image_max(-handle, walk.axes)
    if name == "mean":
        return emitter.image_mean(handle, walk.axes)
    if name == "sum":
        return emitter.image_mean(handle, walk.axes) * float(places)
    if name == "linalg_vector_norm":
        return emitter.image_norm(handle, walk.axes, places)
    raise AssertionError(name)


def _left_out(walk: Walk, node: fx.Node, value: Lifted, kernel: tuple[int, ...]) -> Lifted:
    """The map as it is, one place a window: what comes after the pool runs at each place."""
    walk.left_out[node.name] = (kernel, value.grid.jump)
    walk.changes.append(
        Change(
            module_path(node),
            op_name(node.target),
            "average pool commutes with linear",
            "pool over the map",
            "left out (class map)",
        )
    )
    one = (1,) * walk.axes
    return Lifted(value.handle, replace(value.grid, nominal=one), None, value.pooled | {node.name})
