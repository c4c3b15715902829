"""Proofs that two networks compute the same function."""

from onebyone.verify.api import verify
from onebyone.verify.result import DenseCheck, Fault, GradientCheck, LayerCheck, Verification

__all__ = ["DenseCheck", "Fault", "GradientCheck", "LayerCheck", "Verification", "verify"]
