"""Pages that need nothing but themselves: templates filled in, pictures carried inside."""

from __future__ import annotations

import base64
import re
from typing import Any

from onebyone.errors import BadInput, MissingExtra

_OUTSIDE = re.compile(
    r"""(?:src|srcset|href|poster|action|data)\s*=\s*["']?\s*(?:[a-z]+:)?//"""
    r"""|url\(\s*["']?\s*(?:[a-z]+:)?//|@import|<script[^>]+src""",
    re.IGNORECASE,
)


def render(template: str, **values: Any) -> str:
    """The template `onebyone/report/templates/<template>` filled in: one HTML page, text escaped.

    Raises
    ------
    MissingExtra
        if Jinja2 is not installed.
    BadInput
        if the page would load something from elsewhere.
    """
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra("Jinja2", "report", "writing an HTML page") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onebyone.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(values)
    found = outside_links(page)
    if found:
        raise BadInput(f"the page would load {found[0]!r} from elsewhere")
    return page


def outside_links(page: str) -> list[str]:
    """What in a page would be loaded from elsewhere: sources, links, style sheets and scripts with a host.

    >>> outside_links('<img src="data:image/png;base64,AAAA"><a href="#top">')
    []
    >>> outside_links('<img src="//host/a.png">')
    ['src="//']
    """
    return [match.group(0) for match in _OUTSIDE.finditer(page)]


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """`content` as an address that holds it: for `src` attributes.

    >>> data_uri(b"ab", "text/plain")
    'data:text/plain;base64,YWI='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
