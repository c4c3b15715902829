"""What a stored score map says about itself: its format, its identity, its channels and the place of its positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onebyone.errors import BadInput
from onebyone.stores.placement import Placement

FORMAT = "onebyone.scores/1"
_MAX_TEXT = 2**24


@dataclass(frozen=True)
class MapDescription:
    """Metadata of a score map, stored inside every format.

    `channels` are the names of the classes, `placement` is that of the positions (`Placement.of_map`), `key` identifies
    the scan (weights, configuration, input), and `scan` is plain data of the caller, such as the geometry and labels.

    >>> d = MapDescription(("a", "b"), Placement.identity(), {"input": "x.tif"})
    >>> MapDescription.from_text(d.to_text()) == d
    True
    """

    channels: tuple[str, ...]
    placement: Placement
    key: Mapping[str, Any] = field(default_factory=dict)
    scan: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": FORMAT,
            "channels": list(self.channels),
            "placement": self.placement.to_dict(),
            "key": dict(self.key),
            "scan": dict(self.scan),
        }

    def to_text(self) -> str:
        """JSON text, the same for equal descriptions."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Any) -> MapDescription:
        """The description that `to_dict` made. Raises BadInput where the data are not of this format."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BadInput(f"is not a score map of onebyone: expected metadata of the format {FORMAT!r}")
        try:
            placement = Placement.from_dict(data["placement"])
            return cls(tuple(map(str, data["channels"])), placement, dict(data["key"]), dict(data["scan"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"its metadata of the format {FORMAT!r} are damaged: {error}") from error

    @classmethod
    def from_text(cls, text: str) -> MapDescription:
        """The description in JSON text. Raises BadInput where it is not of this format."""
        try:
            data = json.loads(text) if len(text) <= _MAX_TEXT else None
        except (ValueError, RecursionError):
            data = None
        return cls.from_dict(data)
