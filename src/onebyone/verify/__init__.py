"""Proofs that two networks compute the same function."""

from onebyone.verify.api import verify
from onebyone.verify.dense import compare_tiled
from onebyone.verify.result import DenseCheck, Fault, GradientCheck, LayerCheck, Verification

__all__ = ["DenseCheck", "Fault", "GradientCheck", "LayerCheck", "Verification", "compare_tiled", "verify"]
