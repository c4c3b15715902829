"""The page in headless Chromium, from disk, with the network cut off: what it shows, by mouse, touch and keyboard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import onebyone
from onebyone.compare import Comparison
from onebyone.laws import cost
from tests.compare.conftest import network
from tests.report.conftest import ARTEFACTS, IMAGE, Open

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 800}


# view 1: the pixel ------------------------------------------------------------------------------------------


def reached(layer: nn.Module, size: tuple[int, int], pixel: tuple[int, int]) -> list[int]:
    """By autograd on the network's own layer: which output places the pixel's derivative reaches."""
    layer = layer.double()
    channels = layer.weight.shape[1] if isinstance(layer, nn.Conv2d) else 6
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, channels, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    y = layer(x)[0].flatten(1) if isinstance(layer, nn.Conv2d) else layer(x.flatten(1))[:, :16]
    found = []
    for place in range(y.shape[1]):
        gradient = torch.autograd.grad(y[:, place].square().sum(), x, retain_graph=True)[0]
        if bool(gradient[0, :, pixel[0], pixel[1]].abs().max() > 0):
            found.append(place)
    return found


LAYERS = {"pointwise": (2, (6, 5)), "kernel": (0, (6, 5)), "connected": (5, (6, 5))}


def lit(page: Any, role: str) -> list[int]:
    """The output squares that are drawn as moved."""
    squares = page.locator(f'.mover[data-role="{role}"] .output .on')
    opacity = squares.evaluate_all("all => all.map(s => Number(s.getAttribute('fill-opacity')))")
    return [i for i, value in enumerate(opacity) if value > 0]


def place(page: Any, role: str, pixel: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Where a pixel of an input lies on the screen."""
    grid = page.locator(f'.mover[data-role="{role}"] .input svg')
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    y, x = ((p + 0.5) / n for p, n in zip(pixel, size, strict=True))
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def check_pixel(page: Any, pixel: tuple[int, int]) -> None:
    for role, (at, size) in LAYERS.items():
        expected = reached(network()[at], size, pixel)
        assert lit(page, role) == expected, role
        words = page.locator(f'.mover[data-role="{role}"] .result').inner_text()
        assert words.startswith(f"The pixel in row {pixel[0]}, column {pixel[1]} moves {len(expected)} of ")


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
    # the input of another layer moves all as well
    mouse.click(*place(opened.page, "connected", (1, 3), (6, 5)))
    check_pixel(opened.page, (1, 3))
    told = opened.page.locator("#pixel-live").inner_text()
    assert "Row 1, column 3" in told
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


def written(value: float) -> str:
    return f"{value:.5g}".replace("-", "−")


def check_order(page: Any, index: int, neuron: int = 0) -> None:
    """The picked column against the layer's own weight, whose place is found by folding it here."""
    weight = network()[5].weight.detach()[neuron]
    c, y, x = (int(n) for n in torch.nonzero((torch.arange(180) == index).view(6, 6, 5))[0])
    cells = page.locator("#order-near td.picked").all_inner_texts()
    value = written(float(weight[index]))
    assert cells == [str(index), value, f"({c}, {y}, {x})", value]
    told = page.locator("#order-live").inner_text()
    assert f"Element {index} of the row is channel {c}, row {y}, column {x} of the filter" in told
    assert told.endswith(f"= {index}. Both hold {value}.")


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
    """Wait for it, ten seconds at most; the page's policy lets no script of ours wait inside it."""
    for _ in range(200):
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
    """A number of the page, as a number: superscripts, units and thousands undone."""
    if "·10" in text:
        digits, power = text.split("·10")
        power = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        return float(digits) * 10.0 ** int(power)
    number, _, unit = text.replace(",", "").removesuffix("×").partition(" ")
    return float(number) * {"": 1, "µs": 1e-6, "ms": 1e-3, "s": 1}[unit]


