"""onebyone: fully connected layers and 1×1 convolutions, interchanged and proven."""

import sys as _sys
from importlib import metadata as _metadata
from types import ModuleType as _ModuleType
from typing import Any as _Any

from onebyone import errors as errors
from onebyone.api import compare, convert, convolutionalize, detect, draw, scan, tune, verify
from onebyone.records import Labels

__all__ = [
    "Labels",
    "compare",
    "convert",
    "convolutionalize",
    "detect",
    "draw",
    "errors",
    "scan",
    "tune",
    "verify",
]
__version__ = _metadata.version("onebyone")


class _Face(_ModuleType):
    """The package as users see it, in which a verb stays the verb.

    `onebyone.verify` is a function and `onebyone/verify/` a part of the same name. When a part is first
    imported, Python sets it as the package's attribute and would hide the function; parts are reached by
    `from onebyone.verify import …`, which does not need the attribute.
    """

    def __setattr__(self, name: str, value: _Any) -> None:
        if isinstance(value, _ModuleType) and name in __all__ and name != "errors":
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted([*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"])


_sys.modules[__name__].__class__ = _Face
