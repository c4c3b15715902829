"""The plan: what was measured, what was chosen and why, and for which machine, network and inputs it is valid.

A plan is an immutable value that is saved as one JSON file. A plan file is untrusted input: its structure is checked
when it is read, and the names in it can only select registered engines and forms.
"""

from __future__ import annotations

import copy
import json
import math
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from onebyone.atomic_files import require_file, write_text
from onebyone.errors import BadInput, Refused
from onebyone.records import Refusal, by

FORMAT = "onebyone plan 1"
_MAX_BYTES = 2**24  # of a plan file; that of a large network has some hundred kB
_KEYS: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "machine": dict,
    "versions": dict,
    "network": dict,
    "inputs": list,
    "threads": int,
    "device": str,
    "dynamic_batch": bool,
    "fast_products": bool,
    "candidates": list,
    "choice": dict,
    "why": str,
    "layers": list,
    "peak_gflops": (int, float),
    "disturbed": int,
    "seconds": (int, float),
}
_CHOICE: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "engine": str,
    "form": str,
    "dtype": (str, type(None)),
    "layers": dict,
}


@dataclass(frozen=True)
class TuningPlan:
    """The measurements and the choice of `tune`.

    Attributes
    ----------
    machine, versions, network, inputs, threads, device: what the plan is valid for.
    dynamic_batch: whether the choice takes any batch size.
    candidates: one dict each, with name, engine, form, dtype, layers, median_ms, spread_ms (interquartile range), runs,
        rounding_ratio, row_ratio (the largest rounding ratio of a row), max_error, build_seconds, and refused (the
        reason why it could not be chosen, or None).
    choice: name, engine, form, dtype (None: the network's own) and layers (path → form, for the form "layers").
    why: the reason for the choice in one sentence.
    layers: one dict for each group of identical layers, with paths, pattern, kind, shape, input, macs, calls, forms,
        chosen, gflops and of_peak (gflops ÷ peak_gflops).
    peak_gflops: the highest rate of a large float32 product on this machine.
    disturbed: the number of timing rounds that other processes disturbed.
    seconds: how long tuning took.
    fast_products: whether rows could be multiplied together without an error bound for each.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    network: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    threads: int
    device: str
    dynamic_batch: bool
    candidates: tuple[Mapping[str, Any], ...]
    choice: Mapping[str, Any]
    why: str
    layers: tuple[Mapping[str, Any], ...]
    peak_gflops: float
    disturbed: int = 0
    seconds: float = 0.0
    fast_products: bool = False
    format: str = field(default=FORMAT)

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the plan as plain data."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        plain: dict[str, Any] = _plain({"format": data.pop("format"), **data})
        return plain

    def to_json(self, indent: int | None = 1) -> str:
        """Return the plan as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=indent)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan as `.json`, atomically. Raises BadInput for another suffix or an unwritable path."""
        path = Path(path)
        if path.suffix != ".json":
            raise BadInput(f"path={str(path)!r}: expected a name that ends in .json")
        write_text(path, self.to_json() + "\n")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TuningPlan:
        """Read a plan file. Raises BadInput for a file that is not a plan."""
        file = require_file(path)
        if file.stat().st_size > _MAX_BYTES:
            raise BadInput(f"plan={os.fspath(path)!r}: expected at most {_MAX_BYTES >> 20} MiB")
        try:
            data = json.loads(file.read_bytes().decode("utf-8"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise BadInput(f"plan={os.fspath(path)!r}: is not valid JSON") from error
        return cls.from_dict(data, f"plan={os.fspath(path)!r}")

    @classmethod
    def from_dict(cls, data: Any, name: str = "plan") -> TuningPlan:
        """Make a plan from plain data. Raises BadInput if the data are not a plan."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BadInput(f"{name}: is not a plan; expected the format {FORMAT!r}")
        if not _printable(data):
            raise BadInput(f"{name}: contains control characters, which a terminal would interpret")
        data = {"fast_products": False, **data}  # missing in plans of earlier versions
        _check(data, _KEYS, name)
        _check(data["choice"], _CHOICE, f"{name}: choice")
        if not all(isinstance(form, str) for form in data["choice"]["layers"].values()):
            raise BadInput(f"{name}: choice: layers: expected the name of a form for each path")
        for key in ("inputs", "candidates", "layers"):
            if not all(isinstance(item, dict) for item in data[key]):
                raise BadInput(f"{name}: {key}: expected a list of objects")
        data = copy.deepcopy({k: data[k] for k in _KEYS})
        for key in ("inputs", "candidates", "layers"):
            data[key] = tuple(data[key])
        return cls(**data)

    def check(
        self,
        *,
        machine: Mapping[str, Any],
        versions: Mapping[str, str],
        network: Mapping[str, Any],
        inputs: list[dict[str, Any]],
        threads: int,
        libraries: tuple[str, ...] = ("torch",),
    ) -> None:
        """Raise Refused with every reason why the plan is not valid here."""
        differences = [
            *_different("processor", self.machine, machine, _MACHINE),
            *_different("version", self.versions, versions, {k: k for k in libraries}),
            *_different("network", self.network, network, _NETWORK),
            *self._other_inputs(inputs),
        ]
        if self.threads != threads:
            differences.append(("threads", f"it was made with {self.threads}, and there are {threads} now"))
        if differences:
            refusals = [Refusal("plan", kind, reason) for kind, reason in differences]
            raise Refused(
                refusals, "the plan was made for something else (force=True or --force applies it anyway)"
            )

    def _other_inputs(self, inputs: list[dict[str, Any]]) -> list[tuple[str, str]]:
        planned, actual = _plain(list(self.inputs)), _plain(inputs)
        if self.dynamic_batch:
            planned, actual = _without_batch(planned), _without_batch(actual)
        if planned == actual:
            return []
        return [("input", f"it was made for {_in_words(self.inputs)}, and this is {_in_words(inputs)}")]


