"""Boxes and captions drawn on pictures, compared pixel by pixel with what their description says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw, ImageFont

from onebyone.detection import Detections, detections, overlay
from onebyone.detection.notebook_figure import boxes_figure
from onebyone.detection.overlay import PALETTE, colour_of, draw_boxes, save_picture
from onebyone.errors import BadInput
from onebyone.records import html_result, html_table

#: The colours in the source (Okabe and Ito, 2008), in decimal, and white.
OKABE_ITO = [
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (255, 255, 255),
]  # fmt: skip
GREY, BLACK = (90, 90, 90), (0, 0, 0)


def drawn(box: list[float], label: int, caption: str, size: tuple[int, int]) -> np.ndarray:
    """A grey picture of (width, height) with one box, as an array (height, width, 3)."""
    picture = Image.new("RGB", size, GREY)
    draw_boxes(picture, np.array([box], np.float32), np.array([label]), [caption])
    return np.asarray(picture)


def test_the_colours_are_those_of_the_source() -> None:
    assert list(PALETTE) == [f"#{red:02X}{green:02X}{blue:02X}" for red, green, blue in OKABE_ITO]


@pytest.mark.parametrize(
    ("size", "line"), [((80, 70), 2), ((1300, 1249), 2), ((1251, 1300), 3), ((2000, 1800), 4)]
)
def test_a_box_is_a_line_of_its_colour_between_two_dark_ones(size: tuple[int, int], line: int) -> None:
    """The pixels by their ring: −1 is outside of the box, 0 the box's outermost pixels. The tag is above the box."""
    x1, y1, x2, y2 = 20, 36, 61, 65
    picture = drawn([x1 + 0.4, y1 + 0.4, x2, y2 + 0.3], 2, "", size)
    rows, columns = np.mgrid[y1 : y2 + 4, x1 - 4 : x2 + 4]
    ring = np.minimum.reduce([columns - x1, x2 - 1 - columns, rows - y1, y2 - 1 - rows])
    expected = np.full((*ring.shape, 3), GREY)
    expected[(ring == -1) | (ring == line)] = BLACK
    expected[(ring >= 0) & (ring < line)] = OKABE_ITO[2]
    np.testing.assert_array_equal(picture[y1 : y2 + 4, x1 - 4 : x2 + 4], expected)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 9), (3, 3), (3, 9), (5, 4), (9, 5)]
)
def test_no_pixel_outside_of_a_narrow_box_has_its_colour(height: int, width: int) -> None:
    """The line of this picture is 3 pixels wide, so each box is narrower than two lines: it is filled."""
    picture = drawn([20, 36, 20 + width, 36 + height], 2, "", (1300, 1300))
    rows, columns = np.nonzero((picture[36:100] == OKABE_ITO[2]).all(axis=2))  # the tag is above the box
    assert set(zip(rows, columns, strict=True)) == {
        (r, c) for r in range(height) for c in range(20, 20 + width)
    }


def test_a_box_too_small_for_its_inner_line_is_filled() -> None:
    picture = drawn([20, 30, 24, 34], 0, "", (80, 70))
    assert (picture[30:34, 20:24] == OKABE_ITO[0]).all()
    assert (picture[34, 19:25] == BLACK).all()
    assert (picture[36:, :] == GREY).all()
    five = drawn([20, 30, 25, 35], 0, "", (80, 70))  # the inner line is one pixel
    assert (five[32, 22] == BLACK).all()
    assert (five[31:34, 21:24] == OKABE_ITO[0]).all(axis=2).sum() == 8
    point = drawn([20, 30, 20, 30], 0, "", (80, 70))  # a box without area is one pixel
    assert (point[30, 20] == OKABE_ITO[0]).all()


