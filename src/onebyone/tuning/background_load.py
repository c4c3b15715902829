"""Other work on the processor: faults that depend on the order in which threads run show under load."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread


@contextmanager
def loaded(threads: int | None = None) -> Iterator[None]:
    """Keep `threads` threads computing (None: one for each processor), outside the interpreter's lock.

    >>> with loaded(1):
    ...     pass
    """
    ended = Event()

    def work() -> None:
        while not ended.is_set():
            hashlib.pbkdf2_hmac("sha256", b"load", b"load", 4000)  # a few milliseconds without the lock

    count = processors() if threads is None else threads
    workers = [Thread(target=work, name="onebyone-load", daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        ended.set()
        for worker in workers:
            if worker.is_alive():
                worker.join()


def processors() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
