"""What the server that forks the zoo's processes has loaded before it forks.

Everything that a step may import: a source that is edited during a run must not be met half old, half new.
"""

import importlib
import pkgutil
import warnings

from bench.zoo import models, steps  # noqa: F401 - the steps import what they use

warnings.simplefilter("ignore")
for part in ("laws", "lifting", "pytorch", "verify"):
    package = importlib.import_module(f"onebyone.{part}")
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
models.entries()
