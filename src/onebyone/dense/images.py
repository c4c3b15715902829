"""Images into network inputs: what is accepted, and the formula (v · scale − mean) / std.

Accepted are a path (a picture, or a NumPy array in `.npy`), a Pillow image, an array (H, W) or (H, W, C), or
a tensor (C, H, W) or (1, C, H, W); for a network of signals or volumes the same with one or three axes in the
place of H, W. Values v enter the formula as follows: 8-bit integers as they are,
16-bit integers divided by 257 (so that the full range is 0 to 255 again), floating values as they are.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.atomic_files import kind_of_file
from onebyone.dense.image_files import as_array, read_picture
from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.laws.labels import require_sound
from onebyone.records import Labels

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float64)  # ITU-R BT.601, as Pillow's convert("L")
_AXIS_NAMES = {1: ("sample",), 2: ("row", "column"), 3: ("slice", "row", "column")}
_ACCEPTED = "a path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W)"


@dataclass(frozen=True)
class Pixels:
    """An image that was checked: `values` (H, W, C) in uint8, uint16 or floating point, all finite.

    A signal is (T, C), a volume (D, H, W, C).
    """

    values: NDArray[Any]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width in pixels; or as many axes as the network slides over."""
        return tuple(self.values.shape[:-1])

    @property
    def channels(self) -> int:
        """Channels per pixel."""
        return int(self.values.shape[-1])

    def read(self, region: Sequence[slice], labels: Labels) -> torch.Tensor:
        """The network's input for a region, (1, C, h, w) float32."""
        part = self.values[tuple(region)]
        return torch.from_numpy(normalise(part, labels))[None]


def load_image(
    image: Any,
    *,
    channels: int | None = None,
    labels: Labels | None = None,
    axes: int = 2,
    page: int | None = None,
) -> Pixels:
    """Read and check an image for a network of `channels` input channels that slides over `axes` axes.

    Picture files are turned grey or RGB as the network asks; arrays must have its channels already. `page` is
    the page or frame, from 0, of a picture file with several; where it is None, the first is read, with a
    warning if there are more.

    Raises
    ------
    BadInput
        if it cannot be read, has another number of channels or an unusable type or shape, or holds values
        that are not finite (the message counts them and names the first).

    Example
    -------
    >>> load_image(np.zeros((4, 5, 3), np.uint8), channels=3).size
    (4, 5)
    """
    labels = labels or Labels()
    if channels is None and labels.colour_order == "L":
        channels = 1
    pixels = Pixels(np.ascontiguousarray(_values(image, channels, axes, page)))
    _check(pixels.values, channels)
    _check_labels(labels, pixels)
    return pixels


def normalise(values: NDArray[Any], labels: Labels) -> NDArray[np.float32]:
    """(H, W, C) values to the network's (C, H, W) float32: (v · scale − mean) / std, in the colour order.

    >>> normalise(np.full((1, 1, 1), 255, np.uint8), Labels(scale=1 / 255, mean=(0.5,), std=(0.25,)))
    array([[[2.]]], dtype=float32)
    """
    planes = np.moveaxis(values, -1, 0)
    spots = (1,) * (values.ndim - 1)
    if labels.colour_order == "BGR" and planes.shape[0] == 3:
        planes = planes[::-1]
    scale = labels.scale / 257 if values.dtype == np.uint16 else labels.scale
    out = np.ascontiguousarray(planes, dtype=np.float32)
    if out is values or np.shares_memory(out, values):
        out = out.copy()
    if scale != 1.0:
        out *= np.float32(scale)
    if labels.mean:
        out -= np.asarray(labels.mean, dtype=np.float32).reshape(-1, *spots)
    if labels.std:
        out /= np.asarray(labels.std, dtype=np.float32).reshape(-1, *spots)
    return out


def _values(image: Any, channels: int | None, axes: int, page: int | None) -> NDArray[Any]:
    """Any accepted image as (H, W, C)."""
    is_file = isinstance(image, str | os.PathLike)
    if page is not None and (not is_file or Path(image).suffix.lower() == ".npy"):
        raise BadInput(f"page={page}: only picture files have pages; image is {_what(image)}")
    if is_file:
        path = Path(image)
        if path.suffix.lower() == ".npy":
            return _with_channel_axis(_read_npy(path), axes)
        _only_pictures(axes, path.name)
        return _match(_with_channel_axis(read_picture(path, page), axes), channels)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image, axes)
    if isinstance(image, np.ndarray):
        return _with_channel_axis(image, axes)
    if hasattr(image, "getbands"):  # a Pillow image, known by its face so that Pillow stays optional
        _only_pictures(axes, "a Pillow image")
        return _match(_with_channel_axis(as_array(image), axes), channels)
    raise BadInput(f"image is a {type(image).__name__}; expected {_ACCEPTED}")


