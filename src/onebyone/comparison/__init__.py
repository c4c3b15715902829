"""The evidence: every statement about the two layers, measured on one network, with a verdict from the figures."""

from onebyone.comparison.claim_result import Row, Verdict
from onebyone.comparison.compare import compare
from onebyone.comparison.result import Comparison

__all__ = ["Comparison", "Row", "Verdict", "compare"]
