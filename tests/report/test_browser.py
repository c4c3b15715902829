"""The page in headless Chromium, opened offline from a file, and used by mouse, touch and keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from onebyone.comparison import Comparison
from onebyone.laws import cost
from tests.report.checks import check_order, check_pixel, place
from tests.report.conftest import ARTEFACTS, Open

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 800}


# view 1: the pixel ------------------------------------------------------------------------------------------


def test_dragging_the_pixel(page: str, open_page: Open) -> None:
    opened = open_page(page, viewport=DESKTOP)
    check_pixel(opened.page, (3, 2))  # in the middle, as it was written
    mouse = opened.page.mouse
    mouse.move(*place(opened.page, "pointwise", (0, 0), (6, 5)))
    mouse.down()
    check_pixel(opened.page, (0, 0))
    mouse.move(*place(opened.page, "pointwise", (5, 4), (6, 5)), steps=5)
    mouse.up()
    check_pixel(opened.page, (5, 4))
    mouse.move(*place(opened.page, "pointwise", (2, 2), (6, 5)))  # not pressed: it stays
    check_pixel(opened.page, (5, 4))
    # the input of another layer selects in all layers as well
    mouse.click(*place(opened.page, "connected", (1, 3), (6, 5)))
    check_pixel(opened.page, (1, 3))
    told = opened.page.locator("#pixel-live").inner_text()
    assert "row 1, column 3" in told
    assert "1×1 convolution 1 of 30" in told
    assert opened.met == []


def test_the_pixel_by_keyboard(page: str, open_page: Open) -> None:
    opened = open_page(page, viewport=DESKTOP)
    control = opened.page.locator('.mover[data-role="kernel"] .input')
    control.focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft"):
        opened.page.keyboard.press(key)
    check_pixel(opened.page, (2, 0))
    assert control.get_attribute("aria-valuetext") == "row 2, column 0"
    opened.page.keyboard.press("ArrowLeft")  # at the border it stays
    check_pixel(opened.page, (2, 0))
    opened.page.keyboard.press("End")
    check_pixel(opened.page, (5, 4))
    opened.page.keyboard.press("Home")
    check_pixel(opened.page, (0, 0))
    assert opened.met == []


def test_the_pixel_by_touch(page: str, open_page: Open) -> None:
    opened = open_page(page, viewport=PHONE, has_touch=True)
    opened.page.touchscreen.tap(*place(opened.page, "connected", (4, 1), (6, 5)))
    check_pixel(opened.page, (4, 1))
    assert opened.met == []


# view 2: the order ------------------------------------------------------------------------------------------


def test_stepping_through_the_order(page: str, open_page: Open) -> None:
    opened = open_page(page, viewport=DESKTOP)
    click = lambda name: opened.page.get_by_role("button", name=name, exact=True).click()  # noqa: E731
    check_order(opened.page, 36)
    click("Next")
    check_order(opened.page, 37)
    click("Back")
    click("Back")
    check_order(opened.page, 35)
    click("First")
    check_order(opened.page, 0)
    click("Back")
    check_order(opened.page, 0)
    opened.page.locator("#order-step").focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowRight")
    check_order(opened.page, 3)
    opened.page.keyboard.press("End")
    check_order(opened.page, 179)
    opened.page.locator("#order-neuron").select_option("2")
    check_order(opened.page, 179, neuron=2)
    # a press on a square of the filter, and on the row
    opened.page.locator(".filter rect").nth(61).click()
    check_order(opened.page, 61, neuron=2)
    box = opened.page.locator(".strip").bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] * 90.5 / 180, box["y"] + 5)
    check_order(opened.page, 90, neuron=2)
    assert opened.met == []


def until(page: Any, true: Callable[[], bool]) -> None:
    """Wait for a condition, at most two minutes, from outside, because the page's policy allows no other script."""
    for _ in range(2400):
        if true():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not become true")


def test_play_and_pause(page: str, open_page: Open) -> None:
    opened = open_page(page, viewport=DESKTOP)
    button = opened.page.locator("#order-play")
    slider = opened.page.locator("#order-step")
    slider.evaluate("s => { s.value = 176; s.dispatchEvent(new Event('input')); }")
    button.click()
    assert button.inner_text() == "Pause"
    until(opened.page, lambda: button.inner_text() == "Play")  # at the end it stops by itself
    check_order(opened.page, 179)
    button.click()  # from the end it starts anew
    until(opened.page, lambda: 0 < int(slider.input_value()) < 179)
    button.click()
    assert button.inner_text() == "Play"
    assert int(slider.input_value()) < 179
    assert opened.met == []


# view 3: the size -------------------------------------------------------------------------------------------


def shown(text: str) -> float:
    """Parse a number of the page with superscripts, units and thousands separators."""
    if "·10" in text:
        digits, power = text.split("·10")
        power = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        return float(digits) * 10.0 ** int(power)
    number, _, unit = text.replace(",", "").removesuffix("×").partition(" ")
    return float(number) * {"": 1, "µs": 1e-6, "ms": 1e-3, "s": 1}[unit]


