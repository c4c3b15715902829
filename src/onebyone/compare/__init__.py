"""The evidence: every statement about the two layers, measured on one network, with a verdict from the figures."""

from onebyone.compare.result import Comparison
from onebyone.compare.row import Row, Verdict
from onebyone.compare.run import compare

__all__ = ["Comparison", "Row", "Verdict", "compare"]
