"""The note that onebyone writes into a network's file: what a result knows beyond the network itself, as JSON.

It is the extra file `onebyone.json` of a `.pt2` archive, the entry `onebyone.json` of an ONNX model's `metadata_props`,
and the same entry of the metadata of a `.safetensors` file. There are two kinds:

- a conversion: `Conversion.report()`, with `"onebyone": "conversion"`;
- an any-size network: `dense_note(d)`. Its keys are

  | key | value |
  |---|---|
  | `version` | 1 |
  | `geometry` | `window`, `stride`, `window_offset`, `receptive_field`, `receptive_field_offset` (numbers per axis), `exact`, `inexact_because` (reasons), `image_wide` |
  | `nominal` | the window size that the classifier was built for, per axis |
  | `channels`, `bare` | the number of image channels; whether the classifier's own input has no channel axis |
  | `head`, `context`, `class_map` | see `Convolutionalized` |
  | `labels` | `classes`, `scale`, `mean`, `std`, `colour_order`, `background`: see `Labels` |
  | `outputs` | a list of `name`, `channels` and `scores` (the kind, for example `"logits:exclusive"`, or null) |
  | `changes` | the layers that were re-expressed, see `Change` |

A note is untrusted input: reading it validates every value and raises BadInput.
"""  # noqa: E501 (a table)

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Change, Labels
from onebyone.results.any_size import ClassMap, Convolutionalized, Output

#: The name of the note: of the extra file in an archive, and the key in a file's metadata.
NOTE = "onebyone.json"
VERSION = 1


@dataclass(frozen=True)
class DenseNote:
    """What the note of an any-size network holds: the fields of `Convolutionalized` of the same names."""

    geometry: Geometry
    changes: tuple[Change, ...]
    channels: int
    nominal: tuple[int, ...]
    bare: bool
    head: str
    context: str | None
    class_map: ClassMap | None
    labels: Labels
    outputs: tuple[Output, ...]

    @property
    def score_kind(self) -> ScoreKind | None:
        """The kind that all outputs have in common; None where they differ or are not known."""
        kinds = {output.kind for output in self.outputs}
        return kinds.pop() if len(kinds) == 1 else None

    def fields(self) -> dict[str, Any]:
        """The same by name, as arguments of a `Convolutionalized`."""
        return dict(vars(self))


def dense_note(d: Convolutionalized[Any, Any]) -> str:
    """The note of an any-size network, as JSON text."""
    return json.dumps({"version": VERSION, **d.to_dict()})


def read_dense_note(text: str, name: str) -> DenseNote:
    """The inverse of `dense_note`. `name` names the file in messages.

    Raises
    ------
    BadInput
        if the text is not the note of an any-size network, is of another version, or is damaged.

    >>> read_dense_note("{}", "a.onnx")
    Traceback (most recent call last):
    onebyone.errors.BadInput: a.onnx: its onebyone.json is of another version than 1
    """
    try:
        note = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name}: its {NOTE} is not valid JSON") from error
    if _is_conversion(note):
        raise BadInput(
            f"{name}: is a converted network that takes inputs of one size, not a dense one; "
            "give its window, or make it dense with `onebyone convolutionalize -o`"
        )
    if not isinstance(note, dict) or note.get("version") != VERSION:
        raise BadInput(f"{name}: its {NOTE} is of another version than {VERSION}")
    try:
        class_map = ClassMap.from_dict(note["class_map"]) if note["head"] == "cam" else None
        return DenseNote(
            geometry=_geometry(note["geometry"], class_map),
            changes=tuple(Change(**c) for c in note["changes"]),
            channels=int(note["channels"]),
            nominal=tuple(int(n) for n in note["nominal"]),
            bare=bool(note.get("bare", False)),
            head=str(note["head"]),
            context=note["context"],
            class_map=class_map,
            labels=_labels(note["labels"]),
            outputs=tuple(Output.from_dict(o) for o in note.get("outputs", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadInput(f"{name}: its {NOTE} is damaged ({error!r})") from error


def optional_dense_note(text: str | None, name: str) -> DenseNote | None:
    """`read_dense_note`, and None for a file without a note, or with the note of a conversion or a damaged one."""
    try:
        return None if text is None else read_dense_note(text, name)
    except BadInput:
        return None


def _is_conversion(note: Any) -> bool:
    return isinstance(note, dict) and note.get("onebyone") == "conversion"


def _geometry(data: Mapping[str, Any], class_map: ClassMap | None) -> Geometry:
    """The stored geometry, with the class map's reason as this version words it."""
    if class_map is None:
        return Geometry.from_dict(data)
    others = [reason for reason in data["inexact_because"] if not str(reason).startswith("head='cam'")]
    return Geometry.from_dict({**data, "inexact_because": [*others, class_map.reason]})


def _labels(data: Mapping[str, Any]) -> Labels:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Labels(**values)
