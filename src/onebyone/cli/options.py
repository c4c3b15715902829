"""Options shared by several commands, and parsers of their values."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from onebyone.atomic_files import require_file
from onebyone.cli.command import OUTPUT
from onebyone.errors import BadInput

SOURCE_HELP = "file.pt2, torchvision:NAME, timm:NAME, package.module:factory or file.py:factory."
LABELS = "Classes and preprocessing"
REJECTION = "Classifiers that were not trained on background"
IMAGE = (1, 3, 224, 224)
"""Shape of the example input if neither --shape nor the network states one."""


# These are classes because typer would read `tuple[int, ...]` as an option that takes several words.
class Sizes(tuple[int, ...]):
    """Positive integers, such as the sizes of a shape."""


class EveryAxis(Sizes):
    """One size for every axis."""


class Names(tuple[str, ...]):
    """Names, such as those of classes."""


class Numbers(tuple[float, ...]):
    """Numbers, one per channel."""


class Context(StrEnum):
    """What global pooling inside the network pools over."""

    window = "window"
    image = "image"


def _integers(text: str, expected: str, least: int = 1) -> Sizes:
    try:
        values = Sizes(int(part) for part in text.replace("×", ",").replace("x", ",").split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not {expected}") from None
    if min(values) < least:
        raise typer.BadParameter(f"{text!r} is not {expected}: every number must be {least} or more")
    return values


def read_shape(text: str) -> Sizes:
    """Parse a shape such as `1,3,224,224`."""
    return _integers(text, "a shape such as 1,3,224,224")


def read_axes(text: str) -> Sizes:
    """Parse axes, counted from 0, such as `0,2,3`."""
    return _integers(text, "a list of axes such as 0,2,3", least=0)


def read_window(text: str) -> Sizes:
    """Parse a window such as `28,20`; `1024,` has one axis, and `224` is that size on every axis of the network."""
    values = _integers(text.strip().removesuffix(","), "a window such as 224 or 224,160")
    return EveryAxis(values) if len(values) == 1 and not text.strip().endswith(",") else values


def window_of(sizes: Sizes) -> int | Sizes:
    """The `window` argument of the Python functions: one number for every axis, or a size per axis."""
    return sizes[0] if isinstance(sizes, EveryAxis) else sizes


def read_names(text: str) -> Names:
    """Parse names such as `cat,dog`; `@file` reads one name per line."""
    if text.startswith("@"):
        try:
            lines = require_file(text[1:]).read_text(encoding="utf-8").splitlines()
        except BadInput as error:
            reason = str(error).rpartition(": ")[2]
            raise typer.BadParameter(f"cannot read the names in {text[1:]!r}: {reason}") from None
        except UnicodeDecodeError:
            raise typer.BadParameter(
                f"cannot read the names in {text[1:]!r}: the file is not UTF-8 text"
            ) from None
        return Names(line.strip() for line in lines if line.strip())
    return Names(name.strip() for name in text.split(",") if name.strip())


def read_threshold(text: str) -> Any:
    """Parse a confidence threshold: one number, `cat=0.8,dog=0.6`, or `@file`."""
    from onebyone.detection.thresholds import read_threshold as parsed

    try:
        return parsed(text)
    except BadInput as error:
        raise typer.BadParameter(str(error).removeprefix("threshold=")) from None


def read_numbers(text: str) -> Numbers:
    """Parse numbers such as `0.485,0.456,0.406`."""
    try:
        return Numbers(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.5,0.5") from None


def read_number(text: str) -> float:
    """Parse a number such as `0.5`, or a fraction such as `1/255`."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is not a number such as 0.5 or 1/255") from None


def list_option(name: str, description: str, metavar: str = "A,B,…", **settings: Any) -> Any:
    """An option whose value is a list of names."""
    return typer.Option(name, parser=read_names, metavar=metavar, help=description, **settings)


def output_option(description: str, *names: str, **settings: Any) -> Any:
    """An option about what is written; `--output`, the same in every command, unless other names are given."""
    names = names or ("--output", "-o")
    return typer.Option(*names, help=description, rich_help_panel=OUTPUT, **settings)


def labels_option(
    name: str, description: str, parser: Callable[[str], Any] | None = None, **settings: Any
) -> Any:
    """An option about classes or preprocessing."""
    return typer.Option(name, parser=parser, help=description, rich_help_panel=LABELS, **settings)


def budget_option(minimum: float) -> Any:
    """The time limit of commands that measure."""
    return typer.Option("--budget", min=minimum, metavar="SECONDS", help="Approximate time limit in seconds.")


