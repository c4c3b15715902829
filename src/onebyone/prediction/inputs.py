"""The images that a user names: files, folders and patterns of file names."""

from __future__ import annotations

import glob
import io
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onebyone.errors import BadInput
from onebyone.records import first_line
from onebyone.stores.pictures import pillow

#: Suffixes of files that a folder or a pattern yields; a file that is named itself may have any.
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".npy")

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
            images += _files(Path(name), os.fspath(name))
    return tuple(images)


def _files(path: Path, name: str) -> list[Path]:
    if path.is_dir() and not _is_store(path):
        return _some(sorted(p for p in path.iterdir() if _is_image(p)), f"the folder {name}")
    if not path.exists() and glob.has_magic(name):
        return _some(sorted(p for p in map(Path, glob.glob(name, recursive=True)) if _is_image(p)), name)
    return [path]


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


def _is_store(path: Path) -> bool:
    """Whether a folder is one image: a Zarr store."""
    return path.suffix == ".zarr" or any((path / n).exists() for n in (".zarray", ".zgroup", "zarr.json"))


def _is_image(path: Path) -> bool:
    return (path.suffix.lower() in SUFFIXES and path.is_file()) or path.suffix == ".zarr"


def _some(files: list[Path], name: str) -> list[Path]:
    if not files:
        raise BadInput(
            f"images: {name} has no images; expected files that end in one of {', '.join(SUFFIXES)}"
        )
    return files


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
