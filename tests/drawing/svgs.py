"""A strict reader for the part of SVG 1.1 that is used, with the colours and positions of texts."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from fontTools.ttLib import TTFont
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
PAINT = {"fill", "stroke", "stroke-width", "stroke-linejoin", "stroke-dasharray", "opacity"}
SHAPES = {"g", "path", "polygon", "circle", "text", "image"}
# Elements with their attributes and children: SVG 1.1 (Second Edition), appendix A, as far as it is used; and
# `role` on the root (SVG 2, §5.13; WAI-ARIA 1.2). The same files pass the W3C's whole DTD and its Nu checker.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "svg": ({"width", "height", "viewBox", "role"}, {"title", "desc", "style", "rect", *SHAPES}),
    "title": (set(), set()),
    "desc": (set(), set()),
    "style": ({"type"}, set()),
    "rect": ({"x", "y", "width", "height", *PAINT}, set()),
    "g": ({"id"}, {"title", *SHAPES}),
    "path": ({"d", *PAINT}, set()),
    "polygon": ({"points", *PAINT}, set()),
    "circle": ({"cx", "cy", "r", *PAINT}, set()),
    "image": ({"x", "y", "width", "height", "preserveAspectRatio", HREF}, set()),
    "text": (
        {"x", "y", "font-family", "font-size", "font-weight", "text-anchor", "fill", "textLength", "lengthAdjust"},
        set(),
    ),
}  # fmt: skip
NUMBER = re.compile(r"-?\d+(\.\d+)?")
NUMERIC = {"x", "y", "cx", "cy", "r", "width", "height", "stroke-width", "opacity", "font-size", "textLength"}
PATH = re.compile(r"(M-?[\d.]+ -?[\d.]+[LC](-?[\d.]+ -?[\d.]+ ?)+ ?)+")
COLOUR = re.compile(r"#[0-9a-f]{6}|none")


def faults(svg: bytes) -> list[str]:
    """The faults of a file; empty for a valid one."""
    root = ElementTree.fromstring(svg)  # strict: raises where it is no XML
    found = [] if root.tag == f"{SVG}svg" else [f"the root is {root.tag}"]
    for element in root.iter():
        found += _element(element)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    found += [f"id {i} occurs twice" for i in sorted({i for i in ids if ids.count(i) > 1} - {None}, key=str)]
    text = svg.decode()
    found += [f"refers to {t}" for t in re.findall(r"url\(([^)]*)\)", text) if not t.startswith("data:")]
    found += [f"@import in {t}" for t in re.findall(r"@import[^;]*", text)]
    children = [c.tag.removeprefix(SVG) for c in root]
    if (
        children[:2] != ["title", "desc"]
        or not all(root[i].text for i in (0, 1))
        or root.get("role") != "img"
    ):
        found.append("it does not begin with a title and a desc, as role img needs")
    return found


def _element(element: ElementTree.Element) -> list[str]:
    name = element.tag.removeprefix(SVG)
    if name not in ALLOWED:
        return [f"<{name}> is not allowed"]
    attributes, children = ALLOWED[name]
    found = [f"<{name} {a}> is not allowed" for a in element.attrib if a not in attributes]
    found += [f"<{c.tag}> in <{name}>" for c in element if c.tag.removeprefix(SVG) not in children]
    for key, value in element.attrib.items():
        if key in NUMERIC and name != "svg" and not NUMBER.fullmatch(value):
            found.append(f"<{name} {key}={value!r}> is no number")
        if key in ("fill", "stroke") and not COLOUR.fullmatch(value):
            found.append(f"<{name} {key}={value!r}> is no colour")
    if name == "path" and not PATH.fullmatch(element.attrib["d"]):
        found.append(f"<path d={element.attrib['d'][:40]!r}> is no path")
    if name == "image" and not element.attrib[HREF].startswith("data:image/png;base64,"):
        found.append("an image that is not carried inside")
    return found


@dataclass(frozen=True)
class Line:
    """A text with its position in the file."""

    text: str
    x: float
    y: float
    size: float
    anchor: str
    bold: bool
    fill: str
    family: str
    length: float

    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 of a box that contains the ink, measured by Matplotlib."""
        x0, y0, x1, y1 = _ink(self.text, self.size, self.bold)
        left = self.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * self.length
        return left + x0, self.y - y1, left + x1, self.y - y0


@cache
def texts(svg: bytes) -> tuple[Line, ...]:
    """The texts of a file."""
    root = ElementTree.fromstring(svg)
    return tuple(
        Line(
            "".join(e.itertext()), float(e.attrib["x"]), float(e.attrib["y"]), float(e.attrib["font-size"]),
            e.get("text-anchor", "start"), e.get("font-weight") == "bold", e.attrib["fill"],
            e.attrib["font-family"], float(e.attrib["textLength"]),
        )
        for e in root.iter(f"{SVG}text")
    )  # fmt: skip


@cache
def _ink(text: str, size: float, bold: bool) -> tuple[float, float, float, float]:
    """The box of the outlines' control points: a curve lies within the hull of its control points."""
    outlines = TextPath((0, 0), text, size=size, prop=_font(bold))
    points = outlines.vertices[outlines.codes != TextPath.CLOSEPOLY]
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return float(x0), float(y0), float(x1), float(y1)


@cache
def _font(bold: bool) -> FontProperties:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return FontProperties(fname=str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name))


def fonts(svg: bytes) -> dict[str, set[str]]:
    """The embedded fonts by family, and the characters that each has a glyph for."""
    found = {}
    faces = re.findall(r"font-family:'([^']+)';src:url\(data:font/woff;base64,([^)]+)\)", svg.decode())
    for family, data in faces:
        with TTFont(io.BytesIO(base64.b64decode(data))) as font:
            found[family] = {chr(c) for c in font.getBestCmap()}
    return found


def groups(svg: bytes) -> dict[str, ElementTree.Element]:
    """The groups by the last part of their ids (what comes after the picture's own prefix)."""
    root = ElementTree.fromstring(svg)
    return {re.sub(r"^.*?-(?:light|dark)-[0-9a-f]{8}-", "", e.attrib["id"]): e for e in root.iter(f"{SVG}g")}


def points(element: ElementTree.Element) -> list[tuple[float, float]]:
    """The corners of a polygon."""
    pairs = [p.split(",") for p in element.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def extent(element: ElementTree.Element) -> tuple[float, float]:
    """Width and height of the first polygon in a group: the front of a box."""
    corners = points(next(element.iter(f"{SVG}polygon")))
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return max(xs) - min(xs), max(ys) - min(ys)


def size(svg: bytes) -> tuple[float, float]:
    """Width and height in points."""
    _, _, width, height = ElementTree.fromstring(svg).attrib["viewBox"].split()
    return float(width), float(height)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
