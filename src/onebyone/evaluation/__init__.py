"""Evaluation of detections against ground truth in COCO's format: average precision, precision and recall."""

from onebyone.evaluation.evaluate import evaluate
from onebyone.evaluation.result import ClassEvaluation, Evaluation, OperatingPoint

__all__ = ["ClassEvaluation", "Evaluation", "OperatingPoint", "evaluate"]
