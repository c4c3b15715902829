"""What an any-size verification sets up, and what it compares before crops: every part, on networks made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.laws.geometry import Geometry
from onebyone.results import ClassMap
from onebyone.verification import any_size_checks, class_map_checks
from onebyone.verification.any_size_checks import (
    _check_class_map,
    _check_layers,
    _compare_one_window,
    _compare_weights,
    _crop,
    _gradient_map,
)
from onebyone.verification.any_size_setup import AnySizeFindings, prepare
from onebyone.verification.channel_axis import WithoutChannels
from onebyone.verification.class_map_checks import MeansOfMap, why_not_local, why_wrong_positions
from onebyone.verification.output_comparison import NetworkCheck
from onebyone.verification.result import LayerCheck
from tests.verification.test_any_size_parts import Positions, geometry, setup_of

WINDOW, STRIDE = (4, 3), (2, 1)


def image(samples: int = 1, channels: int = 1) -> Tensor:
    return torch.rand(samples, channels, 8, 6, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- what is set up


def conversion(original: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "original": original, "class_map": None, "geometry": geometry(), "nominal": WINDOW, "bare": False,
        "channels": 3,
    }  # fmt: skip
    return SimpleNamespace(**settings | changes)


def test_every_part_of_the_setup() -> None:
    model, network = Positions(WINDOW, STRIDE), nn.Conv2d(3, 2, WINDOW, STRIDE)
    x, findings = image(2, 3), AnySizeFindings()
    setup = prepare(model, network, conversion(model), x, 7, findings)
    assert (setup.model, setup.network, setup.compared) == (model, network, network)
    assert (setup.classifier, setup.analysed, setup.class_map) == (model, model, None)
    assert (setup.geometry, setup.smallest_image) == (geometry(), WINDOW)
    assert torch.equal(setup.image, x)
    assert (setup.fixed_batch, setup.dtype, setup.seed) == (None, torch.float32, 7)
    assert findings == AnySizeFindings()


def test_the_network_that_is_given_is_analysed_and_not_the_one_that_was_converted() -> None:
    model, network = Positions(WINDOW, STRIDE), nn.Conv2d(3, 2, WINDOW, STRIDE)
    other = Positions(WINDOW, STRIDE)
    setup = prepare(model, network, conversion(other), image(1, 3), 0, AnySizeFindings())
    assert setup.analysed is model
    program = torch.export.export(network, (torch.rand(3, 3, *WINDOW),))
    setup = prepare(model, network, conversion(program), image(1, 3), 0, AnySizeFindings())
    assert setup.analysed is program
    assert setup.classifier is model


def test_the_type_of_the_model_or_of_the_example_whichever_is_shorter() -> None:
    network = nn.Conv2d(3, 2, WINDOW, STRIDE)
    for model, x, dtype in (
        (nn.Linear(1, 1).double(), image(1, 3).double(), torch.float64),
        (nn.Linear(1, 1).double(), image(1, 3), torch.float32),
        (nn.Linear(1, 1), image(1, 3).half(), torch.float16),
        (nn.Linear(1, 1).half(), None, torch.float16),
    ):
        setup = prepare(model, network, conversion(model), x, 0, AnySizeFindings())
        assert setup.dtype == dtype
        if x is None:
            assert setup.image.dtype == dtype


def test_random_pixels_depend_on_the_seed_alone() -> None:
    """Two images of several windows, on the network's device."""
    network = Positions(WINDOW, STRIDE)
    drawn = []
    for state, seed in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(state)
        findings = AnySizeFindings()
        drawn.append(prepare(network, network, conversion(network), None, seed, findings).image)
        assert findings.unverified == ["no example image: random pixels were used instead"]
    assert drawn[0].shape == (2, 3, 9, 4)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    meta = prepare(network, nn.Linear(1, 1, device="meta"), conversion(network), None, 0, AnySizeFindings())
    assert meta.image.device.type == "meta"


def test_a_program_is_analysed_as_it_was_exported() -> None:
    program = torch.export.export(nn.Conv2d(3, 2, WINDOW), (torch.rand(5, 3, 4, 3),))
    model, network = program.module(), nn.Conv2d(3, 2, WINDOW, STRIDE)
    setup = prepare(model, network, conversion(program), image(1, 3), 0, AnySizeFindings())
    assert (setup.model, setup.classifier, setup.analysed, setup.fixed_batch) == (model, model, program, 5)


