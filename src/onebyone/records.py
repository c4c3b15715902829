"""Plain data shared by all packages: changes, refusals and labels; and their tables in text and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

#: A warning is issued if a smaller share of windows has the same best class in the dense scores as when cropped.
ENOUGH_AGREEMENT = 0.95
#: The default minimum of this share; a smaller share is an error.
LEAST_AGREEMENT = 0.5


@dataclass(frozen=True)
class Change:
    """One layer that was converted.

    `path` is the dotted module path (or the name of the graph node), `kind` the original layer or operator (`Linear`,
    `Conv2d`, `aten.linear`), `law` the name of the law applied, `before` and `after` short descriptions with weight
    shapes, and `copied_bytes` the size of the new storage (0 if the weight is a view).
    """

    path: str
    kind: str
    law: str
    before: str
    after: str
    copied_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Refusal:
    """One layer or operator that was not converted, with the reason."""

    path: str
    kind: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.path or '(top level)'} ({self.kind}): {self.reason}"


@dataclass(frozen=True)
class Labels:
    """The classes of a classifier and the preprocessing of its inputs; stored with a model or given by the user.

    A pixel value v in [0, 255] (or [0, 1] for floating images) becomes `(v * scale - mean) / std`, channel by channel,
    in `colour_order` ("RGB", "BGR" or "L"). `background` lists the classes that `detect` ignores.
    """

    classes: tuple[str, ...] = ()
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    colour_order: str = "RGB"
    background: tuple[str, ...] = field(default=())

    @property
    def states_preprocessing(self) -> bool:
        """Whether a scale, mean or std is given. If not, values are used unchanged; `std=(1,)` says so."""
        return self.scale != 1 or bool(self.mean) or bool(self.std)

    def with_preprocessing(self, other: Labels | None) -> Labels:
        """These labels, with the preprocessing of `other` if they state none; a colour order other than RGB stays.

        >>> Labels(colour_order="BGR").with_preprocessing(Labels(scale=1 / 255)).preprocessing()
        'v / 255, BGR'
        """
        if other is None or self.states_preprocessing:
            return self
        order = other.colour_order if self.colour_order == "RGB" else self.colour_order
        return replace(self, scale=other.scale, mean=other.mean, std=other.std, colour_order=order)

    def preprocessing(self) -> str:
        """A formula for the preprocessing of a pixel value v.

        >>> Labels(scale=1 / 255, mean=(0.5,), std=(0.25,)).preprocessing()
        '(v / 255 − 0.5) / 0.25'
        >>> Labels(std=(1.0,)).preprocessing()
        'values are used unchanged'
        """
        if not self.states_preprocessing:
            return "none stated: values are used unchanged"
        text = "v" if self.scale == 1 else _scaled("v", self.scale)
        if self.mean:
            text = f"({text} − {_numbers(self.mean)})"
        if any(v != 1 for v in self.std):
            text = f"{text} / {_numbers(self.std)}"
        if text == "v":
            text = "values are used unchanged"
        return text if self.colour_order == "RGB" else f"{text}, {self.colour_order}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data for JSON."""
        return asdict(self)


def _scaled(name: str, scale: float) -> str:
    """A product by a scale; a quotient if that has a shorter number, such as 255."""
    if scale and len(f"{1 / scale:.6g}") < len(f"{scale:.6g}"):
        return f"{name} / {1 / scale:.6g}"
    return f"{name} · {scale:.6g}"


def _numbers(values: Sequence[float]) -> str:
    text = ", ".join(f"{v:.6g}" for v in values)
    return text if len(values) == 1 else f"({text})"


