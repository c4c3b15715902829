"""Tables of `scan` for several images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from onebyone.cli.render import Data, scores_data, table_of
from onebyone.records import by

if TYPE_CHECKING:
    from onebyone.api.images import ScannedImage


def scanned_data(items: Iterable[ScannedImage], source: str) -> Data:
    """A summary of each of several images, and the reason for those that could not be scanned."""
    images = []
    for item in items:  # one map at a time is in memory
        if item.scores is None:
            images.append({"image": os.fspath(item.image), "output": None, "error": item.reason})
        else:
            images.append(scores_data(item.scores, source, item.image, item.out))
    return {"source": source, "images": images}


def failures(data: Data) -> list[tuple[str, str]]:
    """The images that could not be scanned, with the reasons."""
    return [(row["image"], row["error"]) for row in data["images"] if "error" in row]


def scanned_tables(data: Data) -> list[RenderableType]:
    """One row per image."""
    rows = [
        (row["image"], by(row["image_size"]), f"{row['windows']:,}", f"{row['seconds']:.2f}", row["output"])
        for row in data["images"]
        if "error" not in row
    ]
    missing = [Text.assemble((image, "yellow"), f" not scanned: {why}") for image, why in failures(data)]
    return [table_of("Score maps", ("image", "pixels", "windows", "seconds", "file"), rows), *missing]
