"""Score maps in files: which format a name means, and what a file says of the scan that made it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onebyone.atomic_files import require_writable
from onebyone.errors import BadInput
from onebyone.stores.map_description import MapDescription
from onebyone.stores.placement import Placement
from onebyone.stores.sinks import SUFFIXES


def require_map_path(out: str | os.PathLike[str]) -> None:
    """Raise BadInput where `out` is not a name of a score map, or its folder cannot be written."""
    suffix = Path(out).suffix.lower()
    if suffix not in SUFFIXES:
        expected = ", ".join(s[1:] for s in SUFFIXES)
        raise BadInput(f"out={os.fspath(out)!r}: expected a name that ends in one of {expected}")
    if suffix == ".npz":
        require_writable(out)


def map_description(
    facts: Mapping[str, Any], channels: int, placement: Placement, key: Mapping[str, Any]
) -> MapDescription:
    """What a file says of a scan.

    `facts` is what `ScoreMap.facts` gives, `placement` that of the positions, and `key` what identifies the scan.
    """
    classes = facts["labels"]["classes"] or [str(k) for k in range(channels)]
    return MapDescription(tuple(classes), placement, json.loads(json.dumps(dict(key))), facts)
