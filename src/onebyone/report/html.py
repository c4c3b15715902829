"""Renders self-contained HTML pages: templates, with pictures and data embedded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from onebyone.errors import BadInput, MissingExtra

DEMO_TITLE = "<title>onebyone: one classifier, all windows in one pass</title>"
"""By which the demo's page is recognised."""
_LOADING = frozenset(
    {"src", "srcset", "href", "xlink:href", "poster", "action", "formaction", "data", "background"}
)
_HOST = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_CSS = re.compile(r"url\(\s*[\"']?\s*(?:[a-z]+:)?//[^)]*|@import[^;]*", re.IGNORECASE)


def render(template: str, **values: Any) -> str:
    """Render the template `onebyone/report/templates/<template>` as one HTML page, with text escaped.

    Raises
    ------
    MissingExtra
        if Jinja2 is not installed.
    BadInput
        if the page would load something from another address.
    """
    jinja2 = require_jinja()
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("onebyone.report"), jinja2.PackageLoader("onebyone.report", "assets")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template(template).render(values)
    links = outside_links(page)
    if links:
        raise BadInput(f"the page would load {links[0]!r} from another address")
    return page


def require_jinja() -> Any:
    """Import Jinja2 or raise MissingExtra; call it before long work that ends with writing a page."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra("Jinja2", "report", "writing an HTML page") from error
    return jinja2


class _LinkCollector(HTMLParser):
    """Collects what the elements of a page load; text content is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            text = value or ""
            # only srcset separates addresses by commas; elsewhere a comma may be part of a data URI
            addresses = text.split(",") if name == "srcset" else [text]
            outside = name in _LOADING and any(_HOST.match(address) for address in addresses)
            if outside or (tag == "script" and name == "src"):
                self.links.append(f'{name}="{text[:80]}"')
            if name == "style":
                self.links += _CSS.findall(text)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.links += _CSS.findall(data)


def demo_beside(path: Path) -> list[tuple[str, str]]:
    """A link (text, address) to the demo's page, if it is in the folder of the page `path`; none otherwise."""
    demo = path.with_name("index.html")
    if path.name == demo.name or not demo.is_file():
        return []
    with demo.open(encoding="utf-8", errors="replace") as file:
        is_demo = DEMO_TITLE in file.read(4096)
    return [("The demo shows a classifier on a whole photograph", demo.name)] if is_demo else []


def outside_links(page: str) -> list[str]:
    """What a page would load from other addresses: sources, links, style sheets and scripts with a host.

    >>> outside_links('<img src="data:image/png;base64,AAAA"><a href="#top">src="//text"</a>')
    []
    >>> outside_links('<img src="//host/a.png">')
    ['src="//host/a.png"']
    """
    reader = _LinkCollector()
    reader.feed(page)
    reader.close()
    return reader.links


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """`content` as a data URI, for `src` attributes.

    >>> data_uri(b"ab", "text/plain")
    'data:text/plain;base64,YWI='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def json_in_html(data: Any) -> str:
    """`data` as JSON for a `<script>` element, escaped so that it cannot end the element or begin a comment.

    >>> json_in_html({"name": "</script><b>"})
    '{"name":"\\\\u003c/script\\\\u003e\\\\u003cb\\\\u003e"}'
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def script_hash(script: str) -> str:
    """The hash with which a Content-Security-Policy allows this script only.

    >>> script_hash("")
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
