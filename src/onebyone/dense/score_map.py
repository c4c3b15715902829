"""Score maps: one score per class for every window of an image, with the windows' coordinates and class names."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import atomic_path, kind_of_file, require_file
from onebyone.dense.agreement import Agreement
from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.laws.geometry import Geometry
from onebyone.laws.labels import require_fitting, require_sound
from onebyone.laws.scores import EXPECTED, ScoreKind, assumed_kind, read_kind
from onebyone.records import Labels, Readable, by, html_result
from onebyone.stores.array_files import ARCHIVE_FORMAT, write_archive
from onebyone.stores.map_reader import open_map
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span

_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OSError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class ScoreMap(Readable):
    """A classifier's scores for every window of an image.

    `scores` (classes, H', W') float32 are the network's output; position (i, j) is the prediction for the pixels
    `window_at((i, j))`. `kind` says what the numbers are (logits, probabilities, log-probabilities); None where it is
    not known. `seconds` is the duration of the scan on `device`, `passes` its number of tiles, or of windows that were
    cropped. `agreement` compares a sample of windows with crops; None where it was not measured: for an exact network,
    for a single class, and for an output that is not taken for class scores, as `agreement_skipped` then says.
    `placement` relates the pixels of the image that was scanned to those of its full resolution and to the world; None
    where it is not known. `unscored` says why some positions have no scores, which are NaN there (a mask, pixels
    without data); empty where every position has scores.
    `engine` names what ran the network, for the scan that made the map; it is not stored.
    `resized_from` is the size of the image before it was resized for the scan; None where it was not.
    `output` is the network's output that the scores are, by its number or name.

    Raises
    ------
    BadInput
        where scores, geometry, image size and labels do not fit each other.
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
    agreement_skipped: str = ""
    placement: Placement | None = None
    unscored: str = ""
    resized_from: tuple[int, ...] | None = None
    output: int | str = 0
    engine: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        expected = self.geometry.positions(self.image_size)
        if self.scores.shape[1:] != expected:
            raise BadInput(
                f"scores have {self.scores.shape[1:]} positions; expected {expected} by the geometry, "
                f"for an image of {self.image_size} pixels"
            )
        if self.placement is not None:
            axes = len(self.placement.offset), len(self.placement.scale)
            if axes != (len(self.image_size),) * 2:
                raise BadInput(
                    f"placement={self.placement}: expected {len(self.image_size)} axes, as the image has"
                )
        require_sound(self.labels)
        require_fitting(self.labels, [self.scores.shape[0]])

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions per axis."""
        return tuple(self.scores.shape[1:])

    @property
    def windows(self) -> int:
        """The number of windows, one per position."""
        return int(np.prod(self.positions))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; their numbers where the labels have no names."""
        return self.labels.classes or tuple(str(k) for k in range(self.scores.shape[0]))

    @property
    def full_size(self) -> tuple[int, ...]:
        """The size of the image before it was resized for the scan."""
        return self.resized_from or self.image_size

    @property
    def full_placement(self) -> Placement | None:
        """The placement of the pixels of the image before it was resized."""
        if self.placement is None or self.resized_from is None:
            return self.placement
        scale = [n / f for n, f in zip(self.image_size, self.resized_from, strict=True)]
        return self.placement.part((0.0,) * len(scale), scale)

    def window_at(self, index: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The pixels of the window at a position: [first, past the last) per axis, rows first.

        Raises BadInput where the position is not on the map.
        """
        for axis, (i, n) in enumerate(zip(index, self.positions, strict=True)):
            if not 0 <= i < n:
                raise BadInput(f"index {tuple(index)} is outside the map of {self.positions} on axis {axis}")
        return self.geometry.window_at(index)

    def probabilities(self) -> NDArray[np.float32]:
        """The scores as probabilities (classes, H', W'), converted as `kind` says.

        Where the kind is not known and the values do not determine it, a warning says what was assumed. Logits of
        several classes are taken as exclusive (softmax) unless the kind says multi-label. Scores that are
        probabilities already are returned themselves, without a copy.

        Raises
        ------
        BadInput
            where the scores cannot be of the stated kind, such as a probability of 3.

        Example
        -------
        >>> geometry = Geometry((4, 4), (2, 2), (0, 0), (4, 4), (0, 0), True)
        >>> scores = np.array([0.95, 0.9, 0.02], np.float32).reshape(3, 1, 1)
        >>> kind = ScoreKind("probabilities", "multi-label")
        >>> ScoreMap(scores, geometry, Labels(), (4, 4), kind=kind).probabilities().ravel().tolist()
        [0.949999988079071, 0.8999999761581421, 0.019999999552965164]
        """
        return (self.kind or self.assumed_kind()).probabilities(np.asarray(self.scores))

    def assumed_kind(self) -> ScoreKind:
        """The kind that the values of the map suggest, for a map whose kind is not known; a warning if in doubt."""
        kind, doubt = assumed_kind(np.asarray(self.scores))
        if doubt:
            warnings.warn(
                f"the kind of the network's outputs is not known; {doubt}, so they are taken as {kind}. "
                f"Give score_kind={str(kind)!r} to confirm it, or their actual kind ({EXPECTED})",
                OnebyoneWarning,
                stacklevel=3,
            )
        return kind

    def facts(self) -> dict[str, Any]:
        """Everything except the scores, as plain data for JSON."""
        return {
            "geometry": self.geometry.to_dict(),
            "labels": self.labels.to_dict(),
            "image_size": list(self.image_size),
            "seconds": self.seconds,
            "kind": None if self.kind is None else str(self.kind),
            "device": self.device,
            "passes": self.passes,
            "agreement": None if self.agreement is None else self.agreement.to_dict(),
            "agreement_skipped": self.agreement_skipped,
            "placement": None if self.placement is None else self.placement.to_dict(),
            "unscored": self.unscored,
            "resized_from": None if self.resized_from is None else list(self.resized_from),
            "output": self.output,
        }

    def regions(self) -> Iterator[tuple[tuple[Span, ...], NDArray[np.float32]]]:
        """The map part by part, without reading the whole: regions of positions and their scores (classes, h, w).

        The regions are those that the file stores together; they cover the map once, in the order of its rows.
        """
        chunk = getattr(self.scores, "chunk", None) or (1024,) * len(self.positions)
        starts = (range(0, n, c) for n, c in zip(self.positions, chunk, strict=True))
        for first in product(*starts):
            region = tuple(
                Span(a, min(a + c, n)) for a, c, n in zip(first, chunk, self.positions, strict=True)
            )
            yield region, self.scores[:, *(span.slice for span in region)]

    def windows_by_class(self) -> tuple[int, ...]:
        """The number of windows of which each class is the best.

        Independent classes (a single one, or multi-label) are counted where their probability is at least 0.5.

        >>> geometry = Geometry((4, 4), (2, 2), (0, 0), (4, 4), (0, 0), True)
        >>> scores = np.array([[[3.0, 0.0]], [[1.0, 2.0]]], np.float32)
        >>> ScoreMap(scores, geometry, Labels(), (4, 6)).windows_by_class()
        (1, 1)
        """
        classes = self.scores.shape[0]
        if classes == 1 and self.kind is None:
            return (int((self.probabilities() >= 0.5).sum()),)
        independent = self.kind is not None and (classes == 1 or self.kind.classes == "multi-label")
        counts = np.zeros(classes, np.int64)
        for _, values in self.regions():
            part = values.reshape(classes, -1)
            if self.unscored:
                part = part[:, ~np.isnan(part).all(axis=0)]
            if independent and self.kind is not None:
                counts += (self.kind.probabilities(part) >= 0.5).sum(axis=1)
            else:
                counts += np.bincount(part.argmax(axis=0), minlength=classes)
        return tuple(int(n) for n in counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map to a `.npz` file, atomically. Raises BadInput where it cannot be written."""
        if Path(path).suffix.lower() != ".npz":
            raise BadInput(f"cannot save a score map as {path}: the name must end in .npz")
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            write_archive(file, np.asarray(self.scores), self.facts())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreMap:
        """Read a file that `save` or `scan` wrote: `.npz`, or `.zarr`, `.tif` and `.npy`, read by region.

        Nothing in the file is executed. Raises BadInput where it is not such a file.
        """
        if Path(path).is_dir() or Path(path).suffix.lower() in (".npy", ".tif", ".tiff"):
            stored, description = open_map(path)
            try:
                return cls.of_facts(cast("NDArray[np.float32]", stored), description.scan)
            except _DAMAGED as error:
                raise BadInput(f"{path} is not a score map: {_reason(error)}") from error
        file = require_file(path)
        if not zipfile.is_zipfile(file):
            raise BadInput(
                f"{file} is not a score map: it is {kind_of_file(file)}; expected the .npz that `scan` writes"
            )
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                scores = np.asarray(arrays["scores"], dtype=np.float32)
            if meta["format"] != ARCHIVE_FORMAT:
                raise ValueError(f"its format is {meta['format']!r}")
            return cls.of_facts(scores, meta)
        except _DAMAGED as error:
            raise BadInput(
                f"{file} is not a score map: {_reason(error)}; expected the .npz that `scan` writes"
            ) from error

    @classmethod
    def of_facts(cls, scores: NDArray[np.float32], meta: Mapping[str, Any]) -> ScoreMap:
        """The map of some scores and what `facts` said."""
        return cls(
            scores=scores,
            geometry=Geometry.from_dict(meta["geometry"]),
            labels=labels_from_dict(meta["labels"]),
            image_size=tuple(int(n) for n in meta["image_size"]),
            seconds=float(meta["seconds"]),
            kind=_stored_kind(meta),
            device=str(meta["device"]),
            passes=int(meta["passes"]),
            agreement=Agreement.from_dict(meta["agreement"]) if meta.get("agreement") else None,
            agreement_skipped=str(meta.get("agreement_skipped", "")),
            placement=Placement.from_dict(meta["placement"]) if meta.get("placement") else None,
            unscored=str(meta.get("unscored", "")),
            resized_from=tuple(map(int, meta["resized_from"])) if meta.get("resized_from") else None,
            output=_stored_output(meta),
        )

    def _repr_html_(self) -> str:
        """A picture of the map, and the text of `print` as HTML, for notebooks."""
        from onebyone.dense.notebook_figure import heat_figure

        head, *geometry = str(self).splitlines()
        return html_result(head, heat_figure(self), notes=geometry)

    def __str__(self) -> str:
        head = (
            f"{self.windows:,} windows ({by(self.positions)} positions, {len(self.classes)} classes) "
            f"of an image of {by(self.image_size)} pixels"
        )
        kind = self.kind.describe(len(self.scores)) if self.kind else "of unknown kind"
        skipped = (f"agreement with crops: not measured; {self.agreement_skipped}",)
        lines = (
            f"{head} in {self.seconds:.2f} s on {self.device}",
            f"scores: {kind}",
            f"preprocessing: {self.labels.preprocessing()}",
            str(self.geometry),
            *([] if self.agreement is None else [str(self.agreement)]),
            *(skipped if self.agreement_skipped else ()),
            *((self.unscored,) if self.unscored else ()),
        )
        return "\n".join(lines)


def labels_from_dict(data: dict[str, Any]) -> Labels:
    """The labels that `Labels.to_dict` described."""
    return Labels(
        classes=tuple(str(c) for c in data["classes"]),
        scale=float(data["scale"]),
        mean=tuple(float(v) for v in data["mean"]),
        std=tuple(float(v) for v in data["std"]),
        colour_order=str(data["colour_order"]),
        background=tuple(str(c) for c in data["background"]),
    )


def _reason(error: Exception) -> str:
    """Why an archive could not be read: NumPy's message, except where it advises to load pickled objects."""
    if "pickle" in str(error):
        return "it contains Python objects, which are not loaded"
    if not isinstance(error, KeyError):
        return str(error)
    missing = str(error.args[0]).removesuffix(" is not a file in the archive") if error.args else "such entry"
    return f"it has no {missing!r}"


def _stored_output(meta: Mapping[str, Any]) -> int | str:
    """The network's output whose scores are stored; the first one where the file does not say it."""
    output = meta.get("output", 0)
    return output if isinstance(output, str) else int(output)


def _stored_kind(meta: Mapping[str, Any]) -> ScoreKind | None:
    """The kind in a file's metadata. Earlier versions wrote whether a softmax was still to be applied."""
    if "kind" not in meta:
        return resolve_kind(None, meta["softmax"])
    kind = meta["kind"]
    return None if kind is None else read_kind(str(kind))


def resolve_kind(kind: str | ScoreKind | None, softmax: bool | None) -> ScoreKind | None:
    """The kind that a caller states; `softmax=True` is short for logits, False for probabilities.

    Raises BadInput where both are given.
    """
    if softmax is None:
        return read_kind(kind)
    if kind is not None:
        raise BadInput(
            f"score_kind={str(kind)!r} and softmax={softmax} were both given; expected one of them"
        )
    return ScoreKind("logits" if softmax else "probabilities")
