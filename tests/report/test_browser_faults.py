"""Pages with injected faults, which must be detected, and pages of other networks, which must have none."""

from __future__ import annotations

import json
import re

import pytest
from torch import nn

import onebyone
from onebyone.comparison import Comparison
from tests.comparison.conftest import network
from tests.report.checks import check_order, check_pixel
from tests.report.conftest import IMAGE, Open

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
    assert "The values differ" in opened.page.locator("#order-live").inner_text()
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
