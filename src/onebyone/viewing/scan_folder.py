"""Folders that hold scans with their images and networks, such as those that `demo` and `predict` write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onebyone.atomic_files import require_file, write_text
from onebyone.errors import BadInput
from onebyone.records import few

NAME = "viewer.json"
"""The file that names the parts of the scans in a folder: a list of objects with scores, image and model."""
_MAX_BYTES = 2**24


@dataclass(frozen=True)
class ScanParts:
    """The score map, and the image and the any-size network where they are known."""

    scores: Path
    image: Path | None = None
    model: Path | None = None


def scan_parts(path: Path) -> ScanParts:
    """The parts of a scan, which is a folder with a `viewer.json`, a score map that such a file names, or another one.

    Of a score map that no `viewer.json` in its folder names, the image and the network are not known.

    A scan that is still running is named by its output or by the folder of its unfinished results (OUT.partial).

    Raises
    ------
    BadInput
        if the folder has no such file or several scans, or the file is damaged or names files outside the folder.
    """
    if path.is_dir() and (path / NAME).exists():
        listed = _listed(path)
        if len(listed) != 1:
            names = few([parts.scores.name for parts in listed])
            raise BadInput(
                f"{path}: has {len(listed)} scans; give the path of one: {names or 'none is named'}"
            )
        return listed[0]
    if path.is_dir() and path.suffix not in (".zarr", ".partial") and not (path / "zarr.json").exists():
        raise BadInput(f"{path}: is a folder without {NAME}; expected a score map that scan wrote")
    if (path.parent / NAME).exists():
        for parts in _listed(path.parent):
            if parts.scores == path.resolve():
                return parts
    return ScanParts(path)


def write_scan_parts(folder: Path, scans: Sequence[ScanParts]) -> None:
    """Write `viewer.json` for scans whose parts are inside the folder."""
    named = [
        {key: value.relative_to(folder).as_posix() for key, value in vars(parts).items() if value is not None}
        for parts in scans
    ]
    write_text(folder / NAME, json.dumps(named, indent=1) + "\n")


def _listed(folder: Path) -> list[ScanParts]:
    """The scans that the folder's `viewer.json` names."""
    file = require_file(folder / NAME)
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError("the file is too large")
        rows = json.loads(file.read_text(encoding="utf-8"))
        named = [{key: row.get(key) for key in ("scores", "image", "model")} for row in _rows(rows)]
        for row in named:
            if not isinstance(row["scores"], str) or not all(isinstance(v, str | None) for v in row.values()):
                raise ValueError("expected names of files")
    except ValueError as error:
        raise BadInput(f"{file}: is damaged: {error}; expected a list of scores, image and model") from error
    return [
        ScanParts(**{key: _inside(folder, value, file) for key, value in row.items() if value is not None})
        for row in named
    ]


def _rows(rows: Any) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects")
    return rows


def _inside(folder: Path, name: str, file: Path) -> Path:
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise BadInput(f"{file}: names {name}, which is outside its folder")
    return target
