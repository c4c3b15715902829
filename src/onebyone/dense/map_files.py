"""Score maps in files: which format a name means, and what a file says of the scan that made it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebyone.atomic_files import require_writable
from onebyone.errors import BadInput
from onebyone.stores.map_description import MapDescription
from onebyone.stores.placement import Placement
from onebyone.stores.sinks import SUFFIXES, open_sink

if TYPE_CHECKING:
    from onebyone.stores.file_sink import FileSink


def require_map_path(out: str | os.PathLike[str]) -> None:
    """Raise BadInput where `out` is not a name of a score map, or its folder cannot be written."""
    suffix = Path(out).suffix.lower()
    if suffix != ".npz" and suffix not in SUFFIXES:
        expected = ", ".join(s[1:] for s in (".npz", *SUFFIXES))
        raise BadInput(f"out={os.fspath(out)!r}: expected a name that ends in one of {expected}")
    if suffix == ".npz":
        require_writable(out)


def map_sink(
    out: str | os.PathLike[str],
    shape: tuple[int, ...],
    block: tuple[int, ...],
    facts: Mapping[str, Any],
    placement: Placement,
    key: Mapping[str, Any],
) -> FileSink:
    """The sink of a map in the format that its name means.

    `facts` is what `ScoreMap.facts` gives, `placement` that of the positions, and `key` what identifies the scan.
    Raises Refused where something else exists under that name.
    """
    classes = facts["labels"]["classes"] or [str(k) for k in range(shape[0])]
    plain = json.loads(json.dumps(dict(key)))
    return open_sink(out, shape, MapDescription(tuple(classes), placement, plain, facts), chunk=block)