_MACHINE = {
    "processor": "the processor",
    "features": "its vector instructions",
    "cores": "the cores",
    "gpu": "the GPU",
    "precision": "the precision of float32 products",
}
_NETWORK = {"weights": "its weights' names and shapes", "operators": "its operators"}


def _different(
    kind: str, planned: Mapping[str, Any], actual: Mapping[str, Any], names: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return (kind, description) of each difference; the values of fingerprints are not shown."""
    differences = []
    for key, words in names.items():
        a, b = planned.get(key), actual.get(key)
        if a != b and kind == "network":
            differences.append((kind, f"{words} are not those of the network it was made for"))
        elif a != b:
            differences.append((kind, f"{words}: it was made for {_brief(a)}, and here is {_brief(b)}"))
    return differences


def _brief(value: Any) -> str:
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)[:200]


def _in_words(inputs: Any) -> str:
    def one(item: Mapping[str, Any]) -> str:
        shape = item.get("shape")
        return f"{item.get('dtype')} {by(shape)}" if isinstance(shape, list) else str(item.get("value"))[:60]

    return ", ".join(one(i) for i in inputs)


def _without_batch(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**i, "shape": i["shape"][1:]} if isinstance(i.get("shape"), list) else i for i in inputs]


def _check(data: Mapping[str, Any], keys: Mapping[str, Any], name: str) -> None:
    for key, kind in keys.items():
        value = data.get(key)
        if key not in data:
            raise BadInput(f"{name}: {key} is missing")
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise BadInput(f"{name}: {key}: expected {expected}, got {type(value).__name__}")


def _printable(value: Any) -> bool:
    """Return whether plain data (keys included) are free of control characters and of marks of text direction.

    >>> _printable({"name": "a conv"}), _printable(["\\x1b[2J"])
    (True, False)
    """
    if isinstance(value, str):
        return not any(unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t" for c in value)
    if isinstance(value, Mapping):
        return all(_printable(k) and _printable(v) for k, v in value.items())
    return all(map(_printable, value)) if isinstance(value, list | tuple) else True


def _plain(value: Any) -> Any:
    """Return plain data for JSON: lists for tuples, and the names of numbers that JSON does not have (inf, nan)."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
