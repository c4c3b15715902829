"""Verify a network for images of any size against the classifier that it was made from, run on every cropped window.

There are several targets, and each has a name of its own (`tiling.py` adds the one of tiles):

- "dense = crops": the network does not pad. |dense − crops| must be within the sum of the two sides' running error
  bounds, in the network's own dtype and again in float64, where the bound is about nine digits finer and shows every
  real fault.
- "dense ≈ crops (padded)": the network pads, or pools over the image, so that the outputs really differ. The
  differences are measured. What must be equal: the output for an image of exactly one window, the number of positions,
  and the layers.
- "means of the class map = crops" (`head="cam"`): both cases above, for means of the map over as many positions as the
  pool averaged. If the head after the pool is not linear, the differences are measured; what must be equal is the output
  for an image of exactly one position, if the network takes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from onebyone.errors import BadInput
from onebyone.records import ENOUGH_AGREEMENT, by
from onebyone.results import AnySize
from onebyone.verification import output_comparison, structure_checks
from onebyone.verification.channel_axis import WithoutChannels, under_network
from onebyone.verification.class_map_means import means_of, of_the_map
from onebyone.verification.end_to_end import compare_networks
from onebyone.verification.evaluation_context import proof_settings
from onebyone.verification.network_run import Grads, Runner, in_one_line, plain_call
from onebyone.verification.output_comparison import NetworkCheck
from onebyone.verification.pytree import leaves, wide
from onebyone.verification.result import (
    CLASS_MAP,
    CLASS_MAP_MEASURED,
    DENSE_EXACT,
    DENSE_PADDED,
    DenseCheck,
    GradientCheck,
    LayerCheck,
    Verification,
    WeightCheck,
)
from onebyone.verification.weights import compare_weights
from onebyone.verification.window_crops import (
    DifferenceBounds,
    Differences,
    OutputBounds,
    WindowPositions,
    all_windows,
    batch_size,
    compare_rows,
    mosaic,
    rows_of,
    run_on_windows,
)
from onebyone.verification.window_probes import check_window_pair

#: At most this many windows are also compared in float64.
FLOAT64_WINDOWS = 64
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
    with proof_settings(seed, model, dense.model):
        checks = _AnySizeChecks(model, dense, x, seed, max_windows, min_agreement)
        checks.compare_weights()
        layers = checks.check_layers(report)
        if any("NaN" in problem for problem in checks.problems):
            return checks.verification(layers, NetworkCheck(), None, None)
        if checks.class_map is not None and checks.check_map_positions():
            checks.check_map_locality()
        one_window, gradient = checks.compare_one_window(gradients)
        crops = checks.compare_with_crops(report)
        return checks.verification(layers, one_window, gradient, crops)


class _AnySizeChecks:
    """The steps of one verification, and what they found.

    `compared` is the network whose outputs are compared with crops: the any-size network itself, or the means of its
    class map. `classifier` is the original as a callable that takes images with a channel axis; `analysed` is what the
    error analysis exports for it.
    """

    def __init__(
        self, model: Any, dense: AnySize, x: Any, seed: int, max_windows: int, min_agreement: float
    ) -> None:
        self.model, self.network, self.seed = model, dense.model, seed
        self.smallest_image = dense.geometry.window
        self.class_map = dense.class_map
        self.compared, self.geometry = dense.model, dense.geometry
        if self.class_map is not None:
            self.compared, self.geometry = means_of(dense, self.class_map)
        self.analysed = dense.original if isinstance(dense.original, ExportedProgram) else model
        self.classifier = model
        if dense.bare:
            self.classifier = self.analysed = WithoutChannels.of(self.analysed)
        self.pairs = dense.pairs
        self.max_windows, self.min_agreement = max_windows, min_agreement
        exact, measured = (
            (DENSE_EXACT, DENSE_PADDED) if self.class_map is None else (CLASS_MAP, CLASS_MAP_MEASURED)
        )
        self.target = exact if self.geometry.exact else measured
        self.problems: list[str] = []
        self.unverified: list[str] = []
        self.warnings: list[str] = []
        self.weights: WeightCheck | None = None
        self.dtype = output_comparison.own_dtype(model, x)
        self.image = self._image(x, dense.channels)
        self.fixed_batch = self._fixed_batch()

    def _image(self, x: Any, channels: int) -> Tensor:
        """The image that is compared: x if it holds several windows, a mosaic of x if it holds one, else noise.

        A mosaic or noise has at least 3 and 2 windows along the axes, and a remainder at the far edge that is too small
        for another one.
        """
        window, stride = self.geometry.window, self.geometry.stride
        device = next(iter(self.compared.parameters()), torch.zeros(())).device
        size = [w + n * s + s - 1 for w, n, s in zip(window, (2, 1, 3), stride, strict=False)]
        if x is None:
            self.unverified.append("no example image: random pixels were used instead")
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randn(2, channels, *size, generator=generator).to(device, self.dtype)
        image = leaves(x)[0][1] if leaves(x) else None
        if (
            isinstance(self.classifier, WithoutChannels)
            and image is not None
            and image.dim() == len(window) + 1
        ):
            image = image.unsqueeze(1)
        if image is None or image.dim() != len(window) + 2 or image.shape[1] != channels:
            shape = None if image is None else tuple(image.shape)
            raise BadInput(
                f"x has shape {shape}; an image (N, {channels}, …) with {len(window)} axes was expected"
            )
        pixels = tuple(image.shape[2:])
        if any(have < w for have, w in zip(pixels, window, strict=True)):
            raise BadInput(f"x is {pixels} pixels, smaller than the window of {window}")
        if any(have >= w + s for have, w, s in zip(pixels, window, stride, strict=True)):
            return image.detach()
        return mosaic(image.detach()[:2], size)

    def _fixed_batch(self) -> int | None:
        """The batch size of the example that a program was exported with; None for a module."""
        if not isinstance(self.analysed, ExportedProgram) or self.analysed.example_inputs is None:
            return None
        return int(leaves(self.analysed.example_inputs[0])[0][1].shape[0])

    def check_layers(self, report: Progress) -> tuple[LayerCheck, ...]:
        """Probe every lifted layer with integers."""
        checks = []
        for done, pair in enumerate(self.pairs, 1):
            checks.append(check_window_pair(pair, self.seed + done))
            report(done, len(self.pairs))
        self.problems += [f"{c.path}: {c.why}" for c in checks if not c.ok]
        return tuple(checks)

    def compare_weights(self) -> None:
        """Compare the weights of both networks, and require finite weights and pixels."""
        if isinstance(self.model, nn.Module):
            self.problems += structure_checks.not_finite(self.model, "original")
            self.weights = compare_weights(self.model, self.network, subset=True)
            self.problems += self.weights.problems
            self.unverified += self.weights.unverified
        if not bool(torch.isfinite(self.image).all()):
            self.problems.append("the image holds NaN or infinity")

    def compare_one_window(self, gradients: bool) -> tuple[NetworkCheck, GradientCheck | None]:
        """On an image of exactly one window both networks compute one function, whether they pad or not.

        With a class map whose head is not linear, means of the map have no counterpart. There, the map itself is
        compared on an image of exactly one position.
        """
        nonlinear = self.class_map is not None and bool(self.class_map.nonlinear)
        crop = self._crop(self.smallest_image if nonlinear else self.geometry.window)
        converted = self.network if nonlinear else self.compared
        if nonlinear:
            try:
                with torch.no_grad():
                    self.classifier(crop)
            except Exception as error:
                self.unverified.append(
                    f"the head at one position: the network takes no image of {by(self.smallest_image)} pixels "
                    f"({type(error).__name__})"
                )
                return NetworkCheck(), None
        original = Runner(self.classifier, crop, self.seed, rows_of)
        outcome = compare_networks(
            original, Runner(converted, crop, self.seed, rows_of), gradients, self._gradient_map(nonlinear)
        )
        return outcome.check, outcome.gradients

    def _gradient_map(self, nonlinear: bool) -> Callable[[Grads], Grads] | None:
        """From the names of the compared network's parameters to those of the original; None if they are the same."""
        steps: list[Callable[[Grads], Grads]] = []
        if self.class_map is not None and not nonlinear:
            steps.append(of_the_map)
        if isinstance(self.classifier, WithoutChannels):
            steps.append(under_network)
        if not steps:
            return None

        def back(gradients: Grads) -> Grads:
            for step in steps:
                gradients = step(gradients)
            return gradients

        return back

    def _crop(self, size: Sequence[int]) -> Tensor:
        crop = self.image[(slice(0, self.fixed_batch or 2), slice(None), *(slice(0, n) for n in size))]
        if self.fixed_batch and len(crop) < self.fixed_batch:
            crop = crop[:1].expand(self.fixed_batch, *crop.shape[1:])
        return crop

    def check_map_positions(self) -> bool:
        """Whether a class map has as many positions as its geometry says, from the smallest image on."""
        window, stride = self.smallest_image, self.geometry.stride
        for extra in (0, *(s - 1 for s in stride), stride[0]):
            size = [n + extra for n in window]
            expected = tuple((n - w) // s + 1 for n, w, s in zip(size, window, stride, strict=True))
            try:
                with torch.no_grad():
                    counts = [tuple(t.shape[2:]) for _, t in leaves(self.network(self._blank(size)))]
            except Exception as error:
                self.problems.append(
                    f"the class map fails on {by(size)} pixels: {type(error).__name__}: {error}"
                )
                return False
            if any(count != expected for count in counts):
                self.problems.append(f"{by(size)} pixels give {counts[0]} positions, {expected} are expected")
                return False
        return True

    def check_map_locality(self) -> None:
        """If nothing pads, a position of the map must equal the map of its own pixels alone; compared in float64."""
        assert self.class_map is not None
        if any(reason != self.class_map.reason for reason in self.geometry.inexact_because):
            return
        (network,) = output_comparison.copies_in(torch.float64, self.network)
        image = self.image[:1].to(torch.float64)
        with torch.no_grad():
            maps = [t for _, t in leaves(network(image))]
            positions = all_windows(tuple(maps[0].shape[2:]), 1, self.smallest_image, self.geometry.stride)
            positions = positions.sample(FLOAT64_WINDOWS)
            batch = batch_size(positions, image.shape[1], None)
            alone = run_on_windows(lambda x: rows_of(network(x)), image, positions, batch)
        limits = [
            torch.full_like(a, output_comparison.limit64(2.0**-24 * float(a.abs().max()), 2.0**-24))
            for a in alone
        ]
        differences = compare_rows([positions.pick(t) for t in maps], alone, limits)
        if differences.ratio is None or differences.ratio > 1:
            self.problems.append(
                f"positions of the class map differ by {differences.largest:.3g} from the map of their own pixels"
            )

    def _blank(self, size: Sequence[int]) -> Tensor:
        return self.image.new_zeros(1, self.image.shape[1], *size)

    def _dense_outputs(self) -> tuple[list[Tensor] | None, tuple[int, ...], tuple[int, ...]]:
        """The any-size outputs, the expected number of positions per axis and the actual one.

        The number of positions is also checked on an image that is one pixel too small for a second window.
        """
        window, stride = self.geometry.window, self.geometry.stride
        short = tuple(w + s - 1 for w, s in zip(window, stride, strict=True))
        outputs: list[Tensor] | None = None
        expected: tuple[int, ...] = ()
        for image in (self._blank(short), self.image):
            size = tuple(image.shape[2:])
            expected = tuple(self.geometry.positions(size))
            try:
                with torch.no_grad():
                    outputs = [t for _, t in leaves(plain_call(self.compared)(image))]
            except Exception as error:
                self.problems.append(f"the dense network fails on {size} pixels: {in_one_line(error)}")
                return None, expected, ()
            counts = [tuple(t.shape[2:]) for t in outputs]
            wrong = next((count for count in counts if count != expected), None)
            if wrong is not None:
                self.problems.append(f"{size} pixels give {wrong} positions, {expected} are expected")
                return None, expected, wrong
        return outputs, expected, expected

    def compare_with_crops(self, report: Progress) -> DenseCheck:
        """Compare the any-size outputs with every cropped window, or with an even sample of `max_windows`."""
        outputs, expected, actual = self._dense_outputs()
        not_compared = DenseCheck(self.target, False, 0, expected, actual, why="not compared")
        if outputs is None:
            return not_compared
        every = all_windows(expected, len(self.image), self.geometry.window, self.geometry.stride)
        windows = every.sample(self.max_windows)
        if len(windows) < len(every):
            self.unverified.append(f"compared on {len(windows):,} of {len(every):,} windows, evenly spread")
        batch = batch_size(windows, self.image.shape[1], self.fixed_batch)
        with torch.no_grad():
            crops = run_on_windows(
                lambda x: rows_of(self.classifier(x)),
                self.image,
                windows,
                batch,
                lambda done: report(done, len(windows)),
            )
        dense = [windows.pick(t) for t in outputs]
        if [t.shape for t in dense] != [t.shape for t in crops]:
            self.problems.append("dense outputs and the crops' have different shapes")
            return not_compared
        analysis = None
        bounds = OutputBounds([])
        if self.geometry.exact:
            analysis = DifferenceBounds(self.analysed, self.compared, self.image, windows, batch)
            bounds = analysis(self.image, windows)
        differences = compare_rows(dense, crops, bounds.bounds)
        check = DenseCheck(
            self.target,
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
        return self._concluded(check, differences, windows, analysis)

    def _concluded(
        self,
        check: DenseCheck,
        differences: Differences,
        windows: WindowPositions,
        analysis: DifferenceBounds | None,
    ) -> DenseCheck:
        """The check with its outcome: against the bounds, or, for a network that pads, by class agreement."""
        if not math.isfinite(differences.largest):
            self.problems.append("dense outputs, or the crops', hold NaN or infinity")
            return check
        if analysis is None:
            self._check_agreement(check)
            return replace(check, ok=True, why="measured: " + "; ".join(self.geometry.inexact_because))
        problems = []
        if differences.ratio is not None and differences.ratio > 1:
            problems.append(
                f"dense and crops differ by {differences.largest:.3g}, {differences.ratio:.3g} times the bound"
            )
        try:
            check, problems64 = self._compare_in_float64(check, windows.sample(FLOAT64_WINDOWS), analysis)
            problems += problems64
        except Exception as error:
            self.unverified.append(f"dense against crops in float64: {in_one_line(error)}")
            if differences.ratio is None:
                problems.append("dense and crops can be compared neither by a bound nor in float64")
        self.problems += problems
        return replace(check, ok=not problems, why="; ".join(problems))

    def _check_agreement(self, check: DenseCheck) -> None:
        """A low share of windows with the same best class is a problem, or a warning; not for class maps."""
        if check.class_agreement is None or self.class_map is not None:
            return
        share = f"{check.class_agreement:.1%} of {check.windows:,} windows have the same best class as when cropped"
        if check.class_agreement < self.min_agreement:
            self.problems.append(
                f"only {share}, fewer than the share of min_agreement={self.min_agreement:g}"
            )
        elif check.class_agreement < ENOUGH_AGREEMENT:
            self.warnings.append(f"{share}, fewer than {ENOUGH_AGREEMENT:.0%}")

    def _compare_in_float64(
        self, check: DenseCheck, windows: WindowPositions, analysis: DifferenceBounds
    ) -> tuple[DenseCheck, list[str]]:
        """The finer comparison, its limit, and an injected shift by one position that the limit must expose.

        The limit is a running error bound, or that of `output_comparison` if an operator has no error rule.
        """
        model, dense = output_comparison.copies_in(torch.float64, self.classifier, self.compared)
        image = self.image.to(torch.float64)
        with torch.no_grad():
            outputs = [t for _, t in leaves(plain_call(dense)(image))]
            crops = run_on_windows(lambda x: rows_of(model(x)), image, windows, analysis.batch)
        bounds = analysis(image, windows)
        limits = bounds.bounds
        if not limits:
            self.unverified.append(
                f"no derived bound ({bounds.missing}): in float64 the limit for whole networks was used instead"
            )
            limits = self._limits_without_rules(crops, check.max_abs_difference or 0.0)
        differences = compare_rows([windows.pick(t) for t in outputs], crops, limits)
        shifted = compare_rows([windows.pick(t.roll(1, -1)) for t in outputs], crops, limits)
        can_shift = outputs[0].shape[-1] > 1
        check = replace(
            check,
            float64_difference=differences.largest,
            float64_limit=differences.bound,
            planted_shift=shifted.largest if can_shift else None,
        )
        assert differences.ratio is not None
        assert shifted.ratio is not None
        problems = []
        if differences.ratio > 1:
            problems.append(
                f"in float64 dense and crops differ by {differences.largest:.3g}, "
                f"{differences.ratio:.3g} times the limit"
            )
        if can_shift and shifted.ratio <= 1:
            self.unverified.append("the bound is too coarse to see a shift by one position on this image")
        return check, problems

    def _limits_without_rules(self, crops: list[Tensor], difference: float) -> list[Tensor]:
        """The limits of `output_comparison` in float64, given the difference in the network's own dtype."""
        u = output_comparison.unit(self.dtype) if self.dtype != torch.float64 else 2.0**-24
        errors = [max(difference, u * float(wide(c).abs().max())) for c in crops]
        return [
            torch.full_like(wide(c), output_comparison.limit64(error, u))
            for c, error in zip(crops, errors, strict=True)
        ]

    def verification(
        self,
        layers: tuple[LayerCheck, ...],
        one_window: NetworkCheck,
        gradient: GradientCheck | None,
        crops: DenseCheck | None,
    ) -> Verification:
        """The outcome of all checks."""
        problems = [*self.problems, *(f"on one window: {p}" for p in one_window.problems)]
        if gradient and not gradient.ok:
            problems.append(f"gradients {gradient.why}")
        return Verification(
            equivalent=not problems,
            target=self.target,
            max_error=one_window.max_error,
            rounding_ratio=one_window.rounding_ratio,
            float64_error=one_window.float64_error,
            float64_limit=one_window.float64_limit,
            layers=layers,
            weights=self.weights,
            gradients=gradient,
            dense=crops,
            first_difference=next((c.path for c in layers if not c.ok), None),
            problems=tuple(dict.fromkeys(problems)),
            unverified=tuple(dict.fromkeys([*self.unverified, *one_window.unverified])),
            warnings=tuple(self.warnings),
        )
