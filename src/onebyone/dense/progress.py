"""Reporting the progress of a scan: to a callable, or as a bar on stderr or in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

#: True for a bar, in the notebook or on stderr; a callable of (done, total); False or None for nothing.
Progress = bool | Callable[[int, int], object] | None

_INTERVAL = 0.2  # seconds between updates of a bar in a notebook


@contextmanager
def progress_reporter(progress: Progress, total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of items done so far out of `total`."""
    if callable(progress):
        yield lambda done: (progress(done, total), None)[1]
    elif progress:
        bar = _notebook_bar if _in_notebook() else _bar
        with bar(total, title) as advance:
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


def _in_notebook() -> bool:
    """Whether the code runs in the kernel of a notebook. IPython is then imported already."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def _notebook_bar(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A bar below the cell, without widgets, which need an extension of the notebook."""
    notebook: Any = sys.modules["IPython"].display  # not imported, because IPython is not a dependency

    page: Any = notebook.HTML
    show: Any = notebook.display

    def shown(done: int) -> Any:
        return page(f"<progress value={done} max={total}></progress> {escape(title)}: {done:,} of {total:,}")

    handle = show(shown(0), display_id=True)
    updated, now = [0.0], time.monotonic

    def advance(done: int) -> None:
        if done >= total or now() - updated[0] > _INTERVAL:
            updated[0] = now()
            handle.update(shown(done))

    yield advance
