"""Classes that are objects, and those that are background."""

from __future__ import annotations

from collections.abc import Sequence

from onebyone.dense.score_map import ScoreMap
from onebyone.errors import BadInput


def foreground(scores: ScoreMap, background: Sequence[str | int]) -> list[int]:
    """The numbers of the classes of a map that are not background: neither in `background` nor in the labels.

    Raises BadInput for a name or a number that is not a class.
    """
    classes = scores.classes
    given = [background] if isinstance(background, str | int) else list(background)
    excluded = set()
    for name in [*given, *scores.labels.background]:
        if isinstance(name, int) and 0 <= name < len(classes):
            excluded.add(name)
        elif name in classes:
            excluded.add(classes.index(str(name)))
        else:
            raise BadInput(f"background={name!r}: expected one of the classes: {', '.join(classes)}")
    return [k for k in range(len(classes)) if k not in excluded]
