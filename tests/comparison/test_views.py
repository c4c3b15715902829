"""The data of the report's interactive views, compared with autograd at every position."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import onebyone
from onebyone.comparison.layer_calls import record_layer_calls
from onebyone.comparison.layer_pair import choose_layers
from onebyone.comparison.operation import Operation, connected_form, convolution_form
from onebyone.comparison.pixel_influence import MAX_PER_SIDE, SIDE, influence, measure_influence
from onebyone.comparison.weight_views import row_and_filter
from tests.comparison.conftest import connected, kernel, network, pointwise, pooled, random


def support(op: Operation) -> list[list[int]]:
    """By backpropagation through every output: the output positions that each input position affects."""
    x = op.maps(1, torch.Generator().manual_seed(7)).requires_grad_()
    y = op(x)[0]
    outputs = y.flatten(1).T if y.dim() == 3 else y[:, None]  # (positions, channels)
    reached = torch.stack(
        [
            sum(torch.autograd.grad(v, x, retain_graph=True)[0][0].abs().sum(0) for v in place) > 0
            for place in outputs
        ]
    )
    return [torch.nonzero(column).flatten().tolist() for column in reached.flatten(1).T]


strided = Operation("5×5", convolution_form((2, 2), (2, 2)), random(4, 3, 5, 5), None, (3, 9, 7))


@pytest.mark.parametrize(
    "op", [pointwise(), connected(), kernel(), pooled(), strided], ids=lambda op: f"{op.name} {op.map_shape}"
)
def test_what_moves_is_what_autograd_reaches(op: Operation) -> None:
    assert influence(op)["moved"] == support(op)


def test_a_weight_of_zero_lets_nothing_through() -> None:
    weight = random(7, 60)
    weight.view(7, 3, 20)[2, :, 11] = 0
    found = influence(connected(weight=weight))
    assert found["moved"][11] == [0, 1, 3, 4, 5, 6]
    assert found["moved"][12] == list(range(7))


def test_the_pattern_of_a_convolution_is_the_same_everywhere() -> None:
    assert influence(pointwise())["pattern"] == {"offsets": [[0, 0]], "same_everywhere": True}
    three = influence(kernel())["pattern"]
    assert three == {
        "offsets": [[y, x] for y in (-1, 0, 1) for x in (-1, 0, 1)],
        "same_everywhere": True,
    }
    # a layer that treats one corner otherwise is no convolution
    weight = torch.eye(9, dtype=torch.float64).repeat(1, 3)
    weight[3, 7] = 1.0
    as_map = Operation(
        "uneven", lambda x, w, b: connected_form(x, w, b).view(-1, 1, 3, 3), weight, None, (3, 3, 3)
    )
    assert influence(as_map)["pattern"]["same_everywhere"] is False


def test_all_run_on_the_connected_layer_s_map() -> None:
    large = Operation("FC", connected_form, random(2, 3 * 40 * 33), None, (3, 40, 33))
    small = Operation("k×k", convolution_form(), random(2, 3, 11, 11), None, (3, 20, 20))
    found = measure_influence({"connected": large, "pointwise": pointwise(), "kernel": small})
    assert found["pointwise"]["map"] == [SIDE, SIDE]
    assert len(found["connected"]["places"]) == MAX_PER_SIDE**2
    assert found["connected"]["places"][-1] == [39, 32]
    # 11×11 without padding does not go over a map of 5×4: it keeps its own, cut
    few = measure_influence({"connected": connected(), "kernel": small})
    assert (few["kernel"]["map"], few["kernel"]["output"]) == ([16, 16], [6, 6])


def test_amounts_are_those_of_the_derivative() -> None:
    """For a layer with one input and one output channel, the change is |weight| times a constant."""
    weight = random(1, 1, 3, 3)
    op = Operation("3×3", convolution_form(padding=(1, 1)), weight, None, (1, 5, 5))
    amount = torch.tensor(influence(op)["amount"][12])
    # the pixel in the middle meets the kernel turned round; three digits are kept
    expected = (weight.flip(2, 3).flatten() / weight.abs().max()).abs()
    assert float((amount - expected).abs().max()) <= 0.0005 + 1e-9


def test_a_row_is_read_from_the_layer_and_a_filter_from_its_kernel() -> None:
    model = network()
    found = row_and_filter(choose_layers(record_layer_calls(model, torch.randn(1, 3, 8, 7))))
    layer = model[5]
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach()
    assert found["block"] == found["shown"] == [6, 6, 5]
    for n in range(4):
        assert torch.tensor(found["row"][n]).equal(weight[n, found["index"]])
        cells = weight[n].view(6, 6, 5)
        assert torch.tensor(found["filter"][n]).equal(
            torch.stack([cells[tuple(place)] for place in found["at"]])
        )


def test_a_flatten_with_channels_last_has_its_own_order() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 1), nn.Linear(3 * 4 * 5, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).permute(0, 2, 3, 1).flatten(1))

    model = Last()
    found = row_and_filter(choose_layers(record_layer_calls(model, torch.randn(1, 2, 4, 5))))
    assert found["order"] == [1, 2, 0]
    assert found["at"][:4] == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 1]]
    assert found["row"] == found["filter"]
    assert torch.tensor(found["row"][1]).equal(model.head.weight[1].detach())


def test_of_large_filters_a_part_is_shown() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64 * 7 * 7, 5))
    found = row_and_filter(choose_layers(record_layer_calls(model, torch.randn(1, 64, 7, 7))))
    assert found["shown"] == [12, 7, 7]
    assert found["index"] == list(range(12 * 49))
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40 * 40, 2))
    found = row_and_filter(choose_layers(record_layer_calls(wide, torch.randn(1, 3, 40, 40))))
    assert found["shown"] == [1, 24, 24]
    assert found["index"][24] == 40
    weight = wide[1].weight.detach()  # type: ignore[union-attr]
    assert torch.tensor(found["filter"][1]).equal(weight[1, found["index"]])


def test_a_head_of_zeros_shows_what_stands_in() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        model[1].weight.zero_()  # type: ignore[operator, union-attr]
    found = row_and_filter(choose_layers(record_layer_calls(model, torch.randn(1, 3, 2, 2))))
    assert "all zero" in found["origin"]
    assert all(v != 0 for v in found["row"][0])


def test_conversion_and_verification_come_with_their_row() -> None:
    x = torch.randn(1, 3, 8, 7)
    r = onebyone.compare(network(), x, budget=30, rows=["R1", "D4"])
    assert r.conversion is not None
    assert [c["path"] for c in r.conversion["changes"]] == ["5", "7"]
    assert r.verification is not None
    assert r.verification["equivalent"] is True
    assert [layer["path"] for layer in r.verification["layers"]] == ["5", "7"]
    without = onebyone.compare(network(), x, rows=["D4"])
    assert (without.conversion, without.verification) == (None, None)
    late = onebyone.compare(network(), x, budget=1e-9, rows=["R1"])
    assert late.verification is not None
    assert "budget" in late.verification["not_available"]


def test_the_whole_network_is_a_step_of_its_own() -> None:
    told: list[tuple[int, int]] = []
    x = torch.randn(1, 3, 8, 7)
    onebyone.compare(network(), x, budget=30, rows=["D4", "R1"], progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_large_or_strided_kernel_gets_a_map_on_which_it_acts_locally() -> None:
    roles = {"connected": connected(), "pointwise": pointwise()}  # over 5×4 positions
    stem = Operation("7×7", convolution_form((2, 2), (3, 3)), random(4, 3, 7, 7), None, (3, 16, 16))
    patch = Operation("4×4", convolution_form((4, 4)), random(4, 3, 4, 4), None, (3, 16, 16))
    for op, moved in ((stem, 16), (patch, 1)):
        found = measure_influence(roles | {"kernel": op})["kernel"]
        assert found["map"] == [16, 16]
        assert max(len(row) for row in found["moved"]) == moved
