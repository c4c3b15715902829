"""Probes of lifted layers, on pairs made by hand: every position, both forms, exact sums, and every reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone
from onebyone.results import WindowPair
from onebyone.verification import window_probes
from onebyone.verification.window_probes import check_window_pair, on_crops

Params = dict[str, Tensor]
MAP = (2, 3, 2)


def original(crops: Tensor, p: Params) -> Tensor:
    return F.linear(crops.flatten(1), p["weight"], p["bias"])


def dense(feature_map: Tensor, p: Params, step: tuple[int, int] = (1, 2)) -> Tensor:
    kernel = p["weight"].reshape(-1, *MAP)
    return F.conv2d(feature_map, kernel, p["bias"], step).movedim(1, -1)


def pair(converted: Callable[[Tensor, Params], Tensor] = dense, **changes: object) -> WindowPair:
    shapes = {"weight": (4, 12), "bias": (4,)}
    made = WindowPair("fc", "aten.linear", "flatten", MAP, (1, 2), shapes, original, converted)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_correct_layer_passes_and_every_fault_is_seen() -> None:
    check = check_window_pair(pair(), 0)
    assert (check.ok, check.bitwise, check.why) == (True, True, "")
    assert (check.path, check.kind, check.law) == ("fc", "aten.linear", "flatten")
    assert {f.name: f.seen_by_integers for f in check.faults} == {
        "bias dropped": True,
        "weight order shifted by one": True,
        "flatten order swapped (channels last)": True,
        "flatten order swapped (height and width)": True,
        "offset by one position": True,
    }


def test_a_layer_at_one_position_has_no_flatten_order() -> None:
    def original_1x1(crops: Tensor, p: Params) -> Tensor:
        return F.linear(crops.flatten(1), p["weight"], p["bias"])

    def converted(feature_map: Tensor, p: Params) -> Tensor:
        return F.conv2d(feature_map, p["weight"][:, :, None, None], p["bias"]).movedim(1, -1)

    shapes = {"weight": (4, 3), "bias": (4,)}
    check = check_window_pair(
        WindowPair("fc", "aten.linear", "pointwise", (3, 1, 1), (1, 1), shapes, original_1x1, converted), 0
    )
    assert check.ok, check.why
    assert {f.name for f in check.faults} == {
        "bias dropped",
        "weight order shifted by one",
        "offset by one position",
    }


def test_the_map_has_several_windows_and_a_remainder_on_each_axis() -> None:
    maps: list[Tensor] = []

    def recording(feature_map: Tensor, p: Params) -> Tensor:
        maps.append(feature_map)
        return dense(feature_map, p)

    assert check_window_pair(pair(recording), 0).ok
    batch, channels, height, width = maps[0].shape
    assert (batch, channels) == (2, 2)
    # 3 windows at a step of 1 on the first axis, 2 at a step of 2 and a remainder of 1 on the second: (5, 5). Of these
    # equal sizes the first one gets another window, because a transposed map would go unseen.
    assert (height, width) == (3 + 2 * 1 + 1, 2 + 1 * 2 + 1)


def test_height_and_width_differ() -> None:
    """Without a change the map would be 4 × 4 here; the first axis gets another step."""
    sizes: list[tuple[int, ...]] = []

    def recording(feature_map: Tensor, p: Params) -> Tensor:
        sizes.append(tuple(feature_map.shape[2:]))
        return F.conv2d(feature_map, p["weight"].reshape(-1, 2, 2, 3), p["bias"]).movedim(1, -1)

    wide = pair(recording, map_shape=(2, 2, 3), step=(1, 1))
    assert check_window_pair(wide, 0).ok
    assert sizes[0] == (2 + 2 + 1, 3 + 1)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda m, p: dense(m, p)[:, :, 1:], "(2, 4, 1, 4) positions and outputs, expected (2, 4, 2, 4)"),
        (lambda m, p: dense(m, p) + 1, "the integer probe differs in 64 of 64 values"),
        (lambda m, p: dense(m, p | {"bias": p["bias"] * 0}), "the integer probe differs in 64 of 64 values"),
    ],
    ids=["a position too few", "off by one", "no bias"],
)
def test_a_wrong_layer_is_named(fault: Callable[[Tensor, Params], Tensor], why: str) -> None:
    check = check_window_pair(pair(fault), 0)
    assert (check.ok, check.bitwise, check.why) == (False, False, why)


def test_a_layer_that_raises_is_named() -> None:
    def broken(feature_map: Tensor, p: Params) -> Tensor:
        raise RuntimeError("no kernel\nand more")

    check = check_window_pair(pair(broken), 0)
    assert (check.ok, check.bitwise, check.why) == (False, False, "RuntimeError: no kernel")


def test_the_second_form_is_probed_too() -> None:
    """A layer may run in either form; a fault counts as seen only if the probes of both forms see it."""
    wrong = check_window_pair(pair(unfolded=lambda m, p: dense(m, p) + 1), 0)
    assert (wrong.ok, wrong.bitwise) == (False, False)
    right = check_window_pair(pair(unfolded=dense), 0)
    assert right.ok
    assert all(f.seen_by_integers for f in right.faults)
    first_wrong = check_window_pair(pair(lambda m, p: dense(m, p) + 1, unfolded=dense), 0)
    assert not first_wrong.ok


def test_a_fault_that_no_probe_can_see_is_named() -> None:
    """A layer that ignores its bias: that the bias was dropped cannot be seen."""

    def without_bias(feature_map: Tensor, p: Params) -> Tensor:
        return dense(feature_map, p | {"bias": torch.zeros_like(p["bias"])})

    hidden = pair(
        without_bias, original=lambda c, p: F.linear(c.flatten(1), p["weight"]), unfolded=without_bias
    )
    check = check_window_pair(hidden, 0)
    assert not check.ok
    assert check.bitwise is True
    assert check.why == "the integer probe cannot see: bias dropped"


def test_a_fault_that_one_of_two_forms_hides_is_named() -> None:
    """The second form is right on the probe's own numbers, but takes its weights from elsewhere."""
    kept: dict[str, Tensor] = {}

    def remembering(crops: Tensor, p: Params) -> Tensor:
        kept.update(p)
        return original(crops, p)

    stubborn = pair(original=remembering, unfolded=lambda m, p: dense(m, kept))
    check = check_window_pair(stubborn, 0)
    assert not check.ok
    assert "cannot see: bias dropped, weight order shifted by one" in check.why


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled by position"])
def test_the_integers_are_as_large_as_exact_sums_allow(scaled: bool) -> None:
    largest: list[int] = []

    def scale(x: Tensor, p: Params) -> Tensor:
        return x * p["scale"].reshape(MAP) + p["shift"].reshape(MAP) if scaled else x

    def original_scaled(crops: Tensor, p: Params) -> Tensor:
        largest.append(max(int(t.abs().max()) for t in p.values()))
        return original(scale(crops, p), p)

    def converted(feature_map: Tensor, p: Params) -> Tensor:
        windows = feature_map.unfold(2, 3, 1).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5)
        return F.linear(scale(windows, p).flatten(3), p["weight"], p["bias"])

    shapes = {"weight": (4, 12), "bias": (4,)} | ({"scale": (12,), "shift": (12,)} if scaled else {})
    check = check_window_pair(pair(converted, original=original_scaled, parameter_shapes=shapes), 0)
    assert check.ok, check.why
    m = max(largest)
    reach = 12 * m**3 + 12 * m**2 + m if scaled else 12 * m**2 + m
    assert reach <= 2**53
    assert reach > 2**53 / (2 if not scaled else 4)


