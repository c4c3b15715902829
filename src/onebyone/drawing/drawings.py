"""The figures of one network, ready to be written in any format, and as a notebook shows them."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onebyone.atomic_files import write_bytes
from onebyone.drawing.data import Drawing
from onebyone.drawing.describe import FIGURES
from onebyone.drawing.render import FORMATS, points, render
from onebyone.drawing.theme import THEMES
from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal, table

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Written:
    """One file that was written."""

    figure: str
    theme: str
    format: str
    path: Path
    bytes: int


@dataclass(frozen=True, eq=False)
class Drawings:
    """The figures of a network: `data` behind them, the `figures` there are, and those `missing`, with why.

    In a notebook the figures show themselves, in the page's own theme; `print` gives a table.
    """

    data: Drawing
    figures: tuple[str, ...]
    missing: dict[str, str]
    width: str | float = "column"
    layer: str | None = None
    image: Any = field(default=None, repr=False)

    def render(self, figure: str, theme: str = "light", format: str = "svg") -> bytes:  # noqa: A002
        """One figure as the bytes of a file: see `onebyone.drawing.render`."""
        return render(
            self.data,
            figure,
            theme=theme,
            format=format,
            width=self.width,
            layer=self.layer,
            image=self.image,
        )

    def save(
        self,
        folder: str | os.PathLike[str],
        formats: Sequence[str] = ("svg",),
        themes: Sequence[str] = ("light",),
        *,
        progress: Progress | None = None,
    ) -> tuple[Written, ...]:
        """Write every figure in every format and theme, as `FIGURE-THEME.FORMAT` in `folder`, which is made.

        All are drawn before the first is written, and each is written whole or not at all.

        Raises
        ------
        BadInput
            for a format or theme that is not there, or a folder that cannot be written.
        """
        _known("formats", formats, FORMATS)
        _known("themes", themes, THEMES)
        wanted = [
            (f, t, k) for f in self.figures for t in dict.fromkeys(themes) for k in dict.fromkeys(formats)
        ]
        made = []
        for number, (figure, theme, kind) in enumerate(wanted):
            made.append(self.render(figure, theme, kind))
            if progress is not None:
                progress(number + 1, len(wanted))
        target = _folder(folder)
        written = []
        for (figure, theme, kind), content in zip(wanted, made, strict=True):
            path = target / f"{figure}-{theme}.{kind}"
            write_bytes(path, content)
            written.append(Written(figure, theme, kind, path, len(content)))
        return tuple(written)

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __str__(self) -> str:
        rows = [(name, "drawn") for name in self.figures] + [
            (n, f"not drawn: {w}") for n, w in self.missing.items()
        ]
        return table(("figure", ""), rows)

    def _repr_html_(self) -> str:
        """The figures as a notebook shows them: pictures that hold their own text, light or dark as the page is."""
        parts = [self._as_html(figure) for figure in self.figures]
        parts += [f"<p>{html.escape(name)}: {html.escape(why)}</p>" for name, why in self.missing.items()]
        return "".join(parts)

    def _as_html(self, figure: str) -> str:
        light, dark = (base64.b64encode(self.render(figure, theme)).decode() for theme in ("light", "dark"))
        kind = "data:image/svg+xml;base64,"
        alt = html.escape(_title_of(self.render(figure)))
        return (
            f'<figure style="margin:0 0 1em"><picture><source media="(prefers-color-scheme: dark)" '
            f'srcset="{kind}{dark}"><img alt="{alt}" src="{kind}{light}" style="max-width:100%"></picture></figure>'
        )


def drawings(
    data: Drawing,
    figures: Collection[str] | None = None,
    *,
    width: str | float = "column",
    layer: str | None = None,
    image: Any = None,
) -> Drawings:
    """The figures of a drawing: those asked for, all that can be drawn where None.

    Raises
    ------
    BadInput
        for a figure, width or layer that is not there.
    Refused
        where none of the figures can be drawn.
    """
    wanted = (
        FIGURES
        if figures is None
        else tuple(dict.fromkeys([figures] if isinstance(figures, str) else figures))
    )
    _known("figures", wanted, FIGURES)
    points(width)
    _check_layer(data, layer)
    missing = {name: data.missing[name] for name in wanted if name in data.missing}
    there = tuple(name for name in wanted if name not in missing)
    if not there:
        raise Refused([Refusal("", n, why) for n, why in missing.items()], "no figure can be drawn")
    return Drawings(data, there, missing, width, layer, image)


def _check_layer(data: Drawing, layer: str | None) -> None:
    known = [p.path for p in data.pointwise]
    if layer is not None and layer not in known:
        some = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
        raise BadInput(
            f"layer={layer!r}: no fully connected layer or 1×1 convolution of the run; it called {some}"
        )


def _known(name: str, given: Collection[str], known: Collection[str]) -> None:
    unknown = [g for g in given if g not in known]
    if unknown or not given:
        raise BadInput(
            f"{name}: {', '.join(map(str, unknown)) or 'none'}; expected some of {', '.join(known)}"
        )


def _folder(folder: str | os.PathLike[str]) -> Path:
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write in {target}: {error.strerror or error}") from error
    return target


def _title_of(svg: bytes) -> str:
    text = svg.decode()
    start = text.index("<title")
    return html.unescape(text[text.index(">", start) + 1 : text.index("</title>", start)])
