"""Dense inference over large images: a network runs on every tile of a plan, and its scores become a score map.

`plan` decides in integers which pixels each tile reads and which positions it writes. A `source` is read by region, a
`runner` maps batches of tiles to batches of maps, a `sink` is written by region, and an `executor` runs all tiles.
`sliding_window` crops every window instead and is the reference.
"""

from onebyone.dense.images import load_image, open_image
from onebyone.dense.network import Dense
from onebyone.dense.plan import ScanPlan, Tile, choose_tile, finer_geometry, plan_scan
from onebyone.dense.preprocessing import normalise
from onebyone.dense.scan import scan
from onebyone.dense.score_map import ScoreMap
from onebyone.dense.sliding_window import scan_windows
from onebyone.dense.window_runner import WindowClassifier
from onebyone.stores.regions import Span
from onebyone.stores.source import ArraySource, ImageSource

__all__ = [
    "ArraySource",
    "Dense",
    "ImageSource",
    "ScanPlan",
    "ScoreMap",
    "Span",
    "Tile",
    "WindowClassifier",
    "choose_tile",
    "finer_geometry",
    "load_image",
    "normalise",
    "open_image",
    "plan_scan",
    "scan",
    "scan_windows",
]
