"""Writes a scene as SVG: a file of its own, or an element of an HTML page.

In a file, text stays text and its glyphs are embedded, and colours are those of a theme. Ids are derived from the
figure's name, theme and content, so that several files can be put into one document; the same scene gives the same
bytes. In a page, the style sheet sets colours and fonts by the classes of the shapes, so that one element serves the
light theme, the dark theme and print.
"""

from __future__ import annotations

import base64
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from onebyone.drawing import fonts
from onebyone.drawing.scene import (
    Circle,
    Point,
    Polygon,
    RasterImage,
    Rectangle,
    Scene,
    Shape,
    ShapeGroup,
    Strokes,
    Text,
)
from onebyone.drawing.theme import colours


def to_svg(scene: Scene, theme: str) -> bytes:
    """The scene as an SVG 1.1 file (with WAI-ARIA's `role`), sized in points."""
    writer = _FileWriter(scene, theme)
    body = "".join(writer.write(shape) for shape in scene.shapes)
    wide, high = _n(scene.width), _n(scene.height)
    # screen readers use the first title and desc as name and description (SVG-AAM 1.0, §5.1)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}pt" height="{high}pt" viewBox="0 0 {wide} {high}" '
        f'role="img">\n<title>{_escaped(scene.title)}</title>\n<desc>{_escaped(scene.desc)}</desc>\n'
    )
    paper = f'<rect width="{wide}" height="{high}" fill="{colours(theme)["paper"]}"/>\n'
    return f"{head}{writer.style()}{paper}{body}</svg>\n".encode()


def to_inline_svg(scene: Scene, css: str = "", attributes: Mapping[str, str] | None = None) -> str:
    """The scene as an `<svg>` element of an HTML page, with the class `css` and further attributes.

    Its title is the accessible name; a scene without a title is hidden from screen readers as decoration.

    >>> scene = Scene("dot", 10, 10, "a dot", "", (Circle(5, 5, 2, css="mark"),))
    >>> to_inline_svg(scene)  # doctest: +NORMALIZE_WHITESPACE
    '<svg viewBox="0 0 10 10" width="10" height="10" role="img" aria-label="a dot"><circle class="mark" cx="5"
    cy="5" r="2"/></svg>'
    """
    wide, high = _n(scene.width), _n(scene.height)
    values = {"class": css} if css else {}
    values |= {"viewBox": f"0 0 {wide} {high}", "width": wide, "height": high}
    values |= {"role": "img", "aria-label": scene.title} if scene.title else {"aria-hidden": "true"}
    values |= attributes or {}
    writer = _PageWriter()
    body = "".join(writer.write(shape) for shape in scene.shapes)
    return f"<svg{_attributes(values)}>{body}</svg>"


def _attributes(values: Mapping[str, str]) -> str:
    return "".join(f' {name}="{escape(value)}"' for name, value in values.items())


class _Writer(ABC):
    """Writes shapes as SVG elements; subclasses decide on colours, fonts and identifiers."""

    newline = ""

    def write(self, shape: Shape) -> str:
        """One shape as an element."""
        if isinstance(shape, ShapeGroup):
            body = "".join(self.write(s) for s in shape.shapes)
            title = f"<title>{_escaped(shape.title)}</title>" if shape.title else ""
            return f"<g{self.group_attributes(shape)}>{title}{body}</g>{self.newline}"
        if isinstance(shape, Text):
            attributes = f'x="{_n(shape.x)}" y="{_n(shape.y)}"{self.text_attributes(shape)}'
            return f"<text {attributes}>{_escaped(shape.text)}</text>{self.newline}"
        if isinstance(shape, RasterImage):
            return f"<image {_box(shape)}{self.image_attributes(shape)}/>{self.newline}"
        return self.geometry(shape) + self.newline

    @abstractmethod
    def geometry(self, shape: Polygon | Rectangle | Circle | Strokes) -> str:
        """A polygon, rectangle, circle or line."""

    @abstractmethod
    def group_attributes(self, group: ShapeGroup) -> str:
        """The attributes of a group, each after a space."""

    @abstractmethod
    def text_attributes(self, text: Text) -> str:
        """The attributes of a text besides its position."""

    def image_attributes(self, picture: RasterImage) -> str:
        """The attributes of a picture besides its rectangle."""
        data = base64.b64encode(picture.png).decode()
        return (
            ' preserveAspectRatio="none" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'xlink:href="data:image/png;base64,{data}"'
        )


