"""Parts of the any-size verification on networks made by hand: positions, images, bounds, each from both sides."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.results import ClassMap
from onebyone.verification import any_size_checks, crop_comparison
from onebyone.verification.any_size_checks import _check_class_map, _compare_one_window, _crop
from onebyone.verification.any_size_setup import (
    AnySizeFindings,
    AnySizeSetup,
    _fixed_batch,
    _image,
    _size_of_several_windows,
)
from onebyone.verification.class_map_checks import why_not_local, why_wrong_positions
from onebyone.verification.crop_comparison import _any_size_outputs, _check_agreement, _check_bounds
from onebyone.verification.result import CLASS_MAP, CLASS_MAP_MEASURED, DENSE_EXACT, DENSE_PADDED, DenseCheck
from onebyone.verification.window_crops import Differences, all_windows


def geometry(
    window: tuple[int, ...] = (4, 3), stride: tuple[int, ...] = (2, 1), exact: bool = True
) -> Geometry:
    zeros, reasons = (0,) * len(window), () if exact else ("padding",)
    return Geometry(window, stride, zeros, window, zeros, exact, reasons)


class Positions(nn.Module):
    """Means of windows: as many positions as the geometry says, and `extra` more on each axis for some sizes."""

    def __init__(
        self, kernel: tuple[int, int], stride: tuple[int, int], extra: dict[int, int] | None = None
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.extra = kernel, stride, extra or {}

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.avg_pool2d(x, self.kernel, self.stride)
        return nn.functional.pad(y, (0, 0, 0, self.extra.get(x.shape[2], 0)))


def setup_of(network: Any, image: Tensor, **changes: Any) -> AnySizeSetup:
    settings: dict[str, Any] = {
        "model": network, "network": network, "class_map": None, "compared": network, "geometry": geometry(),
        "smallest_image": (4, 3), "classifier": network, "analysed": network, "image": image, "fixed_batch": None,
        "dtype": torch.float32, "seed": 0,
    }  # fmt: skip
    return AnySizeSetup(**settings | changes)


# numbers of positions


def test_the_positions_of_an_image_and_of_one_just_too_small_for_a_second_window() -> None:
    """A window of 4×3 at stride 2×1: 5×3 pixels have one position, and 8×6 have 3×4."""
    image = torch.rand(2, 1, 8, 6)
    findings = AnySizeFindings()
    outputs, expected, actual = _any_size_outputs(setup_of(Positions((4, 3), (2, 1)), image), findings)
    assert outputs is not None
    assert (outputs[0].shape, expected, actual) == ((2, 1, 3, 4), (3, 4), (3, 4))
    assert findings.problems == []
    for rows, problem in (
        (5, "(5, 3) pixels give (2, 1) positions, (1, 1) are expected"),
        (8, "(8, 6) pixels give (4, 4) positions, (3, 4) are expected"),
    ):
        findings = AnySizeFindings()
        network = Positions((4, 3), (2, 1), {rows: 1})
        outputs, expected, actual = _any_size_outputs(setup_of(network, image), findings)
        assert outputs is None
        assert findings.problems == [problem]
        assert (expected, actual) == (((1, 1), (2, 1)) if rows == 5 else ((3, 4), (4, 4)))


def test_a_network_that_fails_on_larger_images() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] > 5:
                raise ValueError("only small images")
            return x.mean((2, 3), keepdim=True)

    findings = AnySizeFindings()
    found = _any_size_outputs(setup_of(Fixed(), torch.rand(1, 1, 8, 6)), findings)
    assert found == (None, (3, 4), ())
    assert findings.problems == ["the dense network fails on (8, 6) pixels: ValueError: only small images"]


@pytest.mark.parametrize("rows", [4, 5, 6])
def test_the_positions_of_a_class_map_from_its_smallest_image_on(rows: int) -> None:
    """Images of 4×3, 5×4 (a pixel more) and 6×5 pixels: one position more on the first axis at one of them."""

    def blank(size: Any) -> Tensor:
        return torch.zeros(1, 1, *size)

    right = Positions((4, 3), (2, 1))
    assert why_wrong_positions(right, (4, 3), (2, 1), blank) == ""
    extra = {4: 0, 5: 1, 6: 2}[rows]
    found = {4: "2×1", 5: "2×2", 6: "3×3"}[rows].replace("×", ", ")
    expected = {4: "1, 1", 5: "1, 2", 6: "2, 3"}[rows]
    wrong = why_wrong_positions(Positions((4, 3), (2, 1), {rows: 1}), (4, 3), (2, 1), blank)
    assert wrong == f"{4 + extra}×{3 + extra} pixels give ({found}) positions, ({expected}) are expected"

    def failing(image: Tensor) -> Tensor:
        if image.shape[2] == rows:
            raise RuntimeError("no")
        return right(image)

    assert why_wrong_positions(failing, (4, 3), (2, 1), blank) == (
        f"the class map fails on {4 + extra}×{3 + extra} pixels: RuntimeError: no"
    )


def test_positions_of_a_class_map_depend_on_their_own_pixels() -> None:
    """In float64 within 2⁻²⁴·√(2⁻⁵³/2⁻²⁴) of the largest value: less than that is rounding."""
    image = torch.rand(1, 1, 9, 8, generator=torch.Generator().manual_seed(0))

    class Leaking(nn.Module):
        """Adds something to every position if there are several."""

        def __init__(self, addend: float) -> None:
            super().__init__()
            self.addend = addend

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.avg_pool2d(x, (4, 3), (2, 1))
            return y + self.addend if y.shape[2] > 1 else y

    largest = float(nn.functional.avg_pool2d(image.double(), (4, 3), (2, 1)).max())
    limit = largest * 2.0**-24 * math.sqrt(2.0**-53 / 2.0**-24)
    assert why_not_local(Leaking(0.9 * limit), (4, 3), (2, 1), image, 64) == ""
    message = why_not_local(Leaking(1.1 * limit), (4, 3), (2, 1), image, 64)
    assert message == (
        f"positions of the class map differ by {1.1 * limit:.3g} from the map of their own pixels"
    )
    assert why_not_local(Leaking(math.nan), (4, 3), (2, 1), image, 64) != ""
    not_finite = nn.Sequential(nn.Conv2d(1, 1, (4, 3), (2, 1)))
    nn.init.constant_(not_finite[0].weight, math.nan)
    assert why_not_local(not_finite, (4, 3), (2, 1), image, 64) != ""


@pytest.mark.parametrize("pads", [False, True])
def test_a_class_map_that_pads_is_checked_for_its_positions_only(
    monkeypatch: pytest.MonkeyPatch, pads: bool
) -> None:
    class_map = ClassMap((2, 2))
    reasons = (class_map.reason, *(("padding",) if pads else ()))
    shape = Geometry((4, 3), (2, 1), (0, 0), (4, 3), (0, 0), False, reasons)
    setup = setup_of(Positions((4, 3), (2, 1)), torch.rand(2, 1, 8, 6), class_map=class_map, geometry=shape)
    limits = []

    def local(*arguments: Any) -> str:
        limits.append(arguments[-1])
        assert arguments[3].shape == (1, 1, 8, 6)
        return "not local"

    monkeypatch.setattr(any_size_checks, "why_not_local", local)
    findings = AnySizeFindings()
    _check_class_map(setup, findings)
    assert findings.problems == ([] if pads else ["not local"])
    assert limits == ([] if pads else [64])
    findings = AnySizeFindings()
    _check_class_map(setup_of(setup.network, setup.image), findings)
    assert findings.problems == [], "no class map, no check"
    wrong = setup_of(Positions((4, 3), (2, 1), {4: 1}), setup.image, class_map=class_map, geometry=shape)
    _check_class_map(wrong, findings)
    assert findings.problems == ["4×3 pixels give (2, 1) positions, (1, 1) are expected"]


# images


def test_an_image_of_three_two_and_four_windows() -> None:
    """With a remainder at the far edge, one pixel too small for another window."""
    for window, stride, size in (
        ((4,), (2,), [4 + 2 * 2 + 1]),
        ((4, 3), (2, 1), [9, 4]),
        ((4, 3, 5), (2, 1, 4), [9, 4, 5 + 3 * 4 + 3]),
    ):
        shape = geometry(window, stride)
        assert _size_of_several_windows(shape) == size
        assert shape.positions(tuple(size)) == (3, 2, 4)[: len(size)]


def test_an_example_of_one_window_becomes_a_mosaic_and_a_larger_one_stays() -> None:
    shape = geometry()
    assert _image(None, 1, False, shape) is None
    window = torch.rand(3, 1, 4, 3)
    mosaic = _image(window, 1, False, shape)
    assert mosaic is not None
    assert mosaic.shape == (2, 1, 9, 4), "two samples are enough"
    assert torch.equal(mosaic[:, :, :4, :3], window[:2])
    for pixels in ((6, 3), (4, 4), (6, 4)):  # a second window on one axis is enough
        image = torch.rand(3, 1, *pixels, requires_grad=True)
        same = _image({"image": image}, 1, False, shape)
        assert same is not None
        assert torch.equal(same, image)
        assert not same.requires_grad
    almost = _image(torch.rand(1, 1, 5, 3), 1, False, shape)
    assert almost is not None
    assert almost.shape == (1, 1, 9, 4)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.rand(1, 2, 8, 8),
            r"x has shape \(1, 2, 8, 8\); an image \(N, 1, …\) with 2 axes was expected",
        ),
        (torch.rand(1, 1, 8), r"x has shape \(1, 1, 8\)"),
        (torch.rand(1, 8, 8), r"x has shape \(1, 8, 8\)"),
        ("no tensor", r"x has shape None; an image \(N, 1, …\)"),
        (torch.rand(1, 1, 3, 8), r"x is \(3, 8\) pixels, smaller than the window of \(4, 3\)"),
        (torch.rand(1, 1, 8, 2), r"x is \(8, 2\) pixels, smaller than the window of \(4, 3\)"),
    ],
)
def test_examples_that_are_no_images(x: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        _image(x, 1, False, geometry())


def test_an_example_without_a_channel_axis() -> None:
    image = _image(torch.rand(2, 8, 8), 1, True, geometry())
    assert image is not None
    assert image.shape == (2, 1, 8, 8)
    image = _image(torch.rand(2, 1, 8, 8), 1, True, geometry())
    assert image is not None
    assert image.shape == (2, 1, 8, 8), "one that has the axis already"


def test_the_batch_that_a_program_takes() -> None:
    network = nn.Conv2d(1, 1, 2)
    assert _fixed_batch(network) is None
    program = torch.export.export(network, (torch.rand(3, 1, 4, 4),))
    assert _fixed_batch(program) == 3
    program.example_inputs = None
    assert _fixed_batch(program) is None


def test_crops_of_the_corner_in_the_batch_that_the_network_takes() -> None:
    image = torch.rand(3, 1, 8, 6)
    assert torch.equal(_crop(setup_of(None, image), (4, 3)), image[:2, :, :4, :3])
    assert torch.equal(_crop(setup_of(None, image, fixed_batch=3), (4, 3)), image[:, :, :4, :3])
    five = _crop(setup_of(None, image, fixed_batch=5), (4, 3))
    assert torch.equal(five, image[:1, :, :4, :3].expand(5, 1, 4, 3))


def test_the_name_of_what_is_verified() -> None:
    for class_map, exact, target in (
        (None, True, DENSE_EXACT),
        (None, False, DENSE_PADDED),
        (ClassMap((2, 2)), True, CLASS_MAP),
        (ClassMap((2, 2)), False, CLASS_MAP_MEASURED),
    ):
        setup = setup_of(None, torch.rand(2, 3, 8, 6), class_map=class_map, geometry=geometry(exact=exact))
        assert setup.target == target
    assert setup.blank((5, 4)).shape == (1, 3, 5, 4)
    assert not setup.blank((5, 4)).any()


def test_gradients_of_a_head_that_is_not_linear_keep_the_names_of_the_network() -> None:
    """Also those of a layer that is called as the network is called inside of the means of its map."""

    class Named(nn.Module):
        def __init__(self, pooled: bool) -> None:
            super().__init__()
            self.map, self.pooled = nn.Conv2d(1, 2, 1), pooled
            nn.init.constant_(self.map.weight, 0.75)
            nn.init.constant_(self.map.bias, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.map(x)
            pooled = y.mean((2, 3)) if self.pooled else nn.functional.avg_pool2d(y, (4, 3), (2, 1))
            return pooled.relu()

    image = torch.rand(2, 1, 8, 6, generator=torch.Generator().manual_seed(0))
    class_map = ClassMap((2, 2), ("relu",))
    setup = setup_of(
        Named(False), image, class_map=class_map, classifier=Named(True), geometry=geometry((6, 4))
    )
    _, gradient = _compare_one_window(setup, AnySizeFindings(), True)
    assert gradient is not None
    assert (gradient.ok, gradient.why, gradient.compared) == (True, "", 3)


def test_a_head_that_is_not_linear_is_compared_at_one_position() -> None:
    """And listed, where the network takes no image of one position."""

    class Classifier(nn.Module):
        def __init__(self, least: int) -> None:
            super().__init__()
            self.least = least

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] < self.least:
                raise ValueError("too small")
            return x.mean((2, 3)).relu()

    class Map(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x, (4, 3), (2, 1)).relu()

    class_map = ClassMap((2, 2), ("relu",))
    image = torch.randn(2, 1, 8, 6, generator=torch.Generator().manual_seed(0))
    findings = AnySizeFindings()
    setup = setup_of(Map(), image, class_map=class_map, classifier=Classifier(4), geometry=geometry((6, 4)))
    check, _ = _compare_one_window(setup, findings, False)
    assert (check.problems, findings.unverified) == ([], [])
    assert check.max_error is not None
    setup = setup_of(Map(), image, class_map=class_map, classifier=Classifier(5), geometry=geometry((6, 4)))
    check, gradient = _compare_one_window(setup, findings, False)
    assert (check.max_error, gradient) == (None, None)
    assert findings.unverified == [
        "the head at one position: the network takes no image of 4×3 pixels (ValueError)"
    ]


# differences from crops


def differences(ratio: float | None) -> Differences:
    return Differences(0.5, 0.1, 1.0, None, None if ratio is None else 0.25, ratio)


@pytest.mark.parametrize("ratio", [None, 0.5, 1.0, 1.001])
def test_a_difference_in_the_networks_own_type(monkeypatch: pytest.MonkeyPatch, ratio: float | None) -> None:
    """At most its bound; and the problems of the comparison in float64 come after it."""
    check = DenseCheck("t", False, 1, (1,), (1,))
    limits = []

    def in_float64(*arguments: Any) -> Any:
        limits.append(len(arguments[3]))
        arguments[1].unverified.append("a note of float64")
        return check, ["in float64 too"]

    monkeypatch.setattr(crop_comparison, "_compare_in_float64", in_float64)
    windows: Any = all_windows((10, 10), 1, (1, 1), (1, 1))
    setup: Any = SimpleNamespace()
    findings = AnySizeFindings()
    _, problems = _check_bounds(setup, findings, check, differences(ratio), windows, setup)
    assert findings.unverified == ["a note of float64"]
    own = ["dense and crops differ by 0.5, 1 times the bound"] if ratio == 1.001 else []
    assert problems == [*own, "in float64 too"]
    assert limits == [64]

    def fails(*_: Any) -> Any:
        raise ValueError("no float64")

    monkeypatch.setattr(crop_comparison, "_compare_in_float64", fails)
    findings = AnySizeFindings()
    _, problems = _check_bounds(setup, findings, check, differences(ratio), windows, setup)
    neither = ["dense and crops can be compared neither by a bound nor in float64"] if ratio is None else []
    assert problems == own + neither
    assert findings.unverified == ["dense against crops in float64: ValueError: no float64"]


@pytest.mark.parametrize(
    ("share", "problems", "warnings"),
    [(None, 0, 0), (0.4999, 1, 0), (0.5, 0, 1), (0.9499, 0, 1), (0.95, 0, 0), (1.0, 0, 0)],
)
def test_shares_of_windows_with_the_same_class(share: float | None, problems: int, warnings: int) -> None:
    check = DenseCheck("t", False, 1000, (1,), (1,), class_agreement=share)
    setup: Any = SimpleNamespace(class_map=None)
    findings = AnySizeFindings()
    _check_agreement(setup, findings, check, 0.5)
    assert (len(findings.problems), len(findings.warnings)) == (problems, warnings)
    assert all(
        "of 1,000 windows have the same best class" in s for s in findings.problems + findings.warnings
    )
    findings = AnySizeFindings()
    _check_agreement(SimpleNamespace(class_map=ClassMap((2, 2))), findings, check, 0.5)  # type: ignore[arg-type]
    assert findings == AnySizeFindings(), "a class map's best class is not that of its windows"
