"""Telling how far the demo is: one bar a step, on stderr, unless the caller has a way of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, int], object]
"""Called with (done, total)."""
Steps = Callable[[str], AbstractContextManager[Advance]]
"""Called with what a step does; gives what to call while it does it."""


@contextmanager
def bar(what: str) -> Iterator[Advance]:
    """A rich bar on stderr that stays when the step is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description:<44}"), BarColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
        total = progress.tasks[task].total or 1
        progress.update(task, completed=total, total=total)
