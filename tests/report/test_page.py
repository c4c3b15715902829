"""The page as text: complete, well formed, accessible, and with the same data as the comparison."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import onebyone
from onebyone.comparison import Comparison
from onebyone.comparison.claim_result import Row
from onebyone.comparison.claims import CLAIMS
from onebyone.errors import BadInput
from onebyone.report.claim_figures import claim_figure
from onebyone.report.html import DEMO_TITLE, json_in_html, outside_links
from onebyone.report.interactive_views import cost_counts
from tests.comparison.conftest import network
from tests.report.conftest import IMAGE, LONG, budget_that_is_never_spent, require

VOID = {"meta", "img", "input", "br", "wbr", "hr", "link", "line", "rect", "circle", "polyline"}
HOSTILE = "</script><img src=x onerror=alert(1)>"


class Reader(HTMLParser):
    """The elements of a page with their parents; fails if an element is closed that is not the last opened one."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs, _ in self.elements if tag in tags]


def data_of(page: str) -> Any:
    """The data that the page contains."""
    found = re.search(r'<script type="application/json" id="onebyone-data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found.group(1))


def test_the_page_is_well_formed_and_accessible(page: str) -> None:
    read = Reader(page)
    ids = [a["id"] for _, a, _ in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attrs, _ in read.elements:
        for name in ("aria-labelledby", "for"):
            assert attrs.get(name) is None or attrs[name] in ids
        link = attrs.get("href")
        assert link is None or link[1:] in ids
    assert all(a.get("alt") for a in read.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in read.all("svg"))
    assert all(a.get("scope") for a in read.all("th"))
    tables = len(read.all("table"))
    assert tables == len(read.all("caption")) > 8
    labelled = {a.get("for") for a in read.all("label")}
    for tag, attrs, inside in read.elements:
        if tag in ("select", "input"):
            assert "label" in inside or attrs.get("id") in labelled
    levels = [int(tag[1]) for tag, _, _ in read.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(read.all("main")) == len(read.all("header")) == len(read.all("nav")) == 1
    assert read.all("html") == [{"lang": "en"}]
    assert {a.get("aria-live") for a in read.all("p")} == {None, "polite"}


def test_it_loads_nothing_and_is_small(page: str) -> None:
    assert outside_links(page) == []
    assert len(page) < 3_000_000
    read = Reader(page)
    for name in ("src", "href"):
        values = [a[name] for _, a, _ in read.elements if a.get(name)]
        assert all(str(v).startswith(("data:", "#")) for v in values)
    assert [a.get("src") for a in read.all("script")] == [None, None]


def test_every_row_is_there_with_its_words_and_figures(comparison: Comparison, page: str) -> None:
    read = Reader(page)
    cards = [a["id"] for a in read.all("article")]
    assert cards == [r for r in CLAIMS if r not in LONG]
    text = " ".join(t for _, t in read.texts)
    for row in comparison.rows:
        assert row.statement in text
        assert row.verdict in text
        assert row.because[1:].rstrip(".") in text
        assert f"All figures of {row.id}" in text
    assert data_of(page) == json.loads(comparison.to_json()) | {"plan": None}


def test_the_demo_is_linked_to_where_its_page_is_beside_the_report(
    comparison: Comparison, tmp_path: Path
) -> None:
    report, other = tmp_path / "report.html", tmp_path / "index.html"
    link = '<a href="index.html">'
    assert link not in comparison.to_html(report)
    other.write_text("<title>another page</title>")
    assert link not in comparison.to_html(report)
    other.write_text(f"<head>{DEMO_TITLE}</head>")
    assert link in comparison.to_html(report)
    assert link not in comparison.to_html()
    assert link not in comparison.to_html(other)  # which replaces the demo's page


def test_the_proof_and_the_conversion_are_told(comparison: Comparison, page: str) -> None:
    proof = page[page.index('id="proof"') : page.index('id="data"')]
    assert comparison.conversion is not None
    for change in comparison.conversion["changes"]:
        assert f'<th scope="row">{change["path"]}</th><td>{change["before"]}</td>' in proof
    assert "Equivalent" in proof
    assert "NOT equivalent" not in proof
    faulty = dataclasses.replace(
        comparison, verification={**(comparison.verification or {}), "equivalent": False}
    )
    assert "NOT equivalent" in faulty.to_html()


def test_the_network_s_own_pictures(comparison: Comparison, page: str) -> None:
    read = Reader(page)
    pictures = read.all("img")
    assert [a["class"] for a in pictures] == ["light", "dark"] * 5
    assert all(str(a["src"]).startswith("data:image/svg+xml;base64,") for a in pictures)
    lost = dataclasses.replace(comparison, drawing={"not_available": "for a test"})
    assert "Not drawn: for a test" in lost.to_html()


def test_what_was_not_measured_says_why() -> None:
    rows = onebyone.compare(network(), IMAGE, budget=1e-9, rows=["S5", "R1", "R3", "R4"])
    page = rows.to_html()
    text = " ".join(t for _, t in Reader(page).texts)
    assert text.count("increase the budget") >= 3
    assert "could not be tested" in text
    assert 'class="view"' not in page
    vector = onebyone.compare(nn.Linear(4, 3), torch.randn(1, 4), budget=2, rows=["D1", "D7", "R1", "R3"])
    assert "windows require images" in vector.to_html()


@pytest.mark.parametrize("row", [r for r in CLAIMS if r not in LONG])
def test_any_one_row_makes_a_page(comparison: Comparison, row: str) -> None:
    alone = dataclasses.replace(comparison, rows=(comparison[row],), conversion=None, verification=None)
    assert [a["id"] for a in Reader(alone.to_html()).all("article")] == [row]


def test_hostile_names_are_text() -> None:
    body = nn.Sequential()
    body.add_module(HOSTILE, nn.Conv2d(3, 4, 1))
    body.add_module("flat", nn.Flatten())
    body.add_module("href=//a style=url(//b)", nn.Linear(4 * 8 * 7, 5))
    found = onebyone.compare(body, IMAGE, budget=2, rows=["S1", "D1", "D4", "R1", "R2"])
    page = found.to_html(title=HOSTILE, plan={"layers": [{"paths": [HOSTILE], "chosen": HOSTILE}]})
    read = Reader(page)
    assert len(read.all("script")) == 2
    assert all(str(a["src"]).startswith("data:image/svg+xml") for a in read.all("img"))
    assert not any(name.startswith("on") for _, a, _ in read.elements for name in a)
    text = " ".join(t for _, t in read.texts)
    assert text.count(HOSTILE) > 3
    assert data_of(page)["plan"]["layers"][0]["chosen"] == HOSTILE


def test_data_in_a_script_cannot_end_it() -> None:
    data = {"</script>": "<!--\u2028&\u2029-->", "n": [1.5, None, True]}
    text = json_in_html(data)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == data
    with pytest.raises(ValueError, match="Out of range"):
        json_in_html(float("nan"))


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<a href="//a.example/x">', 1),
        ('<img srcset="data:image/png;base64,AA 1x, https://a.example/b.png 2x">', 1),
        ('<img src="data:image/png;base64,//AAAA">', 0),
        ('<p style="background: url(//a.example/b.png)">', 1),
        ("<style>p { color: red }</style><p>@import url(//a.example)</p>", 0),
        ('<svg><use xlink:href="https://a.example/b.svg#c"/></svg>', 1),
        ('<form action="https://a.example">', 1),
        ("<script>fetch</script><p>src=//a.example</p>", 0),
    ],
)
def test_outside_links_are_those_of_elements(html: str, count: int) -> None:
    assert len(outside_links(html)) == count


# colours ----------------------------------------------------------------------------------------------------


def themes() -> dict[str, dict[str, tuple[float, float, float]]]:
    """The colours of both themes, from the style sheets."""
    assets = files("onebyone.report") / "assets"
    light = (assets / "comparison.css").read_text("utf-8").split("}", 1)[0]
    found = {"light": light, "dark": (assets / "dark.css").read_text("utf-8")}
    return {
        theme: {
            name: tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4))
            for name, value in re.findall(r"--([a-z]+): #([0-9a-f]{6});", css)
        }
        for theme, css in found.items()
    }  # type: ignore[return-value]


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: tuple[float, float, float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_from_the_paper(theme: str) -> None:
    colours = themes()[theme]
    assert colours.keys() == themes()["light"].keys()
    for paper in ("paper", "card"):
        for text in ("ink", "soft", "accent", "good", "partly", "bad", "none"):
            assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
        for shape in ("pointwise", "connected", "kernel", "pooled", "other"):
            assert contrast(colours[shape], colours[paper]) >= 3, (shape, paper)
    assert contrast(colours["ink"], colours["button"]) >= 4.5


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0x76 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.54, abs=0.01)