def _only_pictures(axes: int, what: str) -> None:
    if axes != 2:
        raise BadInput(
            f"image is {what}, and the network slides over {axes} axes; expected an array, or .npy"
        )


def _shape(axes: int) -> str:
    """The axes of an image as the messages name them."""
    return {1: "T", 2: "H, W", 3: "D, H, W"}[axes]


def _read_npy(path: Path) -> NDArray[Any]:
    what = kind_of_file(path)
    if "(.npy)" not in what:
        raise BadInput(f"{path} cannot be read as an array: it is {what}; expected one NumPy array (.npy)")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = "it holds Python objects, not numbers" if "object" in str(error) else str(error)
        raise BadInput(f"{path} cannot be read as an array: {reason}") from error
    read: NDArray[Any] = array
    return read


def _what(image: Any) -> str:
    return Path(image).name if isinstance(image, str | os.PathLike) else f"a {type(image).__name__}"


def _from_tensor(image: torch.Tensor, axes: int) -> NDArray[Any]:
    shape = tuple(image.shape)
    if image.ndim == axes + 2 and shape[0] == 1:
        image = image[0]
    if image.ndim != axes + 1:
        names = _shape(axes)
        raise BadInput(f"image is a tensor of shape {shape}; expected (C, {names}) or (1, C, {names})")
    image = image.detach().cpu()
    if image.dtype == torch.bfloat16:  # NumPy has no bfloat16; float32 holds it exactly
        image = image.float()
    return image.movedim(0, -1).numpy()


def _with_channel_axis(array: NDArray[Any], axes: int) -> NDArray[Any]:
    if array.ndim == axes:
        return array[..., None]
    if array.ndim != axes + 1:
        names = _shape(axes)
        raise BadInput(f"image is an array of shape {array.shape}; expected ({names}) or ({names}, C)")
    return array


def _match(values: NDArray[Any], channels: int | None) -> NDArray[Any]:
    """A picture's grey as RGB or its RGB as grey, where the network takes the other."""
    if channels == 3 and values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if channels == 1 and values.shape[2] == 3:
        grey = values.astype(np.float64) @ _LUMA
        return (
            np.rint(grey).astype(values.dtype)[:, :, None] if values.dtype.kind == "u" else grey[:, :, None]
        )
    return values


def _check(values: NDArray[Any], channels: int | None) -> None:
    if values.dtype not in (np.uint8, np.uint16) and values.dtype.kind != "f":
        raise BadInput(f"image has values of type {values.dtype}; expected uint8, uint16 or floating point")
    if values.size == 0:
        raise BadInput(f"image is empty: its shape is {values.shape}")
    if channels is not None and values.shape[-1] != channels:
        last = f" (is it channels-first? then transpose it to ({_shape(values.ndim - 1)}, C))"
        first = last if values.shape[0] == channels else ""
        has = f"image of shape {values.shape} has {values.shape[-1]} channel(s)"
        raise BadInput(f"{has} and the network takes {channels}{first}")
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            index = np.unravel_index(int(np.argmin(finite)), values.shape)
            names = (*_AXIS_NAMES[values.ndim - 1], "channel")
            where = ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=True))
            count = values.size - int(np.count_nonzero(finite))
            raise BadInput(
                f"image has {count} value(s) that are not finite, the first {values[index]} at {where}"
            )


def _check_labels(labels: Labels, pixels: Pixels) -> None:
    require_sound(labels, pixels.channels)
    if pixels.values.dtype.kind == "f" and 0 < labels.scale <= 1 / 128:
        peak = float(np.abs(pixels.values).max())
        if 0 < peak <= 1:  # 8-bit preprocessing on values that were scaled already: all would be near black
            raise BadInput(
                f"image is floating, at most {peak:.3g}, and scale={labels.scale:.3g} is meant for "
                "values up to 255: multiply the image by 255, or give labels with scale=1"
            )


def warn_of_raw_pixels(labels: Labels, pixels: Pixels) -> None:
    """Warn where 8- or 16-bit pixels go into a network whose preprocessing is stated nowhere."""
    if pixels.values.dtype.kind == "u" and not labels.states_preprocessing:
        warnings.warn(
            "the network's preprocessing is not stated, so pixel values from 0 to 255 go in as they are. Give "
            "what it was trained with (scale=, mean=, std=), or std=1 if it takes them so",
            OnebyoneWarning,
            stacklevel=3,
        )
