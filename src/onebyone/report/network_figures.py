"""Figures of the network for the page, in the light and the dark theme, from the data of `onebyone.draw`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onebyone.drawing import Drawing
from onebyone.drawing.rendering import points, scene
from onebyone.drawing.svg_writer import to_svg
from onebyone.errors import BadInput, Refused
from onebyone.report.html import data_uri

_FIGURES = {
    "F3": (
        "Before and after the replacement",
        "Shapes and weights layer by layer, and the flatten that is no longer needed. The weights keep their values.",
    ),
    "F2": (
        "The fully connected layers as neurons and edges",
        "Only some neurons are drawn; the counts are of all.",
    ),
    "F1": ("A pointwise convolution and its filters", "Lengths along channels are to scale."),
    "strip": ("The whole network as a strip of feature maps", "With the shape of every map."),
    "window": (
        "What one prediction sees",
        "The window, its stride and the receptive field on an input image.",
    ),
}


def network_figures(drawing: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """For each figure its title, caption, alternative text and the data URIs of its light and dark picture.

    A figure that cannot be drawn for the network has the reason (`missing`) instead.
    """
    if drawing is None:
        return []
    if "not_available" in drawing:
        return [_missing("Figures of the network", str(drawing["not_available"]))]
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
