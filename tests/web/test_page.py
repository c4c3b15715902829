"""The viewer's page in Chromium: pictures, the dragged window against its crop, review, progress, touch, dark mode."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from torch import nn

import onebyone
from bench import sparse_scan
from onebyone.dense.unfinished import open_scores
from onebyone.viewing import ScanView
from onebyone.web.server import application
from tests.report.conftest import Opened, browser  # noqa: F401

TIMEOUT = 300_000  # milliseconds; a busy machine is slow


@pytest.fixture(scope="module")
def dense() -> Any:
    network = nn.Sequential(nn.Conv2d(1, 2, 8, stride=4), nn.Flatten(), nn.Linear(8, 2)).eval()
    with torch.no_grad():  # the mean of the window's four parts, of which the first class likes bright ones
        network[0].weight.fill_(1 / 64)
        network[0].bias.zero_()
        network[2].weight.copy_(torch.tensor([[5.0] * 4 + [0] * 4, [0.0] * 8]))
        network[2].bias.copy_(torch.tensor([-16.0, 0.0]))
    labels = onebyone.Labels(classes=("bright", "background"), background=("background",), std=(1.0,))
    return onebyone.convolutionalize(network, 12, labels=labels, score_kind="logits")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    pixels = np.random.default_rng(0).random((252, 404, 1), np.float32) / 8
    pixels[40:52, 100:112] = pixels[200:212, 320:332] = 1
    return pixels


@contextmanager
def serving(view: ScanView) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(application(view, "token"), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/token/"
    server.should_exit = True
    thread.join()


Show = Callable[..., Opened]


@pytest.fixture
def show(browser: Any) -> Iterator[Show]:  # noqa: F811
    """Serve a view and open its page."""
    with ExitStack() as stack:

        def open_view(view: ScanView, link: str = "", **options: Any) -> Opened:
            address = stack.enter_context(serving(view))
            # the page's policy forbids `eval`, by which playwright waits for an expression
            context = browser.new_context(bypass_csp=True, **options)
            stack.callback(context.close)
            context.set_default_timeout(TIMEOUT)
            opened = Opened(context.new_page())
            opened.page.on("pageerror", lambda e: opened.met.append(f"error: {e}"))
            opened.page.on(
                "console", lambda m: opened.met.append(m.text) if m.type in ("error", "warning") else None
            )
            opened.page.goto(address + link)
            opened.page.wait_for_function("viewer && viewer.world.getItemCount() === 2 && state.boxes.length")
            return opened

        yield open_view


@pytest.fixture
def view(dense: Any, image: np.ndarray, tmp_path: Path) -> ScanView:
    onebyone.scan(dense, image, out=tmp_path / "scores.zarr")
    return ScanView(*open_scores(tmp_path / "scores.zarr"), image, dense)


def place(page: Any, x: float, y: float) -> tuple[float, float]:
    """A pixel of the image on the screen."""
    at = page.evaluate(
        "([x, y]) => viewer.world.getItemAt(0).imageToWindowCoordinates(new OpenSeadragon.Point(x, y))",
        [x, y],
    )
    return at["x"], at["y"]


def settled(page: Any, box: list[int]) -> None:
    """Wait until the page shows a window and its crop."""
    page.wait_for_function(
        "(box) => state.window && String(state.window.box) === String(box) && state.window.crop", arg=box
    )


def test_a_dragged_window_agrees_with_its_crop(show: Show, view: ScanView) -> None:
    opened = show(view)
    page = opened.page
    centre = page.evaluate("viewer.viewport.getCenter(true).x")
    page.mouse.click(*place(page, 106, 46))  # in the middle of the first bright square
    settled(page, [100, 40, 112, 52])
    assert page.inner_text("#window-scores tbody tr:first-child td:first-child") == "bright"
    page.mouse.move(*place(page, 106, 46))
    page.mouse.down()
    for x in (120, 160, 206):
        page.mouse.move(*place(page, x, 86))
    settled(page, [200, 80, 212, 92])
    page.mouse.up()
    row = page.eval_on_selector_all(
        "#window-scores tbody tr:first-child td", "cells => cells.map(c => c.textContent)"
    )
    assert row[0] == "background"
    assert row[2] == row[3] == f"{view.window(206, 86, False)['probabilities'][1]:.4f}"
    assert (
        page.evaluate("state.window.crop.max_difference") <= 2**-16
    )  # both sum 9 terms, each sum at most 16: 18 roundings of 2^-21
    assert page.evaluate("viewer.viewport.getCenter(true).x") == centre, "the image was moved instead"
    page.mouse.move(*place(page, 350, 200))  # a kept window does not follow the pointer
    page.fill("#window-x", "320")
    page.fill("#window-y", "200")
    settled(page, [320, 200, 332, 212])
    assert opened.met == []


def test_review_by_keys_stays_when_a_slider_moves_and_is_saved(show: Show, view: ScanView) -> None:
    page = show(view).page
    assert page.inner_text("#total") == "2"
    page.keyboard.press("n")
    rejected = page.evaluate("state.boxes[0].slice(0, 4)")
    page.keyboard.press("r")
    page.keyboard.press("a")
    assert "1 accepted, 1 rejected" in page.inner_text("#review")
    page.fill("#threshold", "0.6")
    page.wait_for_function("location.hash.includes('threshold=0.6')")
    assert "1 accepted, 1 rejected" in page.inner_text("#review")
    page.click("#save-coco")
    page.wait_for_function("document.getElementById('review').textContent.startsWith('Wrote')")
    saved = json.loads((view.path.parent / "scores-reviewed.json").read_text())
    kept = [(x, y, x + w, y + h) for x, y, w, h in (note["bbox"] for note in saved)]
    assert len(kept) == 1
    assert kept != [tuple(rejected)]


def test_a_link_shows_the_same_again(show: Show, view: ScanView) -> None:
    page = show(
        view, "#x=326&y=206&zoom=4&label=1&opacity=0.2&colours=viridis&threshold=0.8&iou=0.3&wx=320&wy=200"
    ).page
    settled(page, [320, 200, 332, 212])
    values = [page.input_value(f"#{name}") for name in ("label", "opacity", "colours", "threshold")]
    assert values == ["1", "0.2", "viridis", "0.8"]
    centre = page.evaluate(
        "viewer.world.getItemAt(0).viewportToImageCoordinates(viewer.viewport.getCenter(true))"
    )
    assert (round(centre["x"]), round(centre["y"])) == (326, 206)


def test_a_running_scan_is_followed_to_its_end(
    show: Show, dense: Any, image: np.ndarray, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise StoppedError

    out = tmp_path / "scores.zarr"
    with pytest.raises(StoppedError):
        onebyone.scan(dense, image, out=out, tile=16, progress=stop)
    opened = show(ScanView(*open_scores(out), image, dense))
    page = opened.page
    assert "The scan is not complete" in page.inner_text("#progress")
    assert page.inner_text("#total") == "1"
    onebyone.scan(dense, image, out=out, tile=16)
    page.wait_for_function("document.getElementById('total').textContent === '2'")
    assert not page.is_visible("#progress")
    page.wait_for_function("viewer.world.getItemCount() === 2")  # the map of before is gone
    assert opened.met == []


def test_touch_and_dark_on_a_narrow_screen(show: Show, view: ScanView) -> None:
    page = show(
        view, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark"
    ).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 30)"
    page.touchscreen.tap(*place(page, 106, 46))
    settled(page, [100, 40, 112, 52])
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        listed = [{"x": x, "y": y} for x, y in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": listed})

    centre = page.evaluate("viewer.viewport.getCenter(true).x")
    touch("touchStart", place(page, 106, 46))
    for x in (130, 180, 206):
        touch("touchMove", place(page, x, 86))
    settled(page, [200, 80, 212, 92])
    touch("touchEnd")
    assert page.evaluate("viewer.viewport.getCenter(true).x") == centre


@pytest.mark.slow
def test_ten_thousand_million_pixels(show: Show, tmp_path: Path) -> None:
    side = 100_000
    sparse_scan.write_image(tmp_path / "image.zarr", side)
    sparse_scan.write_scores(tmp_path / "scores.zarr", side)
    opened = show(ScanView(*open_scores(tmp_path / "scores.zarr"), tmp_path / "image.zarr"))
    page = opened.page
    loaded = "[0, 1].every((k) => viewer.world.getItemAt(k).getFullyLoaded())"
    page.wait_for_function(loaded)
    first, last = sparse_scan.square(side)
    # two of the square's four windows: each of the others overlaps one of them by a third, above the threshold of 0.3
    assert page.inner_text("#total") == "2"
    assert page.evaluate("state.boxes[0].slice(0, 4)") == [first, first, last, last]
    middle = (first + last) // 2
    page.evaluate(f"location.hash = 'x={middle}&y={middle}&zoom=2&opacity=0'")
    page.wait_for_function(
        "viewer.world.getItemAt(0).viewportToImageZoom(viewer.viewport.getZoom(true)) > 1.9"
    )
    page.wait_for_function("viewer.world.getItemCount() === 2 && " + loaded)
    colour = """([x, y]) => {
      const canvas = document.querySelector("#stage canvas"), ratio = canvas.width / canvas.clientWidth;
      return [...canvas.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3);
    }"""
    inside = page.evaluate(colour, place(page, middle, middle))
    outside = page.evaluate(colour, place(page, last + 40, middle))
    assert max(inside) < 20  # the square, at full resolution
    assert outside == pytest.approx([100, 100, 128], abs=6)  # the gradient at the middle; JPEG rounds
    assert [
        note for note in opened.met if "getImageData" not in note
    ] == []  # advice on this test's own reading
