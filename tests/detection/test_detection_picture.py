"""Pictures of detections: heat maps and thumbnails against a computation pixel by pixel, on large and stored images."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.dense import ScoreMap
from onebyone.detection import Detections, detect
from onebyone.detection.detection_picture import blank, heat, picture_size, reduced
from onebyone.errors import BadInput, MissingExtra
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels
from onebyone.stores.map_reader import StoredMap
from onebyone.stores.regions import Span
from tests.detection.test_stored_maps import bright_windows


def random_map(
    size: tuple[int, int], window: int, stride: int, seed: int = 0, *, offset: int = 0, **facts: Any
) -> ScoreMap:
    """Probabilities of two classes, of which the second is background, of an image of `size`."""
    geometry = Geometry((window,) * 2, (stride,) * 2, (offset,) * 2, (window,) * 2, (offset,) * 2, True)
    scores = np.random.default_rng(seed).random((2, *geometry.positions(size))).astype(np.float32)
    labels = Labels(classes=("a", "b"), background=("b",))
    kind = ScoreKind("probabilities", "multi-label")
    return ScoreMap(scores, geometry, labels, size, kind=kind, **facts)


def slow_heat(maps: list[ScoreMap], size: tuple[int, int]) -> np.ndarray:
    """Each pixel has the largest value of the positions that its centre belongs to, or whose centre is in it."""
    result = np.zeros(size)
    for m in maps:
        cells = []
        for axis in (0, 1):
            g, ratio = m.geometry, size[axis] / m.image_size[axis]
            first = (g.window[axis] - g.stride[axis]) / 2 - g.window_offset[axis]
            edges = [(first + g.stride[axis] * i) * ratio for i in range(m.positions[axis] + 1)]
            cells.append(list(itertools.pairwise(edges)))
        for i, (top, bottom) in enumerate(cells[0]):
            for j, (left, right) in enumerate(cells[1]):
                value = np.nan_to_num(m.scores[0, i, j])
                for y in _pixels(top, bottom, size[0]):
                    for x in _pixels(left, right, size[1]):
                        result[y, x] = max(result[y, x], value)
    return result


def _pixels(low: float, high: float, count: int) -> list[int]:
    if high - low >= 1:
        return [p for p in range(count) if low <= p + 0.5 < high]
    return [p for p in range(count) if p <= (low + high) / 2 < p + 1]


@pytest.mark.parametrize("offset", [0, 11, -11])  # the first or the last positions are outside of the image
@pytest.mark.parametrize(
    ("size", "stride", "picture"),
    [
        ((40, 60), 4, (40, 60)),
        ((40, 60), 4, (10, 15)),  # a position per pixel
        ((40, 60), 2, (8, 12)),  # 2.5 positions per pixel
        ((41, 67), 3, (13, 40)),  # fewer than one per pixel across, more down
        ((64, 64), 4, (1, 1)),
    ],
)
def test_heat_is_that_of_every_pixel(
    size: tuple[int, int], stride: int, picture: tuple[int, int], offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = size[0] // 2, size[1] // 2
    maps = [random_map(size, 8, stride, offset=offset), random_map(half, 8, stride, 1, offset=offset)]
    maps[0].scores[:, 1, 2] = np.nan
    expected = slow_heat(maps, picture)
    whole = heat(maps, picture)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, expected.astype(np.float32))

    def in_parts(self: ScoreMap) -> Any:
        for i in range(0, self.positions[0], 3):
            for j in range(0, self.positions[1], 2):
                spans = (Span(i, min(i + 3, self.positions[0])), Span(j, min(j + 2, self.positions[1])))
                yield spans, self.scores[:, spans[0].slice, spans[1].slice]

    monkeypatch.setattr(ScoreMap, "regions", in_parts)
    np.testing.assert_array_equal(heat(maps, picture), whole)


def test_heat_is_at_most_one() -> None:
    """Probabilities of 16 bits may be rounded to a little more, which is accepted."""
    above = random_map((16, 20), 8, 4)
    above.scores[0] = 1 + 2.0**-12
    shown = heat([above], (16, 20))
    assert (shown.min(), shown.max()) == (0, 1)


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """A TIFF of 240×320 pixels with a half-size level and a bright square, and its score maps at two scales."""
    image = np.full((240, 320, 3), 20, np.uint8)
    image[64:96, 160:192] = 220
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(image, tile=(64, 64), photometric="rgb", subifds=1)
        file.write(image[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1)
    dense = onebyone.convolutionalize(bright_windows(), 8, labels=Labels(classes=("bright",), std=(1.0,)))
    onebyone.scan(dense, tmp_path / "slide.tif", out=tmp_path / "fine.zarr")
    onebyone.scan(dense, tmp_path / "slide.tif", level=1, out=tmp_path / "coarse.zarr")
    return tmp_path


def test_without_a_class_in_the_foreground_there_is_no_heat() -> None:
    assert not heat([random_map((16, 20), 8, 4)], (16, 20), ["a"]).any()


def test_the_command_draws_a_heat_map_over_a_thumbnail(
    scanned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredMap, "__array__", None)  # the map is read part by part
    words = ["detect", str(scanned / "fine.zarr"), "--image", str(scanned / "slide.tif"), "--heat"]
    words += ["--threshold", "1"]  # no boxes
    done = CliRunner().invoke(app, [*words, "--thumbnail", "80", "-o", str(scanned / "heat.png"), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["scores"] == [str(scanned / "fine.zarr")]
    drawn = np.asarray(Image.open(scanned / "heat.png").convert("RGB")).astype(int)
    assert drawn.shape == (60, 80, 3)  # too narrow for a legend
    # the middle of a window's cell: a quarter of the image, three quarters of the colour of 1
    assert np.abs(drawn[20, 44] - (np.array([220] * 3) * 0.25 + np.array([252, 255, 164]) * 0.75)).max() <= 1
    assert drawn[50, 10].tolist() == [20, 20, 20]
    both = ["detect", str(scanned / "fine.zarr"), str(scanned / "coarse.zarr"), "--heat", "--json"]
    done = CliRunner().invoke(app, [*both, "-o", str(scanned / "black.png")])
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["scores"]) == 2
    assert np.asarray(Image.open(scanned / "black.png").convert("RGB")).shape[1] == 320


def test_boxes_of_resolution_levels_are_merged_in_pixels_of_the_first(scanned: Path) -> None:
    """The square is 32×32 pixels of the full resolution and 16×16 of the half; the windows are 8×8 of each."""
    maps = [ScoreMap.load(scanned / name) for name in ("fine.zarr", "coarse.zarr")]
    boxes = onebyone.detect(maps, iou=0).boxes
    assert len(boxes) == 16  # of equal scores, the small boxes come first
    coarse = onebyone.detect([maps[1], maps[0]], iou=0)
    assert coarse.image_size == (120, 160)
    np.testing.assert_allclose(coarse.boxes * 2, boxes)
    alone = onebyone.detect(maps[1], iou=0).boxes * 2
    np.testing.assert_array_equal(
        sorted(alone.tolist()), [[160 + x, 64 + y, 176 + x, 80 + y] for x in (0, 16) for y in (0, 16)]
    )
    with pytest.raises(BadInput, match="expected one image, resized, or resolution levels of one file"):
        detect([maps[0], random_map((100, 100), 8, 4)])


def test_a_thumbnail_is_the_mean_of_its_pixels_from_the_level_that_suffices(scanned: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    drawn = np.asarray(reduced(image, (60, 80), (15, 20))).astype(float)
    expected = image.reshape(15, 4, 20, 4, 3).mean(axis=(1, 3))
    # the filter is a triangle of twice the width, so a pixel differs from the plain mean; the means of all are close
    assert abs(drawn.mean() - expected.mean()) < 2
    assert drawn.std() < image.std() / 2
    assert reduced(scanned / "slide.tif", (240, 320), (30, 40)).size == (40, 30)
    half = np.asarray(reduced(scanned / "slide.tif", (120, 160), (120, 160)))  # the level that was scanned
    assert half[32:48, 80:96].min() == 220
    with pytest.raises(BadInput, match="has 240×320 pixels; expected 99×99"):
        reduced(scanned / "slide.tif", (99, 99), (9, 9))
    with pytest.raises(BadInput, match="thumbnail=0: expected a side from 1 to 32768"):
        picture_size((10, 10), 0)


def test_boxes_are_drawn_where_they_are_on_a_thumbnail() -> None:
    boxes = np.array([[100, 40, 180, 120]], np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), ("a",), (200, 400))
    np.testing.assert_allclose(found.resized((100, 200)).boxes, boxes / 2)
    plain = np.zeros((200, 400), np.uint8)
    drawn = np.asarray(found.draw(plain, thumbnail=200))
    orange = (drawn == [0xE6, 0x9F, 0x00]).all(axis=2)
    rows, columns = np.nonzero(orange[20:60])
    assert (columns.min(), columns.max()) == (50, 89)
    assert rows.max() == 39


def test_pictures_are_never_enlarged() -> None:
    assert (
        picture_size((30, 20), 30) == picture_size((30, 20), 31) == picture_size((30, 20), 32768) == (30, 20)
    )
    assert picture_size((10_000, 10_000)) == (10_000, 10_000)  # 10^8 pixels, and one row more
    assert picture_size((10_001, 10_000)) == (4096, 4096)
    assert picture_size((2, 100_000)) == (2, 100_000)
    assert picture_size((2, 100_000), 50) == (1, 50)
    assert picture_size((30, 20), 1) == (1, 1)
    for side in (-1, 32769):
        with pytest.raises(BadInput, match=f"thumbnail={side}: expected a side from 1 to 32768 pixels"):
            picture_size((10, 10), side)


def test_boxes_and_the_legend_of_a_heat_map() -> None:
    """The boxes are where they are without a heat map, and the legend is below the picture."""
    boxes = np.array([[100, 40, 180, 120]], np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), ("a", "b"), (200, 400))
    cold = random_map((200, 400), 8, 8)
    cold.scores[:] = 0
    drawn = np.asarray(found.draw(np.zeros((200, 400), np.uint8), heat=[cold]))
    assert drawn.shape[0] > 200
    assert drawn.shape[1] == 400
    rows, columns = np.nonzero((drawn[:200] == [0xE6, 0x9F, 0x00]).all(axis=2)[60:])
    assert (columns.min(), columns.max(), rows.max() + 60) == (100, 179, 119)
    black = np.asarray(found.draw(None, heat=[cold]))
    assert (black[:200] == drawn[:200]).all()


def test_boxes_are_drawn_above_the_legend_as_without_one() -> None:
    """A box of the image's height, whose caption has no place but beside it: not on the legend, which is the same."""
    boxes = np.array([[100, 0, 180, 200]], np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), ("a", "b"), (200, 400))
    cold = random_map((200, 400), 8, 8)
    cold.scores[:] = 0
    drawn = np.asarray(found.draw(None, heat=[cold]))
    assert (drawn[:200] == np.asarray(found.draw(np.zeros((200, 400), np.uint8)))).all()
    nothing = Detections(boxes[:0], found.scores[:0], found.labels[:0], ("a", "b"), (200, 400))
    assert (drawn[200:] == np.asarray(nothing.draw(None, heat=[cold]))[200:]).all()
    assert (drawn[200:] != 0).any()