# pictures ---------------------------------------------------------------------------------------------------


def made(row: str, figures: dict[str, Any], pictures: dict[str, Any] | None = None) -> str:
    figure = claim_figure(Row(row, "…", "holds", figures, "…", pictures or {}).to_dict())
    assert figure is not None
    return figure.html


def test_a_picture_tells_its_numbers() -> None:
    heads = {
        name: [
            {"width": w, "parameters": p, "accuracy": a, "accuracies": [a, a]}
            for w, p, a in ((2, 60, 0.3), (4, 120, 0.9))
        ]
        for name in ("pooled", "flattened")
    }
    assert "pooled head: 30% at 60, 90% at 120" in made("S5", {"curves": heads})
    way = {"objects": 10, "average_precision": {"dense": 0.9, "windows": 0.8}, "speedup": 7.25}
    own = {"windows": 16, "speedup": 3.0}
    drawn = made("R4", {"unpadded": way, "padded": way, "own": own})
    assert "unpadded: every window cropped: 0.800" in drawn
    assert "this network, 16 windows: 3.0×" in drawn
    assert "this network" not in made("R4", {"unpadded": way, "padded": None, "own": None})


def test_bars_and_dots_stand_where_their_values_are(comparison: Comparison) -> None:
    drawn = made("D8", dict(comparison["D8"].figures))
    widths = [float(w) for w in re.findall(r'<rect class="c-[a-z]+"[^>]* width="([\d.]+)"', drawn)]
    shares = [comparison["D8"].figures[r]["share_of_inputs"] for r in ("pointwise", "kernel", "connected")]
    assert widths == pytest.approx([270 * s for s in shares], rel=1e-3)
    drawn = made("S4", dict(comparison["S4"].figures))
    widths = [float(w) for w in re.findall(r'<rect class="c-[a-z]+"[^>]* width="([\d.]+)"', drawn)]
    reached = [comparison["S4"].figures[name]["share_of_all"] for name in ("fully connected", "pointwise")]
    assert widths == pytest.approx([270 * s for s in reached], rel=1e-3)
    dots = made("D3", dict(comparison["D3"].figures))
    mark = float(re.findall(r'<line class="rule" x1="([\d.]+)"', dots)[0])
    xs = [float(x) for x in re.findall(r'<circle class="c-[a-z]+ part" cx="([\d.]+)"', dots)]
    figures = comparison["D3"].figures
    ratios = [
        float(f[key])
        for role in ("pointwise", "kernel", "connected")
        for f in (figures[role],)
        for key in ("along_ratio", "change_ratio", "undone_ratio")
        if key in f
    ]
    assert [x > mark for x in xs] == [r > 1 for r in ratios]


