"""Preprocessing: pixel values to network inputs, (v · scale − mean) / std per channel.

8-bit integers and floating-point values enter the formula as they are. 16-bit integers are divided by 257 first, so
that their full range becomes 0 to 255.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import OnebyoneWarning
from onebyone.records import Labels
from onebyone.stores.source import ImageSource


def scale_of(dtype: np.dtype[Any], labels: Labels) -> float:
    """The factor that pixel values of a type are multiplied by.

    >>> scale_of(np.dtype("uint16"), Labels(scale=257.0))
    1.0
    """
    return labels.scale / 257 if dtype == np.uint16 else labels.scale


def in_colour_order(values: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Pixels (h, w, C) as a view with the channels in the network's colour order."""
    return values[..., ::-1] if labels.colour_order == "BGR" and values.shape[-1] == 3 else values


def normalise(values: NDArray[Any], labels: Labels) -> NDArray[np.float32]:
    """Pixels (H, W, C) as the network's input (C, H, W) float32: (v · scale − mean) / std, in its colour order.

    >>> normalise(np.full((1, 1, 1), 255, np.uint8), Labels(scale=1 / 255, mean=(0.5,), std=(0.25,)))
    array([[[2.]]], dtype=float32)
    """
    planes = np.moveaxis(in_colour_order(values, labels), -1, 0)
    per_channel = (-1, *(1,) * (values.ndim - 1))
    out = np.array(planes, dtype=np.float32, order="C")
    scale = scale_of(values.dtype, labels)
    if scale != 1.0:
        out *= np.float32(scale)
    if labels.mean:
        out -= np.asarray(labels.mean, dtype=np.float32).reshape(per_channel)
    if labels.std:
        out /= np.asarray(labels.std, dtype=np.float32).reshape(per_channel)
    return out


def warn_of_raw_pixels(labels: Labels, source: ImageSource) -> None:
    """Warn where 8-bit or 16-bit pixels enter a network whose preprocessing is not stated."""
    if source.dtype.kind == "u" and not labels.states_preprocessing:
        warnings.warn(
            "the network's preprocessing is not stated, so pixel values from 0 to 255 are passed on unchanged. Give "
            "the preprocessing of its training (scale=, mean=, std=), or std=1 if it takes such values",
            OnebyoneWarning,
            stacklevel=3,
        )
