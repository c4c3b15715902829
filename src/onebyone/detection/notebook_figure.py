"""Boxes as a small figure in HTML, for notebooks: the outline of the image, and a rectangle for each box."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from onebyone.detection.overlay import colour_of

WIDTH = 360
"""Pixels of the longer side of the figure."""
_MOST = 500  # boxes that are drawn, the best first


def boxes_figure(
    boxes: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[str], size: Sequence[int]
) -> str:
    """An SVG element with the boxes (K, 4) of an image of `size` (height, width), and the colours of their classes.

    >>> figure = boxes_figure(np.array([[0, 0, 10, 20]]), np.array([1]), ("a", "b"), (40, 20))
    >>> figure.count("<rect"), "b</span>" in figure
    (2, True)
    """
    height, width = size
    unit = WIDTH / max(height, width)
    shown = boxes[:_MOST] * unit
    rectangles = "".join(
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" '
        f'stroke="{colour_of(label)}" stroke-width="2"/>'
        for (x1, y1, x2, y2), label in zip(shown.tolist(), labels.tolist(), strict=False)
    )
    w, h = width * unit, height * unit
    svg = (
        f'<svg width="{w:.0f}" height="{h:.0f}" viewBox="0 0 {w:.1f} {h:.1f}" role="img" '
        f'aria-label="{len(boxes)} boxes"><rect width="{w:.1f}" height="{h:.1f}" fill="#808080" '
        f'fill-opacity="0.25"/>{rectangles}</svg>'
    )
    keys = "".join(
        f'<span style="border-left:12px solid {colour_of(label)};padding:0 10px 0 4px">{escape(classes[label])}</span>'
        for label in np.unique(labels).tolist()[:12]
    )
    return f"<div>{svg}</div><p>{keys}</p>"
