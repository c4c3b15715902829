"""A dense form against every window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onebyone.verify.result import Verification


def verify_dense(
    model: Any,
    dense: Any,
    x: Any,
    seed: int,
    gradients: bool,
    max_windows: int,
    report: Callable[[int, int], None],
) -> Verification:
    """To come in the next commit."""
    raise NotImplementedError
