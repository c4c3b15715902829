"""What the demo writes: a page that loads nothing else, in a folder that is written atomically."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from onebyone.demo import data, figures, network, pipeline
from onebyone.demo import run as run_demo
from onebyone.demo.atomic_folder import atomic_folder
from onebyone.demo.digit_page import DigitPage
from onebyone.demo.page_text import scientific
from onebyone.dense import ScoreMap
from onebyone.errors import BadInput
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.records import Labels
from onebyone.report.html import data_uri, outside_links
from onebyone.report.images import signed, tiled

KEYS = {
    "accuracy": float,
    "integer_probe_bitwise": bool,
    "dense_equals_windows": bool,
    "max_abs_difference": float,
    "bound": float,
    "windows": int,
    "mac_ratio": float,
    "speedup_dense_over_windows": float,
    "mAP50": float,
    "maxDets": int,
    "seconds": float,
}


class Reader(HTMLParser):
    """Collects what a page loads, its pictures without a text alternative, and its open elements."""

    VOID = frozenset({"meta", "img", "input", "br", "wbr", "hr", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.wordless = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {v for k, v in attrs if k == "id" and v}
        self.loads += [v for k, v in attrs if v and k in {"src", "href", "srcset", "data", "xlink:href"}]
        self.wordless += (tag == "img" and "alt" not in given) or (
            tag == "svg" and not given.get("aria-label")
        )
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "page",
    [
        '<img src="https://a.example/b.png">',
        "<img src=//a.example/b.png>",
        '<link rel="stylesheet" href="http://a.example/c.css">',
        "<style>@import 'x.css';</style>",
        "<style>p { background: url(https://a.example/x.png) }</style>",
        "<script src='local.js'></script>",
    ],
)
def test_a_page_that_loads_something_is_detected(page: str) -> None:
    assert outside_links(page)


def test_numbers_are_written_for_people() -> None:
    assert [scientific(v) for v in (2.5e-14, 0.0, 1.269, 0.05, 12345.0)] == [
        "2.5 × 10⁻¹⁴",
        "0",
        "1.3",
        "0.05",
        "1.2 × 10⁴",
    ]


def test_the_kernels_drawn_are_the_ones_at_work() -> None:
    plain = network.folded(network.build(0))
    kernels = figures.kernels_at_work(convolutionalize(plain, data.WINDOW).model)
    linears = [layer for layer in plain if isinstance(layer, torch.nn.Linear)]
    assert [tuple(k.shape) for k in kernels[-2:]] == [(64, 32, 5, 5), (11, 64, 1, 1)]
    for linear, kernel in zip(linears, kernels[-2:], strict=True):
        assert figures.weight_pictures(linear, kernel).same
    # a kernel in another order is not called the same
    assert not figures.weight_pictures(linears[0], kernels[-2].transpose(2, 3)).same


def test_the_stages_have_the_shapes_that_run() -> None:
    plain = network.folded(network.build(0))
    found = figures.stages(plain, (101, 143))
    shapes: list[tuple[int, ...]] = []
    x = torch.zeros(1, 1, 101, 143)
    for layer in plain:
        if isinstance(layer, torch.nn.Flatten):
            break
        x = layer(x)
        if not isinstance(layer, torch.nn.ReLU):
            shapes.append(tuple(x.shape[1:]))
    assert [(s.channels, *s.page) for s in found[1:-2]] == shapes
    dense = convolutionalize(plain, data.WINDOW)
    assert (found[-1].channels, *found[-1].page) == tuple(dense.model(torch.zeros(1, 1, 101, 143)).shape[1:])
    assert found[-1].window == (1, 1)


def test_a_heat_map_lies_on_the_middles_of_its_windows() -> None:
    dense = convolutionalize(network.folded(network.build(0)), data.WINDOW)
    scores = ScoreMap(np.zeros((11, 3, 5), np.float32), dense.geometry, Labels(), (48, 58))
    drawing = figures.heat_over_page(scores, b"", "heat")
    # the middle of the first window is pixel 20, and a position is 4 pixels: 18 to 22; three rows end at 30
    assert 'x="18" y="18" width="20" height="12"' in drawing


def test_colours_and_tiles() -> None:
    assert signed(np.array([[0.0, np.nan]]))[0, :, 3].tolist() == [0, 0]
    sheet = tiled(np.arange(8, dtype=float).reshape(2, 2, 2), columns=2)
    assert np.array_equal(sheet[:, :2], [[0, 1], [2, 3]])
    assert np.isnan(sheet[:, 2]).all()
    assert data_uri(b"\x00", "image/png") == "data:image/png;base64,AA=="


def test_boxes_are_drawn_as_correct_or_wrong() -> None:
    from onebyone.detection import Detections

    page = DigitPage(
        np.zeros((100, 100), np.uint8), np.array([[0, 0, 40, 40]]), np.array([3]), np.array([0]), "x"
    )
    boxes = np.array([[0, 0, 40, 40], [50, 50, 90, 90], [9, 9, 49, 49]], np.float32)
    found = Detections(
        boxes, np.array([0.95, 0.93, 0.2], np.float32), np.array([3, 4, 5]), data.CLASSES, (100, 100)
    )
    drawing = figures.boxes(page, found, np.array([0, -1, -1]), threshold=0.9)
    assert (drawing.count('class="right"'), drawing.count('class="wrong"')) == (1, 1)
    assert drawing.count("<rect") == 3


def write_half(path: Path, error: type[BaseException]) -> None:
    with atomic_folder(path) as folder:
        (folder / "index.html").write_text("half")
        raise error


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "demo", KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "demo") as folder:
        (folder / "index.html").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]
    assert (tmp_path / "demo" / "index.html").read_text() == "whole"


def test_an_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    old = tmp_path / "demo"
    old.mkdir()
    (old / "index.html").write_text("old")
    (old / "mine.txt").write_text("mine")
    with pytest.raises(RuntimeError):
        write_half(old, RuntimeError)
    assert (old / "index.html").read_text() == "old"
    with atomic_folder(old) as folder:
        assert (
            folder.parent == old
        )  # on its file system: the folder may be a mounted one, or a link to another disk
        (folder / "index.html").write_text("new")
    assert (old / "index.html").read_text() == "new"
    assert (old / "mine.txt").read_text() == "mine"
    assert sorted(p.name for p in old.iterdir()) == ["index.html", "mine.txt"]


def test_a_file_in_the_way_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "measure", lambda *a: pytest.fail("started before the check"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="it is not a folder"):
        run_demo(tmp_path / "file")


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    """Everything except speed, which depends on the load of the machine."""
    summary = run_demo(tmp_path / "demo", seed=0)
    assert summary == json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert {k: type(summary[k]) for k in KEYS} == KEYS
    assert summary["accuracy"] >= 0.97
    assert summary["integer_probe_bitwise"]
    assert summary["dense_equals_windows"]
    assert summary["max_abs_difference"] <= summary["bound"]
    assert summary["float64_max_abs_difference"] <= summary["float64_bound"] < 1e-6
    assert summary["mac_ratio"] >= 20
    assert summary["mAP50"] >= 0.90
    page = (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.wordless == 0
    assert reader.loads
    links = [link for link in reader.loads if not link.startswith("data:")]
    report = Reader()
    report.feed((tmp_path / "demo" / "report.html").read_text(encoding="utf-8"))
    assert {link.partition("#")[0] for link in links} == {"report.html"}
    assert {link.partition("#")[2] for link in links} - {""} == {"R1", "R2", "R3", "R4"} <= report.ids
    assert [link for link in report.loads if not link.startswith(("data:", "#"))] == ["index.html"]
    assert {link[1:] for link in report.loads if link.startswith("#")} <= report.ids
    assert "prefers-color-scheme: dark" in page
