"""The network's own pictures for the page, from what `onebyone.draw` described: in the light theme and the dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def network_pictures(drawing: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Title, caption, words and both pictures, as addresses that hold them, of each figure that can be drawn."""
    return []
