"""After a fork: the threads of OpenMP stay behind in the parent, so the kernels run on one thread in the child."""

from __future__ import annotations

import os
from collections.abc import Callable
from weakref import WeakMethod

_in_child = False
_renewals: list[WeakMethod[Callable[[], None]]] = []


def is_forked() -> bool:
    """Whether this process was forked from one that had this package loaded, as workers of a DataLoader are."""
    return _in_child


def threads_here(asked: int) -> int:
    """How many threads of OpenMP a kernel may ask for: one in a forked process, where more would wait forever.

    >>> threads_here(4)
    4
    """
    return 1 if _in_child else asked


def renew_after_fork(method: Callable[[], None]) -> None:
    """Call a bound method in each forked process: a lock may have been held in the parent when it forked."""
    _renewals[:] = [renewal for renewal in _renewals if renewal() is not None]
    _renewals.append(WeakMethod(method))


def _after_fork() -> None:
    global _in_child
    _in_child = True
    for renewal in _renewals:
        method = renewal()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