def test_a_classifier_without_a_channel_axis() -> None:
    model, network = nn.Flatten(), nn.Conv2d(1, 12, WINDOW, STRIDE)
    setup = prepare(
        model, network, conversion(model, bare=True, channels=1), torch.rand(2, 8, 6), 0, AnySizeFindings()
    )
    assert isinstance(setup.classifier, WithoutChannels)
    assert (setup.classifier.network, setup.analysed, setup.model) == (model, setup.classifier, model)
    assert setup.image.shape == (2, 1, 8, 6)


def test_the_means_of_a_class_map_are_compared() -> None:
    class_map = ClassMap((2, 2))
    network, shape = Positions(WINDOW, STRIDE), geometry(exact=False)
    dense = conversion(network, class_map=class_map, geometry=shape, nominal=(6, 4))
    setup = prepare(network, network, dense, image(1, 3), 0, AnySizeFindings())
    assert (setup.class_map, setup.network, setup.smallest_image) == (class_map, network, WINDOW)
    assert isinstance(setup.compared, MeansOfMap)
    assert (setup.compared.pool, setup.geometry.window) == ((2, 2), (6, 4))
    assert setup.geometry.inexact_because == ("padding",)


# ---------------------------------------------------------------- weights, layers, one window


def test_weights_and_pixels_that_are_not_finite_are_named() -> None:
    model = nn.Conv2d(1, 1, WINDOW, STRIDE)
    network = nn.Sequential(model)
    nn.init.constant_(model.bias, math.nan)
    x = image()
    x[0, 0, 0, 0] = math.inf
    findings = AnySizeFindings(["before"], ["noted before"])
    weights = _compare_weights(replace(setup_of(model, x), network=network), findings)
    assert findings.problems == [
        "before", "original: weight bias holds NaN or infinity", "the image holds NaN or infinity"
    ]  # fmt: skip
    assert weights is not None
    assert weights.compared == 0, "the hand-written network has other names"
    assert findings.unverified[0] == "noted before"
    assert findings.unverified[1].endswith("not held by the converted network under the original's names")
    findings = AnySizeFindings()
    assert _compare_weights(setup_of(model.forward, image()), findings) is None, "a callable has no weights"
    assert findings == AnySizeFindings()


def test_a_weight_that_differs_is_a_problem_beside_earlier_ones() -> None:
    model, network = nn.Conv2d(1, 1, 2), nn.Conv2d(1, 1, 2)
    findings = AnySizeFindings(["before"])
    weights = _compare_weights(replace(setup_of(model, image()), network=network), findings)
    assert weights is not None
    assert findings.problems == ["before", *weights.problems]
    assert len(weights.problems) == 2


def test_every_layer_that_fails_is_a_problem_beside_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(pair: Any, seed: int) -> LayerCheck:
        return LayerCheck(pair, "Linear", ok=pair == "b", why=f"{seed}")

    monkeypatch.setattr(any_size_checks, "check_window_pair", checked)
    findings, steps = AnySizeFindings(["before"]), []
    pairs: Any = ["a", "b", "c"]
    checks = _check_layers(setup_of(None, image(), seed=10), findings, pairs, lambda *s: steps.append(s))
    assert [c.path for c in checks] == pairs
    assert isinstance(checks, tuple)
    assert findings.problems == ["before", "a: 11", "c: 13"]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_the_gradients_of_a_class_map_without_channels_are_renamed_twice() -> None:
    setup: Any = SimpleNamespace(classifier=WithoutChannels(nn.Linear(3, 2)), class_map=ClassMap((2, 2)))
    gradient = torch.ones(1)
    rename = _gradient_map(setup, nonlinear=False)
    assert rename is not None
    assert rename({"map.fc.weight": gradient}) == {"network.fc.weight": gradient}
    rename = _gradient_map(setup, nonlinear=True)
    assert rename is not None
    assert rename({"map.fc.weight": gradient}) == {"network.map.fc.weight": gradient}


