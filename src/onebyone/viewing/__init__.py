"""What the viewer shows of a scan: tiles of the image, tiles of the score map, detections and single windows."""

from onebyone.viewing.scan_view import ScanView

__all__ = ["ScanView"]
