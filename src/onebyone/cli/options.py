"""The options that commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onebyone.atomic_files import require_file
from onebyone.errors import BadInput

SOURCE_HELP = "file.pt2, torchvision:NAME, timm:NAME or package.module:factory."
LABELS = "Classes and preprocessing"
OUTPUT = "Output"


# Classes of their own, because typer would read `tuple[int, ...]` as an option that takes several words.
class Sizes(tuple[int, ...]):
    """Whole numbers, as in a shape."""


class EveryAxis(Sizes):
    """One size, the same on every axis."""


class Names(tuple[str, ...]):
    """Names, as of classes."""


class Numbers(tuple[float, ...]):
    """Numbers, one for each channel."""


def _integers(text: str, what: str) -> Sizes:
    try:
        values = Sizes(int(part) for part in text.replace("×", ",").replace("x", ",").split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not {what}") from None
    if min(values) < 1:
        raise typer.BadParameter(f"{text!r} is not {what}: every number must be positive")
    return values


def read_shape(text: str) -> Sizes:
    """`1,3,224,224` as integers."""
    return _integers(text, "a shape such as 1,3,224,224")


def read_window(text: str) -> Sizes:
    """`28,20` and `1024,` as they stand; `224` is that size on every axis of the network."""
    values = _integers(text.strip().removesuffix(","), "a window such as 224 or 224,160")
    return EveryAxis(values) if len(values) == 1 and not text.strip().endswith(",") else values


def window_of(sizes: Sizes) -> int | Sizes:
    """A window as the verbs of Python take it: one number for every axis, or one for each."""
    return sizes[0] if isinstance(sizes, EveryAxis) else sizes


def read_names(text: str) -> Names:
    """`cat,dog` as names; `@file` as the file's lines."""
    if text.startswith("@"):
        try:
            lines = require_file(text[1:]).read_text(encoding="utf-8").splitlines()
        except BadInput as error:
            reason = str(error).rpartition(": ")[2]
            raise typer.BadParameter(f"cannot read the names in {text[1:]!r}: {reason}") from None
        except UnicodeDecodeError:
            raise typer.BadParameter(f"cannot read the names in {text[1:]!r}: it is not UTF-8 text") from None
        return Names(line.strip() for line in lines if line.strip())
    return Names(name.strip() for name in text.split(",") if name.strip())


def read_numbers(text: str) -> Numbers:
    """`0.485,0.456,0.406` as numbers."""
    try:
        return Numbers(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.5,0.5") from None


def read_number(text: str) -> float:
    """`0.5` or a fraction such as `1/255`."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is not a number such as 0.5 or 1/255") from None


Source = Annotated[str, typer.Argument(metavar="SRC", help=f"The network: {SOURCE_HELP}", show_default=False)]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", "-w", metavar="FILE", help="Load these weights: .safetensors, or .pth of tensors only."
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, metavar="N", help="Of everything random: untrained weights, probes, inputs."
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object on stdout, and nothing else there.", rich_help_panel=OUTPUT
    ),
]
Shape = Annotated[
    Sizes | None,
    typer.Option(
        "--shape",
        parser=read_shape,
        metavar="N,C,H,W",
        help="Shape of an example input, such as 1,3,224,224.",
    ),
]
Window = Annotated[
    Sizes,
    typer.Option(
        "--window", parser=read_window, metavar="H[,W]", help="Pixels that the classifier takes, such as 224."
    ),
]
OptionalWindow = Annotated[
    Sizes | None,
    typer.Option(
        "--window",
        parser=read_window,
        metavar="H[,W]",
        help="Pixels that the classifier takes; for any SRC but a .pt2 of convolutionalize.",
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(
        "--channels",
        min=1,
        metavar="N",
        help="Channels of the image, where the first layer does not tell.",
        show_default=False,
    ),
]
Classes = Annotated[
    Names | None,
    typer.Option(
        "--classes",
        parser=read_names,
        metavar="A,B,…",
        help="Names of the outputs; or @FILE, one name a line.",
        rich_help_panel=LABELS,
    ),
]
Page = Annotated[
    int | None,
    typer.Option(
        "--page",
        min=0,
        metavar="N",
        help="Page or frame of an image file with several, counted from 0.",
        show_default="the first, with a note",
    ),
]
ScoreKind = Annotated[
    str | None,
    typer.Option(
        "--scores",
        metavar="KIND",
        help="What the network's outputs are: logits, probabilities or log-probabilities, alone or followed by "
        ":exclusive or :multi-label.",
        show_default="as the network's last operator tells",
        rich_help_panel=LABELS,
    ),
]
Mean = Annotated[
    Numbers | None,
    typer.Option(
        "--mean",
        parser=read_numbers,
        metavar="M,…",
        help="Subtracted from each channel, after --scale.",
        rich_help_panel=LABELS,
    ),
]
Std = Annotated[
    Numbers | None,
    typer.Option(
        "--std",
        parser=read_numbers,
        metavar="S,…",
        help="What each channel is then divided by.",
        rich_help_panel=LABELS,
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        parser=read_number,
        metavar="X",
        help="What pixel values are multiplied by, such as 1/255.",
        show_default=False,
        rich_help_panel=LABELS,
    ),
]
ColourOrder = Annotated[
    str | None,
    typer.Option(
        "--colour-order",
        metavar="RGB|BGR|L",
        help="Order of the channels the network expects.",
        rich_help_panel=LABELS,
    ),
]
MinAgreement = Annotated[
    float,
    typer.Option(
        "--min-agreement",
        min=0,
        max=1,
        metavar="P",
        help="For networks that are not exact: exit with 1 where fewer of the compared windows have the same best "
        "class as when cropped.",
    ),
]