def test_one_window_is_compared_in_its_own_form() -> None:
    """The means of a class map on a window of the classifier; the map itself on its smallest image."""
    sizes: list[tuple[int, ...]] = []

    class Recorded(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.scale = inner, nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(tuple(x.shape))
            y: Tensor = self.inner(x) * self.scale
            return y

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    positions = Positions(WINDOW, STRIDE)
    classifier = Recorded(Mean())
    for nonlinear, shape in (((), (2, 1, 6, 4)), (("relu",), (2, 1, 4, 3))):
        sizes.clear()
        setup = setup_of(
            Recorded(positions), image(2), class_map=ClassMap((2, 2), nonlinear), classifier=classifier,
            geometry=geometry((6, 4)), compared=Recorded(Mean()),
        )  # fmt: skip
        findings = AnySizeFindings()
        check, gradients = _compare_one_window(setup, findings, True)
        assert set(sizes) == {shape}
        assert (check.problems, findings) == ([], AnySizeFindings())
        assert gradients is not None
        assert (gradients.ok, gradients.compared) == (True, 2), "those of the image and of the scale"
        assert _compare_one_window(setup, findings, False)[1] is None


def test_crops_of_as_many_samples_as_there_are() -> None:
    x = image(3)
    assert torch.equal(_crop(setup_of(None, x, fixed_batch=2), WINDOW), x[:2, :, :4, :3])
    assert torch.equal(_crop(setup_of(None, x, fixed_batch=1), WINDOW), x[:1, :, :4, :3])


# ---------------------------------------------------------------- class maps


def test_the_smallest_image_of_a_class_map_is_tried_at_every_stride() -> None:
    right = Positions(WINDOW, (2, 3))

    def smallest_fails(x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) == WINDOW:
            raise RuntimeError("too small")
        return right(x)

    def blank(size: Any) -> Tensor:
        return torch.zeros(1, 1, *size)

    assert why_wrong_positions(right, WINDOW, (2, 3), blank) == ""
    assert why_wrong_positions(smallest_fails, WINDOW, (2, 3), blank) == (
        "the class map fails on 4×3 pixels: RuntimeError: too small"
    )


def test_a_position_that_differs_by_exactly_the_limit_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.avg_pool2d(x, WINDOW, STRIDE)
            return y + 2.0**-20 if y.shape[2] > 1 else y

    for limit, message in (
        (2.0**-20, ""),
        (2.0**-21, f"positions of the class map differ by {2.0**-20:.3g} from the map of their own pixels"),
    ):
        monkeypatch.setattr(
            class_map_checks.output_comparison, "limit64", lambda error, u, limit=limit: limit
        )
        assert why_not_local(Leaking(), WINDOW, STRIDE, torch.zeros(1, 1, 8, 6), 64) == message


def test_the_problem_of_a_class_map_is_added_to_others() -> None:
    class_map = ClassMap((2, 2))
    shape = Geometry(WINDOW, STRIDE, (0, 0), WINDOW, (0, 0), False, (class_map.reason,))
    wrong = setup_of(Positions(WINDOW, STRIDE, {4: 1}), image(), class_map=class_map, geometry=shape)
    findings = AnySizeFindings(["before"])
    _check_class_map(wrong, findings)
    assert findings.problems == ["before", "4×3 pixels give (2, 1) positions, (1, 1) are expected"]
    right = setup_of(Positions(WINDOW, STRIDE), image(), class_map=class_map, geometry=shape)
    _check_class_map(right, findings)
    assert len(findings.problems) == 2


def test_what_the_check_of_one_window_notes_is_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(setup: Any, findings: AnySizeFindings, gradients: bool) -> tuple[NetworkCheck, None]:
        findings.unverified.append("a note of one window")
        return NetworkCheck(), None

    monkeypatch.setattr(any_size_checks, "_compare_one_window", compare)
    model, network = Positions(WINDOW, STRIDE), Positions(WINDOW, STRIDE)
    dense = conversion(model, model=network, runnable=lambda n: n, pairs=())
    v = any_size_checks.verify_any_size(model, dense, image(1, 3), 0, False, 4, 0.9, lambda *_: None)
    assert "a note of one window" in v.unverified
