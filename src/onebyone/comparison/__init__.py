"""Common claims about fully connected layers and 1×1 convolutions, each tested on one network.

Every claim is an experiment: one function measures figures on the network's own layers, another derives the
verdict from these figures alone.
"""

from onebyone.comparison.claim_result import Row, Verdict
from onebyone.comparison.experiments import compare
from onebyone.comparison.result import Comparison

__all__ = ["Comparison", "Row", "Verdict", "compare"]
