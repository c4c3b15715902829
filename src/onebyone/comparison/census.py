"""D6: where either layer occurs, counted in the user's own network and in the networks of timm and torchvision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from math import prod
from statistics import fmean
from typing import Any

from onebyone.comparison.claim_result import Figures, Verdict, holds, not_as_said
from onebyone.comparison.layer_calls import KERNEL, LINEAR, POINTWISE, Seen

ALL = "all"
"""Among a network's places: all of its layers that were seen."""


def read_census() -> list[dict[str, Any]] | None:
    """The networks of timm and torchvision, as `tools/census.py` counted them; None where the file is missing.

    Each has `key`, `parameters`, how many `linear` layers and `pointwise` convolutions it has, and, if it was
    run, `places`: of each place (and of ALL) the layers, their parameters and their MACs.
    """
    file = resources.files("onebyone.comparison").joinpath("census.json")
    if not file.is_file():
        return None
    networks: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["networks"]
    return networks


def place_of(layer: Seen) -> str:
    """Where a layer stands: what it reads says it."""
    if layer.kind == KERNEL:
        return "k×k convolution"
    if layer.kind == POINTWISE:
        return "1×1 convolution" if layer.groups == 1 else "grouped 1×1 convolution"
    if layer.tokens:
        return "linear layer on every token or place"
    if layer.block is not None and prod(layer.block[1:]) > 1:
        return "linear layer on a flattened map"
    return "linear layer on a pooled map" if layer.pooled else "linear layer on a vector"


def measure_census(seen: Sequence[Seen], parameters: int, zoo: Sequence[Mapping[str, Any]] | None) -> Figures:
    """The network's layers by place, with their share of its parameters and MACs; and the zoo's counts.

    MACs are those of the linear layers and convolutions seen.
    """
    macs = sum(s.macs for s in seen) or 1
    places: dict[str, dict[str, float]] = {}
    for layer in seen:
        row = places.setdefault(
            place_of(layer), {"layers": 0, "parameters": 0, "macs": 0, "share_of_parameters": 0.0}
        )
        row["layers"] += 1
        row["parameters"] += layer.parameters
        row["macs"] += layer.macs
        row["share_of_parameters"] = row["parameters"] / max(1, parameters)
        row["share_of_macs"] = row["macs"] / macs
    own = {
        "parameters": parameters,
        "macs": macs,
        "places": places,
        "convolutional": any(_overlaps(s) for s in seen),
        "linear": sum(s.kind == LINEAR for s in seen),
        "pointwise": sum(s.kind == POINTWISE for s in seen),
        "linear_on_tokens": sum(s.kind == LINEAR and s.tokens for s in seen),
    }
    return {"network": own, "zoo": None if zoo is None else _totals(zoo)}


def _overlaps(layer: Seen) -> bool:
    """Whether it is a convolution whose windows overlap; cutting an image into patches makes no such network."""
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
    run = [m for m in zoo if m.get("places")]
    return tally(zoo) | {"by_group": by_group, "run": len(run), "places": _places(run)}


def _group(network: Mapping[str, Any]) -> str:
    """Where it comes from: timm, torchvision, or structure (of torchvision, counted and not run)."""
    return str(network["key"]).split(":")[0]


def _places(run: Sequence[Mapping[str, Any]]) -> Figures:
    """Of each place: how many networks have such layers, how many there are, and what share of a network's
    parameters and MACs they hold, a mean in which every network that was run counts alike.
    """
    names = sorted({place for m in run for place in m["places"] if place != ALL})
    return {
        place: {
            "networks": sum(place in m["places"] for m in run),
            "layers": sum(_of(m, place)[0] for m in run),
            "share_of_parameters": fmean(_of(m, place)[1] / max(1, m["parameters"]) for m in run),
            "share_of_macs": fmean(_of(m, place)[2] / max(1, _of(m, ALL)[2]) for m in run),
        }
        for place in names
    }


def _of(network: Mapping[str, Any], place: str) -> Sequence[int]:
    found: Sequence[int] = network["places"].get(place, (0, 0, 0))
    return found


def judge_census(figures: Figures) -> Verdict:
    """As said: the one in convolutional networks, the other in feed-forward ones. Networks with both refute it."""
    own, zoo = figures["network"], figures["zoo"]
    counted = f"Linear layers and 1×1 convolutions in this network: {own['linear']} and {own['pointwise']}"
    if zoo:
        counted += f"; {zoo['with_both']} of {zoo['networks']} networks of timm and torchvision have both"
        counted += _shares(zoo)
    else:
        counted += " (the census is not installed: this network alone was counted)"
    reasons = []
    if own["linear"] and (own["convolutional"] or own["pointwise"]):
        reasons.append("a convolutional network with fully connected layers")
    if own["linear_on_tokens"]:
        reasons.append(
            f"{own['linear_on_tokens']} linear layers that act at each token, as 1×1 convolutions do"
        )
    if zoo and zoo["with_both"]:
        reasons.append("networks of timm and torchvision with both")
    if reasons:
        return not_as_said(f"either occurs in the other's networks: {', '.join(reasons)}. {counted}")
    return holds(counted)


def _shares(zoo: Mapping[str, Any]) -> str:
    """What either kind holds of a network, on the mean."""
    told = []
    for kind, word in ((LINEAR, "linear layers"), ("1×1 convolution", "1×1 convolutions")):
        rows = [row for place, row in zoo["places"].items() if kind in place]
        parameters, macs = (sum(row[f"share_of_{of}"] for row in rows) for of in ("parameters", "macs"))
        told.append(f"{word} hold {parameters:.0%} of the parameters and do {macs:.0%} of the MACs")
    return f"; on the mean of the {zoo['run']} that were run {' and '.join(told)}" if zoo["run"] else ""
