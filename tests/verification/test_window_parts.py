"""Windows, tiles, and checks without a run, on networks and tensors made by hand: fields, defaults and exact limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.pytorch.modules.module_pair import ModulePair
from onebyone.results import WindowPair
from onebyone.verification import window_crops
from onebyone.verification.error_rules import NoRuleError
from onebyone.verification.result import TILED, DenseCheck, Verification
from onebyone.verification.structure_checks import _equal, _finite, _holds, misplaced, not_finite, untied
from onebyone.verification.tiling import compare_tiled
from onebyone.verification.window_crops import (
    DifferenceBounds,
    OutputBounds,
    all_windows,
    batch_size,
    compare_rows,
    mosaic,
    run_on_windows,
)
from onebyone.verification.window_probes import (
    _assert_exact,
    _largest_sum,
    _magnitude,
    _terms,
    check_window_pair,
)
from tests.verification.test_window_probes import Params, pair

EXACT = 2**53


# windows of an image


def test_a_sample_keeps_what_is_known_of_all_windows() -> None:
    windows = all_windows((3, 4), 2, [5, 6], [1, 2])
    assert (windows.window, windows.stride, windows.total, len(windows)) == ((5, 6), (1, 2), 24, 24)
    taken = windows.sample(5)
    assert (taken.window, taken.stride, taken.total, len(taken)) == ((5, 6), (1, 2), 24, 5)
    assert taken.index.tolist() == [windows.index[row].tolist() for row in (0, 6, 12, 17, 23)]


def test_sizes_of_batches() -> None:
    windows = all_windows((9, 9), 1, (3, 1), (1, 1))
    for channels, expected in ((1, 64), (2**14, 42), (2**21, 1), (10923, 63)):
        size = batch_size(windows, channels, None)
        assert (size, type(size)) == (expected, int)
    assert batch_size(all_windows((2,), 1, (1,), (1,)), 1, None) == 2
    assert batch_size(windows, 1, 100) == 100


def test_progress_is_not_needed() -> None:
    windows = all_windows((1, 3), 1, (1, 1), (1, 1))
    (rows,) = run_on_windows(lambda x: [x.flatten(1)], torch.arange(3.0).reshape(1, 1, 1, 3), windows, 2)
    assert rows.flatten().tolist() == [0, 1, 2]


def test_a_mosaic_of_two_axes_is_one_piece_of_memory() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    larger = mosaic(x, (3, 5))
    assert larger[0, 0].tolist() == [[1, 2, 2, 1, 1], [3, 4, 4, 3, 3], [3, 4, 4, 3, 3]]
    assert larger.is_contiguous()


class Analysis:
    """In place of the analysis of a PyTorch network: keeps its example, and has no rule for a call."""

    examples: list[Tensor]

    def __init__(self, network: Any, example: Tensor) -> None:
        if network == "no rule":
            raise NoRuleError("aten.first\nand more")
        self.examples.append(example)

    def __call__(self, x: Tensor) -> Any:
        raise NoRuleError("aten.second\nand more")


def test_the_examples_of_the_analysis_and_its_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original is analysed on a batch of copies of the first window, the any-size network on the image."""
    Analysis.examples = []
    monkeypatch.setattr(window_crops, "RunningError", Analysis)
    image, windows = torch.rand(2, 3, 6, 7), all_windows((3, 2), 2, (4, 3), (1, 4))
    analysis = DifferenceBounds("original", "dense", image, windows, 5)
    first, second = Analysis.examples
    assert torch.equal(first, image[:1, :, :4, :3].repeat(5, 1, 1, 1))
    assert first.is_contiguous()
    assert second is image
    assert (analysis.missing, analysis.batch) == ("", 5)
    assert analysis(image, windows) == OutputBounds([], "aten.second")
    for networks in (("no rule", "dense"), ("original", "no rule")):
        refused = DifferenceBounds(*networks, image, windows, 5)
        assert refused.missing == "aten.first"
        assert refused(image, windows) == OutputBounds([], "aten.first")
    assert OutputBounds([]).missing == ""


