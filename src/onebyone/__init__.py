"""onebyone: fully connected layers and 1×1 convolutions, interchanged and verified."""

from importlib import metadata as _metadata

from onebyone import errors as errors
from onebyone.api import (
    check,
    compare,
    convert,
    convolutionalize,
    detect,
    draw,
    evaluate,
    info,
    predict,
    scan,
    tune,
    verify,
    view,
)
from onebyone.records import Labels

__all__ = [
    "Labels",
    "check",
    "compare",
    "convert",
    "convolutionalize",
    "detect",
    "draw",
    "errors",
    "evaluate",
    "info",
    "predict",
    "scan",
    "tune",
    "verify",
    "view",
]
__version__ = _metadata.version("onebyone")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"])
