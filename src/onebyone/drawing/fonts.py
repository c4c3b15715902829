"""The typeface of the figures: widths of texts, and font files with the glyphs that a figure uses.

DejaVu Sans, as shipped with Matplotlib (free to embed and to subset; Bitstream Vera licence), so that the layout of a
figure is the same on every machine.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

from onebyone.errors import MissingExtra

_FILES = {False: "DejaVuSans.ttf", True: "DejaVuSans-Bold.ttf"}
FAMILY = "DejaVu Sans"
ASCENT, DESCENT = 0.76, 0.24
"""How far the glyphs that are used reach above and below the baseline, relative to the text size."""


def path_of(bold: bool = False) -> Path:
    """The path of the font file."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("Matplotlib", "report", "drawing a network") from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _FILES[bold]


def width(text: str, size: float, bold: bool = False) -> float:
    """The width of a line of text at a size, both in points, without kerning, because the font files do not contain it.

    >>> width("ii", 10.0) == 2 * width("i", 10.0) < width("W", 10.0)
    True
    """
    cmap, advances, units = _metrics(bold)
    missing = advances[".notdef"]
    return size / units * sum(advances[cmap[ord(c)]] if ord(c) in cmap else missing for c in text)


def shown(text: str) -> str:
    """The text with characters that the typeface does not contain replaced by U+FFFD.

    >>> shown("a×b"), shown("a\\u4e00")
    ('a×b', 'a\ufffd')
    """
    cmap = _metrics(False)[0]
    return "".join(c if ord(c) in cmap else "\ufffd" for c in text)


@cache
def subset(characters: frozenset[str], bold: bool = False) -> bytes:
    """A WOFF file with the glyphs of these characters only; the same characters give the same bytes."""
    path_of(bold)
    from fontTools import subset as tool

    options = tool.Options()
    options.flavor = "woff"
    options.layout_features = []
    options.hinting = False
    options.notdef_outline = True
    options.recalc_timestamp = False
    options.name_IDs = [0, 1, 2, 13]  # keep the copyright and the licence
    options.drop_tables += ["GPOS", "GSUB", "GDEF", "kern", "FFTM"]
    maker = tool.Subsetter(options)
    maker.populate(unicodes=sorted(ord(c) for c in characters))
    with _open(bold) as font:
        maker.subset(font)
        font.flavor = "woff"
        file = io.BytesIO()
        font.save(file, reorderTables=True)
        return file.getvalue()


@cache
def _metrics(bold: bool) -> tuple[dict[int, str], dict[str, int], int]:
    with _open(bold) as font:
        advances = {name: int(wide) for name, (wide, _) in font["hmtx"].metrics.items()}
        return dict(font.getBestCmap()), advances, int(font["head"].unitsPerEm)


def _open(bold: bool) -> Any:
    try:
        from fontTools.ttLib import TTFont
    except ImportError as error:
        raise MissingExtra("fontTools", "report", "drawing a network") from error
    return TTFont(path_of(bold), lazy=True, recalcTimestamp=False)