def test_figures_of_one_and_of_two_values() -> None:
    crops, dense = [torch.tensor([[1.0], [4.0]])], [torch.tensor([[1.5], [4.0]])]
    figures = compare_rows(dense, crops, [])
    assert (figures.largest, figures.mean, figures.agreement) == (0.5, 0.25, None)
    assert figures.spread == pytest.approx(3 / math.sqrt(2))
    assert (figures.bound, figures.ratio) == (None, None)
    two = [torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])]
    other = [torch.tensor([[1.0, 2.0], [2.0, 3.0], [1.0, 2.0], [2.0, 1.0]])]
    assert compare_rows(other, two, []).agreement == 0.5
    several = [*two, torch.ones(4, 1)]
    assert compare_rows([two[0], torch.zeros(4, 1)], several, []).agreement == 1.0, "that of the first output"
    limits = [torch.full((4, 2), 4.0), torch.full((4, 1), 0.5)]
    figures = compare_rows([two[0] + 1, torch.zeros(4, 1)], several, limits)
    assert (figures.bound, figures.ratio, figures.largest) == (4.0, 2.0, 1.0)


# probes


def shapes_of_maps(map_shape: tuple[int, ...], step: tuple[int, ...]) -> list[Tensor]:
    """The maps that a probe runs the converted layer on."""
    maps: list[Tensor] = []
    size = map_shape[1:]
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]

    def converted(m: Tensor, p: Params) -> Tensor:
        maps.append(m)
        return conv(m, p["weight"].reshape(-1, *map_shape), p["bias"], step).movedim(1, -1)  # type: ignore[operator]

    def original(crops: Tensor, p: Params) -> Tensor:
        return F.linear(crops.flatten(1), p["weight"], p["bias"])

    shapes = {"weight": (2, math.prod(map_shape)), "bias": (2,)}
    check = check_window_pair(WindowPair("fc", "linear", "", map_shape, step, shapes, original, converted), 3)
    assert check.ok, check.why
    return maps


