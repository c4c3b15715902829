"""The plan: what was measured, what was chosen and why, and for which machine, network and inputs it holds.

An immutable value that a JSON file holds whole. A plan file is data from outside: its shape is checked when it is
read, and names in it can only choose among registered engines and forms.
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
_LARGEST = 2**24  # bytes of a plan file; a large network's has some hundred kB
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
class Plan:
    """What `tune` found.

    `machine`, `versions`, `network`, `inputs`, `threads`, `device`: what it holds for. `candidates`: one dict each
    with name, engine, form, median_ms, spread_ms (between the quartiles), runs, rounding_ratio, row_ratio (the worst
    row's, over its own rounding), max_error, and refused (the reason it could not be chosen, or None). `choice`:
    name, engine, form, dtype (None: the network's own), layers (path → form, for the form "layers"). `layers`: one
    dict for each group of alike layers with paths, kind, shape, macs, calls, forms, chosen, gflops and of_peak (its
    share of `peak_gflops`, the largest rate of a big product here). `fast_products`: whether rows could be multiplied
    together without an error bound for each. `disturbed`: rounds in which something else had the processor.
    `seconds`: how long tuning took.
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
        """All of it as plain data, a copy."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        plain: dict[str, Any] = _plain({"format": data.pop("format"), **data})
        return plain

    def to_json(self, indent: int | None = 1) -> str:
        """All of it as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=indent)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as `.json`, whole or not at all. Raises BadInput for another suffix, or where it cannot be."""
        path = Path(path)
        if path.suffix != ".json":
            raise BadInput(f"path={str(path)!r}: a plan is saved under a name that ends in .json")
        write_text(path, self.to_json() + "\n")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan. Raises BadInput for a file that holds none."""
        found = require_file(path)
        if found.stat().st_size > _LARGEST:
            raise BadInput(f"plan={os.fspath(path)!r}: larger than any plan ({_LARGEST >> 20} MiB)")
        try:
            data = json.loads(found.read_bytes().decode("utf-8"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise BadInput(f"plan={os.fspath(path)!r}: it is not JSON") from error
        return cls.from_dict(data, f"plan={os.fspath(path)!r}")

    @classmethod
    def from_dict(cls, data: Any, name: str = "plan") -> Plan:
        """A plan from plain data. Raises BadInput where it is none."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BadInput(f"{name}: it is no plan; expected the format {FORMAT!r}")
        if not _printable(data):
            raise BadInput(f"{name}: it holds control characters, which a terminal would obey")
        data = {"fast_products": False, **data}  # plans of earlier versions do not say
        _check(data, _KEYS, name)
        _check(data["choice"], _CHOICE, f"{name}: choice")
        strings = data["choice"]["layers"]
        if not all(isinstance(v, str) for v in strings.values()):
            raise BadInput(f"{name}: choice: layers is not a form's name for each path")
        for key in ("inputs", "candidates", "layers"):
            if not all(isinstance(item, dict) for item in data[key]):
                raise BadInput(f"{name}: {key} holds something that is no object")
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
        """Raise Refused with every reason why the plan was made for something else."""
        told = [
            *_different("processor", self.machine, machine, _MACHINE),
            *_different("version", self.versions, versions, {k: k for k in libraries}),
            *_different("network", self.network, network, _NETWORK),
            *self._other_inputs(inputs),
        ]
        if self.threads != threads:
            told.append(("threads", f"it was made with {self.threads}, and there are {threads} now"))
        if told:
            refusals = [Refusal("plan", kind, reason) for kind, reason in told]
            raise Refused(refusals, "the plan was made for something else (force applies it all the same)")

    def _other_inputs(self, inputs: list[dict[str, Any]]) -> list[tuple[str, str]]:
        ours, theirs = _plain(list(self.inputs)), _plain(inputs)
        if self.dynamic_batch:
            ours, theirs = _without_batch(ours), _without_batch(theirs)
        if ours == theirs:
            return []
        return [("input", f"it was made for {_inputs(self.inputs)}, and this is {_inputs(inputs)}")]


_MACHINE = {
    "processor": "the processor",
    "features": "its vector instructions",
    "cores": "the cores",
    "gpu": "the GPU",
    "precision": "the precision of float32 products",
}
_NETWORK = {"weights": "its weights' names and shapes", "operators": "its operators"}


def _different(
    kind: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Mapping[str, str]
) -> list[tuple[str, str]]:
    """What differs, in words; fingerprints are only said to differ."""
    told = []
    for key, words in names.items():
        a, b = ours.get(key), theirs.get(key)
        if a != b and kind == "network":
            told.append((kind, f"{words} are not those of the network it was made for"))
        elif a != b:
            told.append((kind, f"{words}: it was made for {_brief(a)}, and here is {_brief(b)}"))
    return told


def _brief(value: Any) -> str:
    return (
        "none"
        if value is None
        else " ".join(map(str, value))
        if isinstance(value, list)
        else str(value)[:200]
    )


def _inputs(inputs: Any) -> str:
    def one(item: Mapping[str, Any]) -> str:
        shape = item.get("shape")
        return f"{item.get('dtype')} {by(shape)}" if isinstance(shape, list) else str(item.get("value"))[:60]

    return ", ".join(one(i) for i in inputs)


def _without_batch(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**i, "shape": i["shape"][1:]} if isinstance(i.get("shape"), list) else i for i in inputs]


def _check(data: Mapping[str, Any], keys: Mapping[str, Any], name: str) -> None:
    for key, kind in keys.items():
        value = data.get(key)
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if key not in data or not right:
            raise BadInput(f"{name}: {key} is missing or is a {type(value).__name__}")


def _printable(value: Any) -> bool:
    """Whether no text in plain data, keys included, holds a control character or one that turns the direction of text.

    >>> _printable({"name": "a conv"}), _printable(["\\x1b[2J"])
    (True, False)
    """
    if isinstance(value, str):
        return not any(unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t" for c in value)
    if isinstance(value, Mapping):
        return all(_printable(k) and _printable(v) for k, v in value.items())
    return all(map(_printable, value)) if isinstance(value, list | tuple) else True


def _plain(value: Any) -> Any:
    """Lists for tuples, and numbers that JSON cannot hold by name."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
