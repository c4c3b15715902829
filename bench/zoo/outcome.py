"""What steps share: the error of a failed proof, and a verification's figures for the record."""

from __future__ import annotations

from typing import Any


class NotEquivalentError(Exception):
    """A proof failed: the record says which."""


def summary(verification: Any) -> dict[str, Any]:
    """The figures of a verification that the zoo keeps."""
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
