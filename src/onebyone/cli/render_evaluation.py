"""Tables of the command `evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from onebyone.cli.render import table_of

if TYPE_CHECKING:
    from onebyone.evaluation import Evaluation


def evaluation_tables(result: Evaluation) -> list[RenderableType]:
    """Average precision by class, precision and recall over thresholds, and the means."""
    from onebyone.evaluation.result import HEADERS, POINT_HEADERS

    return [
        table_of("Classes", HEADERS, [c.cells() for c in result.classes]),
        table_of("Thresholds (IoU 0.5, all classes)", POINT_HEADERS, [p.cells() for p in result.points]),
        Text(result.headline(), style="bold"),
    ]
