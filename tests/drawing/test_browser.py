"""The files in a browser without a network: fonts load, texts have the planned width, names are accessible."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from onebyone.drawing import FIGURES, drawings, render
from tests.drawing import svgs
from tests.drawing.networks import drawing
from tests.report.conftest import browser as browser

BOXES = """
async () => {
  await document.fonts.ready;
  return [...document.querySelectorAll('text')].map(t => {
    const b = t.getBBox(), own = t.getAttribute('textLength');
    t.removeAttribute('textLength');
    const free = t.getComputedTextLength();
    t.setAttribute('textLength', own);
    return {text: t.textContent, planned: +own, free, x: b.x, width: b.width, y: +t.getAttribute('y')};
  });
}
"""


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    """A page that is offline."""
    context = browser.new_context(offline=True)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("figure", FIGURES)
def test_a_browser_draws_what_was_planned(page: Any, tmp_path: Path, figure: str) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    path = tmp_path / f"{figure}.svg"
    path.write_bytes(render(drawing("tokens"), figure, width="page"))
    page.goto(path.as_uri())
    texts = page.evaluate(BOXES)
    assert said == []
    assert set(page.evaluate("[...document.fonts].map(f => f.status)")) == {"loaded"}
    assert len(texts) == len(svgs.texts(path.read_bytes()))
    for text in texts:  # with the embedded font, and before the file's own length makes it so
        rounding = 0.75 / 64 * len(text["text"])  # of each glyph to 1/64 of a pixel, which is 0.75 points
        assert text["free"] == pytest.approx(text["planned"], abs=rounding + 0.01), text["text"]
    for a, b in combinations(texts, 2):
        if abs(a["y"] - b["y"]) < 5:
            assert a["x"] + a["width"] <= b["x"] + 0.1 or b["x"] + b["width"] <= a["x"] + 0.1, (a, b)


def test_a_screen_reader_hears_title_and_desc(page: Any, tmp_path: Path) -> None:
    svg = render(drawing("demo"), "F3")
    path = tmp_path / "page.html"
    path.write_text(
        f"<!doctype html><html lang=en><title>one</title><body>{svg.decode()}</body></html>", "utf-8"
    )
    page.goto(path.as_uri())
    node = page.get_by_role("img")
    assert node.count() == 1
    snapshot = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    (image,) = (n for n in snapshot if n["role"]["value"] in ("image", "img"))
    root = svgs.ElementTree.fromstring(svg)
    assert image["name"]["value"] == root[0].text
    assert image["description"]["value"] == root[1].text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_notebook_s_page_shows_its_own_theme(page: Any, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "page.html"
    body = drawings(drawing("demo"), ["F3"])._repr_html_()
    path.write_text(f"<!doctype html><html lang=en><title>one</title><body>{body}</body></html>", "utf-8")
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    picture = page.locator("img").screenshot()
    with Image.open(io.BytesIO(picture)) as shot:
        corner = shot.convert("L").getpixel((3, 3))
    assert isinstance(corner, int | float)
    assert (corner < 60) == (scheme == "dark")
    assert page.locator("img").evaluate("i => i.naturalWidth") > 100
