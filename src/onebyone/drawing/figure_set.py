"""The figures of one network: written as files in any format, and shown in notebooks."""

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
from onebyone.drawing.description import FIGURES
from onebyone.drawing.rendering import FORMATS, points, render
from onebyone.drawing.theme import THEMES
from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal, table

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Written:
    """One written file."""

    figure: str
    theme: str
    format: str
    path: Path
    bytes: int


@dataclass(frozen=True, eq=False)
class Drawings:
    """The figures of a network: their `data`, the available `figures`, and the `missing` ones with the reason.

    Notebooks show the figures in the theme of the page; `print` shows a table.
    """

    data: Drawing
    figures: tuple[str, ...]
    missing: dict[str, str]
    width: str | float = "column"
    layer: str | None = None
    image: Any = field(default=None, repr=False)

    def render(self, figure: str, theme: str = "light", format: str = "svg") -> bytes:  # noqa: A002
        """One figure as the bytes of a file; see `onebyone.drawing.render`."""
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
        formats: Sequence[str] | None = None,
        themes: Sequence[str] = ("light",),
        *,
        progress: Progress | None = None,
    ) -> tuple[Written, ...]:
        """Write every figure in every format and theme, as `FIGURE-THEME.FORMAT` in `folder`, which is created.

        If the name of `folder` ends in a format, such as `network.svg`, and there is exactly one figure, format and
        theme, that one file is written. `formats` None means the format in which the name ends, else SVG. All figures
        are drawn before the first is written, each atomically.

        Raises
        ------
        BadInput
            for an unknown format or theme, for a file name with several figures or another format, or if the folder
            cannot be written.
        """
        suffix = Path(folder).suffix.removeprefix(".").lower()
        formats = (suffix if suffix in FORMATS else "svg",) if formats is None else formats
        _require_known("formats", formats, FORMATS)
        _require_known("themes", themes, THEMES)
        wanted = [
            (f, t, k) for f in self.figures for t in dict.fromkeys(themes) for k in dict.fromkeys(formats)
        ]
        paths = _file_paths(Path(folder), wanted)
        contents = []
        for number, (figure, theme, kind) in enumerate(wanted):
            contents.append(self.render(figure, theme, kind))
            if progress is not None:
                progress(number + 1, len(wanted))
        _create_folder(paths[0].parent)
        written = []
        for (figure, theme, kind), path, content in zip(wanted, paths, contents, strict=True):
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
        """The figures for notebooks, as pictures in the light or dark theme of the page."""
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
    """The requested figures of a drawing; None means all that can be drawn.

    Raises
    ------
    BadInput
        for an unknown figure, width or layer.
    Refused
        if none of the figures can be drawn.
    """
    wanted = (
        FIGURES
        if figures is None
        else tuple(dict.fromkeys([figures] if isinstance(figures, str) else figures))
    )
    _require_known("figures", wanted, FIGURES)
    points(width)
    _check_layer(data, layer)
    missing = {name: data.missing[name] for name in wanted if name in data.missing}
    available = tuple(name for name in wanted if name not in missing)
    if not available:
        raise Refused([Refusal("", n, why) for n, why in missing.items()], "no figure can be drawn")
    return Drawings(data, available, missing, width, layer, image)


def _check_layer(data: Drawing, layer: str | None) -> None:
    known = [p.path for p in data.pointwise]
    if layer is not None and layer not in known:
        some = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
        raise BadInput(
            f"layer={layer!r}: not a fully connected layer or 1×1 convolution that the run called; it called {some}"
        )


def _require_known(name: str, values: Collection[str], known: Collection[str]) -> None:
    unknown = [v for v in values if v not in known]
    if unknown or not values:
        raise BadInput(f"{name}={','.join(map(str, unknown)) or 'none'}: expected some of {', '.join(known)}")


def _file_paths(target: Path, wanted: Sequence[tuple[str, str, str]]) -> list[Path]:
    """The paths of the files: in the folder `target`, or `target` itself if its name is that of one picture file."""
    suffix = target.suffix.removeprefix(".").lower()
    if suffix not in FORMATS or target.is_dir():
        return [target / f"{figure}-{theme}.{kind}" for figure, theme, kind in wanted]
    if len(wanted) > 1:
        raise BadInput(
            f"cannot write {len(wanted)} pictures to one file {target}: expected a folder, or one figure"
        )
    if wanted[0][2] != suffix:
        raise BadInput(
            f"cannot write {wanted[0][2]} to {target}: expected a name that ends in .{wanted[0][2]}"
        )
    return [target]


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write in {folder}: {error.strerror or error}") from error


def _title_of(svg: bytes) -> str:
    text = svg.decode()
    start = text.index("<title")
    return html.unescape(text[text.index(">", start) + 1 : text.index("</title>", start)])
