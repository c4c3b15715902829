"""Dense inference: a pure tile plan, the executor that runs it, and the every-window baseline."""

from onebyone.dense.images import Pixels, load_image, normalise
from onebyone.dense.plan import ScanPlan, Span, Tile, finer, plan_scan, tile_for
from onebyone.dense.scan import Dense, scan
from onebyone.dense.score_map import ScoreMap
from onebyone.dense.sliding_window import scan_windows

__all__ = [
    "Dense",
    "Pixels",
    "ScanPlan",
    "ScoreMap",
    "Span",
    "Tile",
    "finer",
    "load_image",
    "normalise",
    "plan_scan",
    "scan",
    "scan_windows",
    "tile_for",
]
