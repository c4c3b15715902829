"""The JSON documents of Zarr stores, read with limits before any library interprets them.

A store is data from elsewhere. Names inside it must not lead out of it, neither by `..` nor by a symbolic link, its
metadata must be of a reasonable size, and a chunk must fit into memory.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from onebyone.errors import BadInput

_MAX_METADATA_BYTES = 2**24


def read_document(root: Path, name: str) -> dict[str, Any] | None:
    """A JSON document of the store at `root`; None where it does not exist.

    Raises BadInput where its path leads out of the store, it is too large, or it is not a JSON object.
    """
    file = inside(root, name)
    if not file.is_file():
        return None
    size = file.stat().st_size
    if size > _MAX_METADATA_BYTES:
        raise BadInput(f"{root}: its {name} has {size:,} bytes; expected at most {_MAX_METADATA_BYTES:,}")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise BadInput(f"{root}: its {name} is not valid JSON ({_first_line(error)})") from error
    if not isinstance(document, dict):
        raise BadInput(f"{root}: its {name} is not a JSON object")
    return document


def inside(root: Path, name: str) -> Path:
    """The path of `name` in the store. Raises BadInput where it leads out of it, by `..` or by a symbolic link."""
    relative = PurePosixPath(name)
    path = root / relative
    outside = relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name
    if outside or not path.resolve().is_relative_to(root.resolve()):
        raise BadInput(f"{root}: the path {name!r} in it leads out of the store")
    return path


def group_attributes(root: Path) -> dict[str, Any]:
    """The attributes of the root group or array of a Zarr store, of version 2 or 3; {} where it has none.

    Raises BadInput where `root` is not a Zarr store.
    """
    if not root.is_dir():
        raise BadInput(f"{root} is not a Zarr store: expected a folder")
    document = read_document(root, "zarr.json")
    if document is not None:
        attributes = document.get("attributes", {})
    elif any((root / name).is_file() for name in (".zgroup", ".zarray")):
        attributes = read_document(root, ".zattrs") or {}
    else:
        raise BadInput(f"{root} is not a Zarr store: it has no zarr.json, .zgroup or .zarray")
    if not isinstance(attributes, dict):
        raise BadInput(f"{root}: the attributes of the store are not a JSON object")
    return attributes


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
