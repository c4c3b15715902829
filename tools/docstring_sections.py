"""An extension of griffe for `make docs`: writes docstrings in the one style that mkdocstrings parses.

The source has sections as `Raises:` followed by indented items, and as `Raises` underlined with dashes; the latter are
rewritten as the former. Doctests become code blocks.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

HEADING = re.compile(r"^(\w+)\n-{3,}\n", re.M)
NAMES = {"Parameters": "Args", "Example": "Examples"}
#: The names of several items that share one description; after a space, griffe would expect a type.
SHARED = re.compile(r"^\w+(?:, \w+)+:", re.M)
DOCTEST = re.compile(r"^>>>.*(?:\n.+)*", re.M)


def rewritten(text: str) -> str:
    """The docstring with colons after the names of sections, indented items, and doctests as code blocks.

    >>> print(rewritten("Load it.\\n\\nRaises\\n------\\nBadInput\\n    if the file is damaged."))
    Load it.
    <BLANKLINE>
    Raises:
        BadInput: if the file is damaged.
    >>> rewritten(">>> 1 + 1\\n2")
    '```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    before, *parts = HEADING.split(text)
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        items = re.sub(r"^(\w[\w., ]*)\n +(?=\S)", r"\1: ", body, flags=re.M)
        items = SHARED.sub(lambda names: names[0].replace(" ", "\N{NO-BREAK SPACE}"), items)
        name = NAMES.get(name, name)
        before += body if name == "Examples" else f"{name}:\n{textwrap.indent(items, '    ')}"
    return DOCTEST.sub(lambda example: f"```pycon\n{example[0]}\n```", before)


class DocstringSections(griffe.Extension):
    """Rewrites the docstring of every module, class and function before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object that was read."""
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)