def test_the_support_is_drawn_position_by_position(comparison: Comparison) -> None:
    row = comparison["D1"]
    drawn = made("D1", dict(row.figures), dict(row.pictures))
    for role in ("pointwise", "kernel", "connected"):
        assert drawn.count(f'class="c-{role}"') == row.figures[role]["places_reached"]


def test_both_forms_are_drawn_as_they_were_measured(comparison: Comparison) -> None:
    figures = comparison["S2"].figures
    drawn = made("S2", dict(figures))
    assert drawn.count(f"{figures['parameters']['linear']:,}") >= 2
    assert drawn.count("<circle") == len(figures["losses"])
    unequal = {**figures, "parameters": {"linear": 10, "convolution": 5}}
    widths = [
        float(w) for w in re.findall(r'<rect class="c-[a-z]+"[^>]* width="([\d.]+)"', made("S2", unequal))
    ]
    assert widths == pytest.approx([270, 135])
    sweep = comparison["D2"].figures["sweep"]
    drawn = made("D2", dict(comparison["D2"].figures))
    for role in ("pointwise", "connected"):
        ran = [item["ran"] for item in sweep if item["role"] == role]
        assert drawn.count(f'class="c-{role}"') == sum(ran)
    assert drawn.count("✗") == sum(
        not item["ran"] for item in sweep if item["role"] in ("pointwise", "connected")
    )