def test_sums_that_would_not_be_exact_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = window_probes.integers
    monkeypatch.setattr(window_probes, "integers", lambda s, m, g: right(s, m, g) * 3)
    check = check_window_pair(pair(), 0)
    assert not check.ok
    assert "more than 2^53, and are not exact" in check.why
    monkeypatch.setattr(window_probes, "integers", lambda s, m, g: right(s, m, g) / 2)
    assert "not integers" in check_window_pair(pair(), 0).why


def test_the_original_runs_on_every_window() -> None:
    feature_map = torch.arange(2 * 2 * 4 * 5.0).reshape(2, 2, 4, 5)
    p = {"weight": torch.eye(12), "bias": torch.zeros(12)}
    rows = on_crops(pair(), feature_map, p)
    assert rows.shape == (2, 2, 2, 12)
    for sample in range(2):
        for i in range(2):
            for j in range(2):
                crop = feature_map[sample, :, i : i + 3, 2 * j : 2 * j + 2]
                assert torch.equal(rows[sample, i, j], crop.flatten())


def test_maps_with_one_and_three_axes() -> None:
    for axes in (1, 3):
        size = (3,) * axes
        conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]

        def converted(m: Tensor, p: Params, size: tuple[int, ...] = size, conv: object = conv) -> Tensor:
            return conv(m, p["weight"].reshape(-1, 1, *size), p["bias"]).movedim(1, -1)  # type: ignore[operator]

        shapes = {"weight": (2, math.prod(size)), "bias": (2,)}
        made = WindowPair("fc", "linear", "", (1, *size), (1,) * axes, shapes, original, converted)
        assert check_window_pair(made, 0).ok


class CroppedMap(nn.Module):
    """A linear layer that reads a part of a window's map, so that it has further positions on a larger map."""

    def __init__(self, padding: int, rows: slice, columns: slice) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.part = nn.Conv2d(3, 4, 3, padding=padding), (..., rows, columns)
        size = self.conv(torch.zeros(1, 3, 9, 8))[self.part].shape
        self.head = nn.Linear(4 * size[2] * size[3], 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x)[self.part].flatten(1))


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(slice(1, -1), slice(1, -1)), (slice(0, 3), slice(2, None)), (slice(0, -2, 2), slice(None))],
)
def test_a_layer_that_reads_a_part_of_the_map(padding: int, rows: slice, columns: slice) -> None:
    network = CroppedMap(padding, rows, columns).eval()
    d = onebyone.convolutionalize(network, window=(9, 8))
    found = onebyone.verify(network, d, torch.randn(1, 3, 9, 8))
    assert found.equivalent, str(found)
    assert [layer.bitwise for layer in found.layers] == [True]
