"""D1 to D4, D7, D8: verdicts for the two layers, and for other layers for which the claims are false."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from onebyone.comparison import differences as d
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID, NOT_AVAILABLE, WHEN
from onebyone.comparison.operation import Operation, connected_form, convolution_form
from tests.comparison.conftest import connected, kernel, pointwise, pooled, random

Roles = dict[str, Operation]


def on_one_position(op: Operation) -> Operation:
    weight = op.weight[:, :3] if op.weight.dim() == 2 else op.weight
    return replace(op, weight=weight, map_shape=(3, 1, 1))


# D1 and D8


def test_scope(roles: Roles) -> None:
    figures = d.measure_scope(roles)
    assert d.scope_verdict(figures).text == HOLDS
    assert {r: figures[r]["places_reached"] for r in roles} == {"pointwise": 1, "connected": 20, "kernel": 9}
    assert d.share_verdict(figures).text == HOLDS
    assert figures["pointwise"]["share_of_inputs"] == pytest.approx(1 / 20)


def test_the_picture_of_the_support(roles: Roles) -> None:
    support = torch.tensor(d.measure_scope(roles)["pictures"]["support"]["kernel"])
    expected = torch.zeros(5, 4, dtype=torch.bool)
    expected[1:4, 1:4] = True  # around the middle (2, 2)
    assert torch.equal(support > 0, expected)
    assert float(support.max()) == 1


def test_a_larger_kernel_is_no_pointwise_layer(roles: Roles) -> None:
    figures = d.measure_scope(roles | {"pointwise": kernel()})
    assert d.scope_verdict(figures).text == NOT_AS_SAID
    assert d.share_verdict(figures).text == NOT_AS_SAID


def test_a_layer_that_reads_half_the_map_is_not_global(roles: Roles) -> None:
    weight = random(7, 60)
    weight.view(7, 3, 20)[:, :, 5:] = 0
    figures = d.measure_scope(roles | {"connected": connected(weight=weight)})
    assert d.scope_verdict(figures).text == NOT_AS_SAID
    assert d.share_verdict(figures).text == NOT_AS_SAID


def test_dead_outputs_and_pruned_weights(roles: Roles) -> None:
    dead = d.measure_scope(roles | {"pointwise": pointwise(weight=torch.zeros(6, 3, 1, 1).double())})
    assert d.scope_verdict(dead).text == NOT_AS_SAID
    weight = random(7, 60)
    weight[:, 3] = 0
    pruned = d.measure_scope(roles | {"connected": connected(weight=weight)})
    assert d.share_verdict(pruned).text == "holds when no weight is zero"


def test_on_one_place_there_is_no_difference(roles: Roles) -> None:
    figures = d.measure_scope({r: on_one_position(roles[r]) for r in ("pointwise", "connected")})
    for verdict_of in (d.scope_verdict, d.share_verdict):
        assert verdict_of(figures).text == "holds when the map has more than one position"


# D2


def test_sizes(roles: Roles) -> None:
    alone = roles["connected"]
    figures = d.measure_sizes(roles, lambda x: F.linear(x, alone.weight, alone.bias))
    verdict = d.sizes_verdict(figures)
    assert verdict.text == "holds when the number of elements differs"
    assert "except at 4×5, 1×20, where the number of elements is the same" in verdict.because
    assert "accepts 0 to 3 leading axes" in verdict.because
    outputs = [s["output"] for s in figures["sweep"] if s["role"] == "pointwise" and s["size"] == [6, 5]]
    assert outputs == [[1, 6, 6, 5]]


def test_a_head_that_takes_any_size_refutes_the_fixed_length(roles: Roles) -> None:
    assert d.sizes_verdict(d.measure_sizes(roles | {"connected": pooled()})).text == NOT_AS_SAID


def test_a_convolution_that_needs_a_size_is_found_out(roles: Roles) -> None:
    figures = d.measure_sizes(roles | {"pointwise": replace(kernel(), form=convolution_form())})
    verdict = d.sizes_verdict(figures)
    assert verdict.text == NOT_AS_SAID
    assert "1×1" in verdict.because


def test_a_layer_that_checks_its_shape_holds_outright(roles: Roles) -> None:
    def checked(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.shape[2:] != (5, 4):
            raise RuntimeError("another size")
        return F.linear(x.flatten(1), weight, bias)

    assert d.sizes_verdict(d.measure_sizes(roles | {"connected": connected(form=checked)})).text == HOLDS


# D3


def test_permutation(roles: Roles) -> None:
    figures = d.measure_permutation(roles)
    assert d.permutation_verdict(figures).text == HOLDS
    assert figures["kernel"]["along_ratio"] > 1e6
    assert figures["connected"]["undone_ratio"] <= 1 < figures["connected"]["change_ratio"]


def test_a_layer_that_sees_neighbours_is_found_out(roles: Roles) -> None:
    for op in (kernel(), replace(kernel(), form=convolution_form())):
        assert d.permutation_verdict(d.measure_permutation(roles | {"pointwise": op})).text == NOT_AS_SAID


def test_a_pooled_head_does_not_change(roles: Roles) -> None:
    assert d.permutation_verdict(d.measure_permutation(roles | {"connected": pooled()})).text == NOT_AS_SAID
    both = d.permutation_verdict(d.measure_permutation(roles | {"pooled": pooled()}))
    assert both.text == "holds when the map is flattened"


def test_weights_that_see_an_order_cannot_be_permuted_along(roles: Roles) -> None:
    def ordered(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x.flatten(1).cumsum(1), weight, bias)

    assert (
        d.permutation_verdict(d.measure_permutation(roles | {"connected": connected(form=ordered)})).text
        == NOT_AS_SAID
    )


def test_nothing_to_permute_or_shift_on_one_position(roles: Roles) -> None:
    small = {r: on_one_position(roles[r]) for r in ("pointwise", "connected")}
    assert d.permutation_verdict(d.measure_permutation(small)).text.startswith(WHEN)
    assert d.shift_verdict(d.measure_shift(small)).text.startswith(WHEN)


# D4


def layers(*sizes: tuple[str, int, int]) -> list[dict[str, object]]:
    return [{"path": "", "kind": kind, "inputs": i, "outputs": o} for kind, i, o in sizes]


def test_linear_layers_change_dimensions_too() -> None:
    figures = d.measure_dimensions(layers(("linear", 8, 4), ("pointwise", 4, 8), ("linear", 4, 4)))
    assert d.dimensions_verdict(figures).text == NOT_AS_SAID
    assert figures["linear"] == {"layers": 2, "reduce": 1, "expand": 0, "keep": 1}


def test_a_network_of_square_layers_is_as_is_said() -> None:
    assert (
        d.dimensions_verdict(d.measure_dimensions(layers(("linear", 4, 4), ("pointwise", 4, 8)))).text
        == HOLDS
    )
    assert d.dimensions_verdict(d.measure_dimensions(layers(("pointwise", 4, 8)))).text == NOT_AVAILABLE


# D7


def test_shift(roles: Roles) -> None:
    figures = d.measure_shift(roles)
    assert d.shift_verdict(figures).text == "holds when 'lost' means equivariance, not information"
    assert figures["pointwise"]["equivariance_ratio"] <= 1
    assert figures["kernel"]["equivariance_ratio"] > 1  # its padding shows at the edges
    assert len(figures["pictures"]["shift_error"]["connected"]) == 16


def test_a_layer_that_does_not_shift_along_is_found_out(roles: Roles) -> None:
    def placed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.conv2d(x + torch.arange(4.0), weight, bias)

    assert d.shift_verdict(d.measure_shift(roles | {"pointwise": pointwise(form=placed)})).text == NOT_AS_SAID
    assert d.shift_verdict(d.measure_shift(roles | {"pointwise": kernel()})).text == NOT_AS_SAID


def test_a_pooled_head_does_not_depend_on_the_place(roles: Roles) -> None:
    assert d.shift_verdict(d.measure_shift(roles | {"connected": pooled()})).text == NOT_AS_SAID


def test_if_information_were_lost_it_would_hold_outright(roles: Roles) -> None:
    figures = d.measure_shift(roles)
    figures["connected"]["recovers_map"] = False
    assert d.shift_verdict(figures).text == HOLDS


def test_the_picture_of_a_large_map_is_its_blocks() -> None:
    weight = torch.zeros(1, 3 * 80 * 40).double()
    weight.view(3, 80, 40)[1, 79, 5] = 0.5
    weight.view(3, 80, 40)[2, 0, 39] = -2.0
    wide = Operation("FC", connected_form, weight, None, (3, 80, 40))
    support = torch.tensor(
        d.measure_scope({"pointwise": pointwise(), "connected": wide})["pictures"]["support"]["connected"]
    )
    assert support.shape == (27, 20)  # blocks of 3×2
    assert {tuple(p) for p in torch.nonzero(support).tolist()} == {(26, 2), (0, 19)}
    assert support[26, 2] == 0.25
