"""The score map: one score per class and window, where each window lies, and what the classes are called."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.errors import BadInput
from onebyone.files import atomic_path, require_file
from onebyone.laws.geometry import Geometry
from onebyone.records import Labels, Readable, html_result

_FORMAT = "onebyone.ScoreMap/1"


@dataclass(frozen=True)
class ScoreMap(Readable):
    """What a classifier says of every window of an image.

    `scores` (classes, H', W') float32 are as the network gives them; place (i, j) is the answer for the
    pixels `window_at((i, j))`. `softmax` says whether they still need a softmax to be probabilities; None
    finds out. `seconds` were spent in all, on `device`, in `passes` tiles (or single windows).
    """

    scores: NDArray[np.float32]
    geometry: Geometry
    labels: Labels
    image_size: tuple[int, ...]
    seconds: float = 0.0
    softmax: bool | None = None
    device: str = "cpu"
    passes: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        expected = self.geometry.positions(self.image_size)
        if self.scores.shape[1:] != expected:
            raise BadInput(
                f"scores have {self.scores.shape[1:]} places and the geometry says {expected} "
                f"for an image of {self.image_size}"
            )
        named = len(self.labels.classes)
        if named not in (0, self.scores.shape[0]):
            raise BadInput(f"labels name {named} classes and the network gives {self.scores.shape[0]}")

    @property
    def positions(self) -> tuple[int, ...]:
        """Places per axis."""
        return tuple(self.scores.shape[1:])

    @property
    def windows(self) -> int:
        """How many windows the map answers for."""
        return int(np.prod(self.positions))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names; their numbers where the labels give none."""
        return self.labels.classes or tuple(str(k) for k in range(self.scores.shape[0]))

    def window_at(self, index: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The exact pixels of a place's window, [first, past the last) per axis (rows first)."""
        for axis, (i, n) in enumerate(zip(index, self.positions, strict=True)):
            if not 0 <= i < n:
                raise BadInput(f"index {tuple(index)} is outside the map of {self.positions} on axis {axis}")
        return self.geometry.window_at(index)

    def probabilities(self) -> NDArray[np.float32]:
        """The scores as probabilities (classes, H', W'): a softmax over the classes at each place.

        Scores that are probabilities already are returned as they are; a single class goes through the
        logistic function, unless `softmax` is False.
        """
        if self.softmax is False or (self.softmax is None and _is_distribution(self.scores)):
            return self.scores
        if self.scores.shape[0] == 1:
            return _logistic(self.scores)
        shifted: NDArray[np.float32] = np.exp(self.scores - self.scores.max(axis=0, keepdims=True))
        shifted /= shifted.sum(axis=0, keepdims=True)
        return shifted

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map to a `.npz` file, whole or not at all. Raises BadInput where it cannot be written."""
        if Path(path).suffix.lower() != ".npz":
            raise BadInput(f"cannot save a score map as {path}: the name must end in .npz")
        meta = {
            "format": _FORMAT,
            "geometry": self.geometry.to_dict(),
            "labels": self.labels.to_dict(),
            "image_size": list(self.image_size),
            "seconds": self.seconds,
            "softmax": self.softmax,
            "device": self.device,
            "passes": self.passes,
        }
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, scores=self.scores, meta=np.array(json.dumps(meta)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreMap:
        """Read what `save` wrote; nothing in the file is run. Raises BadInput if it is not such a file."""
        file = require_file(path)
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                scores = np.asarray(arrays["scores"], dtype=np.float32)
            if meta["format"] != _FORMAT:
                raise ValueError(f"its format is {meta['format']!r}")
            return cls(
                scores=scores,
                geometry=Geometry.from_dict(meta["geometry"]),
                labels=labels_from_dict(meta["labels"]),
                image_size=tuple(int(n) for n in meta["image_size"]),
                seconds=float(meta["seconds"]),
                softmax=meta["softmax"],
                device=str(meta["device"]),
                passes=int(meta["passes"]),
            )
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OSError,
            EOFError,
            zipfile.BadZipFile,
        ) as error:
            raise BadInput(f"{file} is not a score map: {error}") from error

    def _repr_html_(self) -> str:
        """What `print` shows, for a notebook."""
        head, *geometry = str(self).splitlines()
        return html_result(head, notes=geometry)

    def __str__(self) -> str:
        places, size = ("×".join(str(n) for n in v) for v in (self.positions, self.image_size))
        head = (
            f"{self.windows:,} windows ({places} places, {len(self.classes)} classes) of an image of {size}"
        )
        return f"{head} in {self.seconds:.2f} s on {self.device}\n{self.geometry}"


def labels_from_dict(data: dict[str, Any]) -> Labels:
    """The labels that `Labels.to_dict` gave."""
    return Labels(
        classes=tuple(str(c) for c in data["classes"]),
        scale=float(data["scale"]),
        mean=tuple(float(v) for v in data["mean"]),
        std=tuple(float(v) for v in data["std"]),
        colour_order=str(data["colour_order"]),
        background=tuple(str(c) for c in data["background"]),
    )


def _is_distribution(scores: NDArray[np.float32]) -> bool:
    """Whether every place holds probabilities that sum to 1.

    The slack is for networks that ran in half precision (unit roundoff 2^-11); logits that are nowhere
    negative and sum to 1 everywhere do not happen by chance.
    """
    if scores.shape[0] < 2 or not scores.size or scores.min() < 0:
        return False
    slack = 2.0**-11 * (scores.shape[0] + 8)
    return bool(np.abs(scores.sum(axis=0, dtype=np.float64) - 1).max() <= slack)


def _logistic(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + e^−v), without overflow at either end."""
    small = np.exp(-np.abs(values))
    out: NDArray[np.float32] = np.where(values >= 0, 1, small) / (1 + small)
    return out.astype(np.float32, copy=False)
