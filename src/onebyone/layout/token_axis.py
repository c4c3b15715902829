"""Where the positions of a product are stored that is written as a convolution."""

from __future__ import annotations

from enum import StrEnum


class TokenAxis(StrEnum):
    """Where the positions (tokens) of such a product are stored."""

    LAST = "last"
    """(N, C, 1, S)"""
    HEIGHT = "height"
    """(N, C, S, 1)"""
    BATCH = "batch"
    """(N · S, C, 1, 1)"""
