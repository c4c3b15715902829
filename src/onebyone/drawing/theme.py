"""The colours of the light and the dark theme, by their use. The themes differ in nothing but colour."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onebyone.errors import BadInput

THEMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "light": MappingProxyType(
            {
                "paper": "#ffffff",
                "ink": "#1b1f24",
                "quiet": "#59636e",
                "line": "#8c959f",
                "rule": "#d1d9e0",
                "panel": "#f4f6f8",
                "map": "#cfe2f8",
                "map.top": "#e3eefb",
                "map.side": "#a9c8ea",
                "map.edge": "#3b73b0",
                "filter": "#fbdcb8",
                "filter.top": "#fdebd5",
                "filter.side": "#f0c08b",
                "filter.edge": "#b0651a",
                "out": "#cdebd8",
                "out.top": "#e2f4e8",
                "out.side": "#a3d6b7",
                "out.edge": "#2f8554",
                "mark": "#c2410c",
                "positive": "#c2570c",
                "negative": "#1f6fc4",
                "gone": "#b42318",
                "grid": "#e4e8ec",
                "window": "#0b62c4",
                "field": "#b45309",
                "wash": "#0b62c4",
                "on": "#ffffff",
            }
        ),
        "dark": MappingProxyType(
            {
                "paper": "#11161c",
                "ink": "#e9eef3",
                "quiet": "#a3b0bd",
                "line": "#74808c",
                "rule": "#333d47",
                "panel": "#1a2129",
                "map": "#234a72",
                "map.top": "#2f5e8e",
                "map.side": "#183553",
                "map.edge": "#79b1ec",
                "filter": "#77491a",
                "filter.top": "#93602a",
                "filter.side": "#553311",
                "filter.edge": "#f0ad63",
                "out": "#1f5c3c",
                "out.top": "#2b764e",
                "out.side": "#15422b",
                "out.edge": "#72cf9b",
                "mark": "#ff9a62",
                "positive": "#f59e4c",
                "negative": "#62abf5",
                "gone": "#ff8f85",
                "grid": "#28313a",
                "window": "#6cb3ff",
                "field": "#f5b04d",
                "wash": "#6cb3ff",
                "on": "#11161c",
            }
        ),
    }
)
"""Blue, orange and green are distinguishable with every common colour blindness, also by the lightness of their edges.
Text uses ink, quiet, mark, gone, window, field, positive and negative only, each with a contrast of at least 4.5:1 on
paper and panel (WCAG 2.2, 1.4.3)."""


def colours(theme: str) -> Mapping[str, str]:
    """The colours of a theme as #rrggbb, by their use. Raises BadInput if there is no such theme."""
    if theme not in THEMES:
        raise BadInput(f"theme={theme!r}: expected one of {', '.join(THEMES)}")
    return THEMES[theme]
