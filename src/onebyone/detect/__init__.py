"""From score maps to objects: detections, their formats and their picture."""

from onebyone.detect.coco import coco_ground_truth, coco_results
from onebyone.detect.detections import Detections
from onebyone.detect.nms import nms
from onebyone.detect.objects import detect

__all__ = ["Detections", "coco_ground_truth", "coco_results", "detect", "nms"]
