"""Hooks of the documentation's site: the explainer's report, and accessible names of navigation and search.

The report is the page that `onebyone compare --html` would write for the stored run that the explainer shows.

The theme names a section by a label that has no text if the section has an index page, and the search not at all.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from onebyone.report.comparison_page import comparison_page

REPORT = "explainer/report.html"

_SECTION = re.compile(
    r'(<nav class="md-nav"[^>]*?) aria-labelledby="__nav_\w+_label"'
    r'([^>]*>\s*<label class="md-nav__title" for="\w+">\s*<span class="md-nav__icon md-icon"></span>\s*)'
    r"([^<]+?)(?=\s*</label>)"
)
_SEARCH = '<div class="md-search" data-md-component="search" role="dialog"'


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """The files of the site with the explainer's report."""
    run = Path(config["docs_dir"]) / "explainer" / "comparison.json"
    files.append(File.generated(config, REPORT, content=report(run)))
    return files


def report(run: Path) -> str:
    """The report of a stored comparison, with a link back to the explainer."""
    links = [("The explainer shows this network in the browser", "index.html")]
    return comparison_page(json.loads(run.read_text("utf-8")), title="the explainer's network", links=links)


def on_post_page(output: str, **_: Any) -> str:
    """The page with a named search and named sections.

    >>> on_post_page(
    ...     '<nav class="md-nav" aria-labelledby="__nav_3_label"> <label class="md-nav__title" for="__nav_3">'
    ...     '<span class="md-nav__icon md-icon"></span> Learn </label>'
    ... )[:39]
    '<nav class="md-nav" aria-label="Learn">'
    """
    output = output.replace(_SEARCH, f'{_SEARCH} aria-label="Search"')
    return _SECTION.sub(r'\1 aria-label="\3"\2\3', output)
