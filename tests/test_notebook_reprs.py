"""Notebooks display results as `print` does, escaped and without external resources."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from IPython.display import HTML
from PIL import Image
from torch import nn

import onebyone
from onebyone.dense import ScoreMap
from onebyone.dense.progress import progress_reporter
from onebyone.detection import Detections
from onebyone.errors import Refused
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import read_kind
from onebyone.records import html_table

HOSTILE = "<script>alert('1')</script>&x"  # a double quote in a name is more than torch.fx can take
FIGURE = re.compile(r"<svg.*?</svg>|<img[^>]*>", re.S)
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
    html = result._repr_html_()
    shown = Page(FIGURE.sub("", html))
    assert shown.tags <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert shown.attributes <= {"style"}
    assert bool(FIGURE.search(html)) == (name in ("scores", "detections", "many detections"))
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)

    def words(text: str) -> set[str]:
        return {w for w in re.split(r"[\s:()]+", text) if set(w) - set("-")}

    assert words(str(result)) <= words(" ".join(shown.cells))


def test_boxes_and_maps_are_drawn_where_they_are() -> None:
    boxes = np.array([[2, 4, 12, 9], [0, 0, 5, 5]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([1, 0]), ("a", "b"), (20, 40))
    drawn = re.findall(
        r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', found._repr_html_()
    )
    assert [[float(v) / 9 for v in box] for box in drawn] == [[2, 4, 10, 5], [0, 0, 5, 5]]  # 360 / 40 = 9
    geometry = Geometry((4, 4), (2, 2), (0, 0), (4, 4), (0, 0), True)
    logits = np.full((2, 3, 3), -20, np.float32)
    logits[0, 2, 1] = logits[1, 0, 0] = 20
    labels = onebyone.Labels(("object", "background"), background=("background",))
    html = ScoreMap(logits, geometry, labels, (8, 8), kind=read_kind("logits"))._repr_html_()
    data = re.search(r"base64,([^\"]+)", html)
    assert data is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))
    assert pixels.shape == (360, 360, 3)
    assert pixels[300, 180].tolist() == [252, 255, 164]  # position (2, 1): the colour of 1
    assert pixels[60, 60].tolist() == [0, 0, 4]  # position (0, 0) is background: the colour of 0


def test_a_notebook_has_a_bar_below_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, content: HTML) -> None:
            shown.append(content.data)

    def display(content: HTML, *, display_id: bool) -> Handle:
        assert display_id
        shown.append(content.data)
        return Handle()

    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", display)
    with progress_reporter(True, 1200, "a < b") as advance:
        advance(600)
        advance(1200)
    assert shown[0] == "<progress value=0 max=1200></progress> a &lt; b: 0 of 1,200"
    assert shown[-1] == "<progress value=1200 max=1200></progress> a &lt; b: 1,200 of 1,200"


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


def contrast(one: str, other: str) -> float:
    """The contrast of two colours #rrggbb, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_cells_that_judge_are_coloured_by_what_they_say() -> None:
    model = network()
    same = onebyone.verify(model, onebyone.convert(model), X)._repr_html_()
    differs = html_table(["integers", "verdict"], [["DIFFER", "FAILS: the first weight"]])
    cell = re.compile(r"<td style=\"text-align:left;background:(#\w+);color:(#\w+)\">(.*?)</td>")
    good, bad = (set(cell.findall(html)) for html in (same, differs))
    assert {words.split(":")[0] for *_, words in good} == {"bit for bit", "ok"}
    assert {"DIFFER", "FAILS"} == {words.split(":")[0] for *_, words in bad}
    assert len({background for background, *_ in good | bad}) == 2
    assert min(contrast(background, text) for background, text, _ in good | bad) >= 4.5
    assert "background:" not in html_table(
        ["class", "score"], [["ok", "0.5"]]
    )  # a class of that name judges nothing
