"""Pictures of a network: the layers drawn from what they are, as plain data first, then in any format."""

from onebyone.drawing.data import Connected, Drawing, LayerCall, Pointwise, Replaced
from onebyone.drawing.describe import FIGURES, describe
from onebyone.drawing.drawings import Drawings, Written, drawings
from onebyone.drawing.render import FORMATS, WIDTHS, render

__all__ = [
    "FIGURES",
    "FORMATS",
    "WIDTHS",
    "Connected",
    "Drawing",
    "Drawings",
    "LayerCall",
    "Pointwise",
    "Replaced",
    "Written",
    "describe",
    "drawings",
    "render",
]
