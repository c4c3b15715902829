"""Images that users give, as image sources.

Accepted are a path (a picture file, or a NumPy array in `.npy`), a Pillow image, an array (H, W) or (H, W, C), or a
tensor (C, H, W) or (1, C, H, W). Networks of signals or volumes take the same with one or three axes in place of H, W.
Values are uint8, uint16 or floating point.
"""

from __future__ import annotations

import os
import warnings
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onebyone.dense.checks import check_whole
from onebyone.errors import BadInput, OnebyoneError, OnebyoneWarning
from onebyone.laws.labels import require_sound
from onebyone.records import Labels
from onebyone.stores.axes import SlicedSource, axes_of_names, require_unmasked
from onebyone.stores.channels import FilledSource, match_channels, matched
from onebyone.stores.opening import open_file
from onebyone.stores.pictures import as_array
from onebyone.stores.resized import resized
from onebyone.stores.source import ArraySource, ImageSource, whole_region

_MAX_LEVELS = 20
_ACCEPTED = "a path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W)"


def open_image(
    image: Any,
    *,
    channels: int | None = None,
    labels: Labels | None = None,
    axes: int = 2,
    page: int | None = None,
    level: int | None = None,
    mpp: float | None = None,
    axis_names: str | None = None,
    resize: float = 1,
    fill_nan: bool = False,
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

    level, mpp
        the resolution level of a file with several: its number from 0, or its microns per pixel.
    axis_names
        the axes of an array or a file, such as "CYX" for channels first; None takes those that the file states, or the
        spatial axes and then the channels.
    resize
        the factor by which the image is resized as it is read (see `stores.resized`).
    fill_nan
        read not-a-number as 0, for a scan that leaves out the windows with such pixels.

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
    if isinstance(image, str | os.PathLike):
        source = open_file(image, axes=axis_names, page=page, level=level, mpp=mpp, spatial=axes)
        if Path(image).suffix.lower() != ".npy":  # an array has exactly the channels that it has
            source = matched(source, channels)
    else:
        source = _in_memory(image, channels, axes, axis_names)
        for name, value in (("page", page), ("level", level), ("mpp", mpp)):
            if value is not None:
                what = "only picture files have pages" if name == "page" else "only files have levels"
                raise BadInput(f"{name}={value}: {what}; image is {_describe(image)}")
    _check_structure(source, channels)
    require_sound(labels, source.channels)
    return resized(FilledSource(source) if fill_nan else source, resize)


def open_levels(image: Any, *, page: int | None = None, axis_names: str | None = None) -> list[ImageSource]:
    """The image at every resolution level that its file has, the finest first; an image in memory has one.

    Raises BadInput as `open_image` does.
    """
    sources = [open_image(image, page=page, axis_names=axis_names)]
    if not isinstance(image, str | os.PathLike):
        return sources
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnebyoneWarning)
        for level in range(1, _MAX_LEVELS):
            try:
                sources.append(open_image(image, level=level, page=page, axis_names=axis_names))
            except OnebyoneError:
                break
    return sources


def load_image(image: Any, *, page: int | None = None) -> NDArray[Any]:
    """Read a whole picture (H, W, C) and check that its values are finite.

    Raises BadInput as `open_image` does, and where a value is not finite.

    >>> load_image(np.zeros((4, 5), np.uint8)).shape
    (4, 5, 1)
    """
    source = open_image(image, page=page)
    check_whole(source, Labels())
    return np.ascontiguousarray(source.read(whole_region(source)))


def _in_memory(image: Any, channels: int | None, axes: int, axis_names: str | None) -> ImageSource:
    """An image in memory, or any object that is sliced as an array is, as a source."""
    if isinstance(image, ImageSource):
        return image
    if hasattr(image, "getbands"):  # a Pillow image, recognised without importing Pillow, which is optional
        _require_two_axes(axes, "a Pillow image")
        return ArraySource(match_channels(_with_channel_axis(as_array(image), axes), channels))
    if isinstance(image, torch.Tensor) and axis_names is None:
        return ArraySource(_from_tensor(image, axes))
    if isinstance(image, np.ma.MaskedArray):
        image = require_unmasked(image, "image")
    if isinstance(image, np.ndarray) and axis_names is None:
        return ArraySource(_with_channel_axis(image, axes))
    if isinstance(image, torch.Tensor):
        image = _as_numpy(image)
    if all(hasattr(image, name) for name in ("shape", "dtype", "__getitem__")):
        return SlicedSource(image, axis_names or _named_dimensions(image), spatial=axes)
    raise BadInput(f"image is of type {type(image).__name__}; expected {_ACCEPTED}")


def _named_dimensions(image: Any) -> str | None:
    """The axes of an xarray, from the names of its dimensions."""
    return axes_of_names(tuple(getattr(image, "dims", ())))


def _require_two_axes(axes: int, description: str) -> None:
    if axes != 2:
        raise BadInput(
            f"image is {description}, and the network slides over {axes} axes; expected an array, or .npy"
        )


def _axis_names(axes: int) -> str:
    """The spatial axes of an image as the messages name them."""
    return {1: "T", 2: "H, W", 3: "D, H, W"}[axes]


def _describe(image: Any) -> str:
    return Path(image).name if isinstance(image, str | os.PathLike) else f"of type {type(image).__name__}"


def _from_tensor(image: torch.Tensor, axes: int) -> NDArray[Any]:
    shape = tuple(image.shape)
    if image.ndim == axes + 2 and shape[0] == 1:
        image = image[0]
    if image.ndim != axes + 1:
        names = _axis_names(axes)
        raise BadInput(f"image is a tensor of shape {shape}; expected (C, {names}) or (1, C, {names})")
    return np.moveaxis(_as_numpy(image), 0, -1)


def _as_numpy(image: torch.Tensor) -> NDArray[Any]:
    image = image.detach().cpu()
    if image.dtype == torch.bfloat16:  # NumPy has no bfloat16; float32 represents it exactly
        image = image.float()
    array: NDArray[Any] = image.numpy()
    return array


def _with_channel_axis(array: NDArray[Any], axes: int) -> NDArray[Any]:
    if array.ndim == axes:
        return array[..., None]
    if array.ndim != axes + 1:
        names = _axis_names(axes)
        raise BadInput(f"image is an array of shape {array.shape}; expected ({names}) or ({names}, C)")
    return array


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
