"""Operators that only move elements about, on NumPy arrays without the batch: what torch documents of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.elements import Numbers


def _shuffle(x: Numbers, groups: int) -> Numbers:
    return x.reshape(groups, x.shape[0] // groups, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def _unshuffle(x: Numbers, by: int) -> Numbers:
    c, h, w = x.shape
    return x.reshape(c, h // by, by, w // by, by).transpose(0, 2, 4, 1, 3).reshape(-1, h // by, w // by)


def _pixel_shuffle(x: Numbers, by: int) -> Numbers:
    c, h, w = x.shape
    return x.reshape(c // by**2, by, by, h, w).transpose(0, 3, 1, 4, 2).reshape(-1, h * by, w * by)


def _sliced(x: Numbers, axis: int, start: int, stop: int | None, step: int) -> Numbers:
    return x[(*(slice(None),) * axis, slice(start, stop, step))]


def _chunked(x: Numbers, parts: int, axis: int, take: int) -> Numbers:
    size = -(-x.shape[axis] // parts)  # torch: pieces of ⌈n / parts⌉, the last one smaller
    return _sliced(x, axis, take * size, (take + 1) * size, 1)


MOVES: dict[str, Any] = {
    "slice": lambda x, a: _sliced(x, a["axis"], a["start"], a["stop"], a["step"]),
    "select": lambda x, a: x.take(a["index"], a["axis"]),
    "flip": lambda x, a: np.flip(x, a["axes"]),
    "roll": lambda x, a: np.roll(x, a["by"], a["axis"]),
    "permute": lambda x, a: x.transpose(a["order"]),
    "reshape": lambda x, a: x.reshape(a["shape"]),
    "flatten": lambda x, a: x.reshape(*x.shape[: a["start"]], -1),
    "unsqueeze": lambda x, a: np.expand_dims(x, a["axis"]),
    "squeeze": lambda x, a: x.squeeze(a["axis"]) if x.shape[a["axis"]] == 1 else x,
    "chunk": lambda x, a: _chunked(x, a["parts"], a["axis"], a["take"]),
    "shuffle": lambda x, a: _shuffle(x, a["groups"]),
    "unshuffle": lambda x, a: _unshuffle(x, a["by"]),
    "pixel_shuffle": lambda x, a: _pixel_shuffle(x, a["by"]),
}
