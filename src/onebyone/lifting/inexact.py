"""Advice on a network that is not exact, from its geometry alone."""

from __future__ import annotations

from onebyone.laws.geometry import Geometry
from onebyone.records import by

#: From this ratio of the receptive field to the window on, three quarters of a result's inputs lie outside its window.
FAR = 4
WINDOWS = "mode='windows' of scan crops every window instead"


def far_advice(geometry: Geometry) -> tuple[str, ...]:
    """A sentence where the receptive field of a network that pads is far larger than its window; else none."""
    if geometry.exact:
        return ()
    axis = max(range(len(geometry.window)), key=lambda a: geometry.receptive_field[a] / geometry.window[a])
    window, field = geometry.window[axis], geometry.receptive_field[axis]
    if field <= FAR * window:
        return ()
    return (
        f"the receptive field of {by(geometry.receptive_field)} pixels is {field / window:.3g} times the window "
        f"of {by(geometry.window)} (more than {FAR}), and the network pads: dense results may be far from "
        f"cropping each window. Measure that with verify; {WINDOWS}",
    )
