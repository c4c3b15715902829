"""The images that a user names: files, folders and patterns of file names."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.stores.opening import image_paths
from onebyone.stores.pictures import pillow

#: The name of the standard input.
STDIN = "-"
_MAX_STDIN_BYTES = 2**31


def image_files(names: Iterable[Any]) -> tuple[Any, ...]:
    """The images that names stand for, in the order given; files of a folder or a pattern are sorted by name.

    A name is a file, a folder (its image files), a pattern with `*`, `?` or `[…]` (`**` for folders at any depth), or
    "-" for a picture on the standard input, which becomes a Pillow image. A file of that very name comes before a
    pattern. Values that are not names, such as arrays, are kept.

    Raises
    ------
    BadInput
        if a name does not exist, or a folder or a pattern yields no image.
    """
    images: list[Any] = []
    for name in names:
        if not isinstance(name, str | os.PathLike):
            images.append(name)
        elif name == STDIN:
            images.append(_standard_input())
        else:
            images += image_paths(name)
    return tuple(images)


def _standard_input() -> Any:
    module = pillow("reading a picture from the standard input")
    content = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(content) > _MAX_STDIN_BYTES:
        raise BadInput(
            f"images: the standard input has more than {_MAX_STDIN_BYTES:,} bytes; give a file instead"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", module.DecompressionBombWarning)
            picture = module.open(io.BytesIO(content))
            picture.load()
    except Exception as error:  # Pillow's readers raise errors of many types
        raise BadInput(
            f"images: the standard input cannot be read as a picture: {first_line(error)}"
        ) from error
    picture.filename = "stdin"
    return picture


def output_names(images: Iterable[Any]) -> tuple[str, ...]:
    """A distinct name without suffix for the results of each image.

    >>> output_names(["a/x.png", "b/x.png", "x.jpg", "y.tif"])
    ('x', 'x-2', 'x-3', 'y')
    """
    names: list[str] = []
    taken: set[str] = set()
    for number, image in enumerate(images):
        named = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
        stem = Path(named).stem or f"image-{number}"
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name)
        names.append(name)
    return tuple(names)
