"""The explainer's page in Chromium: its JavaScript against PyTorch, crop against map, and injected faults."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.comparison.claims import CLAIMS
from onebyone.laws.bounds import dot_bound
from tests.report.conftest import browser  # noqa: F401  (a fixture)
from tools.explainer import claims

FOLDER = Path(__file__).parent.parent / "docs" / "explainer"
STRIDE, WINDOW, ROWS, COLUMNS = 4, 40, 61, 96
UNIT = 2.0**-24


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("explainer_digits", FOLDER / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return load().network().requires_grad_(False)


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: F811
    """The page's HTML blocks and scripts, without the theme of the site; it may load nothing but its own files."""
    text = (FOLDER / "index.md").read_text("utf-8").partition("---\n\n")[2]
    text = re.sub(r'--8<-- "explainer/(.*)"', lambda m: (FOLDER / m[1]).read_text("utf-8"), text)
    folder = tmp_path_factory.mktemp("explainer")
    for file in (*FOLDER.glob("*.js"), *FOLDER.glob("*.css"), *FOLDER.glob("*.svg")):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "index.html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>explainer</title>'
        f'<body data-md-color-scheme="default">{text}</body></html>',
        "utf-8",
    )
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)  # milliseconds; a busy machine is slow
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda e: problems.append(str(e)))
    opened.on("request", lambda r: problems.append(r.url) if not r.url.startswith(folder.as_uri()) else None)
    opened.goto((folder / "index.html").as_uri())
    opened.wait_for_selector("#window[data-ready]", state="attached")
    yield opened
    assert problems == []
    context.close()


def layers_in_browser(page: Any, row: int, column: int) -> list[torch.Tensor]:
    """The outputs of all layers for one window, as the page's JavaScript computes them."""
    maps = page.evaluate(
        "([r, c]) => Explainer.crop(r, c, {macs: 0}).map(m => [m.channels, m.height, m.width, [...m.values]])",
        [row, column],
    )
    return [torch.tensor(values).reshape(1, *shape) for *shape, values in maps]


def crop(row: int, column: int) -> torch.Tensor:
    y, x = row * STRIDE, column * STRIDE
    return load().pixels()[:, :, y : y + WINDOW, x : x + WINDOW]


