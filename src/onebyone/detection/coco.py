"""COCO's data format: ground truth, and results that pycocotools can evaluate, also where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from onebyone.errors import BadInput


def coco_ground_truth(
    boxes: NDArray[Any] | Sequence[Sequence[float]],
    labels: NDArray[Any] | Sequence[int],
    classes: Sequence[str],
    image_size: Sequence[int],
    *,
    image_id: int = 1,
) -> dict[str, Any]:
    """Ground-truth boxes (K, 4) x1, y1, x2, y2 as a COCO data set of one image, for `pycocotools.COCO.dataset`.

    Categories have the ids that :meth:`Detections.to_coco` gives them. The annotations of two images never share an
    id, so the data sets of several images are joined by joining their "images" and their "annotations".

    Raises
    ------
    BadInput
        for a negative `image_id`.

    Example
    -------
    >>> coco_ground_truth([[0, 0, 4, 2]], [1], ["a", "b"], (10, 20))["annotations"]
    [{'id': 4, 'image_id': 1, 'category_id': 1, 'bbox': [0.0, 0.0, 4.0, 2.0], 'area': 8.0, 'iscrowd': 0}]
    """
    if image_id < 0:
        raise BadInput(f"image_id={image_id}: expected 0 or a positive integer")
    annotations = []
    # pycocotools treats an annotation with id 0 as "no match"; numbers from 1 on give ids above 0
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True), start=1):
        x1, y1, x2, y2 = (float(v) for v in box)
        annotations.append(
            {
                "id": _pairing(int(image_id), number),
                "image_id": image_id,
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
        )
    return {
        "info": {"description": "made by onebyone"},
        "images": [{"id": image_id, "height": int(image_size[0]), "width": int(image_size[1])}],
        "categories": [{"id": k, "name": str(name)} for k, name in enumerate(classes)],
        "annotations": annotations,
    }


def coco_results(truth: Any, results: Sequence[dict[str, Any]]) -> Any:
    """Results as a `pycocotools.COCO`, to be evaluated against the `pycocotools.COCO` of the ground truth.

    It is `truth.loadRes(results)`, except that it accepts an empty list, where nothing was detected. `results` is the
    list of :meth:`Detections.to_coco` of one image, or several lists joined.
    """
    if results:
        return truth.loadRes([dict(row) for row in results])
    empty = type(truth)()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _pairing(a: int, b: int) -> int:
    """A different number for every pair, by Cantor's pairing function: (a + b)(a + b + 1)/2 + b.

    >>> len({_pairing(a, b) for a in range(50) for b in range(50)})
    2500
    """
    return (a + b) * (a + b + 1) // 2 + b
