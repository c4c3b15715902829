"""Classes that are objects, and those that are background."""

from __future__ import annotations

from collections.abc import Sequence

from onebyone.dense.score_map import ScoreMap
from onebyone.laws import labels


def foreground(scores: ScoreMap, background: Sequence[str | int]) -> list[int]:
    """The numbers of the classes of a map that are not background: neither in `background` nor in the labels.

    Raises BadInput for a name or a number that is not a class.
    """
    given = [background] if isinstance(background, str | int) else list(background)
    return labels.foreground(scores.classes, [*given, *scores.labels.background])
