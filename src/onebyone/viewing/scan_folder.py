"""Folders that hold a scan with its image and its network, such as the one that `onebyone demo` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from onebyone.atomic_files import require_file, write_text
from onebyone.errors import BadInput

NAME = "viewer.json"
"""The file that names the parts of a folder."""
_MAX_BYTES = 2**16


@dataclass(frozen=True)
class ScanParts:
    """The score map, and the image and the any-size network where they are known."""

    scores: Path
    image: Path | None = None
    model: Path | None = None


def scan_parts(path: Path) -> ScanParts:
    """The parts of a scan: a score map alone, or those that a folder's `viewer.json` names.

    A scan that is still running is named by its output or by the folder of its unfinished results (OUT.partial).

    Raises
    ------
    BadInput
        if the folder has no such file, or the file is damaged or names files outside the folder.
    """
    if not path.is_dir() or not (path / NAME).exists():
        if path.is_dir() and path.suffix not in (".zarr", ".partial") and not (path / "zarr.json").exists():
            raise BadInput(f"{path}: is a folder without {NAME}; expected a score map that scan wrote")
        return ScanParts(path)
    file = require_file(path / NAME)
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError("the file is too large")
        data = json.loads(file.read_text(encoding="utf-8"))
        named = {key: data.get(key) for key in ("scores", "image", "model")}
        if not isinstance(named["scores"], str) or not all(isinstance(v, str | None) for v in named.values()):
            raise ValueError("expected names of files")
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{file}: is damaged: {error}; expected scores, image and model") from error
    inside = {key: _inside(path, value, file) for key, value in named.items() if value is not None}
    return ScanParts(**inside)


def write_scan_parts(folder: Path, parts: ScanParts) -> None:
    """Write `viewer.json` for parts inside the folder."""
    named = {
        key: value.relative_to(folder).as_posix() for key, value in vars(parts).items() if value is not None
    }
    write_text(folder / NAME, json.dumps(named, indent=1) + "\n")


def _inside(folder: Path, name: str, file: Path) -> Path:
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise BadInput(f"{file}: names {name}, which is outside its folder")
    return target