@pytest.mark.parametrize(("side", "font_size"), [(300, 11), (862, 11), (863, 12), (1125, 15)])
def test_a_caption_is_on_a_rectangle_of_the_colour_above_the_box(side: int, font_size: int) -> None:
    """The rectangle has 3 pixels beside the text, 2 above and 3 below it, and a dark edge."""
    caption = "a cat (0.93)"
    picture = drawn([100, 150, 280, 250], 3, caption, (side, side + 40))
    left, top, right, bottom = ImageFont.load_default(size=font_size).getbbox(caption)
    width, height = round(right - left) + 6, round(bottom - top) + 5
    tag = picture[150 - height : 150, 99 : 99 + width]
    for edge in (tag[0], tag[:, 0], tag[:, -1]):
        assert (edge == BLACK).all()
    assert (picture[150 - height - 1] == GREY).all()
    assert (picture[150 - height : 149, [98, 99 + width]] == GREY).all()
    inside = (tag != OKABE_ITO[3]).any(axis=2)[1:-1, 1:-1]
    rows, columns = np.nonzero(inside)
    assert (rows.min(), columns.min()) == (1, pytest.approx(2, abs=1))
    assert inside.shape[0] - 1 - rows.max() == pytest.approx(2, abs=1)
    assert inside.shape[1] - 1 - columns.max() == pytest.approx(2, abs=1)


def test_captions_whose_first_letter_reaches_to_the_left_are_inside_their_rectangle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text begins 3 pixels from the rectangle's side, wherever the font says that its ink begins.

    The rectangle is as wide as the ink and 6 pixels more.
    """
    original, place = ImageDraw.ImageDraw.textbbox, overlay._TagLayout.place
    starts, rectangles = [], []

    def placed(self: overlay._TagLayout, box: list[float], width: int, height: int) -> tuple[int, int]:
        corner = place(self, box, width, height)
        rectangles.append((*corner, width, height))
        return corner

    def shifted(self: ImageDraw.ImageDraw, *arguments: Any, **settings: Any) -> Any:
        left, top, right, bottom = original(self, *arguments, **settings)
        return left - 2, top, right - 2, bottom

    def text(self: ImageDraw.ImageDraw, position: tuple[float, float], *_: Any, **__: Any) -> None:
        starts.append(position)

    monkeypatch.setattr(overlay._TagLayout, "place", placed)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    drawn([20, 36, 70, 60], 0, "jj", (120, 90))
    monkeypatch.setattr(ImageDraw.ImageDraw, "textbbox", shifted)
    drawn([20, 36, 70, 60], 0, "jj", (120, 90))
    left, top, right, bottom = ImageFont.load_default(size=11).getbbox("jj")
    x, y, width, height = rectangles[0]
    assert rectangles[1] == rectangles[0]
    assert (width, height) == (round(right - left) + 6, round(bottom - top) + 5)
    assert starts == [(x + 3 - left, y + 2 - top), (x + 3 - (left - 2), y + 2 - top)]


@pytest.mark.parametrize(
    ("label", "dark"), list(enumerate([True, True, True, True, False, False, True, True]))
)
def test_text_is_dark_on_light_colours_and_light_on_dark_ones(label: int, dark: bool) -> None:
    text = drawn([20, 30, 70, 60], label, "HHHH", (120, 90))[18:28, 21:40].reshape(-1, 3).astype(int)
    black, white = (np.abs(text - v).max(axis=1).min() for v in (0, 255))  # the edges of letters are blended
    assert (black < 30) == dark
    assert (white < 30) == (not dark or label == 7)


def test_luminance_is_the_weighted_mean_of_wcag() -> None:
    primaries = [overlay._luminance(c) for c in ("#FF0000", "#00FF00", "#0000FF", "#FFFFFF", "#000000")]
    assert primaries == pytest.approx([0.2126, 0.7152, 0.0722, 1, 0], abs=1e-12)
    assert overlay._luminance("#336699") == pytest.approx(0.2126 * 0.2 + 0.7152 * 0.4 + 0.0722 * 0.6)


def test_the_best_box_is_on_top_and_captions_end_after_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    monkeypatch.setattr(overlay, "_draw_tag", lambda *arguments: captions.append(arguments[3]))
    picture = Image.new("RGB", (40, 40), GREY)
    boxes = np.tile(np.float32([10, 10, 30, 30]), (1001, 1))
    draw_boxes(picture, boxes, np.arange(1001), [str(k) for k in range(1001)])
    assert picture.getpixel((10, 20)) == OKABE_ITO[0]
    assert captions == [str(k) for k in range(1000)]


BOX, WIDTH, HEIGHT = [80.0, 80, 140, 120], 30, 12
#: Corners of a tag beside this box, in the order of preference: above, below, right, left, inside.
PLACES = [(79, 68), (111, 68), (79, 120), (111, 120), (140, 80), (50, 80), (80, 80)]


def layout(*boxes: tuple[float, ...], size: tuple[int, int] = (200, 180)) -> overlay._TagLayout:
    return overlay._TagLayout(np.array([BOX, *boxes]), size)


@pytest.mark.parametrize("free", range(7))
def test_a_tag_is_at_the_first_place_that_is_free(free: int) -> None:
    """The places before it are covered by two other boxes, which costs more than to cover the tag's own box."""
    blocked = [(x, y, x + WIDTH, y + HEIGHT) for x, y in PLACES[:free]]
    assert layout(*blocked, *blocked).place(BOX, WIDTH, HEIGHT) == PLACES[free]