@pytest.mark.parametrize(
    ("map_shape", "step", "sizes"),
    [
        ((1, 3), (2,), (3 + 2 * 2 + 1,)),
        ((2, 2, 3), (1, 3), (2 + 2, 3 + 3 + 2)),
        ((2, 3, 3), (2, 3), (3 + 2 * 2 + 1 + 0, 3 + 3 + 2)),
        ((1, 2, 2, 2), (1, 2, 1), (2 + 2 + 0, 2 + 2 + 1, 2 + 3)),
    ],
)
def test_maps_have_three_two_and_four_windows_along_their_axes(
    map_shape: tuple[int, ...], step: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    if len(sizes) > 1 and sizes[0] == sizes[1]:
        sizes = (sizes[0] + step[0], *sizes[1:])
    maps = shapes_of_maps(map_shape, step)
    assert {tuple(m.shape) for m in maps} == {(2, map_shape[0], *sizes)}
    assert torch.equal(maps[-1], maps[0].roll(1, -1)), "the last fault starts one position late"
    assert all(torch.equal(m, maps[0]) for m in maps[:-1])
    assert torch.equal(maps[0], shapes_of_maps(map_shape, step)[0]), "the seed decides"


def test_a_map_of_two_positions_has_a_flatten_order() -> None:
    def converted(m: Tensor, p: Params) -> Tensor:
        return F.conv2d(m, p["weight"].reshape(-1, 2, 2, 1), p["bias"]).movedim(1, -1)

    check = check_window_pair(
        pair(converted, map_shape=(2, 2, 1), step=(1, 1), parameter_shapes={"weight": (4, 4), "bias": (4,)}),
        0,
    )
    assert check.ok, check.why
    assert "flatten order swapped (channels last)" in {f.name for f in check.faults}


def test_a_second_form_without_faults_leaves_those_of_the_first() -> None:
    calls: list[int] = []

    def failing(m: Tensor, p: Params) -> Tensor:
        calls.append(1)
        raise RuntimeError("no kernel")

    wrong = check_window_pair(pair(lambda m, p: m, unfolded=failing), 0)
    assert (wrong.ok, wrong.bitwise, calls) == (False, False, []), (
        "the second form of a wrong layer is not run"
    )
    assert (wrong.path, wrong.kind, wrong.law, wrong.faults) == ("fc", "aten.linear", "flatten", ())
    broken = check_window_pair(pair(unfolded=failing), 0)
    assert (broken.path, broken.kind, broken.law) == ("fc", "aten.linear", "flatten")
    assert (broken.ok, broken.bitwise, broken.why) == (False, False, "RuntimeError: no kernel")


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("terms", [1, 2, 12, 25088, 2**30])
def test_the_largest_integers_whose_sums_are_exact(terms: int, scaled: bool) -> None:
    shapes: dict[str, tuple[int, ...]] = {"weight": (1, terms)} | ({"scale": (terms,)} if scaled else {})
    m = _magnitude(pair(parameter_shapes=shapes))

    def reached(n: int) -> int:
        return terms * n**3 + terms * n**2 + n if scaled else terms * n**2 + n

    assert reached(m) <= EXACT < reached(m + 1)


def test_sums_of_too_many_terms_are_of_ones() -> None:
    assert _magnitude(pair(parameter_shapes={"weight": (1, 2**54)})) == 1
    assert (_terms({"weight": (3, 7), "bias": (9,)}), _terms({"weight": (8, 7)})) == (7, 8)


def test_the_largest_sum() -> None:
    assert _largest_sum(3, 5, 7, 11, 13, 17, False) == 3 * 5 * 7 + 11
    assert _largest_sum(3, 5, 7, 11, 13, 17, True) == 3 * 5 * (13 * 7 + 17) + 11


@pytest.mark.parametrize(
    ("params", "largest", "reached"),
    [
        ({"weight": 2**27}, 2**26, EXACT),
        ({"weight": -(2**27), "bias": 1}, 2**26, EXACT + 1),
        ({"weight": 2**27 - 1, "bias": 2**26}, 2**26, EXACT),
        ({"weight": 2**20, "scale": 2**13, "shift": 2**32}, -(2**19), EXACT),
        ({"weight": 2**20, "scale": 2**13, "shift": 2**32, "bias": 2}, 2**19, EXACT + 2),
        ({"weight": 2**20, "scale": 2**13}, 2**20, EXACT),
    ],
)
def test_sums_up_to_two_to_the_53_are_exact(params: dict[str, int], largest: int, reached: int) -> None:
    tensors = {name: torch.full((1, 1), n, dtype=torch.float64) for name, n in params.items()}
    feature_map = torch.full((1, 1, 1), largest, dtype=torch.float64)
    if reached <= EXACT:
        _assert_exact(tensors, feature_map)
        return
    with pytest.raises(ValueError, match=f"sums of the integer probe reach {reached}, more than 2\\^53"):
        _assert_exact(tensors, feature_map)


# tiles


def test_every_figure_of_tiles() -> None:
    whole, bound = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.5)
    bound[1, 2, 3] = 2.0
    for place, ok in (((1, 2, 3), True), ((0, 0, 0), False)):
        tiled = whole.clone()
        tiled[place] = 1.0
        why = "" if ok else "tiled and whole differ by 1: not equal within 2"
        check = DenseCheck(
            TILED, ok, 12, (2, 3, 4), (2, 3, 4), max_abs_difference=1.0, bound=2.0, bound_ratio=0.5 if ok else 2.0,
            why=why,
        )  # fmt: skip
        problems = () if ok else (why,)
        assert compare_tiled(whole, tiled, bound) == Verification(
            ok, TILED, 1.0, dense=check, problems=problems
        )
    other = torch.zeros(2, 3, 5)
    why = "shapes (2, 3, 4) and (2, 3, 5) differ"
    check = DenseCheck(TILED, False, 12, (2, 3, 4), (2, 3, 5), why=why)
    assert compare_tiled(whole, other) == Verification(False, TILED, None, dense=check, problems=(why,))
    exact = compare_tiled(whole, whole)
    assert exact.dense == DenseCheck(
        TILED, True, 12, (2, 3, 4), (2, 3, 4), max_abs_difference=0.0, bound=0.0, bound_ratio=0.0
    )


