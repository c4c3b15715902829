"""Correct any-size networks pass under the right target, and the same code catches every injected fault."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.errors import BadInput, InexactWarning, NotEquivalent
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.verification import compare_tiled, verify


def plain(seed: int = 0) -> nn.Sequential:
    """Unpadded; window 8×9, stride 2."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d((2, 1), (2, 1)), nn.Flatten(), nn.Linear(4 * 3 * 7, 6),
        nn.ReLU(), nn.Linear(6, 5),
    )  # fmt: skip


class ByHand(nn.Module):
    """The dense form of `plain`, written without the package, with room for faults."""

    def __init__(self, net: nn.Sequential, fault: str = "") -> None:
        super().__init__()
        self.net, self.fault = net, fault

    def forward(self, image: Tensor) -> Tensor:
        net, fault = self.net, self.fault
        first, second = net[4], net[6]
        x = net[2](net[1](net[0](image)))
        kernel = first.weight.reshape(6, 4, 3, 7)
        if fault == "flatten order":
            kernel = first.weight.reshape(6, 3, 7, 4).permute(0, 3, 1, 2)
        if fault == "offset":
            x = x[..., 1:, :] if x.shape[-2] > 3 else x
        y = F.conv2d(x, kernel, None if fault == "bias" else first.bias, (2, 1) if fault == "stride" else 1)
        y = F.conv2d(F.relu(y), second.weight[:, :, None, None], second.bias)
        if fault == "one place too many":
            y = F.pad(y, (0, 1))
        return y.nan_to_num() / 0 if fault == "infinite" and y.shape[-1] > 1 else y


def dense(fault: str | None = None, **changes: Any) -> tuple[nn.Module, ConvolutionalizedModule]:
    net = plain()
    made = convolutionalize(net, window=(8, 9))
    if fault is not None:
        made = replace(made, model=ByHand(net, fault), pairs=())
    return net, replace(made, **changes)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 13, 12, generator=torch.Generator().manual_seed(5))


def test_an_unpadded_network_equals_its_crops(image: Tensor) -> None:
    net, d = dense()
    v = verify(net, d, image)
    assert v.equivalent, str(v)
    assert v.target == "dense = crops"
    assert v.integer_probe is True
    assert v.windows == 2 * 3 * 4
    assert v.dense is not None
    assert v.dense.ok
    assert v.dense.expected == v.dense.found == (3, 4)
    assert v.max_abs_difference is not None
    assert v.bound is not None
    assert 0 <= v.max_abs_difference <= v.bound < 1e-3
    assert v.dense.float64_difference is not None
    assert v.dense.float64_limit is not None
    assert v.dense.planted_shift is not None
    assert v.dense.float64_difference <= v.dense.float64_limit < 1e-11 < v.dense.planted_shift
    assert v.class_agreement == 1
    assert v.gradients is not None
    assert v.gradients.ok
    assert v.gradients.compared == 1 + len(list(net.parameters()))
    assert all(f.seen_by_integers for layer in v.layers for f in layer.faults)
    names = {f.name for f in v.layers[0].faults}
    assert {"bias dropped", "offset by one position", "flatten order swapped (channels last)"} <= names
    json.dumps(v.to_dict(), allow_nan=False)
    assert "dense = crops" in str(v)


def test_a_dense_form_by_hand_without_faults_passes(image: Tensor) -> None:
    """The planted faults below are caught for themselves, not for being written by hand."""
    net, d = dense("")
    v = verify(net, d, image, gradients=False)
    assert v.equivalent, str(v)
    assert v.integer_probe is None


@pytest.mark.parametrize(
    "fault", ["flatten order", "bias", "stride", "offset", "one place too many", "infinite"]
)
def test_faulty_dense_networks_are_caught(fault: str, image: Tensor) -> None:
    net, d = dense(fault)
    v = verify(net, d, image, gradients=False)
    assert not v.equivalent
    with pytest.raises(NotEquivalent):
        v.check()
    if fault in ("stride", "offset", "one place too many"):
        assert any("positions" in p for p in v.problems)


def test_a_shift_inside_the_map_is_caught(image: Tensor) -> None:
    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).roll(1, -1)

    net, d = dense()
    v = verify(net, replace(d, model=Shifted(d.model)), image, gradients=False)
    assert not v.equivalent
    assert v.dense is not None
    assert not v.dense.ok
    assert any("float64" in p for p in v.problems)


@pytest.mark.parametrize(
    ("layers", "window"),
    [
        (
            [nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(4 * 3 * 3, 5)],
            (8, 8),
        ),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(4 * 3 * 3, 5)], (8, 8)),
        ([nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 5 * 5, 5)], (5, 5)),
    ],
    ids=["ceil_mode", "padded max-pool", "padded convolution"],
)
def test_padded_networks_have_their_own_name_and_fail_under_the_other(
    layers: list[nn.Module], window: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*layers)
    with pytest.warns(InexactWarning, match="9×9") if "ceil_mode=True" in str(net) else nullcontext():
        d = convolutionalize(net, window)
    v = verify(net, d)
    assert v.equivalent, str(v)
    assert v.target == "dense ≈ crops (padded)"
    assert v.bound is None
    assert v.max_abs_difference is not None
    assert v.max_abs_difference > 1e-3
    assert v.dense is not None
    assert v.dense.ok  # measured, with the reasons for the difference
    assert v.dense.why.startswith("measured: ")
    assert v.dense.relative_to_spread is not None
    assert v.class_agreement is not None
    called_exact = replace(d, geometry=replace(d.geometry, exact=True, inexact_because=()))
    v = verify(net, called_exact)
    assert v.target == "dense = crops"
    assert not v.equivalent
    assert any("dense and crops differ" in p for p in v.problems)