def test_the_replacement_is_drawn_as_it_was_measured(comparison: Comparison) -> None:
    figures = dict(comparison["R1"].figures)
    missed = made("R1", {**figures, "planted_faults_caught": 1, "planted_faults": 4})
    assert "injected faults noticed: 1 of 4" in missed
    widths = [float(w) for w in re.findall(r'<rect class="c-[a-z]+"[^>]* width="([\d.]+)"', missed)]
    assert widths[-1] == pytest.approx(270 / 4)
    figures = dict(comparison["R3"].figures)
    drawn = made("R3", figures)
    rows, columns = figures["places"]
    assert drawn.count('class="c-pointwise"') == drawn.count('class="c-connected"') == rows * columns
    assert claim_figure(Row("R3", "…", "holds", {**figures, "places": None}, "…", {}).to_dict()) is None


def test_counts_are_the_comparison_s(comparison: Comparison) -> None:
    figures = comparison["D5"].figures
    for row in figures["counts"]:
        if row["size"][0] == row["size"][1]:
            found = cost_counts(figures, row["size"][0])
            assert found == {k: row[k] for k in ("parameters", "macs", "bytes")}


# files and the command --------------------------------------------------------------------------------------


def test_the_file_is_written_whole_or_not_at_all(comparison: Comparison, tmp_path: Path) -> None:
    assert (tmp_path / "r.html").exists() is False
    page = comparison.to_html(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == page
    with pytest.raises(BadInput, match="cannot write"):
        comparison.to_html(tmp_path / "no" / "r.html")
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        comparison.to_html(tmp_path / "s.html", plan=tmp_path / "p.json")
    assert not (tmp_path / "s.html").exists()


def test_without_a_browser_tests_are_skipped_but_never_where_changes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        require(tmp_path / "chromium", {})
    with pytest.raises(pytest.fail.Exception, match="may not be skipped"):
        require(tmp_path / "chromium", {"CI": "true"})


@pytest.mark.slow
def test_the_whole_comparison_on_a_page(tmp_path: Path) -> None:
    with budget_that_is_never_spent():
        found = onebyone.compare(network(), IMAGE, budget=60)
    read = Reader(found.to_html(tmp_path / "r.html"))
    assert [a["id"] for a in read.all("article")] == list(CLAIMS)
    assert all(row.verdict != "not available" for row in found.rows)


def test_the_crossing_is_told_where_the_medians_cross(comparison: Comparison, page: str) -> None:
    table = comparison["D5"].figures["times"]["table"]
    faster = [min(("pointwise", "connected"), key=lambda r: row["seconds"][r]["median"]) for row in table]
    changes = [i for i in range(1, len(table)) if faster[i] != faster[i - 1]]
    told = re.search(r"The measured times cross (.*?)\.</p>", page)
    assert told
    size = lambda i: "×".join(str(n) for n in table[i]["size"])  # noqa: E731
    assert [f"between {size(i - 1)} and {size(i)}" in told.group(1) for i in changes] == [True] * len(changes)
    assert told.group(1).count("between") == max(1, len(changes))
