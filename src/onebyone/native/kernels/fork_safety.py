"""Forked processes: OpenMP's threads do not exist in the child, so kernels run on one thread there."""

from __future__ import annotations

import os
from collections.abc import Callable
from weakref import WeakMethod

_in_child = False
_renewals: list[WeakMethod[Callable[[], None]]] = []


def is_forked() -> bool:
    """Whether this process was forked from one that had imported this package, as workers of a DataLoader are."""
    return _in_child


def usable_threads(requested: int) -> int:
    """How many OpenMP threads a kernel may request: one in a forked process, where more would deadlock.

    >>> usable_threads(4)
    4
    """
    return 1 if _in_child else requested


def renew_after_fork(method: Callable[[], None]) -> None:
    """Call a bound method in every forked process: to replace a lock that the parent may have held when it forked."""
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
