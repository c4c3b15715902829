"""Writes docs/explainer/claims.html, the seventeen claims of the explainer, from the stored run of `onebyone compare`.

The run is made by the command that the page names. `python -m tools.explainer.claims FILE` stores its JSON and writes
the claims and figures F1 to F3 from it; without FILE they are written anew from the stored run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from onebyone.drawing import Drawing
from onebyone.drawing.rendering import points, scene
from onebyone.drawing.svg_writer import to_svg
from onebyone.report.comparison_page import GROUPS, claim_view
from onebyone.report.html import require_jinja

FOLDER = Path(__file__).parents[2] / "docs" / "explainer"
RUN = FOLDER / "comparison.json"
TEMPLATE = """\
{% from "comparison_parts.html.j2" import row_card %}
<div class="claims">
{% for title, rows in groups %}
<section aria-label="{{ title }}">
<h3 class="group">{{ title }}</h3>
{% for row in rows %}{{ row_card(row) }}{% endfor %}
</section>
{% endfor %}
</div>
"""


def stored_run() -> dict[str, Any]:
    """The stored run as plain data."""
    return dict(json.loads(RUN.read_text("utf-8")))


def claims(run: dict[str, Any]) -> str:
    """The claims as HTML, without empty lines, which would end an HTML block in Markdown."""
    jinja2 = require_jinja()
    environment = jinja2.Environment(loader=jinja2.PackageLoader("onebyone.report"), autoescape=True)
    rows = [claim_view(row) for row in run["rows"]]
    groups = [(title, [row for row in rows if row["id"].startswith(letter)]) for letter, _, title in GROUPS]
    for row in rows:
        row["try_it"] = {"D1": "slide", "R2": "fold", "R3": "window"}.get(row["id"])
    text = environment.from_string(TEMPLATE).render(groups=groups)
    # the group has the heading of level 3
    text = text.replace("<h3 id=", "<h4 id=").replace(
        "</h3>\n    <p><span class", "</h4>\n    <p><span class"
    )
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


def figures(run: dict[str, Any]) -> dict[str, bytes]:
    """Figures F1 to F3 of the network as SVG, by file name."""
    drawing = Drawing.from_dict(run["drawing"])
    return {
        f"{name}-{theme}.svg": to_svg(scene(drawing, name, points("page")), theme)
        for name in ("F1", "F2", "F3")
        for theme in ("light", "dark")
    }


def main(arguments: list[str]) -> int:
    """Store the run if one is named, and write the claims and the figures."""
    if arguments:
        run = json.loads(Path(arguments[0]).read_text("utf-8"))
        RUN.write_text(json.dumps(run, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    run = stored_run()
    (FOLDER / "claims.html").write_text(claims(run), "utf-8")
    for name, content in figures(run).items():
        (FOLDER / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
