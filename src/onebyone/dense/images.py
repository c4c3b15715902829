"""Images that users give, as image sources.

Accepted are a path (a picture file, or a NumPy array in `.npy`), a Pillow image, an array (H, W) or (H, W, C), or a
tensor (C, H, W) or (1, C, H, W). Networks of signals or volumes take the same with one or three axes in place of H, W.
Values are uint8, uint16 or floating point.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.atomic_files import kind_of_file
from onebyone.dense.checks import check_whole
from onebyone.errors import BadInput
from onebyone.laws.labels import require_sound
from onebyone.records import Labels
from onebyone.stores.pictures import as_array, read_picture
from onebyone.stores.source import ArraySource, ImageSource

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float64)  # ITU-R BT.601, as Pillow's convert("L")
_ACCEPTED = "a path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W)"


def open_image(
    image: Any,
    *,
    channels: int | None = None,
    labels: Labels | None = None,
    axes: int = 2,
    page: int | None = None,
) -> ImageSource:
    """Open an image for a network of `channels` input channels that slides over `axes` axes.

    Picture files are converted to grey or RGB as the network needs. Arrays must have its channels already. Pixel
    values are not read here: `PixelCheck` checks them as they are read.

    Parameters
    ----------
    image
        an image as this module's description says, or an `ImageSource`, which is returned as it is.
    channels
        the network's input channels; None accepts any number.
    labels
        preprocessing that must fit the image.
    axes
        spatial axes of the network: 1, 2 or 3.
    page
        the page or frame, from 0, of a picture file with several. None reads the first, with a warning where there
        are more.

    Raises
    ------
    BadInput
        where the image cannot be read, has another number of channels, or has an unusable type or shape.

    Example
    -------
    >>> open_image(np.zeros((4, 5, 3), np.uint8), channels=3).size
    (4, 5)
    """
    labels = labels or Labels()
    if channels is None and labels.colour_order == "L":
        channels = 1
    source: ImageSource
    source = image if isinstance(image, ImageSource) else ArraySource(_values(image, channels, axes, page))
    _check_structure(source, channels)
    require_sound(labels, source.channels)
    return source


def load_image(image: Any, *, page: int | None = None) -> NDArray[Any]:
    """Read a whole picture (H, W, C) and check that its values are finite.

    Raises BadInput as `open_image` does, and where a value is not finite.

    >>> load_image(np.zeros((4, 5), np.uint8)).shape
    (4, 5, 1)
    """
    source = ArraySource(np.ascontiguousarray(_values(image, None, 2, page)))
    _check_structure(source, None)
    check_whole(source, Labels())
    return source.values


def _values(image: Any, channels: int | None, axes: int, page: int | None) -> NDArray[Any]:
    """Any accepted image as (H, W, C)."""
    is_file = isinstance(image, str | os.PathLike)
    if page is not None and (not is_file or Path(image).suffix.lower() == ".npy"):
        raise BadInput(f"page={page}: only picture files have pages; image is {_describe(image)}")
    if is_file:
        path = Path(image)
        if path.suffix.lower() == ".npy":
            return _with_channel_axis(_map_npy(path), axes)
        _require_two_axes(axes, path.name)
        return _match_channels(_with_channel_axis(read_picture(path, page), axes), channels)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image, axes)
    if isinstance(image, np.ndarray):
        return _with_channel_axis(image, axes)
    if hasattr(image, "getbands"):  # a Pillow image, recognised without importing Pillow, which is optional
        _require_two_axes(axes, "a Pillow image")
        return _match_channels(_with_channel_axis(as_array(image), axes), channels)
    raise BadInput(f"image is of type {type(image).__name__}; expected {_ACCEPTED}")


def _require_two_axes(axes: int, description: str) -> None:
    if axes != 2:
        raise BadInput(
            f"image is {description}, and the network slides over {axes} axes; expected an array, or .npy"
        )


def _axis_names(axes: int) -> str:
    """The spatial axes of an image as the messages name them."""
    return {1: "T", 2: "H, W", 3: "D, H, W"}[axes]


def _map_npy(path: Path) -> NDArray[Any]:
    """The array in a `.npy` file, memory-mapped."""
    kind = kind_of_file(path)
    if "(.npy)" not in kind:
        raise BadInput(f"{path} cannot be read as an array: it is {kind}; expected one NumPy array (.npy)")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = "it contains Python objects, not numbers" if "object" in str(error) else str(error)
        raise BadInput(f"{path} cannot be read as an array: {reason}") from error
    return array


def _describe(image: Any) -> str:
    return Path(image).name if isinstance(image, str | os.PathLike) else f"of type {type(image).__name__}"


def _from_tensor(image: torch.Tensor, axes: int) -> NDArray[Any]:
    shape = tuple(image.shape)
    if image.ndim == axes + 2 and shape[0] == 1:
        image = image[0]
    if image.ndim != axes + 1:
        names = _axis_names(axes)
        raise BadInput(f"image is a tensor of shape {shape}; expected (C, {names}) or (1, C, {names})")
    image = image.detach().cpu()
    if image.dtype == torch.bfloat16:  # NumPy has no bfloat16; float32 represents it exactly
        image = image.float()
    return image.movedim(0, -1).numpy()


def _with_channel_axis(array: NDArray[Any], axes: int) -> NDArray[Any]:
    if array.ndim == axes:
        return array[..., None]
    if array.ndim != axes + 1:
        names = _axis_names(axes)
        raise BadInput(f"image is an array of shape {array.shape}; expected ({names}) or ({names}, C)")
    return array


def _match_channels(values: NDArray[Any], channels: int | None) -> NDArray[Any]:
    """A picture's grey as RGB or its RGB as grey, where the network takes the other."""
    if channels == 3 and values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    if channels == 1 and values.shape[2] == 3:
        grey = values.astype(np.float64) @ _LUMA
        return (
            np.rint(grey).astype(values.dtype)[:, :, None] if values.dtype.kind == "u" else grey[:, :, None]
        )
    return values


def _check_structure(source: ImageSource, channels: int | None) -> None:
    """Raise BadInput for an image of another type, without pixels, or with other channels than the network's."""
    shape = (*source.size, source.channels)
    if source.dtype not in (np.uint8, np.uint16) and source.dtype.kind != "f":
        raise BadInput(f"image has values of type {source.dtype}; expected uint8, uint16 or floating point")
    if not prod(shape):
        raise BadInput(f"image is empty: its shape is {shape}")
    if channels is not None and source.channels != channels:
        advice = f" (is it channels-first? then transpose it to ({_axis_names(len(source.size))}, C))"
        raise BadInput(
            f"image of shape {shape} has {source.channels} channel(s) and the network takes {channels}"
            f"{advice if shape[0] == channels else ''}"
        )
