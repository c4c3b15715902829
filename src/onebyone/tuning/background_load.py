"""Load on every processor core, which makes race conditions between threads more likely to show."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread


@contextmanager
def loaded(threads: int | None = None) -> Iterator[None]:
    """Keep `threads` threads computing (None: one for each available core) while the context is open.

    The threads release Python's global interpreter lock while they compute.

    >>> with loaded(1):
    ...     pass
    """
    stop = Event()

    def work() -> None:
        while not stop.is_set():
            hashlib.pbkdf2_hmac(
                "sha256", b"load", b"load", 4000
            )  # some milliseconds without the interpreter lock

    count = available_cores() if threads is None else threads
    workers = [Thread(target=work, name="onebyone-load", daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        stop.set()
        for worker in workers:
            if worker.is_alive():
                worker.join()


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
