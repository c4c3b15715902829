"""Proofs that two networks compute the same function."""

from onebyone.verify.api import verify
from onebyone.verify.result import DenseCheck, Fault, GradientCheck, LayerCheck, Verification
from onebyone.verify.tiled import compare_tiled

__all__ = ["DenseCheck", "Fault", "GradientCheck", "LayerCheck", "Verification", "compare_tiled", "verify"]
