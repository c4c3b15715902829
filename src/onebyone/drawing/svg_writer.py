"""A scene as an SVG file: text stays text, its glyphs are embedded, and a screen reader hears title and desc.

Ids are made from the picture's name and theme, so that several pictures can stand on one page; the same scene
gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from onebyone.drawing import fonts
from onebyone.drawing.scene import Circle, Group, Point, Polygon, RasterImage, Scene, Shape, Strokes, Text
from onebyone.drawing.theme import colours


def to_svg(scene: Scene, theme: str) -> bytes:
    """The scene as an SVG 1.1 file (with WAI-ARIA's `role`), sized in points."""
    body = _Writer(scene, colours(theme))
    prefix = f"{scene.name}-{theme}-{_digest(scene)}"
    inner = "".join(body.write(shape, prefix) for shape in scene.shapes)
    wide, high = _n(scene.width), _n(scene.height)
    # the first title and desc are the name and description that a screen reader tells (SVG-AAM 1.0, §5.1)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}pt" height="{high}pt" viewBox="0 0 {wide} {high}" '
        f'role="img">\n<title>{_escaped(scene.title)}</title>\n<desc>{_escaped(scene.desc)}</desc>\n'
    )
    paper = f'<rect width="{wide}" height="{high}" fill="{colours(theme)["paper"]}"/>\n'
    return f"{head}{body.style()}{paper}{inner}</svg>\n".encode()


def _digest(scene: Scene) -> str:
    return hashlib.sha256(repr((scene.title, scene.desc, scene.width)).encode()).hexdigest()[:8]


class _Writer:
    """Writes shapes, and remembers the texts' characters."""

    def __init__(self, scene: Scene, names: Mapping[str, str]) -> None:
        self.names = names
        texts = [s for s in scene.flat() if isinstance(s, Text)]
        self.used = {b: frozenset("".join(t.text for t in texts if t.bold == b)) for b in (False, True)}
        self.family = {b: f"onebyone-{_hash(chars)}" for b, chars in self.used.items()}

    def style(self) -> str:
        """The glyphs that the texts use, by a name that no other picture's glyphs have."""
        faces = [
            f"@font-face{{font-family:'{self.family[bold]}';src:url(data:font/woff;base64,"
            f"{base64.b64encode(fonts.subset(chars, bold)).decode()}) format('woff')}}"
            for bold, chars in self.used.items()
            if chars
        ]
        return f'<style type="text/css">{"".join(faces)}</style>\n' if faces else ""

    def write(self, shape: Shape, prefix: str) -> str:
        """One shape."""
        if isinstance(shape, Group):
            inner = "".join(self.write(s, prefix) for s in shape.shapes)
            title = f"<title>{_escaped(shape.title)}</title>" if shape.title else ""
            return f'<g id="{prefix}-{shape.name}">{title}{inner}</g>\n'
        if isinstance(shape, Text):
            return self._text(shape)
        if isinstance(shape, RasterImage):
            data = base64.b64encode(shape.png).decode()
            place = (
                f'x="{_n(shape.x)}" y="{_n(shape.y)}" width="{_n(shape.width)}" height="{_n(shape.height)}"'
            )
            return (
                f'<image {place} preserveAspectRatio="none" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'xlink:href="data:image/png;base64,{data}"/>\n'
            )
        return self._drawn(shape)

    def _drawn(self, shape: Polygon | Circle | Strokes) -> str:
        if isinstance(shape, Strokes):
            d = " ".join(_path(p, shape.curved) for p in shape.paths)
            dashes = f' stroke-dasharray="{" ".join(_n(v) for v in shape.dashes)}"' if shape.dashes else ""
            paint = self._paint(None, shape.stroke, shape.line) + dashes + _opacity(shape.opacity)
            return f'<path d="{d}"{paint}/>\n'
        paint = self._paint(shape.fill, shape.stroke, shape.line)
        if isinstance(shape, Circle):
            return f'<circle cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.r)}"{paint}/>\n'
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
        return f'<polygon points="{points}"{paint}{_opacity(shape.opacity)}/>\n'

    def _paint(self, fill: str | None, stroke: str | None, line: float) -> str:
        filled = f' fill="{self.names[fill] if fill else "none"}"'
        if stroke is None:
            return filled
        return f'{filled} stroke="{self.names[stroke]}" stroke-width="{_n(line)}" stroke-linejoin="round"'

    def _text(self, text: Text) -> str:
        family = f"{self.family[text.bold]}, '{fonts.FAMILY}', Verdana, sans-serif"
        look = f'font-family="{family}" font-size="{_n(text.size)}" fill="{self.names[text.fill]}"'
        if text.bold:
            look += ' font-weight="bold"'
        if text.anchor != "start":
            look += f' text-anchor="{text.anchor}"'
        # the length holds the layout together where a program ignores embedded fonts
        length = f'textLength="{_n(text.width)}" lengthAdjust="spacingAndGlyphs"'
        return f'<text x="{_n(text.x)}" y="{_n(text.y)}" {look} {length}>{_escaped(text.text)}</text>\n'


def _path(points: Sequence[Point], curved: bool) -> str:
    first, *rest = (f"{_n(x)} {_n(y)}" for x, y in points)
    return f"M{first}{'C' if curved else 'L'}{' '.join(rest)}"


def _opacity(value: float) -> str:
    return "" if value == 1.0 else f' opacity="{_n(value)}"'


def _hash(characters: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(characters)).encode()).hexdigest()[:8]


def _n(value: float) -> str:
    """A number to a hundredth of a point."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")  # + 0.0 takes the sign off a zero


_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escaped(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text), quote=False)
