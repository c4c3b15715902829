"""A hook of the documentation's site: the sections of the navigation and the search have accessible names.

The theme names a section by a label that has no text if the section has an index page, and the search not at all.
"""

from __future__ import annotations

import re
from typing import Any

_SECTION = re.compile(
    r'(<nav class="md-nav"[^>]*?) aria-labelledby="__nav_\w+_label"'
    r'([^>]*>\s*<label class="md-nav__title" for="\w+">\s*<span class="md-nav__icon md-icon"></span>\s*)'
    r"([^<]+?)(?=\s*</label>)"
)
_SEARCH = '<div class="md-search" data-md-component="search" role="dialog"'


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
