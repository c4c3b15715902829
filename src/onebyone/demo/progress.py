"""Progress of the demo: one bar per step on stderr, unless the caller passes its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, int], object]
"""Called with (done, total)."""
Steps = Callable[[str], AbstractContextManager[Advance]]
"""Called with the description of a step; returns a context manager with the function to report progress to."""


@contextmanager
def bar(description: str) -> Iterator[Advance]:
    """A progress bar on stderr that remains after the step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description:<44}"), BarColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(file=sys.stderr)) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
        total = progress.tasks[task].total or 1
        progress.update(task, completed=total, total=total)
