"""Renders a figure as the bytes of a file."""

from __future__ import annotations

from typing import Any

from onebyone.drawing.data import Drawing
from onebyone.drawing.description import FIGURES
from onebyone.drawing.figures import before_after, feature_maps, neurons, pointwise, receptive_field
from onebyone.drawing.matplotlib_writer import to_matplotlib
from onebyone.drawing.scene import Scene
from onebyone.drawing.svg_writer import to_svg
from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal

FORMATS = ("svg", "pdf", "png")
WIDTHS = {"column": 3.3, "page": 7.0}
"""In inches: a column and a page of a journal."""
_NARROWEST, _WIDEST = 2.8, 40.0


def render(
    data: Drawing,
    figure: str,
    *,
    theme: str = "light",
    format: str = "svg",  # noqa: A002
    width: str | float = "column",
    layer: str | None = None,
    image: Any = None,
) -> bytes:
    """Render one figure of a network as the bytes of a file; the same data gives the same bytes.

    Parameters
    ----------
    data: the result of `describe`.
    figure: "F1" (a pointwise convolution and its filters), "F2" (fully connected layers as neurons), "F3"
        (before and after the replacement), "strip" (the whole network) or "window" (what one prediction sees).
    theme: "light" or "dark".
    format: "svg", "pdf" or "png" (300 pixels per inch).
    width: "column" (3.3 inches), "page" (7 inches), or a number of inches; text has at least 6.5 points.
    layer: the path of the layer that F1 and F2 show.
    image: a picture for "window": a path, a Pillow image or an array (H, W) or (H, W, C).

    Raises
    ------
    BadInput
        for an invalid argument, an unknown layer, or an image that cannot be read.
    Refused
        if the network does not have what the figure shows.
    MissingExtra
        if Matplotlib is not installed.
    """
    if format not in FORMATS:
        raise BadInput(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    drawn = scene(data, figure, points(width), layer=layer, image=image)
    return to_svg(drawn, theme) if format == "svg" else to_matplotlib(drawn, theme, format)


def points(width: str | float) -> float:
    """A width, given by name or in inches, in points."""
    inches = WIDTHS.get(width) if isinstance(width, str) else width
    if inches is None or not _NARROWEST <= inches <= _WIDEST:
        raise BadInput(
            f"width={width!r}: expected {' or '.join(map(repr, WIDTHS))}, or {_NARROWEST:g} to {_WIDEST:g} inches"
        )
    return inches * 72


def scene(data: Drawing, figure: str, width: float, *, layer: str | None = None, image: Any = None) -> Scene:
    """A figure as a scene, before it is written in a format."""
    if figure not in FIGURES:
        raise BadInput(f"figure={figure!r}: expected one of {', '.join(FIGURES)}")
    if figure in data.missing:
        raise Refused([Refusal("", figure, data.missing[figure])], "the figure cannot be drawn")
    if figure == "F1":
        return pointwise.figure(data, width, layer)
    if figure == "F2":
        return neurons.figure(data, width, layer)
    if figure == "F3":
        return before_after.figure(data, width)
    if figure == "strip":
        return feature_maps.figure(data, width)
    return receptive_field.figure(data, width, image)