Source = Annotated[str, typer.Argument(metavar="SRC", help=f"The network: {SOURCE_HELP}", show_default=False)]
SourceOrOnnx = Annotated[
    str,
    typer.Argument(metavar="SRC", help=f"The network: file.onnx, {SOURCE_HELP}", show_default=False),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "-w",
        metavar="FILE",
        help="Weights to load: .safetensors, or .pth that contains only tensors.",
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Load the default pretrained weights of a torchvision: or timm: network; they are downloaded once.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Random seed.")]
Shape = Annotated[
    Sizes | None,
    typer.Option(
        "--shape",
        "--input-shape",
        parser=read_shape,
        metavar="N,C,H,W",
        help="Shape of an example input, such as 1,3,224,224.",
    ),
]
WINDOW_HELP = "Input size of the classifier in pixels, such as 224"
Window = Annotated[
    Sizes, typer.Option("--window", parser=read_window, metavar="H[,W]", help=WINDOW_HELP + ".")
]
WindowOrStated = Annotated[
    Sizes | None,
    typer.Option(
        "--window",
        parser=read_window,
        metavar="H[,W]",
        help=WINDOW_HELP + "; required unless SRC is an ONNX model that states it.",
    ),
]
OptionalWindow = Annotated[
    Sizes | None,
    typer.Option(
        "--window",
        parser=read_window,
        metavar="H[,W]",
        help=WINDOW_HELP
        + "; required unless SRC is a file that convolutionalize wrote, or an ONNX model that states it.",
    ),
]
WindowOfSource = Annotated[
    Sizes | None,
    typer.Option(
        "--window",
        parser=read_window,
        metavar="H[,W]",
        help=WINDOW_HELP + ".",
        show_default="that of a dense .pt2, torchvision: or timm: network",
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(
        "--channels",
        min=1,
        metavar="N",
        help="Number of image channels.",
        show_default="inferred from the first layer",
    ),
]
Classes = Annotated[
    Names | None,
    labels_option("--classes", "Class names, or @FILE with one name per line.", read_names, metavar="A,B,…"),
]
Page = Annotated[
    int | None,
    typer.Option(
        "--page",
        min=0,
        metavar="N",
        help="Page or frame of an image file that contains several, counted from 0.",
        show_default="the first, with a note",
    ),
]
Level = Annotated[
    int | None,
    typer.Option(
        "--level",
        min=0,
        metavar="N",
        help="Resolution level of an image file that contains several, counted from 0.",
        show_default="the full resolution",
    ),
]
MicronsPerPixel = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        metavar="MICRONS",
        help="Read the resolution level with these microns per pixel, within 10 %; in place of --level.",
    ),
]
Axes = Annotated[
    str | None,
    typer.Option(
        "--axes",
        metavar="LETTERS",
        help="Axes of the file, such as CYX for channels first.",
        show_default="as the file states",
    ),
]
ScoreKind = Annotated[
    str | None,
    labels_option(
        "--scores",
        "What the network's outputs are: logits, probabilities or log-probabilities, alone or followed by "
        ":exclusive or :multi-label.",
        metavar="KIND",
        show_default="inferred from the network's last operator",
    ),
]
NetworkOutput = Annotated[
    str,
    typer.Option(
        "--network-output",
        metavar="N|NAME",
        help="Output of a network with several: its number from 0, or its name (a dictionary's key).",
    ),
]
Mean = Annotated[
    Numbers | None,
    labels_option("--mean", "Mean per channel, subtracted after --scale.", read_numbers, metavar="M,…"),
]
Std = Annotated[
    Numbers | None,
    labels_option("--std", "Standard deviation per channel; divides last.", read_numbers, metavar="S,…"),
]
Scale = Annotated[
    float | None,
    labels_option(
        "--scale", "Factor of the pixel values, such as 1/255.", read_number, metavar="X", show_default=False
    ),
]
ColourOrder = Annotated[
    str | None,
    labels_option("--colour-order", "Channel order that the network expects.", metavar="RGB|BGR|L"),
]
MinAgreement = Annotated[
    float,
    typer.Option(
        "--min-agreement",
        min=0,
        max=1,
        metavar="P",
        help="For networks that are not exact: minimum share of compared windows whose best class is the same as "
        "when cropped; exit with 1 below it.",
    ),
]

GlobalContext = Annotated[
    Context | None,
    typer.Option(
        "--context",
        help="For global pooling inside the network: pool over each window or over the whole image.",
        show_default="refuse such networks",
    ),
]
Threshold = Annotated[
    Any,
    typer.Option(
        "--threshold",
        parser=read_threshold,
        metavar="P",
        help="Confidence threshold: one number, by class (cat=0.8,dog=0.6; '*' for the others), or @FILE.",
    ),
]
Iou = Annotated[
    float,
    typer.Option("--iou", min=0, max=1, metavar="P", help="IoU threshold for non-maximum suppression (NMS)."),
]
MaxEntropy = Annotated[
    float | None,
    typer.Option(
        "--max-entropy",
        min=0,
        max=1,
        metavar="H",
        help="Reject windows whose probabilities have a larger entropy, as a share of that of equal probabilities.",
        rich_help_panel=REJECTION,
    ),
]
MinEnergy = Annotated[
    float | None,
    typer.Option(
        "--min-energy",
        metavar="E",
        help="Reject windows with a smaller energy: the logarithm of the sum of the exponentials of the logits.",
        rich_help_panel=REJECTION,
    ),
]
Negatives = Annotated[
    list[Path] | None,
    typer.Option(
        "--negatives",
        metavar="SCORES",
        help="Score map of an image without objects, from which a reject class is fitted; may be repeated.",
        rich_help_panel=REJECTION,
    ),
]
NegativeShare = Annotated[
    float,
    typer.Option(
        "--negative-share",
        min=0,
        max=1,
        metavar="P",
        help="Largest share of the windows of --negatives that the reject class may not get.",
        rich_help_panel=REJECTION,
    ),
]
Background = Annotated[Names | None, list_option("--background", "Classes to treat as background.")]
Device = Annotated[str, typer.Option("--device", help="Device to run on: cpu, cuda, cuda:1 …")]
