"""Figures as people read them: numbers, shares, times, and nested figures as lines of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from onebyone.records import by
from onebyone.report.charts import superscript

_MOST_ITEMS = 8
"""Items of a list that a table shows; the data file has all."""


def plain(value: Any) -> float:
    """A figure as a number again: JSON names infinity and NaN.

    >>> plain("inf"), plain(2)
    (inf, 2.0)
    """
    return float(value)


def number(value: Any) -> str:
    """A number of three digits or so; whole numbers whole.

    >>> [number(v) for v in (0.000123456, 1234567, 0.25, 16958288812.4, "inf", 0.0)]
    ['1.23·10⁻⁴', '1,234,567', '0.25', '1.7·10¹⁰', '∞', '0']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    value = float(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    power = math.floor(math.log10(abs(value)))
    return f"{value / 10.0**power:.3g}·10{superscript(power)}"


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "layer"), counted(1200, "layer")
    ('1 layer', '1,200 layers')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def percent(share: float) -> str:
    """A share.

    >>> percent(0.0204), percent(1)
    ('2.04%', '100%')
    """
    return f"{100 * share:.3g}%"


def sentence(text: str) -> str:
    """A clause as a sentence.

    >>> sentence("it holds")
    'It holds.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) or not text else ".")


def lines(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures as (name, value): names of names apart by dots, long lists cut.

    >>> list(lines({"a": {"b_c": 0.5}, "d": [1, 2], "e": None}))
    [('a · b c', '0.5'), ('d', '1, 2'), ('e', '–')]
    """
    for key, value in figures.items():
        name = f"{above} · {key}" if above else str(key)
        name = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield from lines(value, name)
        elif isinstance(value, list | tuple):
            yield from _listed(name, value)
        else:
            yield name, words(value)


def words(value: Any) -> str:
    """One value in words."""
    if value is None or value == "":
        return "–"
    if isinstance(value, str):
        return value
    return number(value) if isinstance(value, bool | int | float) else str(value)


def _listed(name: str, values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    if not values:
        yield name, "none"
    elif any(isinstance(v, Mapping | list | tuple) for v in values):
        yield name, _few([_entry(v) for v in values], "; ")
    elif name.endswith(("size", "map", "window", "stride", "image", "places", "weight")):
        yield name, by(values)
    else:
        yield name, _few([words(v) for v in values], ", ")


def _entry(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in lines(value))
    if isinstance(value, list | tuple):
        return by(_entry(v) for v in value)
    return words(value)


def _few(items: list[str], between: str) -> str:
    more = len(items) - _MOST_ITEMS
    return between.join(items[:_MOST_ITEMS]) + (f"{between}and {more} more in the data" if more > 0 else "")
