"""The files are valid SVG without external resources, with readable text; themes differ in colour only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations

import pytest

from onebyone.drawing import FIGURES, render
from onebyone.drawing.rendering import points
from onebyone.drawing.scene import Rectangle, Scene, ShapeGroup, Strokes, Text
from onebyone.drawing.svg_writer import to_inline_svg
from onebyone.errors import BadInput, Refused
from tests.drawing import svgs
from tests.drawing.networks import MADE, drawing, zoo

WIDTHS = ("column", "page")


def pictures(
    name: str, widths: tuple[str, ...] = WIDTHS, themes: tuple[str, ...] = ("light",)
) -> Iterator[bytes]:
    """Every figure that a network has."""
    for figure in FIGURES:
        if figure not in drawing(name).missing:
            for width in widths:
                for theme in themes:
                    yield picture(name, figure, theme, width)


@cache
def picture(name: str, figure: str, theme: str, width: str) -> bytes:
    """One of them, drawn once for all tests."""
    return render(drawing(name), figure, theme=theme, width=width)


BANK = [*MADE, *zoo()]


@pytest.mark.parametrize("name", BANK)
def test_every_file_is_valid_and_carries_all_that_it_needs(name: str) -> None:
    for svg in pictures(name, themes=("light", "dark")):
        assert svgs.faults(svg) == []
        carried = svgs.fonts(svg)
        for line in svgs.texts(svg):
            assert set(line.text) <= carried[line.family.partition(",")[0]]
        assert len(svg) < 200_000


@pytest.mark.parametrize("name", BANK)
def test_texts_neither_overlap_nor_leave_the_picture(name: str) -> None:
    for svg in pictures(name):
        width, height = svgs.size(svg)
        boxes = [(line.text, line.box()) for line in svgs.texts(svg)]
        for text, (x1, y1, x2, y2) in boxes:
            assert min(x1, y1, width - x2, height - y2) >= 2, text
        for (one, a), (other, b) in combinations(boxes, 2):
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, (one, other)


@pytest.mark.parametrize("name", BANK)
def test_texts_are_large_and_dark_enough(name: str) -> None:
    for svg in pictures(name, themes=("light", "dark")):
        paper = re.search(r'<rect [^>]*fill="(#[0-9a-f]{6})"', svg.decode())
        assert paper is not None
        for line in svgs.texts(svg):
            assert line.size >= 6.5
            assert svgs.contrast(line.fill, paper.group(1)) >= 4.5, line.text


@pytest.mark.parametrize("name", ["demo", "tokens", "residual"])
def test_light_and_dark_differ_in_colours_alone(name: str) -> None:
    data = drawing(name)
    for figure in FIGURES:
        light, dark = (render(data, figure, theme=t).decode() for t in ("light", "dark"))
        assert light != dark
        plain = [
            re.sub(r"#[0-9a-f]{6}", "#", s.replace(f"-{t}-", "-"))
            for s, t in ((light, "light"), (dark, "dark"))
        ]
        assert plain[0] == plain[1]


@pytest.mark.parametrize("figure", FIGURES)
def test_the_same_network_gives_the_same_bytes(figure: str) -> None:
    data = drawing("demo")
    for form in ("svg", "pdf", "png"):
        assert render(data, figure, format=form) == render(data, figure, format=form)


def test_the_width_is_the_one_asked_for() -> None:
    data = drawing("demo")
    assert svgs.size(render(data, "F2", width="column"))[0] == pytest.approx(3.3 * 72, abs=0.01)
    assert svgs.size(render(data, "F2", width="page"))[0] == 7 * 72
    assert svgs.size(render(data, "F2", width=5.0))[0] == 5 * 72
    for wrong in ("colum", 1.0, 100.0, float("nan")):
        with pytest.raises(BadInput, match="width="):
            points(wrong)


def test_several_pictures_stand_on_one_page() -> None:
    """Ids and font families must not clash if several files are put into one document."""
    files = [*pictures("demo", themes=("light", "dark")), *pictures("tokens", themes=("light", "dark"))]
    ids = [i for svg in files for i in re.findall(r' id="([^"]+)"', svg.decode())]
    assert len(ids) == len(set(ids))
    families: dict[str, set[str]] = {}
    for svg in files:
        for family, glyphs in svgs.fonts(svg).items():
            assert families.setdefault(family, glyphs) == glyphs


def test_the_words_tell_the_numbers() -> None:
    root = svgs.ElementTree.fromstring(render(drawing("demo"), "F3"))
    title, desc = root[0].text or "", root[1].text or ""
    assert "2 fully connected layers" in title
    assert (
        "weight 64×800 becomes a 5×5 convolution, weight 64×32×5×5; the flatten of 32×5×5 is no longer needed"
        in desc
    )


def test_what_is_not_there_is_refused_by_name() -> None:
    data = drawing("neither")
    assert set(data.missing) == {"F1", "F2", "F3"}
    with pytest.raises(Refused, match="no fully connected layer and no 1×1 convolution") as refused:
        render(data, "F1")
    assert refused.value.refusals[0].kind == "F1"
    for key, value in {"figure": "F9", "theme": "blue", "format": "gif"}.items():
        arguments = {"figure": "strip", key: value}
        with pytest.raises(BadInput, match=f"{key}='{value}'"):
            render(data, **arguments)  # type: ignore[arg-type]


def test_names_from_outside_cannot_break_the_file() -> None:
    """The name of a module remains text; characters without a glyph become a visible mark."""
    from torch import nn, zeros

    from onebyone.drawing import describe

    odd = nn.Sequential()
    odd.add_module('<script>"&\u4e2d\x01', nn.Linear(3, 2))
    data = describe(odd, zeros(1, 3))
    for figure in ("F1", "F2", "F3", "strip"):
        svg = render(data, figure)
        assert svgs.faults(svg) == []
        assert b"<script" not in svg
    assert any('<script>"&\ufffd' in line.text for line in svgs.texts(render(data, "F2")))


def test_an_inline_figure_has_classes_in_place_of_colours() -> None:
    shapes = (
        Strokes((((0, 0), (4, 4)),), "line", css="rule"),
        Strokes((((0, 0), (2, 1), (4, 4)),), "line", css="line c-a"),
        Rectangle(1, 2, 3, 4, opacity=0.5, css="cell"),
        ShapeGroup("g", "a <b>", (Text(1, 1, 'x"<y', anchor="middle", css="tick"),), "found"),
    )
    for title, name in (
        ('a "chart" & more', 'role="img" aria-label="a &quot;chart&quot; &amp; more"'),
        ("", "aria-hidden"),
    ):
        svg = to_inline_svg(Scene("chart", 10, 5, title, "", shapes), "chart", {"data-x": '"1"'})
        root = svgs.ElementTree.fromstring(svg)
        assert name in svg
        assert root.attrib["data-x"] == '"1"'
        assert [(e.tag, e.get("class")) for e in root] == [
            ("line", "rule"),
            ("polyline", "line c-a"),
            ("rect", "cell"),
            ("g", "found"),
        ]
        assert not re.search(
            r"#[0-9a-f]{6}|font-|stroke=|fill=", svg
        )  # the style sheet of the page sets these
        assert [t.text for t in root.iter() if t.text] == ["a <b>", 'x"<y']
