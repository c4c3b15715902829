"""D6: where either layer occurs, counted in the user's own network and in the model zoo where its results are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from onebyone.compare.observe import KERNEL, LINEAR, POINTWISE, Seen
from onebyone.compare.row import Figures, Verdict, holds, not_as_said

ZOO = Path("bench", "results", "zoo.json")


def find_zoo() -> Path | None:
    """The zoo's results, below the current folder or the checkout that the package runs from."""
    roots = (Path.cwd(), *Path(__file__).resolve().parents[3:4])
    return next((root / ZOO for root in roots if (root / ZOO).is_file()), None)


def read_zoo(path: Path) -> list[dict[str, Any]]:
    """The zoo's networks: key, group, parameters, and how many linear layers and 1×1 convolutions each has."""
    models = json.loads(path.read_text(encoding="utf-8"))["models"]
    found = []
    for model in models:
        built: Mapping[str, Any] = next((s["figures"] for s in model["steps"] if s["name"] == "build"), {})
        if "eligible" in built:
            found.append(
                {
                    "key": model["key"],
                    "group": model["group"],
                    "parameters": built["parameters"],
                    "linear": built["eligible"]["linear"],
                    "pointwise": built["eligible"]["conv"],
                }
            )
    return found


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

    groups = sorted({m["group"] for m in zoo})
    by_group = {g: tally([m for m in zoo if m["group"] == g]) for g in groups}
    return tally(zoo) | {"by_group": by_group}


def judge_census(figures: Figures) -> Verdict:
    """As said: the one in convolutional networks, the other in feed-forward ones. Networks with both refute it."""
    own, zoo = figures["network"], figures["zoo"]
    counted = f"Linear layers and 1×1 convolutions in this network: {own['linear']} and {own['pointwise']}"
    if zoo:
        counted += f"; {zoo['with_both']} of the zoo's {zoo['networks']} networks have both"
    else:
        counted += " (the zoo's results were not found: this network alone was counted)"
    reasons = []
    if own["linear"] and (own["convolutional"] or own["pointwise"]):
        reasons.append("a convolutional network with fully connected layers")
    if own["linear_on_tokens"]:
        reasons.append(
            f"{own['linear_on_tokens']} linear layers that act at each token, as 1×1 convolutions do"
        )
    if zoo and zoo["with_both"]:
        reasons.append("networks of the zoo with both")
    if reasons:
        return not_as_said(f"either occurs in the other's networks: {', '.join(reasons)}. {counted}")
    return holds(counted)
