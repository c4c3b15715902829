"""The oracle: from a description alone, is the dense form legal, and is it exact; which layers convert.

Written apart from the package: it reads operators by their meaning for single elements (see `elements`), not maps and
indices. A network is labelled

    legal     it must convert, and be equal to cropping every window if nothing was padded
    illegal   it must be refused
    open      either is right; what converts must have the right numbers
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.elements import Illegal, Never, Open, Value, image
from tests.fuzz.meanings import RULES, Reading
from tests.fuzz.moves import MOVES
from tests.fuzz.networks import Description, Net

BY_ROWS = {"linear", "matmul", "reduce", "softmax", "layer_norm", "rms_norm"}


@dataclass
class Verdict:
    """What the dense form of a network should be."""

    label: str
    reason: str
    padded: bool = False  # padding, or a partial ceil_mode place, in an operator that the output depends on
    context: bool = False  # refused for global context alone, which context= lifts


def judge(net: Net) -> Verdict:
    """The label of a network, with the first reason."""
    d = net.description
    used = _used(d)
    reading = Reading(net.shapes)
    values: dict[int, Value] = {0: image(d.channels, d.window)}
    for number, op in enumerate(d.ops):
        if number + 1 not in used:
            continue
        rule = RULES[op.kind]
        inputs = [values[i] for i in op.inputs]
        try:
            if any(v.pending for v in inputs) and op.kind not in ("linear", "matmul", "dropout"):
                loose = op.kind in MOVES or any(v.partial for v in inputs)
                raise (Open if loose else Illegal)("constants by position before no linear layer")
            values[number + 1] = rule(reading, number, inputs, op.args, net.shapes[number + 1])
        except Never as reason:
            return Verdict("illegal", f"{op.kind}: {reason}", context="global context" in str(reason))
        except Illegal as reason:
            apart = op.kind in BY_ROWS and any(v.partial for v in inputs)
            if apart or not any(
                v.spans() for v in inputs
            ):  # held at one place, windows are samples of a batch
                return Verdict("open", f"{op.kind}: at one place, {reason}")
            return Verdict("illegal", f"{op.kind}: {reason}", context="global context" in str(reason))
        except Open as reason:
            return Verdict("open", f"{op.kind}: {reason}")
    answer = values[len(d.ops)]
    try:
        if answer.pending:
            raise Illegal("constants by position before no linear layer")
        _one_answer(answer)
    except Illegal as reason:
        return Verdict("illegal", f"output: {reason}")
    return Verdict("legal", "", padded=bool(reading.padded & used))


def _one_answer(v: Value) -> None:
    if len(v.shape) == v.axes + 1 and max(v.shape[1:]) > 1 and v.spans():
        raise Illegal("a map of many places for one window")


def _used(d: Description) -> set[int]:
    """Values that the output depends on."""
    used = {len(d.ops)}
    for number in range(len(d.ops) - 1, -1, -1):
        if number + 1 in used:
            used |= set(d.ops[number].inputs)
    return used