def by(values: Iterable[object]) -> str:
    """Sizes joined by ×.

    >>> by((3, 224, 224))
    '3×224×224'
    """
    return "×".join(str(v) for v in values)


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def size_of(count: float) -> str:
    """A number of bytes with a binary unit, up to GiB.

    >>> size_of(0), size_of(1023), size_of(1536), size_of(5 * 2**40)
    ('0 B', '1023 B', '1.5 KiB', '5120.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type if the message is empty.

    If the message starts with the traceback of another error, the line that names that error.

    >>> first_line(ValueError("short\\nand long"))
    'short'
    >>> first_line(ValueError("Traceback (most recent call last):\\n  File \\"a.py\\", line 1\\nKeyError: 'b'"))
    "KeyError: 'b'"
    """
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Traceback"):
        lines = [line for line in lines[1:] if not line.startswith(" ")] or [type(error).__name__]
    return lines[0].strip()


def root_cause(error: BaseException) -> BaseException:
    """The error that a chain of errors began with: libraries wrap one once for each of their levels.

    >>> outer = ValueError("outer")
    >>> outer.__cause__ = KeyError("inner")
    >>> root_cause(outer)
    KeyError('inner')
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in plain aligned text, as `print(result)` shows it.

    >>> print(table(["a", "b"], [[1, "xyz"], [22, "y"]]))
    a   b
    --  ---
    1   xyz
    22  y
    """
    cells = [[str(h) for h in headers], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


class Readable:
    """Base class of results that IPython displays as `print` does, instead of the repr of a dataclass."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def html_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in HTML for notebooks, with escaped cells and no external resources.

    `headers` may be empty, for a list of names and values.

    >>> html_table([], [["<b>"]])
    '<table><tbody><tr><td style="text-align:left">&lt;b&gt;</td></tr></tbody></table>'
    """
    head = "".join(_cell("th", h) for h in headers)
    lines = [(row, tones(headers, row)) for row in rows]
    body = "".join(f"<tr>{''.join(map(_cell, ['td'] * len(row), row, shades))}</tr>" for row, shades in lines)
    return "<table>" + (f"<thead><tr>{head}</tr></thead>" if head else "") + f"<tbody>{body}</tbody></table>"


def html_result(verdict: str, *parts: str, notes: Iterable[str] = ()) -> str:
    """A result in HTML for notebooks: a line with the verdict, then `parts` (HTML) and `notes` (text).

    >>> html_result("1 < 2", notes=["it is"])
    '<div><p><strong>1 &lt; 2</strong></p><p>it is</p></div>'
    """
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<div><p><strong>{escape(verdict)}</strong></p>{''.join(parts)}{lines}</div>"


#: Headers of columns whose cells judge, and the words with which such cells begin.
_JUDGING = frozenset({"verdict", "integers", "mendable", "choice", "equals cropping every window"})
_TONES = (
    (re.compile(r"holds when\b"), "caution"),
    (re.compile(r"(ok|holds|bit for bit|yes|chosen)\b"), "good"),
    (re.compile(r"(FAILS|DIFFER|does not hold|no)\b"), "bad"),
)
#: Background and text of cells in notebooks: legible on light and dark pages, because both are set.
_COLOURS = {"good": ("#d4f2dc", "#0b3d1c"), "caution": ("#fbeec2", "#453300"), "bad": ("#fbd9d7", "#5c0f0b")}


def tones(headers: Sequence[str], row: Sequence[object]) -> list[str]:
    """What each cell of a row says: "good", "caution", "bad", or "" where it judges nothing.

    Tables on the terminal and in notebooks colour such cells; the words say the same without colour. In a list of names
    and values, which has no headers, the first cell of the row is the header.

    >>> tones(["layer", "verdict"], ["ok", "ok"]), tones([], ["mendable", "no"])
    (['', 'good'], ['', 'bad'])
    """
    names = headers or [str(row[0])] * len(row)
    matches = (
        next((tone for words, tone in _TONES if words.match(str(cell))), "") if name in _JUDGING else ""
        for name, cell in zip(names, row, strict=True)
    )
    return list(matches)


def _cell(tag: str, content: object, tone: str = "") -> str:
    background, text = _COLOURS.get(tone, ("", ""))
    colours = f";background:{background};color:{text}" if tone else ""
    return f'<{tag} style="text-align:left{colours}">{escape(str(content))}</{tag}>'
