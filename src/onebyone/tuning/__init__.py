"""The fastest equivalent form of a network on the machine at hand."""

from onebyone.tuning.plan import Plan
from onebyone.tuning.result import Tuned
from onebyone.tuning.tune import tune

__all__ = ["Plan", "Tuned", "tune"]
