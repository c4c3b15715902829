"""Pictures of a network: the layers drawn from what they are, as plain data first, then in any format."""

from onebyone.draw.data import Connected, Drawing, Pointwise, Replaced, Step
from onebyone.draw.describe import FIGURES, describe
from onebyone.draw.drawings import Drawings, Written, drawings
from onebyone.draw.render import FORMATS, WIDTHS, render

__all__ = [
    "FIGURES",
    "FORMATS",
    "WIDTHS",
    "Connected",
    "Drawing",
    "Drawings",
    "Pointwise",
    "Replaced",
    "Step",
    "Written",
    "describe",
    "drawings",
    "render",
]
