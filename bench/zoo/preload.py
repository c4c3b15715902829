"""The modules that are loaded before the zoo's processes are forked.

They include everything that a step may import, so that editing a source file during a run does not mix versions.
"""

import importlib
import pkgutil
import warnings

from bench.zoo import models, steps  # noqa: F401 - the steps import what they use

warnings.simplefilter("ignore")
for part in ("laws", "lifting", "layout", "results", "pytorch", "verification"):
    package = importlib.import_module(f"onebyone.{part}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
models.entries()
