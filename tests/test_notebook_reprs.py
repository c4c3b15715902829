"""Notebooks display results as `print` does, escaped and without external resources."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import onebyone
from onebyone.detection import Detections
from onebyone.errors import Refused
from onebyone.records import html_table

HOSTILE = "<script>alert('1')</script>&x"  # a double quote in a name is more than torch.fx can take
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Page(HTMLParser):
    """The tags and the text of a piece of HTML; every tag that is opened must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)
        if tag in ("td", "th", "p"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


def network() -> nn.Module:
    layers = {
        "conv": nn.Conv2d(3, 4, 3, padding=1),
        "flat": nn.Flatten(),
        HOSTILE: nn.Linear(4 * 12 * 12, 6),
        "act": nn.ReLU(),
        "top": nn.Linear(6, 3),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.eval()


class Own(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input) + 1


def refused() -> Refused:
    model = network()
    model.add_module("norm " + HOSTILE, nn.Softmax(dim=0))
    with pytest.raises(Refused) as caught:
        onebyone.convolutionalize(model, window=12)
    return caught.value


def with_refusal() -> object:
    model = nn.Sequential(nn.Linear(4, 3))
    model.add_module(HOSTILE, Own(3, 2))
    return onebyone.convert(model)


def scores() -> object:
    dense = onebyone.convolutionalize(network(), window=12)
    return onebyone.scan(dense, np.zeros((20, 16, 3), dtype=np.float32))


def detections(count: int) -> Detections:
    boxes = np.tile(np.array([[1, 2, 3, 4]], dtype=np.float32), (count, 1))
    values = np.linspace(1, 0.5, count, dtype=np.float32)
    return Detections(boxes, values, np.zeros(count, dtype=np.int64), (HOSTILE,), (20, 30))


RESULTS = {
    "conversion": lambda: onebyone.convert(network()),
    "conversion with a refusal": with_refusal,
    "nothing converted": lambda: onebyone.convert(nn.Sequential(nn.ReLU())),
    "graph": lambda: onebyone.convert(network(), level="graph", example=X),
    "verification": lambda: onebyone.verify(network(), onebyone.convert(network()), X),
    "dense": lambda: onebyone.convolutionalize(network(), window=12),
    "scores": scores,
    "detections": lambda: detections(3),
    "many detections": lambda: detections(23),
    "refused": refused,
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_notebook_shows_what_print_shows(name: str) -> None:
    result = RESULTS[name]()
    shown = Page(result._repr_html_())
    assert shown.tags <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert shown.attributes <= {"style"}

    def words(text: str) -> set[str]:
        return {w for w in re.split(r"[\s:()]+", text) if set(w) - set("-")}

    assert words(str(result)) <= words(" ".join(shown.cells))


def test_names_are_shown_as_they_are() -> None:
    for name in ("conversion", "verification", "dense", "detections"):
        assert HOSTILE in Page(RESULTS[name]()._repr_html_()).cells
    assert any(HOSTILE in cell for cell in Page(RESULTS["refused"]()._repr_html_()).cells)


def test_the_verdict_comes_first() -> None:
    model, other = network(), network()
    same = onebyone.verify(model, onebyone.convert(model), X)
    differs = onebyone.verify(model, onebyone.convert(other), X)
    assert Page(same._repr_html_()).cells[0] == "✓ equivalent (converted = original)"
    assert Page(differs._repr_html_()).cells[0].startswith("✗ NOT equivalent")
    assert Page(RESULTS["dense"]()._repr_html_()).cells[0].startswith("not exact")
    assert Page(RESULTS["refused"]()._repr_html_()).cells[0].startswith("refused: the network cannot")


def test_a_table_has_a_cell_for_each_entry() -> None:
    page = Page(html_table(["a", "b"], [[1, None], ["", "é|\n"]]))
    assert page.cells == ["a", "b", "1", "None", "", "é|\n"]
    assert "thead" not in Page(html_table([], [["x"]])).tags