@pytest.mark.parametrize(("pixels", "place"), [(3, 1), (4, 0), (5, 0)])
def test_a_pixel_of_a_tag_costs_as_much_as_four_of_boxes(pixels: int, place: int) -> None:
    """A tag of one pixel at the first place, boxes of some pixels at the second, and more at the others."""
    others = [(x, y, x + 6, y + 1) for x, y in PLACES[2:6]]
    tags = layout((115.0, 70, 115 + pixels, 71), *others)
    assert tags.place([86.0, 71, 86, 71], 1, 1) == (85, 70)
    assert tags.place(BOX, WIDTH, HEIGHT) == PLACES[place]


def test_tags_are_inside_the_picture() -> None:
    assert layout().place([190, 100, 200, 110], WIDTH, HEIGHT) == (170, 88)
    assert layout((60, HEIGHT, 70, 30)).place([60, HEIGHT, 70, 30], WIDTH, HEIGHT) == (59, 0)  # the first row
    assert layout((1, 60, 40, 80)).place([1, 60, 40, 80], WIDTH, HEIGHT) == (0, 48)  # the first column
    assert layout((0, 0, 20, 20)).place([0, 0, 20, 20], WIDTH, HEIGHT) == (0, 20)  # below: above is outside
    assert layout().place([60, 160, 70, 180], WIDTH, HEIGHT) == (59, 148)
    assert layout((0, 0, 200, 180), size=(200, 180)).place([0, 0, 200, 180], 250, 190) == (0, 0)


def test_each_tag_avoids_all_before_it() -> None:
    tags = layout(*[tuple(BOX)] * 7)
    placed = [tags.place(BOX, WIDTH, HEIGHT) for _ in range(4)]
    assert placed == PLACES[:4]
    corners = [tags.place([10 + 40 * k, 20, 30 + 40 * k, 40], 36, 8) for k in range(3)]
    assert all(b[0] >= a[0] + 36 for a, b in pairwise(corners))


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3), GREY)
    save_picture(picture, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").getpixel((3, 2)) == GREY
    with pytest.raises(BadInput, match=r"cannot write .*a\.unknown: unknown file extension"):
        save_picture(picture, tmp_path / "a.unknown")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def found(count: int = 1, classes: tuple[str, ...] = ("cat", "<dog>")) -> Detections:
    """Boxes in an image of 30×40 pixels, their classes in turn."""
    boxes = np.tile(np.float32([4, 6, 24, 26]), (count, 1))
    labels = np.arange(count) % len(classes)
    return Detections(boxes, np.full(count, 0.876, np.float32), labels, classes, (30, 40))


def test_captions_are_the_class_and_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []
    monkeypatch.setattr(detections, "draw_boxes", lambda *arguments: captions.extend(arguments[3]))
    found(2).draw(np.zeros((30, 40), np.uint8))
    assert captions == ["cat (0.88)", "<dog> (0.88)"]


def test_the_page_and_the_size_of_a_drawing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([np.full((30, 40), v, np.uint8) for v in (50, 150)]))
    for page in (0, 1):
        value = 50 + 100 * page
        picture = found().draw(tmp_path / "pages.tif", tmp_path / "drawn.png", page=page)
        assert picture.getpixel((35, 28)) == (value,) * 3
        assert (np.asarray(Image.open(tmp_path / "drawn.png")) == np.asarray(picture)).all()
        found(0).save(tmp_path / "saved.png", image=tmp_path / "pages.tif", page=page, thumbnail=20)
        saved = Image.open(tmp_path / "saved.png")
        assert saved.size == (20, 15)
        assert saved.getpixel((18, 13)) == (value,) * 3


