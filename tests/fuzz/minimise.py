"""Make a finding small: leave operators out while it still shows."""

from __future__ import annotations

from collections.abc import Iterator

from tests.fuzz.checks import Finding, Tally, check_all
from tests.fuzz.networks import Description, Net


def smaller(description: Description) -> Iterator[Description]:
    """Descriptions with one operator less: those that read it read its first input instead."""
    for gone in range(len(description.ops)):
        source = description.ops[gone].inputs[0]
        renumber = [source if v == gone + 1 else v - (v > gone + 1) for v in range(len(description.ops) + 1)]
        if any("tied" in op.args and op.args["tied"] == gone for op in description.ops):
            continue
        ops = []
        for number, op in enumerate(description.ops):
            if number != gone:
                args = dict(op.args)
                if "tied" in args:
                    args["tied"] -= args["tied"] > gone
                ops.append(type(op)(op.kind, tuple(renumber[i] for i in op.inputs), args))
        yield Description(description.channels, description.window, tuple(ops))


def minimised(finding: Finding) -> Finding:
    """The finding on the smallest network that still shows it, by leaving out operators."""
    for candidate in smaller(finding.description):
        try:
            Net(candidate)
        except Exception:
            continue
        for other in check_all(candidate, Tally()):
            if other.bucket == finding.bucket:
                return minimised(other)
    return finding
