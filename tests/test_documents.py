"""Every Python block of README and docs runs, in order, in one namespace per file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interpreter import run_python
from tools.site_hooks import REPORT

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(p.read_text("utf-8")) and p.parent.name != "tutorial"  # test_site.py runs the tutorial
]

RENDERED = ROOT / "docs" / REPORT
"""The page that is written when the site is built."""

SHORT_BUDGETS = """\
import onebyone
for verb in (onebyone.tune, onebyone.compare):
    verb.__kwdefaults__["budget"] = 0.5
"""
"""Run before each page: without it, an example that leaves `tune` its default budget takes a minute."""
BUDGET = re.compile(r"\bbudget=[\d.]+")
"""A budget that a page states, which is shortened as well."""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    code = SHORT_BUDGETS + BUDGET.sub("budget=0.5", "\n".join(BLOCK.findall(page.read_text("utf-8"))))
    script = tmp_path / "page.py"
    script.write_text(code, "utf-8")
    ran = run_python("-W", "ignore", script.name, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
            linked = page.parent / target
            assert linked.exists() or linked == RENDERED, f"{page.name} links to {target}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_folders_that_pages_name_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    source = ROOT if name == "CONTRIBUTING.md" else ROOT / "src" / "onebyone"
    paths = re.findall(r"^\| .*`(src/[\w/]+)` \|$", text, re.M) or re.findall(r"^\| `(\w+/)` \|", text, re.M)
    assert len(paths) >= 10
    assert [path for path in paths if not (source / path).is_dir()] == []
