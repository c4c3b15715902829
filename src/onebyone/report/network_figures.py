"""The network's own pictures for the page, from what `onebyone.draw` described: in the light theme and the dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onebyone.drawing import Drawing
from onebyone.drawing.render import points, scene
from onebyone.drawing.svg_writer import to_svg
from onebyone.errors import BadInput, Refused
from onebyone.report.html import data_uri

_FIGURES = {
    "F3": (
        "Before and after the replacement",
        "Layer by layer: shapes, weights, and the flatten that disappears. The weights are the same numbers.",
    ),
    "F2": (
        "The fully connected layers as neurons and edges",
        "Only some of them are drawn; the counts are of all.",
    ),
    "F1": ("A pointwise convolution and its filters", "To scale in channels."),
    "strip": ("The whole network, as a strip of feature maps", "With the size of every map."),
    "window": ("What one answer sees", "The window, its stride and the receptive field on an input image."),
}


def network_pictures(drawing: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Title, caption, words and both pictures, as addresses that hold them, of each figure.

    A figure that the network has nothing for has the reason instead (`missing`).
    """
    if drawing is None:
        return []
    if "not_available" in drawing:
        return [_missing("The network's own pictures", str(drawing["not_available"]))]
    data = Drawing.from_dict(drawing)
    return [_figure(data, name, *words) for name, words in _FIGURES.items()]


def _figure(data: Drawing, name: str, title: str, caption: str) -> dict[str, str]:
    try:
        drawn = scene(data, name, points("page"))
    except (Refused, BadInput) as error:
        return _missing(title, str(error).splitlines()[-1].strip())
    return {
        "title": title,
        "caption": caption,
        "alt": f"{drawn.title}. {drawn.desc}",
        "light": data_uri(to_svg(drawn, "light"), "image/svg+xml"),
        "dark": data_uri(to_svg(drawn, "dark"), "image/svg+xml"),
        "missing": "",
    }


def _missing(title: str, reason: str) -> dict[str, str]:
    return {"title": title, "caption": "", "alt": "", "light": "", "dark": "", "missing": reason}
