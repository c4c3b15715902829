"""Selection of the fastest equivalent form of a network, by measuring on the machine that it runs on."""

from onebyone.tuning.plan import TuningPlan
from onebyone.tuning.result import Tuned
from onebyone.tuning.tune import tune

__all__ = ["Tuned", "TuningPlan", "tune"]