def rectangles(html: str) -> list[dict[str, str]]:
    """The attributes of the rectangles of a figure, the first of which is the image."""
    svg = html[html.index("<svg") : html.index("</svg>") + 6]
    return [dict(element.attrib) for element in ElementTree.fromstring(svg).iter("rect")]


def test_the_figure_of_a_notebook_has_the_image_and_the_boxes() -> None:
    """The longer side has 360 pixels: 9 for each of 40."""
    html = boxes_figure(found().boxes, np.array([1]), ("cat", "<dog>"), (30, 40))
    image, box = rectangles(html)
    assert (image["width"], image["height"]) == ("360.0", "270.0")
    assert {k: float(box[k]) for k in ("x", "y", "width", "height")} == {
        "x": 36, "y": 54, "width": 180, "height": 180,
    }  # fmt: skip
    assert (box["stroke"], box["fill"], box["stroke-width"]) == (colour_of(1), "none", "2")
    assert '<svg width="360" height="270" viewBox="0 0 360.0 270.0"' in html
    assert 'aria-label="1 boxes"' in html
    assert html.count("&lt;dog&gt;</span>") == 1
    assert "cat" not in html  # the key has the classes that were found
    upright = rectangles(boxes_figure(found().boxes, np.array([1]), ("cat", "<dog>"), (60, 40)))
    assert (upright[0]["width"], upright[0]["height"], upright[1]["x"]) == ("240.0", "360.0", "24.0")


def test_a_figure_has_five_hundred_boxes_and_twelve_classes_at_most() -> None:
    classes = tuple(f"class {k}" for k in range(13))
    many = found(501, classes)
    html = boxes_figure(many.boxes, many.labels, classes, many.image_size)
    boxes = rectangles(html)[1:]
    assert [box["stroke"] for box in boxes] == [colour_of(k % 13) for k in range(500)]
    assert html.count("</span>") == 12
    assert html.index("class 0<") < html.index("class 11<")
    assert f"solid {colour_of(11)};padding:0 10px 0 4px" in html
    assert 'aria-label="501 boxes"' in html
    text = re.sub("<[^<>]*>", "\n", html)  # nothing but the names is between the elements
    assert [line for line in text.splitlines() if line] == [f"class {k}" for k in range(12)]


def test_detections_in_a_notebook() -> None:
    html = found(21)._repr_html_()
    assert "<svg" in html
    assert "21 detections in an image of 30×40 pixels" in html
    assert "… and 1 more" in html
    assert html.count("<tr>") >= 20
    rows = [["cat", "0.876", "4.0", "6.0", "24.0", "26.0"]]
    headers = ("class", "score", "x1", "y1", "x2", "y2")
    for count, figure in (
        (0, ""),
        (1, boxes_figure(found().boxes, found().labels, found().classes, (30, 40))),
    ):
        expected = html_result(
            f"{count} detections in an image of 30×40 pixels",
            figure,
            html_table(headers, rows[:count]),
            notes=[],
        )
        assert found(count)._repr_html_() == expected
    assert "… and" not in found(20)._repr_html_()


def test_what_is_not_known_of_detections_is_none() -> None:
    assert (found().placement, found().rejection) == (None, None)