def check_size(page: Any, comparison: Comparison, side: int) -> None:
    """The table at this size against laws/cost.py, and against the times that were measured."""
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
        assert cells[3].startswith("read between")
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
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 251, 248)"
    assert opened.met == []


def test_without_a_script_the_page_still_tells(page: str, open_page: Open) -> None:
    opened = open_page(page, java_script_enabled=False)
    check_pixel(opened.page, (3, 2))
    assert "Both hold" in opened.page.locator("#order-live").inner_text()
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


# pages that must fail ---------------------------------------------------------------------------------------


def without_policy(page: str) -> str:
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)


def test_an_outside_link_is_noticed(page: str, open_page: Open) -> None:
    linked = page.replace("<main>", '<main><img src="http://a.example/x.png" alt="">', 1)
    opened = open_page(linked)  # the page's own policy stops it, and says so
    assert any("Content Security Policy" in m for m in opened.met)
    opened = open_page(without_policy(linked))
    assert any(m.startswith("request: http://a.example") for m in opened.met)


def test_a_script_from_elsewhere_does_not_run(page: str, open_page: Open) -> None:
    planted = page.replace("<main>", "<main><script>document.title = 'taken over'</script>", 1)
    opened = open_page(planted)
    assert opened.page.title().startswith("a small network")
    assert any("Content Security Policy" in m for m in opened.met)
    assert open_page(without_policy(planted)).page.title() == "taken over"


def test_a_changed_number_is_noticed(comparison: Comparison, page: str, open_page: Open) -> None:
    found = comparison["R2"].pictures["filter"]
    changed = page.replace(f'"filter":[[{found["filter"][0][0]},', f'"filter":[[{found["filter"][0][0] + 1},')
    assert changed != page
    opened = open_page(changed)
    opened.page.get_by_role("button", name="First").click()
    assert "They differ" in opened.page.locator("#order-live").inner_text()
    with pytest.raises(AssertionError):
        check_order(opened.page, 0)


def test_a_changed_support_is_noticed(comparison: Comparison, page: str, open_page: Open) -> None:
    moved = comparison["D1"].pictures["influence"]["kernel"]["moved"]
    text = json.dumps(moved, separators=(",", ":"))
    assert page.count(text) == 1
    moved = [row[1:] if i == 0 else row for i, row in enumerate(moved)]
    opened = open_page(page.replace(text, json.dumps(moved, separators=(",", ":"))))
    opened.page.locator('.mover[data-role="kernel"] .input').focus()
    opened.page.keyboard.press("Home")
    with pytest.raises(AssertionError):
        check_pixel(opened.page, (0, 0))


# other pages ------------------------------------------------------------------------------------------------


def test_pages_without_the_views(open_page: Open) -> None:
    for rows in (["D4"], ["D1"], ["R2"], ["D5"]):
        found = onebyone.compare(network(), IMAGE, budget=1, rows=rows)
        opened = open_page(found.to_html())
        assert opened.met == []
        assert opened.page.locator(".view").count() == (rows != ["D4"])


def test_hostile_names_do_nothing(open_page: Open) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    body = nn.Sequential()
    body.add_module(hostile, nn.Conv2d(3, 4, 1))
    body.add_module("flat", nn.Flatten())
    body.add_module(hostile + "2", nn.Linear(4 * 8 * 7, 5))
    body.__class__ = type("</title><script>alert(2)</script>", (nn.Sequential,), {})
    found = onebyone.compare(body, IMAGE, budget=2, rows=["S1", "D1", "D2", "D3", "D4", "D5", "R1", "R2"])
    html = found.to_html(plan={"candidates": [{"name": hostile, "median_ms": 1.0}], "why": hostile})
    planted = "main script, img:not([src^='data:image/svg+xml;base64,'])"
    opened = open_page(html)
    assert opened.met == []
    assert opened.page.locator(planted).count() == 0
    assert hostile in opened.page.locator("#proof").inner_text()
    # not the policy alone keeps it out
    bare = open_page(without_policy(html))
    assert bare.met == []
    assert bare.page.locator(planted).count() == 0