def within(layer: nn.Module, x: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether a layer's output is that of PyTorch on the same input, within the rounding of both float32 results."""
    expected = layer(x)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return torch.equal(expected.flatten(), got.flatten())
    weight, bias = layer.weight.double().abs(), layer.bias.double().abs()  # type: ignore[union-attr]
    size = x.double().abs()
    total = (
        F.conv2d(size, weight, bias, layer.stride)
        if isinstance(layer, nn.Conv2d)
        else F.linear(size, weight, bias)
    )
    bound = dot_bound(weight[0].numel() + 1, total, UNIT)
    difference = (got.double().flatten() - expected.double().flatten()).abs()
    return bool((difference <= 2 * bound.flatten()).all())


@pytest.mark.parametrize("position", [(0, 0), (17, 40), (60, 95)])
def test_every_layer_of_a_crop_is_that_of_pytorch(
    page: Any, network: nn.Sequential, position: tuple[int, int]
) -> None:
    x = crop(*position)
    for layer, got in zip(network, layers_in_browser(page, *position), strict=True):
        assert within(layer, x, got), type(layer).__name__
        x = got.flatten(1) if isinstance(layer, nn.Flatten | nn.Linear) or got.shape[2:] == (1, 1) else got


def test_a_changed_weight_in_pytorch_is_noticed(page: Any, network: nn.Sequential) -> None:
    changed = load().network().requires_grad_(False)
    layer = next(m for m in changed if isinstance(m, nn.Linear))
    at = list(changed).index(layer)
    got = layers_in_browser(page, 17, 40)
    x = got[at - 1].flatten(1)
    assert within(layer, x, got[at])
    layer.weight[3, int(x.argmax())] += 0.01
    assert not within(layer, x, got[at])


def agreement(page: Any) -> tuple[float, float, int]:
    data = page.locator("#window").evaluate("e => ({...e.dataset})")
    return float(data["largest"]), float(data["bound"]), int(data["outside"])


def test_crop_and_map_agree_where_the_window_is_dragged(page: Any, network: nn.Sequential) -> None:
    picture = page.locator("#window-page")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    seen = set()
    for x, y in ((0.2, 0.3), (0.5, 0.5), (0.8, 0.35), (0.99, 0.99)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        largest, bound, outside = agreement(page)
        assert outside == 0
        assert 0 < bound < 0.01
        assert largest <= 0.01
        seen.add(picture.get_attribute("aria-valuenow"))
    page.mouse.up()
    assert len(seen) == 4
    assert "agree" in page.locator("#window-live").inner_text()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowUp")
    at = int(picture.get_attribute("aria-valuenow"))
    assert divmod(at, COLUMNS) == (ROWS - 2, COLUMNS - 11)
    shown = [
        float(text.replace("−", "-")) for text in page.locator("#window-scores td.map").all_inner_texts()
    ]
    # the table shows five decimals; two runs differ by at most a few units of the seventh digit of scores near 20
    np.testing.assert_allclose(shown, network(crop(ROWS - 2, COLUMNS - 11))[0], atol=1e-4)


@pytest.mark.parametrize("fault", ["weight", "order", "bias"])
def test_a_fault_in_the_converted_layers_is_shown(page: Any, fault: str) -> None:
    page.evaluate("Explainer.select(17, 40)")
    page.locator("#window-fault").select_option(fault)
    page.wait_for_function("document.querySelector('#window').dataset.outside !== '0'")
    largest, bound, outside = agreement(page)
    assert outside > 0
    assert largest > bound
    assert "DIFFER" in page.locator("#window-live").inner_text()
    page.locator("#window-fault").select_option("none")
    page.wait_for_function("document.querySelector('#window').dataset.outside === '0'")


def test_the_work_that_is_counted_is_that_of_the_layers(page: Any, network: nn.Sequential) -> None:
    def macs(size: tuple[int, int]) -> int:
        total, x = 0, torch.zeros(1, 1, *size)
        for layer in list(network)[:-4]:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                total += layer.weight.numel() * x.shape[2] * x.shape[3]
        positions = (x.shape[2] - 3) * (x.shape[3] - 3)
        return total + positions * sum(m.weight.numel() for m in network if isinstance(m, nn.Linear))

    assert page.locator("#work-dense").inner_text().endswith(f": {macs((280, 420)):,}")
    assert page.locator("#work-all").inner_text().endswith(f": {ROWS * COLUMNS * macs((40, 40)):,}")


def test_the_fold_shows_one_sum_in_both_shapes(page: Any) -> None:
    page.locator("#fold canvas").focus()
    page.keyboard.press("ArrowRight")
    assert (
        "Element 22 = (1·4 + 1)·4 + 2: channel 1, row 1, column 2" in page.locator("#fold-live").inner_text()
    )
    flat, folded = (page.locator(f"#fold-{name}-sum").inner_text() for name in ("row", "filter"))
    # two orders of 257 terms of a size below 8
    assert abs(float(flat.replace("−", "-")) - float(folded.replace("−", "-"))) <= 2 * 258 * UNIT * 256 * 8


def test_no_sideways_scrolling_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    sizes = page.evaluate("[...document.querySelectorAll('.view')].map(v => [v.scrollWidth, v.clientWidth])")
    assert [s for s in sizes if s[0] > s[1]] == []
    page.set_viewport_size({"width": 1280, "height": 900})


def test_the_stored_claims_are_those_of_the_stored_run() -> None:
    run = claims.stored_run()
    assert [row["id"] for row in run["rows"]] == list(CLAIMS)
    assert (FOLDER / "claims.html").read_text("utf-8") == claims.claims(run)
    page = (FOLDER / "index.md").read_text("utf-8")
    for name in CLAIMS:
        assert f"| {name} |" in page
    for name, content in claims.figures(run).items():
        assert (FOLDER / name).read_bytes() == content
