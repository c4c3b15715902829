"""Checks of labels: preprocessing that can be applied, and distinct class names.

Equation, for a pixel value v of channel c:

    x_c = (v_c · scale − mean_c) / std_c,     scale ≠ 0,  std_c > 0,  all finite
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from onebyone.errors import BadInput
from onebyone.records import Labels

NAME = "preprocessing of pixels"
EQUATION = "x = (v · scale − mean) / std"
COLOUR_ORDERS = ("RGB", "BGR", "L")


def require_sound(labels: Labels, channels: int | None = None) -> None:
    """Raise BadInput if the labels cannot be used; `channels` is the number of image channels, if known.

    >>> require_sound(Labels(scale=1 / 255, mean=(0.5,), std=(0.25,)), channels=3)
    >>> require_sound(Labels(std=(0.0,)))
    Traceback (most recent call last):
    onebyone.errors.BadInput: std=0.0: expected positive finite numbers
    """
    if not math.isfinite(labels.scale) or labels.scale == 0:
        raise BadInput(f"scale={labels.scale}: expected a finite number other than 0")
    if not all(math.isfinite(v) for v in labels.mean):
        raise BadInput(f"mean={_listed(labels.mean)}: expected finite numbers")
    if not all(math.isfinite(v) and v > 0 for v in labels.std):
        raise BadInput(f"std={_listed(labels.std)}: expected positive finite numbers")
    for name, values in (("mean", labels.mean), ("std", labels.std)):
        if channels is not None and len(values) not in (0, 1, channels):
            raise BadInput(
                f"{name}={_listed(values)}: expected 1 or {channels} numbers (one per image channel), not {len(values)}"
            )
    if labels.colour_order not in COLOUR_ORDERS:
        raise BadInput(f"colour_order={labels.colour_order!r}: expected RGB, BGR or L")
    counts = Counter(labels.classes)
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:
        raise BadInput(f"classes: {duplicates[0]!r} is given twice; expected distinct names")
    unknown = [name for name in labels.background if counts and name not in counts]
    if unknown:
        raise BadInput(f"background: {unknown[0]!r} is not one of the classes")


def foreground(classes: Sequence[str], background: Iterable[str | int]) -> list[int]:
    """The numbers of the classes that are not background; `background` has names or numbers of classes.

    Raises BadInput for a name or a number that is not a class.

    >>> foreground(["tissue", "glass", "fold"], ["glass", 2])
    [0]
    """
    excluded = set()
    for name in background:
        if isinstance(name, int) and 0 <= name < len(classes):
            excluded.add(name)
        elif name in classes:
            excluded.add(classes.index(str(name)))
        else:
            raise BadInput(f"background={name!r}: expected one of the classes: {', '.join(classes)}")
    return [k for k in range(len(classes)) if k not in excluded]


def require_fitting(labels: Labels, counts: Iterable[int]) -> None:
    """Raise BadInput if no output has as many channels as there are class names; `counts` are the outputs' channels."""
    channels = tuple(dict.fromkeys(counts))
    if labels.classes and channels and len(labels.classes) not in channels:
        outputs = " or ".join(str(n) for n in channels)
        raise BadInput(f"classes: labels name {len(labels.classes)} classes and the network gives {outputs}")


def _listed(values: Iterable[float]) -> str:
    return ",".join(str(v) for v in values)
