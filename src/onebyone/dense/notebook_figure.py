"""A score map as a small picture in HTML, for notebooks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from onebyone.errors import BadInput
from onebyone.laws.labels import foreground
from onebyone.laws.scores import assumed_kind
from onebyone.stores.heat_map import ramp_colours
from onebyone.stores.pictures import pillow

_SIDE = 360
"""Pixels of the longer side of the picture."""
_MOST = 720  # positions per axis that are read


def heat_figure(scores: Any) -> str:
    """An image element with the highest probability of a class that is not background, at every position of a map.

    Of a large map a coarser level of its file is read, or every n-th position. Empty for maps that have not two axes,
    have no class but background, and where Pillow is not installed.
    """
    if len(scores.positions) != 2 or min(scores.positions) < 1:
        return ""
    try:
        shown = foreground(scores.classes, scores.labels.background)
        library = pillow("a picture of the scores")
    except BadInput:  # a background that is no class, or no Pillow
        return ""
    if not shown:
        return ""
    level = scores.scores
    while max(level.shape[1:]) > _MOST and getattr(level, "coarser", None) is not None:
        level = level.coarser
    step = -(-max(level.shape[1:]) // _MOST)
    values = np.asarray(level[:, ::step, ::step])
    kind = scores.kind or assumed_kind(values)[0]
    highest = np.clip(np.nan_to_num(kind.probabilities(values)[shown].max(axis=0)), 0, 1)
    picture = library.fromarray(np.rint(ramp_colours(highest)).astype(np.uint8))
    factor = _SIDE / max(picture.size)
    resized = picture.resize(
        [max(1, round(n * factor)) for n in picture.size], resample=0 if factor > 1 else 4
    )
    file = io.BytesIO()
    resized.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<div><img src="data:image/png;base64,{data}" alt="heat map"></div>'
        "<p>highest probability of a class that is not background: black 0, yellow 1</p>"
    )
