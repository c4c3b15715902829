"""Pictures of a network: the layers drawn from what they are, as plain data first, then in any format."""

from onebyone.drawing.data import ConnectedLayer, Drawing, PointwiseLayer, ReplacedLayer, TraceStep
from onebyone.drawing.description import FIGURES, describe
from onebyone.drawing.figure_set import Drawings, Written, drawings
from onebyone.drawing.rendering import FORMATS, WIDTHS, render

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
