"""From score maps to objects: detections, their formats and their picture."""

from onebyone.detect.detections import Detections, coco_ground_truth
from onebyone.detect.nms import nms
from onebyone.detect.objects import detect

__all__ = ["Detections", "coco_ground_truth", "detect", "nms"]
