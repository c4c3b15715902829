"""D5: parameters, multiply-accumulates and bytes (counted) and time (measured) over the size of the map."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.comparison.claim_result import Figures, Verdict, holds, holds_when, not_as_said
from onebyone.laws.cost import Cost, flatten_linear, pointwise
from onebyone.records import by
from onebyone.tuning.clock import Clock

CostOfSize = Callable[[Sequence[int]], Cost]
"""The cost of a layer on a map of size (h, w)."""

SIDES = (1, 2, 4, 7, 14, 28)
MAX_WEIGHTS = 2**24
"""Weights of the largest layer that is timed."""
MIN_REPEATS, MAX_REPEATS = 5, 31


def costs(channels: int, outputs: int, itemsize: int = 4) -> dict[str, CostOfSize]:
    """The costs of both layers from `channels` to `outputs`, without bias; flatten + FC reads the whole map."""
    return {
        "pointwise": lambda size: pointwise(1, channels, outputs, size, bias=False, itemsize=itemsize),
        "connected": lambda size: flatten_linear(1, channels, size, outputs, bias=False, itemsize=itemsize),
    }


def measure_counts(cost_of: Mapping[str, CostOfSize], sizes: Sequence[tuple[int, int]]) -> Figures:
    """Counts at each size, and the ratios connected ÷ pointwise."""
    table = []
    for size in sizes:
        by_role = {role: cost(size) for role, cost in cost_of.items()}
        pointwise_cost, connected_cost = by_role["pointwise"], by_role["connected"]
        table.append(
            {
                "size": list(size),
                "places": size[0] * size[1],
                "parameters": {role: c.parameters for role, c in by_role.items()},
                "macs": {role: c.macs for role, c in by_role.items()},
                "bytes": {role: c.bytes_moved for role, c in by_role.items()},
                "parameters_ratio": connected_cost.parameters / pointwise_cost.parameters,
                "macs_ratio": connected_cost.macs / pointwise_cost.macs,
                "bytes_ratio": connected_cost.bytes_moved / pointwise_cost.bytes_moved,
            }
        )
    return {"counts": table}


def complexity_verdict(figures: Figures) -> Verdict:
    """Holds if the fully connected layer has more parameters and MACs. Based on the counts; times are reported too."""
    table = figures["counts"]
    several = [row for row in table if row["places"] > 1]
    single = [row for row in table if row["places"] == 1]
    more = [row for row in several if row["parameters_ratio"] > 1]
    heavier = [row for row in several if row["macs_ratio"] > 1]
    times = _times_in_words(figures.get("times"))
    if not more:
        return not_as_said(f"the fully connected layer does not have more parameters at any size{times}")
    last = more[-1]
    where = f"{last['size'][0]}×{last['size'][1]}"
    reason = f"on a {where} map flatten + FC has {last['parameters_ratio']:g} times the parameters"
    equal = all(row["parameters_ratio"] == 1 for row in single)
    if len(heavier) == len(several) and not (single and equal):
        return holds(f"{reason} and {last['macs_ratio']:g} times the multiply-accumulates{times}")
    conditions = []
    if single and equal:
        conditions.append("the map has more than one position")
    if len(more) < len(several):
        conditions.append(f"its size is about {where}")
    if len(heavier) < len(several):
        conditions.append("cost means parameters, not multiply-accumulates")
        reason += ", and "
        reason += "as many" if last["macs_ratio"] == 1 else f"{last['macs_ratio']:g} times the"
        reason += " multiply-accumulates"
    if any(row["parameters_ratio"] != row["places"] for row in several):
        reason += " (not h·w times, so one of the two is not the layer that it is labelled as)"
    return holds_when(" and ".join(conditions), reason + times)


def _times_in_words(times: Mapping[str, Any] | None) -> str:
    if not times or not times["table"]:
        return ""
    crossings = times["crossings"]
    last = times["table"][-1]
    pointwise_time, connected_time = (last["seconds"][role]["median"] for role in ("pointwise", "connected"))
    ratio = connected_time / pointwise_time
    text = f"; measured, flatten + FC takes {ratio:.2g} times as long at {by(last['size'])}"
    if crossings:
        text += ", and the two times cross between "
        text += ", ".join(f"{by(c['from'])} and {by(c['to'])}" for c in crossings)
    return text


# times ------------------------------------------------------------------------------------------------------


def sizes_for(layer_size: Sequence[int]) -> list[tuple[int, int]]:
    """The map sizes to count at: squares with the sides `SIDES`, and the layer's own size.

    >>> sizes_for((5, 6))[2:5]
    [(4, 4), (5, 6), (7, 7)]
    """
    return sorted({(n, n) for n in SIDES} | {(layer_size[0], layer_size[1])}, key=lambda s: (s[0] * s[1], s))


def timed_part(
    channels: int, outputs: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, list[tuple[int, int]]]:
    """How many outputs are timed, and at which sizes: as many as MAX_WEIGHTS allows, but at least four sizes.

    >>> timed_part(64, 128, [(1, 1), (2, 2), (4, 4), (7, 7), (28, 28), (56, 56)])
    (128, [(1, 1), (2, 2), (4, 4), (7, 7), (28, 28)])
    >>> timed_part(4096, 4096, [(1, 1), (2, 2), (4, 4), (7, 7), (28, 28)])
    (64, [(1, 1), (2, 2), (4, 4), (7, 7)])
    """
    fourth = sizes[min(3, len(sizes) - 1)]
    while outputs > 1 and channels * outputs * fourth[0] * fourth[1] > MAX_WEIGHTS:
        outputs //= 2
    return outputs, [s for s in sizes if channels * outputs * s[0] * s[1] <= MAX_WEIGHTS] or [sizes[0]]


def forms(channels: int, outputs: int, size: Sequence[int], seed: int = 0) -> dict[str, Callable[[], Tensor]]:
    """The calls to time at one size: both layers, each in two equivalent forms.

    A 1×1 convolution, and the same as a linear layer on the positions; flatten + FC, and the same as an h×w
    convolution.
    """
    h, w = size
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, channels, h, w, generator=generator)
    tokens = image.flatten(2).transpose(1, 2).contiguous()
    kernel = torch.randn(outputs, channels, 1, 1, generator=generator)
    flat_weight = torch.randn(outputs, channels * h * w, generator=generator)
    vector, matrix, window = image.flatten(1), kernel.flatten(1), flat_weight.view(outputs, channels, h, w)
    return {
        "pointwise": lambda: F.conv2d(image, kernel),
        "pointwise as linear": lambda: F.linear(tokens, matrix),
        "connected": lambda: F.linear(vector, flat_weight),
        "connected as convolution": lambda: F.conv2d(image, window),
    }


def measure_times(
    channels: int, outputs: int, sizes: Sequence[tuple[int, int]], seconds: float, seed: int = 0
) -> Figures:
    """Seconds of each form at each size in float32: medians and quartiles, by the clock of `onebyone.tune`.

    All forms of all sizes take turns in each round, so that disturbances affect them alike. There are MIN_REPEATS to
    MAX_REPEATS rounds, within about `seconds`.
    """
    calls = {
        f"{by(size)} {name}": call
        for size in sizes
        for name, call in forms(channels, outputs, size, seed).items()
    }
    with torch.no_grad():
        timings = Clock(seed=seed).interleave(calls, seconds, rounds=MAX_REPEATS, least=MIN_REPEATS)
    names = list(forms(1, 1, (1, 1)))
    table = [
        {"size": list(size), "seconds": {n: _spread(timings.samples[f"{by(size)} {n}"]) for n in names}}
        for size in sizes
    ]
    return {
        "table": table,
        "crossings": crossings(table),
        "repeats": len(next(iter(timings.samples.values()))),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "batch": 1,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "quartile_low": low, "quartile_high": high}


def crossings(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Consecutive sizes between which the other of the two layers becomes the faster one.

    >>> row = lambda n, p, c: {"size": [n, n], "seconds": {"pointwise": {"median": p}, "connected": {"median": c}}}
    >>> crossings([row(1, 2.0, 1.0), row(2, 2.0, 3.0), row(4, 2.0, 9.0)])
    [{'from': [1, 1], 'to': [2, 2], 'faster_after': 'pointwise'}]
    """
    changes = []
    for before, after in pairwise(table):
        faster = [_faster(row["seconds"]) for row in (before, after)]
        if faster[0] != faster[1]:
            changes.append({"from": before["size"], "to": after["size"], "faster_after": faster[1]})
    return changes


def _faster(seconds: Mapping[str, Mapping[str, float]]) -> str:
    pointwise_time, connected_time = (seconds[role]["median"] for role in ("pointwise", "connected"))
    return "connected" if connected_time < pointwise_time else "pointwise"