class _FileWriter(_Writer):
    """For a file: colours of a theme, and a subset of the typeface with the characters that occur."""

    newline = "\n"

    def __init__(self, scene: Scene, theme: str) -> None:
        self.names = colours(theme)
        self.prefix = f"{scene.name}-{theme}-{_digest(repr((scene.title, scene.desc, scene.width)))}"
        texts = [s for s in scene.flat() if isinstance(s, Text)]
        self.used = {b: frozenset("".join(t.text for t in texts if t.bold == b)) for b in (False, True)}
        self.family = {b: f"onebyone-{_digest(''.join(sorted(chars)))}" for b, chars in self.used.items()}

    def style(self) -> str:
        """The embedded fonts, under names that do not occur in other figures."""
        faces = [
            f"@font-face{{font-family:'{self.family[bold]}';src:url(data:font/woff;base64,"
            f"{base64.b64encode(fonts.subset(chars, bold)).decode()}) format('woff')}}"
            for bold, chars in self.used.items()
            if chars
        ]
        return f'<style type="text/css">{"".join(faces)}</style>\n' if faces else ""

    def geometry(self, shape: Polygon | Rectangle | Circle | Strokes) -> str:
        if isinstance(shape, Rectangle):
            shape = shape.polygon()
        if isinstance(shape, Strokes):
            d = " ".join(_path(p, shape.curved) for p in shape.paths)
            dashes = f' stroke-dasharray="{" ".join(_n(v) for v in shape.dashes)}"' if shape.dashes else ""
            return f'<path d="{d}"{self._paint(None, shape.stroke, shape.line)}{dashes}{_opacity(shape.opacity)}/>'
        paint = self._paint(shape.fill, shape.stroke, shape.line)
        if isinstance(shape, Circle):
            return f"<circle {_circle(shape)}{paint}/>"
        return f'<polygon points="{_points(shape.points)}"{paint}{_opacity(shape.opacity)}/>'

    def _paint(self, fill: str | None, stroke: str | None, line: float) -> str:
        filled = f' fill="{self.names[fill] if fill else "none"}"'
        if stroke is None:
            return filled
        return f'{filled} stroke="{self.names[stroke]}" stroke-width="{_n(line)}" stroke-linejoin="round"'

    def group_attributes(self, group: ShapeGroup) -> str:
        return f' id="{self.prefix}-{group.name}"'

    def text_attributes(self, text: Text) -> str:
        family = f"{self.family[text.bold]}, '{fonts.FAMILY}', Verdana, sans-serif"
        style = f' font-family="{family}" font-size="{_n(text.size)}" fill="{self.names[text.fill]}"'
        style += ' font-weight="bold"' if text.bold else ""
        style += f' text-anchor="{text.anchor}"' if text.anchor != "start" else ""
        # textLength preserves the layout in programs that ignore embedded fonts
        return f'{style} textLength="{_n(text.width)}" lengthAdjust="spacingAndGlyphs"'


class _PageWriter(_Writer):
    """For a page: classes instead of colours and fonts."""

    def geometry(self, shape: Polygon | Rectangle | Circle | Strokes) -> str:
        css = _css(shape.css)
        if isinstance(shape, Rectangle):
            opacity = "" if shape.opacity is None else f' fill-opacity="{_n(shape.opacity)}"'
            rounded = f' rx="{_n(shape.radius)}"' if shape.radius else ""
            return f"<rect{css} {_box(shape)}{rounded}{opacity}/>"
        if isinstance(shape, Circle):
            return f"<circle{css} {_circle(shape)}/>"
        if isinstance(shape, Strokes):
            return "".join(_line(points, css) for points in shape.paths)
        return f'<polygon{css} points="{_points(shape.points)}"/>'

    def group_attributes(self, group: ShapeGroup) -> str:
        return _css(group.css)

    def text_attributes(self, text: Text) -> str:
        anchor = f' text-anchor="{text.anchor}"' if text.anchor != "start" else ""
        return anchor + _css(text.css)


def _css(names: str) -> str:
    return f' class="{escape(names)}"' if names else ""


def _line(points: Sequence[Point], css: str) -> str:
    if len(points) == 2:
        (x1, y1), (x2, y2) = points
        return f'<line{css} x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'
    return f'<polyline{css} points="{_points(points)}"/>'


def _box(shape: Rectangle | RasterImage) -> str:
    return f'x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}"'


def _circle(shape: Circle) -> str:
    return f'cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.r)}"'


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _path(points: Sequence[Point], curved: bool) -> str:
    first, *rest = (f"{_n(x)} {_n(y)}" for x, y in points)
    return f"M{first}{'C' if curved else 'L'}{' '.join(rest)}"


def _opacity(value: float) -> str:
    return "" if value == 1.0 else f' opacity="{_n(value)}"'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _n(value: float) -> str:
    """A number to a hundredth of a point."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")  # + 0.0 turns -0.0 into 0.0


_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escaped(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text), quote=False)
