"""Confidence thresholds: one for all classes, or by class."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import require_file
from onebyone.errors import BadInput

#: The threshold of classes for which none is given.
DEFAULT = 0.5
#: The name that stands for all classes that are not named.
OTHERS = "*"
_MAX_BYTES = 2**24

Threshold = float | Mapping[str | int, float]


def thresholds_of(threshold: Threshold, classes: Sequence[str]) -> NDArray[np.float64]:
    """The threshold of each class (classes,).

    A mapping has the thresholds by name or number of the class. "*" is for all that it does not name, which otherwise
    have 0.5.

    Raises BadInput for a number outside [0, 1] or a class that does not exist.

    >>> thresholds_of({"cat": 0.75, "*": 0.25}, ("cat", "dog")).tolist()
    [0.75, 0.25]
    """
    if not isinstance(threshold, Mapping):
        return np.full(len(classes), _number(threshold, "threshold"))
    values = np.full(len(classes), _number(threshold.get(OTHERS, DEFAULT), f"threshold of {OTHERS!r}"))
    for name, value in threshold.items():
        if name == OTHERS:
            continue
        number = name if isinstance(name, int) else (list(classes).index(name) if name in classes else -1)
        if not 0 <= number < len(classes):
            raise BadInput(f"threshold: {name!r} is not a class; expected one of {', '.join(classes)}")
        values[number] = _number(value, f"threshold of {name!r}")
    return values


def read_threshold(text: str) -> float | dict[str | int, float]:
    """A threshold as users write it: `0.6`, `cat=0.8,dog=0.6`, or `@FILE` with a JSON object or one NAME=P per line.

    Raises BadInput where it is none of these.

    >>> read_threshold("0.6"), read_threshold("cat=0.8,*=0.25")
    (0.6, {'cat': 0.8, '*': 0.25})
    """
    if text.startswith("@"):
        file = require_file(text[1:])
        if file.stat().st_size > _MAX_BYTES:
            raise BadInput(f"threshold: {file} has more than {_MAX_BYTES:,} bytes")
        return _from_text(file.read_text(encoding="utf-8", errors="replace"), os.fspath(file))
    if "=" not in text:
        return _number(text, "threshold")
    return _pairs(text.split(","), "threshold")


def _from_text(text: str, name: str) -> float | dict[str | int, float]:
    if not text.lstrip().startswith("{"):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _pairs(lines, f"threshold: {name}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"threshold: {name} is not valid JSON: {str(error).splitlines()[0]}") from error
    return {str(key): _number(value, f"threshold: {name}: {key!r}") for key, value in data.items()}


def _pairs(parts: Sequence[str], where: str) -> dict[str | int, float]:
    values: dict[str | int, float] = {}
    for part in parts:
        name, equals, number = part.rpartition("=")
        name = name.strip()
        if not equals or not name:
            raise BadInput(f"{where}: {part!r}: expected CLASS=P, such as cat=0.8")
        if name in values:
            raise BadInput(f"{where}: {name!r} has two values")
        values[name] = _number(number, f"{where}: {name!r}")
    return values


def _number(value: object, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadInput(f"{where}={value!r}: expected a number from 0 to 1") from None
    if not 0 <= number <= 1:
        raise BadInput(f"{where}={value}: expected a number from 0 to 1")
    return number
