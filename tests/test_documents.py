"""Every Python block of README and docs runs, in order, in one namespace per file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from onebyone.cli.main import app
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


def test_commands_that_pages_name_exist() -> None:
    pages = (ROOT / "README.md", ROOT / "PACKAGE.md", *sorted((ROOT / "docs").rglob("*.md")))
    named = {
        (page.name, verb)
        for page in pages
        for verb in re.findall(r"(?:`|^ *|\$ )onebyone ([a-z][a-z-]*)", page.read_text("utf-8"), re.M)
    }
    commands = get_command(app).commands.keys()  # type: ignore[attr-defined]
    assert len({verb for _, verb in named}) > 10
    assert {(page, verb) for page, verb in named if verb not in commands} == set()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_folders_that_pages_name_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    source = ROOT if name == "CONTRIBUTING.md" else ROOT / "src" / "onebyone"
    paths = re.findall(r"^\| .*`(src/[\w/]+)` \|$", text, re.M) or re.findall(r"^\| `(\w+/)` \|", text, re.M)
    assert len(paths) >= 10
    assert [path for path in paths if not (source / path).is_dir()] == []


def result(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text("utf-8"))


def text_of(page: str) -> str:
    return " ".join((ROOT / page).read_text("utf-8").split())


def test_the_viewers_times_are_those_of_the_benchmark() -> None:
    view, page = result("view"), text_of("docs/view.md")
    whole = max(view["image_seconds"], view["map_seconds"])
    assert f"on {'two' if view['cores'] == 2 else view['cores']} cores:" in page
    assert f"the first tile {view['first_picture_seconds']:.2f} s after the address was opened" in page
    assert f"the whole first picture after {whole:.2f} s, and {view['peak_bytes'] / 1e6:.0f} MB" in page


@pytest.mark.parametrize("row", result("onnx_dense")["models"], ids=lambda row: row["model"])
def test_the_table_of_dense_onnx_models_is_that_of_the_benchmark(row: dict[str, Any]) -> None:
    """The image, the windows, the largest difference and the quotient of times, in the row of the model."""
    lines = (ROOT / "docs" / "onnx_dense.md").read_text("utf-8").splitlines()
    name = row["model"].partition(" ")[0]
    (line,) = [line for line in lines if line.startswith(f"| {name}")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:3] == ["×".join(map(str, row["image"])), str(row["windows"])]
    assert float(re.split("[ ,]", cells[4])[0]) == float(f"{row['largest_difference']:.2g}")
    digits = 3 if row["crops_time_over_dense_time"] >= 100 else 2
    assert float(cells[6]) == float(f"{row['crops_time_over_dense_time']:.{digits}g}")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_number_of_networks_is_that_of_the_zoo(page: str) -> None:
    (count,) = re.findall(r"(\d+) networks", text_of(page))
    assert f"| models | {count} |" in (ROOT / "docs" / "zoo.md").read_text("utf-8")
