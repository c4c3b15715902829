"""D6: where the two layers occur, in the user's network and in the networks of timm and torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from math import prod
from statistics import fmean
from typing import Any

from onebyone.comparison.claim_result import Figures, Verdict, holds, not_as_said
from onebyone.comparison.layer_calls import KERNEL, LINEAR, POINTWISE, LayerCall
from onebyone.drawing.number_format import counted

ALL = "all"
"""Among the uses of a network's layers: all layers that were recorded."""


def read_census() -> list[dict[str, Any]] | None:
    """The networks of timm and torchvision, as `tools/census.py` counted them; None if the file is missing.

    Each has `key`, `parameters`, its number of `linear` layers and `pointwise` convolutions, and, if it was run,
    `uses`: for each use (and for ALL) the number of layers, their parameters and their MACs.
    """
    file = resources.files("onebyone.comparison").joinpath("census.json")
    if not file.is_file():
        return None
    networks: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["networks"]
    return networks


def layer_use(layer: LayerCall) -> str:
    """What a layer is used for, by its kind and its input."""
    if layer.kind == KERNEL:
        return "k×k convolution"
    if layer.kind == POINTWISE:
        return "1×1 convolution" if layer.groups == 1 else "grouped 1×1 convolution"
    if layer.tokens:
        return "linear layer on every token or position"
    if layer.block is not None and prod(layer.block[1:]) > 1:
        return "linear layer on a flattened map"
    return "linear layer on a pooled map" if layer.pooled else "linear layer on a vector"


def measure_census(
    calls: Sequence[LayerCall], parameters: int, zoo: Sequence[Mapping[str, Any]] | None
) -> Figures:
    """The network's layers by use, with their share of its parameters and MACs; and the counts of the model zoo.

    MACs are those of the recorded linear layers and convolutions.
    """
    macs = sum(c.macs for c in calls) or 1
    uses: dict[str, dict[str, float]] = {}
    for layer in calls:
        row = uses.setdefault(
            layer_use(layer), {"layers": 0, "parameters": 0, "macs": 0, "share_of_parameters": 0.0}
        )
        row["layers"] += 1
        row["parameters"] += layer.parameters
        row["macs"] += layer.macs
        row["share_of_parameters"] = row["parameters"] / max(1, parameters)
        row["share_of_macs"] = row["macs"] / macs
    network = {
        "parameters": parameters,
        "macs": macs,
        "uses": uses,
        "convolutional": any(_windows_overlap(c) for c in calls),
        "linear": sum(c.kind == LINEAR for c in calls),
        "pointwise": sum(c.kind == POINTWISE for c in calls),
        "linear_on_tokens": sum(c.kind == LINEAR and c.tokens for c in calls),
    }
    return {"network": network, "zoo": None if zoo is None else _totals(zoo)}


def _windows_overlap(layer: LayerCall) -> bool:
    """Whether it is a convolution whose windows overlap; cutting an image into patches does not count as one."""
    if layer.kind != KERNEL:
        return False
    module: Any = layer.module
    return any(k > s for k, s in zip(module.kernel_size, layer.stride, strict=True))


def _totals(zoo: Sequence[Mapping[str, Any]]) -> Figures:
    def tally(models: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        return {
            "networks": len(models),
            "with_both": sum(bool(m["linear"] and m["pointwise"]) for m in models),
            "linear_only": sum(bool(m["linear"] and not m["pointwise"]) for m in models),
            "pointwise_only": sum(bool(m["pointwise"] and not m["linear"]) for m in models),
            "linear_layers": sum(m["linear"] for m in models),
            "pointwise_layers": sum(m["pointwise"] for m in models),
        }

    groups = sorted({_group(m) for m in zoo})
    by_group = {g: tally([m for m in zoo if _group(m) == g]) for g in groups}
    run = [m for m in zoo if m.get("uses")]
    return tally(zoo) | {"by_group": by_group, "run": len(run), "uses": _uses(run)}


def _group(network: Mapping[str, Any]) -> str:
    """The source of a network: timm, torchvision, or structure (torchvision networks that were counted, not run)."""
    return str(network["key"]).split(":")[0]


def _uses(run: Sequence[Mapping[str, Any]]) -> Figures:
    """For each use: the number of networks with such layers, the number of layers, and their share of a network's
    parameters and MACs, averaged over the networks that were run.
    """
    names = sorted({use for m in run for use in m["uses"] if use != ALL})
    return {
        use: {
            "networks": sum(use in m["uses"] for m in run),
            "layers": sum(_counts(m, use)[0] for m in run),
            "share_of_parameters": fmean(_counts(m, use)[1] / max(1, m["parameters"]) for m in run),
            "share_of_macs": fmean(_counts(m, use)[2] / max(1, _counts(m, ALL)[2]) for m in run),
        }
        for use in names
    }


def _counts(network: Mapping[str, Any], use: str) -> Sequence[int]:
    """Layers, parameters and MACs of one use."""
    counts: Sequence[int] = network["uses"].get(use, (0, 0, 0))
    return counts


def census_verdict(figures: Figures) -> Verdict:
    """Holds unless either layer occurs in the networks of the other."""
    network, zoo = figures["network"], figures["zoo"]
    kinds = ("linear layer", network["linear"]), ("pointwise convolution", network["pointwise"])
    counts = f"This network calls {' and '.join(counted(number, kind) for kind, number in kinds)}"
    if zoo:
        counts += f"; {zoo['with_both']} of {zoo['networks']} networks of timm and torchvision have both"
        counts += _shares(zoo)
    else:
        counts += " (the census of the model zoo is not installed, so only this network was counted)"
    reasons = []
    if network["linear"] and (network["convolutional"] or network["pointwise"]):
        reasons.append("this convolutional network has fully connected layers")
    if network["linear_on_tokens"]:
        reasons.append(
            f"{network['linear_on_tokens']} of its linear layers act on each token, as 1×1 convolutions do"
        )
    if zoo and zoo["with_both"]:
        reasons.append("networks of timm and torchvision have both")
    if reasons:
        return not_as_said(
            f"each layer occurs in networks of the other kind: {', and '.join(reasons)}. {counts}"
        )
    return holds(counts)


def _shares(zoo: Mapping[str, Any]) -> str:
    """The mean share of a network's parameters and MACs in either kind of layer."""
    parts = []
    for kind, word in ((LINEAR, "linear layers"), ("1×1 convolution", "1×1 convolutions")):
        rows = [row for use, row in zoo["uses"].items() if kind in use]
        parameters, macs = (sum(row[f"share_of_{of}"] for row in rows) for of in ("parameters", "macs"))
        parts.append(f"{word} hold {parameters:.0%} of the parameters and do {macs:.0%} of the MACs")
    return f"; averaged over the {zoo['run']} that were run, {' and '.join(parts)}" if zoo["run"] else ""
