"""Verify a network for images of any size against the classifier that it was made from, run on every cropped window.

There are several targets, and each has a name of its own (`tiling.py` adds the one of tiles):

- "dense = crops": the network does not pad. |dense − crops| must be within the sum of the two sides' running error
  bounds, in the network's own dtype and again in float64, where the bound is about nine digits finer and shows every
  real fault.
- "dense ≈ crops (padded)": the network pads, or pools over the image, so that the outputs really differ. The
  differences are measured. What must be equal: the output for an image of exactly one window, the number of positions,
  and the layers.
- "means of the class map = crops" (`head="cam"`): both cases above, for means of the map over as many positions as the
  pool averaged. If the head after the pool is not linear, the differences are measured; what must be equal is the
  output for an image of exactly one position, if the network takes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.records import by
from onebyone.results import AnySize, WindowPair
from onebyone.verification import structure_checks
from onebyone.verification.any_size_setup import AnySizeFindings, AnySizeSetup, prepare
from onebyone.verification.channel_axis import WithoutChannels, under_network
from onebyone.verification.class_map_checks import of_the_map, why_not_local, why_wrong_positions
from onebyone.verification.crop_comparison import FLOAT64_WINDOWS, compare_with_crops
from onebyone.verification.end_to_end import compare_networks
from onebyone.verification.evaluation_context import proof_settings
from onebyone.verification.network_run import Grads, Runner, as_callable
from onebyone.verification.output_comparison import NetworkCheck
from onebyone.verification.result import DenseCheck, GradientCheck, LayerCheck, Verification, WeightCheck
from onebyone.verification.weights import compare_weights
from onebyone.verification.window_crops import rows_of
from onebyone.verification.window_probes import check_window_pair

Progress = Callable[[int, int], None]


def verify_any_size(
    model: Any,
    dense: AnySize,
    x: Any,
    seed: int,
    gradients: bool,
    max_windows: int,
    min_agreement: float,
    report: Progress,
) -> Verification:
    """`verify` for what `convolutionalize` returned."""
    findings = AnySizeFindings()
    network = as_callable(dense.runnable(dense.model), "converted.model")
    with proof_settings(seed, model, network):
        setup = prepare(model, network, dense, x, seed, findings)
        weights = _compare_weights(setup, findings)
        layers = _check_layers(setup, findings, dense.pairs, report)
        if any("NaN" in problem for problem in findings.problems):
            return _verification(setup, findings, weights, layers, NetworkCheck(), None, None)
        _check_class_map(setup, findings)
        one_window, gradient = _compare_one_window(setup, findings, gradients)
        crops = compare_with_crops(setup, findings, max_windows, min_agreement, report)
        return _verification(setup, findings, weights, layers, one_window, gradient, crops)


def _check_layers(
    setup: AnySizeSetup, findings: AnySizeFindings, pairs: Sequence[WindowPair], report: Progress
) -> tuple[LayerCheck, ...]:
    """Probe every lifted layer with integers."""
    checks = []
    for done, pair in enumerate(pairs, 1):
        checks.append(check_window_pair(pair, setup.seed + done))
        report(done, len(pairs))
    findings.problems += [f"{c.path}: {c.why}" for c in checks if not c.ok]
    return tuple(checks)


def _compare_weights(setup: AnySizeSetup, findings: AnySizeFindings) -> WeightCheck | None:
    """Compare the weights of both networks, and require finite weights and pixels."""
    weights = None
    if isinstance(setup.model, nn.Module):
        findings.problems += structure_checks.not_finite(setup.model, "original")
        weights = compare_weights(setup.model, setup.network, subset=True)
        findings.problems += weights.problems
        findings.unverified += weights.unverified
    if not bool(torch.isfinite(setup.image).all()):
        findings.problems.append("the image holds NaN or infinity")
    return weights


def _compare_one_window(
    setup: AnySizeSetup, findings: AnySizeFindings, gradients: bool
) -> tuple[NetworkCheck, GradientCheck | None]:
    """On an image of exactly one window both networks compute one function, whether they pad or not.

    With a class map whose head is not linear, means of the map have no counterpart. There, the map itself is
    compared on an image of exactly one position.
    """
    nonlinear = setup.class_map is not None and bool(setup.class_map.nonlinear)
    crop = _crop(setup, setup.smallest_image if nonlinear else setup.geometry.window)
    converted = setup.network if nonlinear else setup.compared
    if nonlinear:
        try:
            with torch.no_grad():
                setup.classifier(crop)
        except Exception as error:
            findings.unverified.append(
                f"the head at one position: the network takes no image of {by(setup.smallest_image)} pixels "
                f"({type(error).__name__})"
            )
            return NetworkCheck(), None
    original = Runner(setup.classifier, crop, setup.seed, rows_of)
    outcome = compare_networks(
        original, Runner(converted, crop, setup.seed, rows_of), gradients, _gradient_map(setup, nonlinear)
    )
    return outcome.check, outcome.gradients


def _gradient_map(setup: AnySizeSetup, nonlinear: bool) -> Callable[[Grads], Grads] | None:
    """From the names of the compared network's parameters to those of the original; None if they are the same."""
    steps: list[Callable[[Grads], Grads]] = []
    if setup.class_map is not None and not nonlinear:
        steps.append(of_the_map)
    if isinstance(setup.classifier, WithoutChannels):
        steps.append(under_network)
    if not steps:
        return None

    def map_gradients(gradients: Grads) -> Grads:
        for step in steps:
            gradients = step(gradients)
        return gradients

    return map_gradients


def _crop(setup: AnySizeSetup, size: Sequence[int]) -> Tensor:
    crop = setup.image[(slice(setup.fixed_batch or 2), slice(None), *(slice(n) for n in size))]
    if setup.fixed_batch and len(crop) < setup.fixed_batch:
        crop = crop[:1].expand(setup.fixed_batch, *crop.shape[1:])
    return crop


def _check_class_map(setup: AnySizeSetup, findings: AnySizeFindings) -> None:
    """Check the positions of a class map, and that each depends on its own pixels only if nothing pads."""
    if setup.class_map is None:
        return
    smallest, stride = setup.smallest_image, setup.geometry.stride
    problem = why_wrong_positions(setup.network, smallest, stride, setup.blank)
    pads = any(reason != setup.class_map.reason for reason in setup.geometry.inexact_because)
    if not problem and not pads:
        problem = why_not_local(setup.network, smallest, stride, setup.image[:1], FLOAT64_WINDOWS)
    findings.problems += [problem] if problem else []


def _verification(
    setup: AnySizeSetup,
    findings: AnySizeFindings,
    weights: WeightCheck | None,
    layers: tuple[LayerCheck, ...],
    one_window: NetworkCheck,
    gradient: GradientCheck | None,
    crops: DenseCheck | None,
) -> Verification:
    """The outcome of all checks."""
    problems = [*findings.problems, *(f"on one window: {p}" for p in one_window.problems)]
    if gradient and not gradient.ok:
        problems.append(f"gradients {gradient.why}")
    return Verification(
        equivalent=not problems,
        target=setup.target,
        max_error=one_window.max_error,
        rounding_ratio=one_window.rounding_ratio,
        float64_error=one_window.float64_error,
        float64_limit=one_window.float64_limit,
        layers=layers,
        weights=weights,
        gradients=gradient,
        dense=crops,
        first_difference=next((c.path for c in layers if not c.ok), None),
        problems=tuple(dict.fromkeys(problems)),
        unverified=tuple(dict.fromkeys([*findings.unverified, *one_window.unverified])),
        warnings=tuple(findings.warnings),
    )
