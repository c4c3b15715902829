"""Shared by the steps: the error of a failed verification, and the figures of a verification."""

from __future__ import annotations

from typing import Any


class NotEquivalentError(Exception):
    """A verification failed; the message says which."""


def summary(verification: Any) -> dict[str, Any]:
    """Return the figures of a verification that are recorded."""
    gradients = verification.gradients
    return {
        "equivalent": verification.equivalent,
        "layers": len(verification.layers),
        "integer_probe": verification.integer_probe,
        "max_error": _plain(verification.max_error),
        "rounding_ratio": _plain(verification.rounding_ratio),
        "gradients": gradients.compared if gradients else 0,
        "problems": list(verification.problems[:5]),
        "unverified": list(verification.unverified[:5]),
    }


def _plain(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
