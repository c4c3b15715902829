"""The figures of a claim as text for people: sentences, values, and nested figures as the rows of a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from onebyone.drawing.number_format import number
from onebyone.records import by

_MAX_ITEMS = 8
"""Items of a list that a table shows at most; the page's data holds all of them."""
_SHAPES = ("size", "map", "window", "stride", "image", "positions", "weight")
"""How the names of figures end whose lists of integers are shapes."""


class ClaimFigure(NamedTuple):
    """The HTML of a drawing, and its caption."""

    html: str
    caption: str


def plain(value: Any) -> float:
    """A figure as a float; JSON holds infinity and NaN by name.

    >>> plain("inf"), plain(2)
    (inf, 2.0)
    """
    return float(value)


def sentence(text: str) -> str:
    """A clause as a sentence: with a capital letter and a full stop.

    >>> sentence("it holds")
    'It holds.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) or not text else ".")


def label(key: str) -> str:
    """The name of a figure as a page shows it. The data call a position of a map a "place".

    >>> label("places_reached"), label("share_of_inputs")
    ('positions reached', 'share of inputs')
    """
    return re.sub(r"\bplace", "position", key.replace("_", " "))


def rows(figures: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures as pairs (name, value); the names of nested figures are joined by dots, long lists are cut.

    >>> list(rows({"a": {"b_c": 0.5}, "d": [1, 2], "e": None}))
    [('a · b c', '0.5'), ('d', '1, 2'), ('e', '–')]
    """
    for key, value in figures.items():
        name = f"{parent} · {label(str(key))}" if parent else label(str(key))
        if isinstance(value, Mapping):
            yield from rows(value, name)
        elif isinstance(value, list | tuple):
            yield name, _list(name, value)
        else:
            yield name, words(value)


def words(value: Any) -> str:
    """One value as text; a dash where there is none."""
    if value is None or value == "":
        return "–"
    if isinstance(value, str):
        return value
    return number(value) if isinstance(value, bool | int | float) else str(value)


def _list(name: str, values: list[Any] | tuple[Any, ...]) -> str:
    if not values:
        return "none"
    if any(isinstance(v, Mapping | list | tuple) for v in values):
        return _first_items([_entry(v) for v in values], "; ")
    return by(values) if name.endswith(_SHAPES) else _first_items([words(v) for v in values], ", ")


def _entry(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in rows(value))
    if isinstance(value, list | tuple):
        return by(_entry(v) for v in value)
    return words(value)


def _first_items(items: list[str], separator: str) -> str:
    more = len(items) - _MAX_ITEMS
    shown = separator.join(items[:_MAX_ITEMS])
    return shown + (f"{separator}and {more} more in the data" if more > 0 else "")
