"""The fastest equivalent form of a network on the machine at hand."""

from onebyone.tune.plan import Plan
from onebyone.tune.result import Tuned
from onebyone.tune.run import tune

__all__ = ["Plan", "Tuned", "tune"]