def test_legends_name_the_classes_that_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = Detections(
        np.zeros((0, 4), np.float32), np.ones(0, np.float32), np.zeros(0, np.int64), ("a", "b"), (200, 400)
    )
    cold = random_map((200, 400), 8, 8)
    legends: list[str] = []
    monkeypatch.setattr(
        "onebyone.detection.detection_picture.heat_map",
        lambda picture, values, placement, legend: legends.append(legend) or picture,
    )
    for background in ((), ("a",)):
        three = ScoreMap(
            np.zeros((3, *cold.positions), np.float32),
            cold.geometry,
            Labels(("a", "b", "c")),
            (200, 400),
            kind=cold.kind,
        )
        found.draw(None, heat=[three], background=background)
    found.draw(None, heat=[cold])
    found.save(tmp_path / "saved.png", heat=[three], background=["b"])
    assert legends == [
        "probability of the most likely of a, b, c",
        "probability of the most likely of b, c",
        "probability of a",
        "probability of the most likely of a, c",
    ]


def test_without_pillow_the_purpose_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match="drawing detections needs Pillow"):
        reduced(np.zeros((4, 4), np.uint8), (4, 4), (4, 4))
    with pytest.raises(MissingExtra, match="drawing a heat map needs Pillow"):
        blank((4, 4))


def test_a_thumbnail_of_an_array_with_channels_first() -> None:
    image = np.zeros((3, 20, 30), np.uint8)
    image[0] = 200
    picture = reduced(image, (20, 30), (10, 15), axes="cyx")
    assert (picture.size, picture.getpixel((7, 5))) == ((15, 10), (200, 0, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_that_are_not_finite_are_not_drawn(bad: float) -> None:
    image = np.zeros((20, 30), np.float32)
    image[3, 4] = bad
    with pytest.raises(BadInput, match="the image has values that are not finite, so it cannot be drawn"):
        reduced(image, (20, 30), (20, 30))