# structure


class Holder(nn.Module):
    """A module with one parameter and one buffer."""

    def __init__(self, parameter: Tensor, buffer: Tensor) -> None:
        super().__init__()
        self.p = nn.Parameter(parameter, requires_grad=False)
        self.register_buffer("b", buffer)


NAN = torch.tensor([1.0, math.nan])


def test_weights_of_every_type_may_hold_nan() -> None:
    fine = torch.ones(2)
    for bad in (NAN, NAN.double(), torch.complex(fine, NAN), NAN.half()):
        assert not_finite(Holder(bad, fine), "n") == ["n: weight p holds NaN or infinity"]
        assert not_finite(Holder(fine, bad), "n") == ["n: buffer b holds NaN"]
        assert not _finite(bad)
    numbers = torch.tensor([1, 2])
    assert not_finite(Holder(numbers, numbers), "n") == []
    assert not_finite(Holder(fine, torch.zeros(2, device="meta")), "n") == []
    assert not_finite(nn.Sequential(Holder(NAN, fine), Holder(fine, fine)), "n") == [
        "n: weight 0.p holds NaN or infinity"
    ]


def test_a_layer_that_is_used_twice_is_tied_under_both_paths() -> None:
    layer = nn.Linear(2, 2)
    before = nn.Sequential(layer, layer)
    after = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert untied(before, before) == ([], [])
    assert untied(before, nn.Sequential(after[0], after[0])) == ([], [])
    problems, notes = untied(before, after)
    assert problems == [
        f"the weight tied under 0.{name}, 1.{name} is no longer one parameter" for name in ("weight", "bias")
    ]
    assert notes == []
    assert untied(before, nn.Sequential(after[0])) == ([], []), "one of the names is gone"
    after[1].weight = after[0].weight
    assert untied(before, after)[0] == problems[1:], "the bias alone"
    shared = nn.Module()
    shared.layer, shared.again = before, before
    assert misplaced([ModulePair("again.0", layer, layer)], shared, shared) == []


def test_a_layer_holds_tensors_of_the_network_at_its_path() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.BatchNorm1d(2))
    network[1].running_var.fill_(7.0)
    copied = nn.Linear(2, 3)
    copied.load_state_dict(network[0][0].state_dict())
    for path, holds in (
        ("0.0", True),
        ("0", True),
        ("", True),
        ("0.0.weight", True),
        ("0.1", False),
        ("1", False),
    ):
        assert _holds(network, path, copied) == holds
    assert not _holds(network, "0.0", nn.Linear(2, 3)), "other numbers"
    scale = nn.Module()
    scale.p = nn.Parameter(network[1].running_var.clone())
    assert _holds(network, "1", scale), "buffers count"


def test_when_two_tensors_are_equal() -> None:
    one, meta = torch.ones(2), torch.ones(2, device="meta")
    assert _equal(meta, meta)
    assert _equal(one, one.clone())
    assert _equal(NAN, NAN.clone())
    assert _equal(nn.Parameter(one), one)
    assert _equal(meta, torch.ones(2, device="meta"))
    for a, b in (
        (one, 2 * one), (one, one.double()), (one, one[:1]), (one, meta), (meta, one), (NAN, one), (one, NAN),
        (torch.tensor([1, 2]), torch.tensor([1, 3])), (one.double(), one), (one, one[None]),
    ):  # fmt: skip
        assert not _equal(a, b)
