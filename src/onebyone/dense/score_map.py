"""The score map: one score per class and window, where each window lies, and what the classes are called."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path, kind_of_file, require_file
from onebyone.dense.agreement import Agreement
from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.laws.geometry import Geometry
from onebyone.laws.labels import require_fitting, require_sound
from onebyone.laws.scores import EXPECTED, ScoreKind, assumed_kind, read_kind
from onebyone.records import Labels, Readable, html_result

_FORMAT = "onebyone.ScoreMap/1"


@dataclass(frozen=True)
class ScoreMap(Readable):
    """What a classifier says of every window of an image.

    `scores` (classes, H', W') float32 are as the network gives them; position (i, j) is the prediction for the
    pixels `window_at((i, j))`. `kind` says what they are (logits, probabilities, log-probabilities); None where
    it is not known. `seconds` were spent in all, on `device`, in `passes` tiles (or single windows).
    `agreement` is how many sampled windows have the same best class as when cropped; None where it was not measured
    (an exact network, a single class).
    """

    scores: NDArray[np.float32]
    geometry: Geometry
    labels: Labels
    image_size: tuple[int, ...]
    seconds: float = 0.0
    kind: ScoreKind | None = None
    device: str = "cpu"
    passes: int = field(default=0, compare=False)
    agreement: Agreement | None = None

    def __post_init__(self) -> None:
        expected = self.geometry.positions(self.image_size)
        if self.scores.shape[1:] != expected:
            raise BadInput(
                f"scores have {self.scores.shape[1:]} places and the geometry says {expected} "
                f"for an image of {self.image_size}"
            )
        require_sound(self.labels)
        require_fitting(self.labels, [self.scores.shape[0]])

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
        """The scores as probabilities (classes, H', W'), as `kind` says; probabilities are returned as they are.

        Where the kind is not known and the values leave a doubt, a warning says what was assumed. Logits of
        several classes are taken as exclusive (softmax) unless the kind says multi-label.

        Raises
        ------
        BadInput
            where the scores cannot be of the kind given, such as a probability of 3.

        Example
        -------
        >>> geometry = Geometry((4, 4), (2, 2), (0, 0), (4, 4), (0, 0), True)
        >>> scores = np.array([0.95, 0.9, 0.02], np.float32).reshape(3, 1, 1)
        >>> kind = ScoreKind("probabilities", "multi-label")
        >>> ScoreMap(scores, geometry, Labels(), (4, 4), kind=kind).probabilities().ravel().tolist()
        [0.949999988079071, 0.8999999761581421, 0.019999999552965164]
        """
        if self.kind is not None:
            return self.kind.probabilities(self.scores)
        kind, doubt = assumed_kind(self.scores)
        if doubt:
            warnings.warn(
                f"it is not known what the network's outputs are; {doubt}, so they are taken as {kind}. "
                f"Give score_kind={str(kind)!r} to confirm it, or what they are ({EXPECTED})",
                OnebyoneWarning,
                stacklevel=2,
            )
        return kind.probabilities(self.scores)

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
            "kind": None if self.kind is None else str(self.kind),
            "device": self.device,
            "passes": self.passes,
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
        }
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, scores=self.scores, meta=np.array(json.dumps(meta)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreMap:
        """Read what `save` wrote; nothing in the file is run. Raises BadInput if it is not such a file."""
        file = require_file(path)
        if not zipfile.is_zipfile(file):
            raise BadInput(
                f"{file} is not a score map: it is {kind_of_file(file)}; expected the .npz that `scan` writes"
            )
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
                kind=_kind_of(meta),
                device=str(meta["device"]),
                passes=int(meta["passes"]),
                agreement=Agreement.from_dict(meta["agreement"]) if meta.get("agreement") else None,
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
            raise BadInput(
                f"{file} is not a score map: {_why(error)}; expected the .npz that `scan` writes"
            ) from error

    def _repr_html_(self) -> str:
        """What `print` shows, for a notebook."""
        head, *geometry = str(self).splitlines()
        return html_result(head, notes=geometry)

    def __str__(self) -> str:
        places, size = ("×".join(str(n) for n in v) for v in (self.positions, self.image_size))
        head = (
            f"{self.windows:,} windows ({places} places, {len(self.classes)} classes) of an image of {size}"
        )
        kind = self.kind.describe(len(self.scores)) if self.kind else "of a kind that is not known"
        lines = (
            f"{head} in {self.seconds:.2f} s on {self.device}",
            f"scores: {kind}",
            f"preprocessing: {self.labels.preprocessing()}",
            str(self.geometry),
            *([] if self.agreement is None else [str(self.agreement)]),
        )
        return "\n".join(lines)


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


def _why(error: Exception) -> str:
    """What an archive lacks; NumPy's own words where they are not advice to load what may hold code."""
    if "pickle" in str(error):
        return "it holds Python objects, which are not loaded"
    if not isinstance(error, KeyError):
        return str(error)
    missing = str(error.args[0]).removesuffix(" is not a file in the archive") if error.args else "such entry"
    return f"it has no {missing!r}"


def _kind_of(meta: dict[str, Any]) -> ScoreKind | None:
    """The kind in a file; earlier versions wrote whether a softmax was still to be applied."""
    if "kind" not in meta:
        return kind_given(None, meta["softmax"])
    kind = meta["kind"]
    return None if kind is None else read_kind(str(kind))


def kind_given(kind: str | ScoreKind | None, softmax: bool | None) -> ScoreKind | None:
    """What a caller says of the scores: `softmax=True` is short for logits, False for probabilities.

    Raises BadInput where both are given.
    """
    if softmax is None:
        return read_kind(kind)
    if kind is not None:
        raise BadInput(
            f"score_kind={str(kind)!r} and softmax={softmax} were both given; expected one of them"
        )
    return ScoreKind("logits" if softmax else "probabilities")
