"""Pictures of a network: the layers drawn from what they are, as plain data first, then in any format."""

from onebyone.drawing.data import ConnectedLayer, Drawing, PointwiseLayer, ReplacedLayer, TraceStep
from onebyone.drawing.describe import FIGURES, describe
from onebyone.drawing.drawings import Drawings, Written, drawings
from onebyone.drawing.render import FORMATS, WIDTHS, render

__all__ = [
    "FIGURES",
    "FORMATS",
    "WIDTHS",
    "ConnectedLayer",
    "Drawing",
    "Drawings",
    "PointwiseLayer",
    "ReplacedLayer",
    "TraceStep",
    "Written",
    "describe",
    "drawings",
    "render",
]
