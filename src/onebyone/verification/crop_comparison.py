"""Compare an any-size network's outputs with those of cropped windows, within derived bounds or by class agreement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from onebyone.records import ENOUGH_AGREEMENT
from onebyone.verification import output_comparison
from onebyone.verification.any_size_setup import AnySizeFindings, AnySizeSetup
from onebyone.verification.calls import observe_operators
from onebyone.verification.network_run import Observation, in_one_line, plain_call
from onebyone.verification.pytree import leaves, wide
from onebyone.verification.result import DenseCheck
from onebyone.verification.window_crops import (
    DifferenceBounds,
    Differences,
    OutputBounds,
    WindowPositions,
    all_windows,
    batch_size,
    compare_rows,
    rows_of,
    run_on_windows,
)

#: At most this many windows are also compared in float64.
FLOAT64_WINDOWS = 64
Progress = Callable[[int, int], None]


def compare_with_crops(
    setup: AnySizeSetup, findings: AnySizeFindings, max_windows: int, min_agreement: float, report: Progress
) -> DenseCheck:
    """Compare the any-size outputs with every cropped window, or with an even sample of `max_windows`."""
    outputs, expected, actual = _any_size_outputs(setup, findings)
    not_compared = DenseCheck(setup.target, False, 0, expected, actual, why="not compared")
    if outputs is None:
        return not_compared
    all_positions = all_windows(expected, len(setup.image), setup.geometry.window, setup.geometry.stride)
    windows = all_positions.sample(max_windows)
    if len(windows) < len(all_positions):
        findings.unverified.append(
            f"compared on {len(windows):,} of {len(all_positions):,} windows, evenly spread"
        )
    batch = batch_size(windows, setup.image.shape[1], setup.fixed_batch)
    with torch.no_grad():
        crops = run_on_windows(
            lambda x: rows_of(setup.classifier(x)),
            setup.image,
            windows,
            batch,
            lambda done: report(done, len(windows)),
        )
    dense = [windows.pick(t) for t in outputs]
    if [t.shape for t in dense] != [t.shape for t in crops]:
        findings.problems.append("dense outputs and the crops' have different shapes")
        return not_compared
    analysis = None
    bounds = OutputBounds([])
    if setup.geometry.exact:
        analysis = DifferenceBounds(setup.analysed, setup.compared, setup.image, windows, batch)
        bounds = analysis(setup.image, windows)
    differences = compare_rows(dense, crops, bounds.bounds)
    check = DenseCheck(
        setup.target,
        False,
        len(windows),
        expected,
        actual,
        max_abs_difference=differences.largest,
        mean_abs_difference=differences.mean,
        relative_to_spread=differences.largest / differences.spread if differences.spread else None,
        class_agreement=differences.agreement,
        bound=differences.bound,
        bound_ratio=differences.ratio,
        bound_missing=bounds.missing,
    )
    if not math.isfinite(differences.largest):
        findings.problems.append("dense outputs, or the crops', hold NaN or infinity")
        return check
    if analysis is None:
        _check_agreement(setup, findings, check, min_agreement)
        return replace(check, ok=True, why="measured: " + "; ".join(setup.geometry.inexact_because))
    check, problems = _check_bounds(setup, findings, check, differences, windows, analysis)
    findings.problems += problems
    return replace(check, ok=not problems, why="; ".join(problems))


def _any_size_outputs(
    setup: AnySizeSetup, findings: AnySizeFindings
) -> tuple[list[Tensor] | None, tuple[int, ...], tuple[int, ...]]:
    """The any-size outputs, the expected number of positions per axis and the actual one.

    The number of positions is also checked on an image that is one pixel too small for a second window.
    """
    window, stride = setup.geometry.window, setup.geometry.stride
    short = tuple(w + s - 1 for w, s in zip(window, stride, strict=True))
    outputs: list[Tensor] | None = None
    expected: tuple[int, ...] = ()
    for image in (setup.blank(short), setup.image):
        size = tuple(image.shape[2:])
        expected = tuple(setup.geometry.positions(size))
        try:
            with torch.no_grad():
                outputs = [t for _, t in leaves(plain_call(setup.compared)(image))]
        except Exception as error:
            findings.problems.append(f"the dense network fails on {size} pixels: {in_one_line(error)}")
            return None, expected, ()
        counts = [tuple(t.shape[2:]) for t in outputs]
        wrong = next((count for count in counts if count != expected), None)
        if wrong is not None:
            findings.problems.append(f"{size} pixels give {wrong} positions, {expected} are expected")
            return None, expected, wrong
    return outputs, expected, expected


def _check_bounds(
    setup: AnySizeSetup,
    findings: AnySizeFindings,
    check: DenseCheck,
    differences: Differences,
    windows: WindowPositions,
    analysis: DifferenceBounds,
) -> tuple[DenseCheck, list[str]]:
    """Compare the differences with their bounds, in the network's own dtype and in float64."""
    problems = []
    if differences.ratio is not None and differences.ratio > 1:
        problems.append(
            f"dense and crops differ by {differences.largest:.3g}, {differences.ratio:.3g} times the bound"
        )
    try:
        check, problems64 = _compare_in_float64(
            setup, findings, check, windows.sample(FLOAT64_WINDOWS), analysis
        )
        return check, problems + problems64
    except _ShortOfFloat64Error as reason:
        why = str(reason)
    except Exception as error:
        why = in_one_line(error)
    findings.unverified.append(f"dense against crops in float64: {why}")
    if differences.ratio is None:
        problems.append("dense and crops can be compared neither by a bound nor in float64")
    return check, problems


