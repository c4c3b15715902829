"""The site's pages: every public name has a reference page, and the tutorial's commands find the digits."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import onebyone
from tests.interpreter import run_python
from tools import docstring_sections, site_hooks

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
ENVIRONMENT = {
    "NO_MKDOCS_2_WARNING": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
}


def test_every_public_name_has_a_reference_page() -> None:
    for name in onebyone.__all__:
        page = DOCS / "reference" / f"{name}.md"
        assert page.exists(), f"{name} has no page"
        assert f"\n::: onebyone.{name}\n" in page.read_text("utf-8")


def test_reference_pages_are_listed_and_name_things_that_exist() -> None:
    index = (DOCS / "reference" / "index.md").read_text("utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {page for page in (DOCS / "reference").glob("*.md") if page.name != "index.md"}
    assert len(pages) > len(onebyone.__all__)
    for page in pages:
        assert f"[`{page.stem}`]({page.name})" in index
        assert f"- reference/{page.name}\n" in navigation
        for path in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.M):
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), f"{page.name} names {path}"


def test_underlined_sections_and_doctests_are_rewritten() -> None:
    assert doctest.testmod(docstring_sections) == (0, 2)


def test_sections_of_the_navigation_are_named() -> None:
    assert doctest.testmod(site_hooks) == (0, 1)


def test_the_explainer_and_its_report_link_to_each_other() -> None:
    page = site_hooks.report(DOCS / "explainer" / "comparison.json")
    addresses = re.findall(r'href="([^"]*)"', page)
    assert [a for a in addresses if not a.startswith("#")] == ["index.html"]
    assert {a[1:] for a in addresses if a.startswith("#")} <= set(re.findall(r'id="([^"]*)"', page))
    assert f"]({Path(site_hooks.REPORT).name})" in (DOCS / "explainer" / "index.md").read_text("utf-8")


def run(arguments: list[str], folder: Path) -> None:
    ran = run_python(*arguments, folder=folder, environment=ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_tutorials_script_is_what_the_page_shows() -> None:
    page = (DOCS / "tutorial" / "index.md").read_text("utf-8")
    blocks = [code for language, code in BLOCK.findall(page) if language == "python"]
    script = (DOCS / "tutorial" / "digits.py").read_text("utf-8")
    assert "".join(blocks[:3]).split() == script.split()


def test_the_tutorials_commands_find_every_digit(tmp_path: Path) -> None:
    page = (DOCS / "tutorial" / "index.md").read_text("utf-8")
    shutil.copy(DOCS / "tutorial" / "digits.py", tmp_path)
    (commands,) = (code.splitlines() for language, code in BLOCK.findall(page) if language == "sh")
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program in ("python", "onebyone")
        run(arguments if program == "python" else ["-m", program, *arguments], tmp_path)
    last = [code for language, code in BLOCK.findall(page) if language == "python"][3:]
    run(["-W", "ignore", "-c", "\n".join(last)], tmp_path)

    truth = np.load(tmp_path / "truth.npz")
    file = tmp_path / "predictions" / "predictions.json"
    annotations = json.loads(file.read_text("utf-8"))["annotations"]
    corners = np.array([note["bbox"][1::-1] for note in annotations])
    classes = np.array([note["category_id"] for note in annotations])
    near = np.abs(corners[:, None] - truth["corners"]).max(-1) <= 4
    found = (near & (classes[:, None] == truth["digits"])).any(0)
    assert found.mean() > 0.9
    assert near.any(1).mean() > 0.9, "boxes that are not on a digit"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(["-m", "mkdocs", "build", "--strict", "--site-dir", str(site)], ROOT)
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text("utf-8")
        tags = re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*>", text)
        assert [tag for tag in tags if re.search(r"(?:src|srcset|href)=[\"']?(?:https?:)?//", tag)] == [], (
            page.name
        )
        assert "&gt;&gt;&gt; " not in re.sub(r"<code.*?</code>", "", text, flags=re.S), page.name
