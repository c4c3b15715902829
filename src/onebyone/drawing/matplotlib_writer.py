"""Writes a scene as PDF (text as TrueType glyphs) or PNG, by Matplotlib."""

from __future__ import annotations

import io
from typing import Any

from onebyone.drawing import fonts
from onebyone.drawing.embedded_image import pixels_of
from onebyone.drawing.scene import Circle, Polygon, RasterImage, Rectangle, Scene, Shape, Strokes, Text
from onebyone.drawing.theme import colours
from onebyone.errors import MissingExtra

DPI = 300
"""Pixels per inch of a PNG."""
_SETTINGS = {"pdf.fonttype": 42, "pdf.compression": 9, "path.simplify": False, "svg.hashsalt": "onebyone"}


def to_matplotlib(scene: Scene, theme: str, form: str) -> bytes:
    """The scene as the bytes of a "pdf" or "png" file. It contains no dates: the same scene gives the same bytes."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("Matplotlib", "report", "drawing a network") from error
    names = colours(theme)
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(scene.width / 72, scene.height / 72), facecolor=names["paper"])
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, scene.width)
        axes.set_ylim(scene.height, 0)
        for order, shape in enumerate(scene.flat()):
            _put(axes, shape, names, order)
        about = {"Title": scene.title, "Creator": "onebyone", "Producer": "Matplotlib"}
        if form == "pdf":
            metadata = {**about, "Subject": scene.desc, "CreationDate": None}
        else:
            metadata = {"Title": scene.title, "Description": scene.desc, "Software": None}
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=DPI, metadata=metadata, facecolor=names["paper"])
        return file.getvalue()


def _put(axes: Any, shape: Shape, names: Any, order: int) -> None:
    from matplotlib import patches
    from matplotlib.font_manager import FontProperties

    colour = {None: "none", **names}
    look: dict[str, Any] = {"zorder": order, "clip_on": False}
    if isinstance(shape, Text):
        font = FontProperties(fname=str(fonts.path_of(shape.bold)), size=shape.size)
        align = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
        axes.text(
            shape.x, shape.y, shape.text, color=names[shape.fill], fontproperties=font, ha=align,
            va="baseline", parse_math=False, **look,
        )  # fmt: skip
    elif isinstance(shape, RasterImage):
        pixels = pixels_of(shape.png)
        extent = (shape.x, shape.x + shape.width, shape.y + shape.height, shape.y)
        axes.imshow(pixels, extent=extent, aspect="auto", interpolation="none", **look)
    elif isinstance(shape, Strokes):
        dashes = (0, tuple(d / shape.line for d in shape.dashes)) if shape.dashes else "-"
        axes.add_patch(
            patches.PathPatch(
                _path(shape), facecolor="none", edgecolor=names[shape.stroke], linewidth=shape.line,
                alpha=shape.opacity, linestyle=dashes, joinstyle="round", **look,
            )
        )  # fmt: skip
    elif isinstance(shape, Rectangle):
        _put(axes, shape.polygon(), names, order)
    elif isinstance(shape, Polygon | Circle):
        paint = {"facecolor": colour[shape.fill], "edgecolor": colour[shape.stroke], "linewidth": shape.line}
        if isinstance(shape, Circle):
            axes.add_patch(patches.Circle((shape.x, shape.y), shape.r, **paint, **look))
        else:
            look |= {"closed": True, "joinstyle": "round", "alpha": shape.opacity}
            axes.add_patch(patches.Polygon(shape.points, **paint, **look))


def _path(shape: Strokes) -> Any:
    from matplotlib.path import Path

    after = Path.CURVE4 if shape.curved else Path.LINETO
    points = [p for path in shape.paths for p in path]
    return Path(
        points, [Path.MOVETO if i == 0 else after for path in shape.paths for i, _ in enumerate(path)]
    )