def check_size(page: Any, comparison: Comparison, side: int) -> None:
    """Compare the table at this size with laws/cost.py and with the measured times."""
    figures = comparison["D5"].figures
    c, o = figures["channels"], figures["outputs"]
    one = cost.pointwise(1, c, o, (side, side), bias=False)
    whole = cost.flatten_linear(1, c, (side, side), o, bias=False)
    expected = {
        "parameters": (one.parameters, whole.parameters),
        "macs": (one.macs, whole.macs),
        "bytes": (one.bytes_moved, whole.bytes_moved),
    }
    for measure, pair in expected.items():
        cells = page.locator(f'#size-table tr[data-measure="{measure}"] td').all_inner_texts()
        # three digits are shown
        assert [shown(t) for t in cells[:2]] == pytest.approx(pair, rel=5e-3), measure
        assert shown(cells[2]) == pytest.approx(pair[1] / pair[0], rel=5e-3)
        assert cells[3] == "exact"
    cells = page.locator('#size-table tr[data-measure="seconds"] td').all_inner_texts()
    table = {r["size"][0]: r["seconds"] for r in figures["times"]["table"] if r["size"][0] == r["size"][1]}
    if side in table:
        medians = [table[side][role]["median"] for role in ("pointwise", "connected")]
        assert [shown(t) for t in cells[:2]] == pytest.approx(medians, rel=5e-3)
        assert cells[3] == "measured"
    elif side > max(table):
        assert cells[:3] == ["–", "–", "–"]
        assert cells[3].startswith("not measured beyond")
    else:
        low, high = max(n for n in table if n < side), min(n for n in table if n > side)
        for text, role in zip(cells, ("pointwise", "connected"), strict=False):
            ends = sorted(table[n][role]["median"] for n in (low, high))
            assert ends[0] * 0.99 <= shown(text) <= ends[1] * 1.01
        assert cells[3].startswith("interpolated between")
    assert page.locator("#size-now").inner_text() == f"{side}×{side}"


def test_sliding_the_size(page: str, comparison: Comparison, open_page: Open) -> None:
    opened = open_page(page, viewport=DESKTOP)
    check_size(opened.page, comparison, 7)
    slider = opened.page.locator("#size-side")
    slider.focus()
    for key, side in (("ArrowRight", 8), ("ArrowLeft", 7), ("Home", 1), ("ArrowRight", 2), ("End", 64)):
        opened.page.keyboard.press(key)
        check_size(opened.page, comparison, side)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    middle = int(slider.input_value())
    assert 28 <= middle <= 36
    check_size(opened.page, comparison, middle)
    for side in (3, 14, 20, 28, 29):
        slider.evaluate(f"s => {{ s.value = {side}; s.dispatchEvent(new Event('input')); }}")
        check_size(opened.page, comparison, side)
        # the dots stand where the lines are, the one at the count's own place of the drawing
        dots = opened.page.locator('svg[data-measure="macs"] .here')
        assert dots.nth(0).get_attribute("cy") == dots.nth(1).get_attribute("cy")
    assert opened.met == []


# the page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_it_looks_as_it_should(page: str, open_page: Open, theme: str, width: int) -> None:
    opened = open_page(page, viewport={"width": width, "height": 900}, color_scheme=theme)
    ARTEFACTS.mkdir(exist_ok=True)
    opened.page.screenshot(path=ARTEFACTS / f"report-{theme}-{width}.png", full_page=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", paper)[0])
    assert (red > 200) == (theme == "light")
    assert opened.page.title().startswith("a small network")
    assert opened.met == []


def test_the_button_turns_the_theme(page: str, open_page: Open) -> None:
    opened = open_page(page, color_scheme="dark")
    paper = lambda: opened.page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    dark = paper()
    opened.page.get_by_role("button", name="Light theme").click()
    light = paper()
    assert light != dark
    opened.page.get_by_role("button", name="Dark theme").click()
    assert paper() == dark
    assert opened.met == []


def test_it_prints(page: str, open_page: Open) -> None:
    opened = open_page(page, viewport=DESKTOP, color_scheme="dark")
    pdf = opened.page.pdf(format="A4", print_background=True)
    ARTEFACTS.mkdir(exist_ok=True)
    (ARTEFACTS / "report.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF")
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("#order-play").is_visible()
    assert opened.page.locator("#order-near td.picked").first.is_visible()
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.met == []


def test_without_a_script_the_page_still_tells(page: str, open_page: Open) -> None:
    opened = open_page(page, java_script_enabled=False)
    check_pixel(opened.page, (3, 2))
    assert "Both values are" in opened.page.locator("#order-live").inner_text()
    assert opened.page.locator('#size-table tr[data-measure="parameters"] td').nth(2).inner_text() == "49×"


def test_every_control_is_reached_by_tab_with_its_focus_seen(page: str, open_page: Open) -> None:
    opened = open_page(page, viewport=DESKTOP)
    reached_by_tab = set()
    for _ in range(80):
        opened.page.keyboard.press("Tab")
        name, style = opened.page.evaluate(
            "(e => [e.id || e.className, getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        reached_by_tab.add(name)
        if name in ("input", "order-play", "size-side", "download"):
            assert style == "solid", name
        if name == "download":
            break
    assert reached_by_tab >= {"theme", "input", "order-neuron", "order-step", "size-side", "download"}


def test_the_data_is_downloaded_whole(page: str, comparison: Comparison, open_page: Open) -> None:
    opened = open_page(page)
    with opened.page.expect_download() as caught:
        opened.page.locator("#download").click()
    data = json.loads(caught.value.path().read_text(encoding="utf-8"))
    assert data == json.loads(comparison.to_json()) | {"plan": None}
    assert opened.met == []
