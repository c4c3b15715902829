"""What the server that forks the zoo's processes has loaded before it forks."""

import warnings

import onebyone.pytorch.convert
import onebyone.pytorch.convolutionalize
import onebyone.pytorch.graph.convert
import onebyone.verify  # noqa: F401
from bench.zoo import models

warnings.simplefilter("ignore")
models.entries()
