"""The images that a user names: files, folders and patterns of file names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onebyone.errors import BadInput

#: Suffixes of files that a folder or a pattern yields; a file that is named itself may have any.
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".npy")


def image_files(names: Iterable[Any]) -> tuple[Any, ...]:
    """The images that names stand for, in the order given; files of a folder or a pattern are sorted by name.

    A name is a file, a folder (its image files), or a pattern with `*`, `?` or `[…]` (`**` for folders at any depth).
    A file of that very name comes before a pattern. Values that are not paths, such as arrays, are kept.

    Raises
    ------
    BadInput
        if a name does not exist, or a folder or a pattern yields no image.
    """
    images: list[Any] = []
    for name in names:
        images += _files(Path(name), os.fspath(name)) if isinstance(name, str | os.PathLike) else [name]
    return tuple(images)


def _files(path: Path, name: str) -> list[Path]:
    if path.is_dir() and not _is_store(path):
        return _some(sorted(p for p in path.iterdir() if _is_image(p)), f"the folder {name}")
    if not path.exists() and glob.has_magic(name):
        return _some(sorted(p for p in map(Path, glob.glob(name, recursive=True)) if _is_image(p)), name)
    return [path]


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
        stem = Path(image).stem if isinstance(image, str | os.PathLike) else f"image-{number}"
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name)
        names.append(name)
    return tuple(names)