def _tampered(pair: Any, how: str) -> Any:
    def converted(source: Tensor, params: dict[str, Tensor]) -> Tensor:
        if how == "bias":
            params = params | {"bias": params["bias"] * 0}
        if how == "order":
            params = params | {"weight": params["weight"].reshape(6, 3, 7, 4).movedim(-1, 1).reshape(6, -1)}
        y = pair.converted(source, params)
        if how == "shift":
            y = y.roll(1, 2)
        return torch.cat([y, y[:, :1]], 1) if how == "places" else y

    return replace(pair, converted=converted)


@pytest.mark.parametrize("how", ["bias", "order", "shift", "places"])
def test_faulty_layers_are_caught_by_integers_and_named(how: str, image: Tensor) -> None:
    net, d = dense()
    v = verify(net, replace(d, pairs=(_tampered(d.pairs[0], how), *d.pairs[1:])), image, gradients=False)
    assert not v.equivalent
    assert v.integer_probe is False
    assert v.first_difference == d.pairs[0].path
    assert [layer.ok for layer in v.layers] == [False, True]


def test_a_nan_weight_never_passes(image: Tensor) -> None:
    net, d = dense()
    with torch.no_grad():
        net[4].weight[0, 0] = float("nan")
    v = verify(net, d, image)
    assert not v.equivalent
    assert any("NaN" in p for p in v.problems)


def test_a_nan_pixel_never_passes(image: Tensor) -> None:
    net, d = dense()
    image[0, 0, 0, 0] = float("nan")
    assert not verify(net, d, image).equivalent


def test_other_weights_than_the_originals_are_caught(image: Tensor) -> None:
    _, d = dense()
    v = verify(plain(seed=1), d, image)
    assert not v.equivalent


def test_one_window_is_extended_and_a_smaller_image_refused() -> None:
    net, d = dense()
    v = verify(net, d, torch.randn(1, 3, 8, 9))
    assert v.equivalent
    assert v.windows is not None
    assert v.windows > 1
    with pytest.raises(BadInput, match="smaller than the window"):
        verify(net, d, torch.randn(1, 3, 7, 9))
    with pytest.raises(BadInput, match="an image"):
        verify(net, d, torch.randn(1, 4, 8, 9))


def test_a_limit_on_windows_is_said(image: Tensor) -> None:
    net, d = dense()
    v = verify(net, d, image, max_windows=5)
    assert v.windows == 5
    assert any("5 of 24 windows" in note for note in v.unverified)


def test_an_operator_without_a_rule_leaves_no_bound_and_says_so() -> None:
    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erfcx(x.clamp(0, 1))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16, 3))
    d = convolutionalize(net, (6, 6))
    odd = nn.Sequential(net, Cube())
    odd_dense = replace(d, model=nn.Sequential(d.model, Cube()), original=odd)
    v = verify(odd, odd_dense, gradients=False)
    assert v.equivalent, str(v)
    assert v.bound is None
    assert v.dense is not None
    assert "erfcx" in v.dense.bound_missing
    assert v.dense.float64_limit is not None
    assert v.dense.float64_limit < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, image: Tensor) -> None:
    net = plain().to(dtype)
    v = verify(net, convolutionalize(net, (8, 9)), image.to(dtype))
    assert v.equivalent, str(v)
    assert (v.bound is None) == (dtype == torch.bfloat16)


def test_signals_and_volumes() -> None:
    torch.manual_seed(0)
    line = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6, 4))
    cube = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(2 * 8, 3))
    for net, window in ((line, (8,)), (cube, (6, 6, 6))):
        v = verify(net, convolutionalize(net, window))
        assert v.equivalent, str(v)
        assert v.bound is not None


def test_tiles_have_a_name_of_their_own() -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    same = compare_tiled(whole, whole.clone().numpy())
    assert same.equivalent
    assert same.target == "tiled = whole"
    near = whole.clone()
    near[1, 2, 3] += 1e-3
    assert not compare_tiled(whole, near).equivalent
    assert compare_tiled(whole, near, bound=2e-3).equivalent
    assert not compare_tiled(whole, near, bound=5e-4).equivalent
    near[0, 0, 0] = float("nan")
    assert not compare_tiled(whole, near, bound=10).equivalent


class Then(nn.Module):
    """`plain`, and a function of its output."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.net, self.after = plain(), after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(x))


@pytest.mark.parametrize(
    "after",
    [
        lambda z: torch.sigmoid(z[:, 0]),  # (N,): the axis of the only class is dropped
        lambda z: z.argmax(1),
        lambda z: z > 0,
        lambda z: z.double(),
        lambda z: z.half(),
    ],
    ids=["one number", "argmax", "mask", "to float64", "to float16"],
)
def test_outputs_of_other_shapes_and_types_are_compared(after: Any, image: Tensor) -> None:
    net = Then(after).eval()
    d = convolutionalize(net, (8, 9))
    v = verify(net, d, image, gradients=False)
    assert v.equivalent, str(v)
    assert v.dense is not None
    assert v.dense.class_agreement in (None, 1.0)


def test_the_reason_for_a_missing_bound_is_one_line(image: Tensor) -> None:
    net = Then(F.logsigmoid).eval()
    v = verify(net, convolutionalize(net, (8, 9)), image)
    assert v.equivalent
    assert v.dense is not None
    assert v.dense.bound_missing == "aten.log_sigmoid.default"
    assert all("\n" not in note for note in v.unverified)
