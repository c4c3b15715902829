"""The public functions of onebyone.

Each function opens what the caller names (a network object, or the name of one) and calls the package that does the
work.
"""

from onebyone.api.analysis import compare, draw, tune
from onebyone.api.evaluation import evaluate
from onebyone.api.images import detect, names_several, require_all, scan, scan_images, tile_example
from onebyone.api.information import info
from onebyone.api.networks import convert, convolutionalize, verify
from onebyone.api.prediction import predict
from onebyone.api.targets import check
from onebyone.api.viewer import view

__all__ = [
    "check",
    "compare",
    "convert",
    "convolutionalize",
    "detect",
    "draw",
    "evaluate",
    "info",
    "names_several",
    "predict",
    "require_all",
    "scan",
    "scan_images",
    "tile_example",
    "tune",
    "verify",
    "view",
]
