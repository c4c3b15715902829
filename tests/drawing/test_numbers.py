"""Numbers in figures are never shortened, at any width."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import nn

from onebyone import convolutionalize
from onebyone.drawing import Drawing, describe, render
from onebyone.drawing.repeats import common_path
from onebyone.drawing.scene import fonts, shortened, wrapped
from onebyone.verification.calls import observe_operators
from tests.drawing import svgs

NARROWEST = 2.8
DIGITS = re.compile(r"\d(?:[\d,.]*\d)?")


@cache
def network(features: int, outputs: int) -> Drawing:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, features, 1), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    net.append(nn.Linear(features * 9, outputs))
    return describe(net.eval(), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(("features", "outputs", "weights"), [(64, 64, "36,864"), (512, 1024, "4.72 M")])
@pytest.mark.parametrize("width", [NARROWEST, "column", "page"])
def test_the_number_of_weights_is_written_whole(
    features: int, outputs: int, weights: str, width: str | float
) -> None:
    """Beside the kernel: 64·9·64 = 36,864 and 512·9·1,024 = 4,718,592 weights."""
    texts = [line.text for line in svgs.texts(render(network(features, outputs), "F3", width=width))]
    assert [t for t in texts if t.endswith(f"{weights} weights")], texts


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (
            nn.AdaptiveAvgPool2d(4),
            "560 non-zero weights",
        ),  # windows of 2 slide by 1: the kernel skips every other
        (nn.AdaptiveAvgPool2d(3), ""),  # uneven bins become channels
        (nn.Identity(), ""),
        (nn.AdaptiveAvgPool2d(16), "2,240 sums of weights"),  # every value of the 8×8 map occurs four times
    ],
)
def test_f3_counts_the_weights_of_the_kernel_that_runs(pool: nn.Module, words: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 1), pool, nn.Flatten(), nn.LazyLinear(7)).eval()
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        net(image)
    data = describe(net, image)
    (layer,) = (r for r in data.replaced if r.kernel)
    kernels = []
    observe = observe_operators(lambda op, args, _: kernels.append(args[1]) if "conv" in str(op) else None)
    with observe, torch.no_grad():
        convolutionalize(net, 8, 3).model(torch.randn(1, 3, 40, 40))
    kernel = kernels[-1]
    assert tuple(kernel.shape) == layer.kernel
    assert int(kernel.count_nonzero()) == layer.nonzero
    described = svgs.ElementTree.fromstring(render(data, "F3"))[1].text or ""
    texts = " ".join(line.text for line in svgs.texts(render(data, "F3")))
    for phrase in ("non-zero weights", "sums of weights"):
        assert (phrase in described) == (phrase in words)
        assert (phrase in texts) == (phrase in words)
    assert words in described


@pytest.mark.parametrize("figure", ["F1", "F2", "F3", "strip"])
def test_no_text_of_the_narrowest_picture_has_an_ellipsis_in_a_number(figure: str) -> None:
    for line in svgs.texts(render(network(64, 64), figure, width=NARROWEST)):
        assert not re.search(r"\d…|…[\d,.]*\d", line.text), line.text


@pytest.mark.parametrize(
    "text", ["the same 36,864 weights", "W 4096×512×7×7", "layers.10.blocks.23.fc1", "103 M"]
)
@pytest.mark.parametrize("width", range(4, 90, 3))
def test_shortening_keeps_every_number(text: str, width: int) -> None:
    cut = shortened(text, width, 6.5)
    assert DIGITS.findall(cut) == DIGITS.findall(text)
    letters = re.sub(r"[\d,.×]", "", text)
    if fonts.width(cut, 6.5) > width:  # only what holds no letter any more may stay wider
        assert not set(cut) & set(letters.replace(" M", "")) - {"M", " "}, cut


@pytest.mark.parametrize("width", range(4, 90, 3))
def test_wrapping_breaks_no_number(width: int) -> None:
    rows = wrapped("layer123456 has 36,864 weights", width, 6.5)
    assert DIGITS.findall(" ".join(rows)) == ["123456", "36,864"]


def test_a_list_of_paths_with_gaps_is_not_a_number() -> None:
    assert common_path([f"a.{n}.x" for n in (1, 3, 5, 64)]) == "a.1,…,64.x"


def test_identical_pools_are_mentioned_once() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(49, 4)).eval()
    svg = render(describe(net, torch.randn(1, 1, 18, 18)), "F3", width="page")
    told = re.findall(r"becomes a (\S+) pool", " ".join(line.text for line in svgs.texts(svg)))
    assert len(told) == len(set(told)) > 1
