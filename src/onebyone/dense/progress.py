"""Reporting the progress of a scan: to a callable, or as a bar on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: True for a bar on stderr; a callable of (done, total); False or None for nothing.
Progress = bool | Callable[[int, int], object] | None


@contextmanager
def progress_reporter(progress: Progress, total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of items done so far out of `total`."""
    if callable(progress):
        yield lambda done: (progress(done, total), None)[1]
    elif progress:
        with _bar(total, title) as advance:
            yield advance
    else:
        yield lambda _: None


@contextmanager
def _bar(total: int, title: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
