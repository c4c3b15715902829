"""Choosing one of the outputs of a network, by number or by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput
from onebyone.pytorch.lift.outputs import names_of
from onebyone.results.any_size import Output


def select_output(result: Any, output: int | str) -> torch.Tensor:
    """One tensor of a result that is a tensor, or several in a tuple, a dictionary or a dataclass.

    `output` is its number from 0, in the order of the result, or its name: the key of a dictionary or the field of a
    dataclass; the names of nested ones are joined by dots.

    Raises BadInput where the network has no such output.

    >>> select_output({"scores": torch.zeros(1), "boxes": torch.ones(4)}, "boxes")
    tensor([1., 1., 1., 1.])
    """
    leaves = pytree.tree_leaves(result)
    named = [(name, leaf) for name, leaf in zip(names_of(result), leaves, strict=True) if leaf is not None]
    selected = named[output_index([name for name, _ in named], output)][1]
    if not isinstance(selected, torch.Tensor):
        raise BadInput(f"output={output}: expected a tensor; the network gives a {type(selected).__name__}")
    return selected


def described_output(outputs: Sequence[Output], output: int | str) -> tuple[int | str, Output | None]:
    """The number of an output and its description; `output` unchanged and None where `outputs` is empty."""
    if not outputs:
        return output, None
    number = output_index([o.name for o in outputs], output)
    return number, outputs[number]


def output_index(names: Sequence[str], output: int | str) -> int:
    """The number of an output: `output` is a number from 0, also as a string, or one of the names.

    Raises BadInput where there is no such output.

    >>> output_index(("scores", "boxes"), "boxes")
    1
    """
    if isinstance(output, str) and output in names:
        return list(names).index(output)
    number = int(output) if isinstance(output, int) or output.isdecimal() else -1
    if not 0 <= number < len(names):
        listed = "" if list(names) == [str(k) for k in range(len(names))] else f": {', '.join(names)}"
        available = "has one output" if len(names) == 1 else f"gives {len(names)} outputs{listed}"
        raise BadInput(f"output={output}, but the network {available}")
    return number


def why_not_class_scores(outputs: Sequence[Output], number: int | str, classes: int) -> str:
    """Why an output is not taken to hold one score per class; empty where it is.

    Decided only for networks with several outputs, from the number of named `classes` (0 where none are named), which
    must be the number of channels, and from what the outputs' numbers are: where some are probabilities, others are
    not class scores; where some are logits, those of unknown kind are not.

    >>> from onebyone.laws.scores import ScoreKind
    >>> outputs = (Output("scores", 2, ScoreKind("probabilities")), Output("boxes", 4, ScoreKind("logits")))
    >>> why_not_class_scores(outputs, 0, 0)
    ''
    >>> why_not_class_scores(outputs, 1, 0)
    "output 'boxes' is not taken for class scores, because output 'scores' gives probabilities"
    """
    if len(outputs) < 2 or not isinstance(number, int):
        return ""
    chosen = outputs[number]
    prefix = f"output {chosen.name!r} is not taken for class scores, because"
    if classes and chosen.channels != classes:
        return f"{prefix} it has {chosen.channels} channels for {classes} named classes"
    if classes:
        return ""
    best = max(outputs, key=_evidence)
    if _evidence(best) > _evidence(chosen):
        return f"{prefix} output {best.name!r} gives {best.kind.values if best.kind else ''}"
    return ""


def _evidence(output: Output) -> int:
    """How strongly the kind of an output's numbers suggests class scores."""
    if output.kind is None:
        return 0
    return 1 if output.kind.values == "logits" else 2
