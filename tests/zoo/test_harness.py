"""The counts and sums of the zoo."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.zoo import report, totals
from bench.zoo.dense import against_crops
from bench.zoo.eligible import eligible_layers, exceptions
from onebyone.laws.geometry import Geometry
from onebyone.records import Change, Refusal


def test_eligible_layers_are_linear_layers_and_one_by_one_convolutions_once_each() -> None:
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 1))
    net.extend([nn.Conv1d(4, 4, 1, groups=2), shared, nn.Bilinear(2, 2, 2), nn.Embedding(3, 4)])
    net.append(nn.MultiheadAttention(8, 2))
    found = [(e.path, e.form) for e in eligible_layers(net)]
    assert found == [("0", "linear"), ("1", "conv"), ("4", "conv"), ("8", "linear")]


def test_a_layer_passed_over_in_silence_is_an_exception_without_a_reason() -> None:
    layers = eligible_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)))
    missed = exceptions(layers, [Change("0", "Linear", "", "", "")], [Refusal("1", "Linear", "because")])
    assert [(m.path, m.reason) for m in missed] == [("1", "because"), ("2", "")]


def _result(key: str, *steps: dict[str, Any]) -> dict[str, Any]:
    given = [{"reason": "", "seconds": 1.0, "peak_bytes": 2**20, "figures": {}} | s for s in steps]
    return {
        "key": key,
        "group": key.split(":")[0],
        "source": key,
        "seconds": 2.0,
        "window": None,
        "steps": given,
    }


MISSED = [{"path": "head", "kind": "Linear", "reason": ""}]
LAYERS = {
    "name": "layers",
    "outcome": "converted",
    "figures": {"linear_converted": 5, "linear_missed": MISSED},
}
GRAPH = {
    "name": "graph",
    "outcome": "crashed",
    "reason": "ValueError: no (x.py:3 f)",
    "figures": {"to_conv": {"layout_before": 4, "layout_after": 3}},
}
REFUSED = {
    "name": "dense",
    "outcome": "refused",
    "figures": {"refusals": [{"path": "a", "kind": "aten.add", "reason": "a map of 3×4 places is | met"}]},
}


def test_totals_add_up_and_hide_nothing() -> None:
    results = [_result("timm:a", LAYERS, GRAPH, REFUSED), _result("timm:b", LAYERS, REFUSED)]
    total = totals.totals(results)
    assert (total["layers_converted"], total["layers_eligible"], total["crashed"]) == (10, 12, 1)
    assert total["layers_refused"] == {"not reported by the converter": 2}
    assert list(total["dense_refused"].values()) == [2]
    assert (total["layout_before"], total["layout_after"], total["not_equivalent"]) == (4, 3, 0)
    assert "not equivalent: 0" in totals.line(total)
    assert "crashed: 1" in totals.line(total)


def test_the_page_names_every_exception_refusal_and_fault() -> None:
    results = [_result("timm:a", LAYERS, GRAPH, REFUSED)]
    data = {
        "machine": totals.machine(),
        "totals": totals.totals(results),
        "exceptions": list(totals.missed_layers(results)),
        "models": results,
    }
    text = report.page(data)
    for said in (
        "`head`",
        "not reported by the converter",
        "a map of 3×4 places is \\| met",
        "ValueError: no",
    ):
        assert said in text


def test_crops_find_a_shifted_map() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    geometry = Geometry((3, 3), (1, 1), (0, 0), (3, 3), (0, 0), True, ())
    image = torch.randn(1, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    right = against_crops(net, net[0], geometry, image)
    assert right["windows"] == 12
    assert right["relative_to_variation"] < 1e-5
    assert right["class_agreement"] == 1

    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.roll(net[0](x), 1, -1)

    assert against_crops(net, Shifted(), geometry, image)["relative_to_variation"] > 0.5
