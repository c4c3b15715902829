"""Proofs that two networks compute the same function."""

from onebyone.verification.result import DenseCheck, Fault, GradientCheck, LayerCheck, Verification
from onebyone.verification.tiling import compare_tiled
from onebyone.verification.verifier import verify

__all__ = ["DenseCheck", "Fault", "GradientCheck", "LayerCheck", "Verification", "compare_tiled", "verify"]