class _ShortOfFloat64Error(Exception):
    """A network rounds to a shorter type inside, by more than the limit in float64; the message says so."""


def _check_agreement(
    setup: AnySizeSetup, findings: AnySizeFindings, check: DenseCheck, min_agreement: float
) -> None:
    """A low share of windows with the same best class is a problem, or a warning; not for class maps."""
    if check.class_agreement is None or setup.class_map is not None:
        return
    share = (
        f"{check.class_agreement:.1%} of {check.windows:,} windows have the same best class as when cropped"
    )
    if check.class_agreement < min_agreement:
        findings.problems.append(f"only {share}, fewer than the share of min_agreement={min_agreement:g}")
    elif check.class_agreement < ENOUGH_AGREEMENT:
        findings.warnings.append(f"{share}, fewer than {ENOUGH_AGREEMENT:.0%}")


def _compare_in_float64(
    setup: AnySizeSetup,
    findings: AnySizeFindings,
    check: DenseCheck,
    windows: WindowPositions,
    analysis: DifferenceBounds,
) -> tuple[DenseCheck, list[str]]:
    """The finer comparison, its limit, and an injected shift by one position that the limit must expose.

    The limit is a running error bound, or that of `output_comparison` if an operator has no error rule.

    Raises
    ------
    _ShortOfFloat64Error
        if the limit is exceeded by networks that cast to a shorter type inside, as `softmax(dtype=torch.float32)` does.
    """
    model, dense = output_comparison.copies_in(torch.float64, setup.classifier, setup.compared)
    image, run = setup.image.to(torch.float64), Observation()
    with torch.no_grad(), observe_operators(before=run.record_operator):
        outputs = [t for _, t in leaves(plain_call(dense)(image))]
        crops = run_on_windows(lambda x: rows_of(model(x)), image, windows, analysis.batch)
    bounds = analysis(image, windows)
    limits = bounds.bounds
    note = f"no derived bound ({bounds.missing}): in float64 the limit for whole networks was used instead"
    if not limits:
        limits = _limits_without_rules(setup, crops, check.max_abs_difference or 0.0)
    differences = compare_rows([windows.pick(t) for t in outputs], crops, limits)
    assert differences.ratio is not None
    if differences.ratio > 1 and run.short_of_float64:
        raise _ShortOfFloat64Error(run.short_of_float64)
    if not bounds.bounds:
        findings.unverified.append(note)
    shifted = compare_rows([windows.pick(t.roll(1, -1)) for t in outputs], crops, limits)
    can_shift = outputs[0].shape[-1] > 1
    check = replace(
        check,
        float64_difference=differences.largest,
        float64_limit=differences.bound,
        planted_shift=shifted.largest if can_shift else None,
    )
    assert shifted.ratio is not None
    problems = []
    if differences.ratio > 1:
        problems.append(
            f"in float64 dense and crops differ by {differences.largest:.3g}, "
            f"{differences.ratio:.3g} times the limit"
        )
    if can_shift and shifted.ratio <= 1:
        findings.unverified.append("the bound is too coarse to see a shift by one position on this image")
    return check, problems


def _limits_without_rules(setup: AnySizeSetup, crops: list[Tensor], difference: float) -> list[Tensor]:
    """The limits of `output_comparison` in float64, given the difference in the network's own dtype."""
    u = output_comparison.unit(setup.dtype) if setup.dtype != torch.float64 else 2.0**-24
    errors = [max(difference, u * float(wide(c).abs().max())) for c in crops]
    return [
        torch.full_like(wide(c), output_comparison.limit64(error, u))
        for c, error in zip(crops, errors, strict=True)
    ]
