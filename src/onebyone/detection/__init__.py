"""From score maps to detections: boxes with classes and scores, their file formats, and drawings of them."""

from onebyone.detection.coco import coco_ground_truth, coco_results
from onebyone.detection.detections import Detections
from onebyone.detection.extraction import detect
from onebyone.detection.nms import nms

__all__ = ["Detections", "coco_ground_truth", "coco_results", "detect", "nms"]
