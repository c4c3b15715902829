"""Score maps of scans that are running or were interrupted: the blocks that are done so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onebyone.dense.score_map import ScoreMap
from onebyone.errors import BadInput
from onebyone.stores.regions import Span
from onebyone.stores.unfinished_scores import UnfinishedScores, is_unfinished, open_unfinished_scores
from onebyone.stores.working_folder import working_path


@dataclass(frozen=True)
class UnfinishedMap(ScoreMap):
    """A score map of which some blocks are not finished; their scores are NaN. `regions` gives the finished ones."""

    def regions(self) -> Iterator[tuple[tuple[Span, ...], NDArray[np.float32]]]:
        """The finished regions of positions and their scores (classes, h, w), in the order of the blocks."""
        for region in self.stored.blocks():
            values = self.scores[:, *(span.slice for span in region)]
            missing = np.isnan(values)
            if not (
                missing.all() if self.unscored else missing.any()
            ):  # else the file does not fit, or has just moved
                yield region, values

    @property
    def stored(self) -> UnfinishedScores:
        """The blocks of the map."""
        assert isinstance(self.scores, UnfinishedScores)  # `open_unfinished` makes it so
        return self.scores


def open_unfinished(out: Path) -> UnfinishedMap:
    """The map of the scan that writes `out`, with the blocks that are finished whenever it is read.

    Raises BadInput where there is no such scan, or what its folder says is damaged.
    """
    scores, description = open_unfinished_scores(out)
    try:
        found = UnfinishedMap.of_facts(cast("Any", scores), description.scan)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{working_path(out)} does not describe an unfinished scan: {error}") from error
    return cast("UnfinishedMap", found)


def open_scores(path: Path) -> tuple[ScoreMap, Path]:
    """The score map that a path names, and the path of its file.

    The path is that of a score map, of the output of a scan that is not complete, or of the folder of its unfinished
    results (OUT.partial). Raises BadInput where it is none of these.
    """
    out = path.with_suffix("") if path.suffix == ".partial" else path
    if is_unfinished(out) and (out != path or not path.exists()):
        return open_unfinished(out), out
    return ScoreMap.load(path), path
