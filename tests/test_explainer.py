"""The explainer's page in Chromium: its JavaScript against PyTorch, crop against map, and injected faults."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onebyone.comparison.claims import CLAIMS
from onebyone.laws.bounds import dot_bound, gamma
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
    context.set_default_timeout(300_000)  # milliseconds; a busy machine is slow
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
    bound = dot_bound(weight[0].numel(), total, UNIT)  # of the difference of two results
    difference = (got.double().flatten() - expected.double().flatten()).abs()
    return bool((difference <= bound.flatten()).all())


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


def digits_shown(page: Any, selector: str) -> list[float]:
    return [float(text.replace("−", "-")) for text in page.locator(selector).all_inner_texts()]


def scores_within(network: nn.Sequential, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The scores of a flattened map in float64, how far a float32 result may be from them, and the page's allowance.

    A sum of n products and a bias, in any order, is off by at most γ(n+1)·(|W||x| + |b|), and an error of its inputs
    by at most |W| times it; a ReLU passes errors on unchanged (Higham 2002, section 3.1). The page computes this
    bound in float32: per layer two sums of non-negative terms, each off by a factor of at most 1 + γ, and a factor
    1 + 2γ against rounding down. So it is at least the bound here, and at most (1 + γ)²(1 + 2γ) < 1 + 5γ times it.
    """
    x, error, allowance = features.flatten().double(), torch.zeros(features.numel(), dtype=torch.float64), 1.0
    for layer in list(network)[[type(m) for m in network].index(nn.Flatten) + 1 :]:
        if isinstance(layer, nn.Linear):
            weight, bias, share = (
                layer.weight.double(),
                layer.bias.double(),
                gamma(layer.in_features + 1, UNIT),
            )
            error = weight.abs() @ error + share * (weight.abs() @ (x.abs() + error) + bias.abs())
            x, allowance = weight @ x + bias, allowance * (1 + 5 * share)
        else:
            x = layer(x)
    return x, error, allowance


def test_crop_and_map_agree_where_the_window_is_dragged(page: Any, network: nn.Sequential) -> None:
    flattened = [type(m) for m in network].index(nn.Flatten)
    picture = page.locator("#window-page")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    seen = set()
    for x, y in ((0.2, 0.3), (0.5, 0.5), (0.8, 0.35), (0.99, 0.99)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        largest, bound, outside = agreement(page)
        row, column = divmod(int(picture.get_attribute("aria-valuenow")), COLUMNS)
        features = layers_in_browser(page, row, column)[flattened]
        expected, error, allowance = scores_within(network, features)
        # both forms may be off by the error; the page tells the bound of the score that has the smallest
        assert 2 * error.min() <= bound <= 2 * error.min() * allowance
        assert outside == 0
        assert largest <= 2 * error.max()
        # five decimals are shown: half a unit of the last one more
        for kind in ("crop", "map"):
            shown = torch.tensor(digits_shown(page, f"#window-scores td.{kind}"), dtype=torch.float64)
            apart = (shown - expected).abs()
            assert (apart <= error + 0.5e-5).all(), (kind, apart.max(), error.max())
        seen.add((row, column))
    page.mouse.up()
    assert len(seen) == 4
    assert "agree" in page.locator("#window-live").inner_text()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowUp")
    at = int(picture.get_attribute("aria-valuenow"))
    assert divmod(at, COLUMNS) == (ROWS - 2, COLUMNS - 11)


def test_a_finger_drags_the_window(page: Any) -> None:
    picture = page.locator("#window-page")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    devtools = page.context.new_cdp_session(page)
    devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    at = []
    for kind, share in (("touchStart", 0.2), ("touchMove", 0.4), ("touchMove", 0.6), ("touchEnd", None)):
        point = {"x": box["x"] + (share or 0) * box["width"], "y": box["y"] + (share or 0) * box["height"]}
        touches = [] if share is None else [point]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        if (
            share is not None
        ):  # the window's middle is at the finger: 70 and 105 squares of 4 pixels, less half of 40
            expected = round(share * 70 - 5) * COLUMNS + round(share * 105 - 5)
            page.wait_for_function(
                f"document.querySelector('#window-page').getAttribute('aria-valuenow') === '{expected}'"
            )
            at.append(expected)
    devtools.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    devtools.detach()
    assert len(set(at)) == 3


def test_without_motion_the_fold_goes_to_its_end_at_once(page: Any) -> None:
    clicked = """() => {
        const button = document.querySelector('#fold-play');
        button.click();
        return [document.querySelector('#fold-share').value, button.textContent];
    }"""
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(clicked) == ["100", "Fold"]
    assert page.evaluate(clicked) == ["0", "Fold"]
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(clicked) == ["0", "Pause"]
    page.evaluate(clicked)
    page.locator("#fold-share").fill("0")


@pytest.mark.slow
def test_every_window_is_cropped_and_compared(page: Any) -> None:
    page.locator("#every-run").click()
    page.wait_for_selector("#every-result[data-outside]", state="attached")
    scores = f"{ROWS * COLUMNS * 11:,}"
    told = page.locator("#every-result").inner_text()
    assert told.startswith(f"{scores} of {scores} scores agree within their rounding bounds")
    every = page.locator("#work-all").inner_text().partition(": ")[2]
    assert f" {every} multiply-adds in" in told


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


def test_the_fold_shows_one_sum_in_both_shapes(page: Any, network: nn.Sequential) -> None:
    page.locator("#fold canvas").focus()
    page.keyboard.press("ArrowRight")
    assert (
        "Element 22 = (1·4 + 1)·4 + 2: channel 1, row 1, column 2" in page.locator("#fold-live").inner_text()
    )
    flattened = [type(m) for m in network].index(nn.Flatten)
    layer = network[flattened + 1]
    assert isinstance(layer, nn.Linear)
    at = int(page.locator("#window-page").get_attribute("aria-valuenow"))
    x = layers_in_browser(page, *divmod(at, COLUMNS))[flattened].flatten().double()
    neuron = int(page.locator("#fold-neuron").input_value())
    weight, bias = layer.weight[neuron].double(), layer.bias[neuron].double()
    # either sum is off by at most γ(n+1)·(|w||x| + |b|), and half a unit of the sixth decimal that is shown
    limit = gamma(x.numel() + 1, UNIT) * float(weight.abs() @ x.abs() + bias.abs()) + 0.5e-6
    for form in ("row", "filter"):
        assert abs(digits_shown(page, f"#fold-{form}-sum")[0] - float(weight @ x + bias)) <= limit


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
