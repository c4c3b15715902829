"""A dense form against every window cropped and run by itself.

Promises by name, never mixed up (`tiled.py` has the one of tiles):

- "dense = crops": no padding, exact. |dense − crops| must be within the two sides' running error bounds, added, in the
  network's own dtype and again in float64, where the bound is some nine digits finer and shows every real fault.
- "dense ≈ crops (padded)": the network pads (or pools over the image), so that the numbers truly differ.
  They are measured; what must be equal is the answer on an image of exactly one window, the number of
  places, and the layers.
- "means of the class map = crops" (`head="cam"`): the same two, of the map's means over the places that the pool
  took. Where the head after the pool is not linear they are measured, and what must be equal is the answer on an
  image of exactly one place, where the network takes one.
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
from onebyone.verification import output_comparison, structure_checks
from onebyone.verification.channel_axis import WithoutChannels, under_network
from onebyone.verification.class_maps import means_of, of_the_map
from onebyone.verification.dense_pairs import check_dense_pair
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
    Bounds,
    Figures,
    Places,
    Walkers,
    batch_size,
    compare_rows,
    mosaic,
    on_windows,
    places,
    rows_of,
)

# windows also compared in float64
FINE_WINDOWS = 64


def _both(gradients: Grads) -> Grads:
    return under_network(of_the_map(gradients))


class _Dense:
    """One verification of a dense form, step by step."""

    def __init__(
        self, model: Any, dense: Any, x: Any, seed: int, max_windows: int, min_agreement: float
    ) -> None:
        self.evidence: Any = getattr(dense, "class_map", None)
        form = dense if self.evidence is None else means_of(dense)
        self.model, self.dense, self.geometry, self.seed = model, form.model, form.geometry, seed
        self.network, self.least = dense.model, dense.geometry.window
        self.original = dense.original if isinstance(dense.original, ExportedProgram) else model
        self.run = model
        if getattr(dense, "bare", False):
            self.run = self.original = WithoutChannels.of(self.original)
        self.pairs = dense.pairs
        self.max_windows, self.min_agreement = max_windows, min_agreement
        names = (DENSE_EXACT, DENSE_PADDED) if self.evidence is None else (CLASS_MAP, CLASS_MAP_MEASURED)
        self.target = names[0] if self.geometry.exact else names[1]
        self.problems: list[str] = []
        self.unverified: list[str] = []
        self.warnings: list[str] = []
        self.compared: WeightCheck | None = None
        self.dtype = output_comparison.own_dtype(model, x)
        self.image = self._image(x, dense.channels)
        self.fixed = self._fixed_batch()

    def _image(self, x: Any, channels: int) -> Tensor:
        """What is run densely: x where it holds several windows, a mosaic of x where it holds one, else noise.

        At least 3 and 2 windows along the axes, and a rest at the far edge too short for one more.
        """
        window, stride = self.geometry.window, self.geometry.stride
        device = next(iter(self.dense.parameters()), torch.zeros(())).device
        size = [w + n * s + s - 1 for w, n, s in zip(window, (2, 1, 3), stride, strict=False)]
        if x is None:
            self.unverified.append("no example image: random pixels stood in for one")
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randn(2, channels, *size, generator=generator).to(device, self.dtype)
        given = leaves(x)[0][1] if leaves(x) else None
        if isinstance(self.run, WithoutChannels) and given is not None and given.dim() == len(window) + 1:
            given = given.unsqueeze(1)
        if given is None or given.dim() != len(window) + 2 or given.shape[1] != channels:
            shape = None if given is None else tuple(given.shape)
            raise BadInput(
                f"x has shape {shape}; an image (N, {channels}, …) with {len(window)} axes was expected"
            )
        if any(have < w for have, w in zip(given.shape[2:], window, strict=True)):
            raise BadInput(f"x is {tuple(given.shape[2:])} pixels, smaller than the window of {window}")
        if any(have >= w + s for have, w, s in zip(given.shape[2:], window, stride, strict=True)):
            return given.detach()
        return mosaic(given.detach()[:2], size)

    def _fixed_batch(self) -> int | None:
        if not isinstance(self.original, ExportedProgram) or self.original.example_inputs is None:
            return None
        return int(leaves(self.original.example_inputs[0])[0][1].shape[0])

    def layers(self, report: Callable[[int, int], None]) -> tuple[LayerCheck, ...]:
        found = []
        for done, pair in enumerate(self.pairs, 1):
            found.append(check_dense_pair(pair, self.seed + done))
            report(done, len(self.pairs))
        self.problems += [f"{c.path}: {c.why}" for c in found if not c.ok]
        return tuple(found)

    def weights(self) -> None:
        if isinstance(self.model, nn.Module):
            self.problems += structure_checks.not_finite(self.model, "original")
            self.compared = compare_weights(self.model, self.network, subset=True)
            self.problems += self.compared.problems
            self.unverified += self.compared.unverified
        if not bool(torch.isfinite(self.image).all()):
            self.problems.append("the image holds NaN or infinity")

    def at_one_window(self, gradients: bool) -> tuple[NetworkCheck, GradientCheck | None]:
        """On an image of exactly one window both networks are one function, padded or not.

        So they are on an image of one place of a class map whose head is not linear: the means are no one's numbers.
        """
        nonlinear = self.evidence is not None and bool(self.evidence.nonlinear)
        crop = self._crop(self.least if nonlinear else self.geometry.window)
        after = self.network if nonlinear else self.dense
        back: Callable[[Grads], Grads] | None = None if self.evidence is None or nonlinear else of_the_map
        if nonlinear:
            try:
                with torch.no_grad():
                    self.run(crop)
            except Exception as error:
                self.unverified.append(
                    f"the head at one place: the network takes no image of {by(self.least)} pixels "
                    f"({type(error).__name__})"
                )
                return NetworkCheck(), None
        if isinstance(self.run, WithoutChannels):
            back = under_network if back is None else _both
        before = Runner(self.run, crop, self.seed, rows_of)
        whole = compare_networks(before, Runner(after, crop, self.seed, rows_of), gradients, back)
        return whole.check, whole.gradients

    def _crop(self, size: Sequence[int]) -> Tensor:
        crop = self.image[(slice(0, self.fixed or 2), slice(None), *(slice(0, n) for n in size))]
        if self.fixed and len(crop) < self.fixed:
            crop = crop[:1].expand(self.fixed, *crop.shape[1:])
        return crop

    def places_of_the_map(self) -> bool:
        """A class map has as many places as its geometry says, from the least image on."""
        for extra in (0, *(s - 1 for s in self.geometry.stride), self.geometry.stride[0]):
            size = [n + extra for n in self.least]
            positions = tuple(
                (n - w) // s + 1 for n, w, s in zip(size, self.least, self.geometry.stride, strict=True)
            )
            try:
                with torch.no_grad():
                    found = [tuple(t.shape[2:]) for _, t in leaves(self.network(self._blank(size)))]
            except Exception as error:
                self.problems.append(
                    f"the class map fails on {by(size)} pixels: {type(error).__name__}: {error}"
                )
                return False
            if any(f != positions for f in found):
                self.problems.append(f"{by(size)} pixels give {found[0]} places, {positions} are expected")
                return False
        return True

    def each_place_by_itself(self) -> None:
        """A place of the map is what its own pixels give as a whole image, where nothing pads; in float64."""
        if any(reason != self.evidence.reason for reason in self.geometry.inexact_because):
            return
        (net,) = output_comparison.copies_in(torch.float64, self.network)
        image = self.image[:1].to(torch.float64)
        with torch.no_grad():
            maps = [t for _, t in leaves(net(image))]
            every = places(tuple(maps[0].shape[2:]), 1, self.least, self.geometry.stride)
            at = every.sample(FINE_WINDOWS)
            alone = on_windows(lambda x: rows_of(net(x)), image, at, batch_size(at, image.shape[1], None))
        limits = [
            torch.full_like(a, output_comparison.limit64(2.0**-24 * float(a.abs().max()), 2.0**-24))
            for a in alone
        ]
        figures = compare_rows([at.pick(t) for t in maps], alone, limits)
        if figures.ratio is None or figures.ratio > 1:
            self.problems.append(
                f"places of the class map differ by {figures.largest:.3g} from what their own pixels give"
            )

    def _blank(self, size: Sequence[int]) -> Tensor:
        return self.image.new_zeros(1, self.image.shape[1], *size)

    def places(self) -> tuple[list[Tensor] | None, tuple[int, ...], tuple[int, ...]]:
        """The dense outputs, the places expected and those found; and the same on an image one pixel short of two."""
        window, stride = self.geometry.window, self.geometry.stride
        short = tuple(w + s - 1 for w, s in zip(window, stride, strict=True))
        outputs: list[Tensor] | None = None
        answer: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        for image in (self._blank(short), self.image):
            size = tuple(image.shape[2:])
            expected = tuple(self.geometry.positions(size))
            try:
                with torch.no_grad():
                    outputs = [t for _, t in leaves(plain_call(self.dense)(image))]
            except Exception as error:
                self.problems.append(f"the dense network fails on {size} pixels: {in_one_line(error)}")
                return None, expected, ()
            found = [tuple(t.shape[2:]) for t in outputs]
            answer = (expected, next((f for f in found if f != expected), expected))
            if answer[0] != answer[1]:
                self.problems.append(f"{size} pixels give {answer[1]} places, {expected} are expected")
                return None, *answer
        return outputs, *answer

    def against_windows(self, report: Callable[[int, int], None]) -> DenseCheck:
        """Every window (or an even sample of `max_windows`) by itself, against the dense output there."""
        outputs, expected, found = self.places()
        blank = DenseCheck(self.target, False, 0, expected, found)
        if outputs is None:
            return replace(blank, why="not compared")
        every = places(expected, len(self.image), self.geometry.window, self.geometry.stride)
        at = every.sample(self.max_windows)
        if len(at) < len(every):
            self.unverified.append(f"compared on {len(at):,} of {len(every):,} windows, evenly spread")
        batch = batch_size(at, self.image.shape[1], self.fixed)
        with torch.no_grad():
            crops = on_windows(
                lambda x: rows_of(self.run(x)), self.image, at, batch, lambda done: report(done, len(at))
            )
        picked = [at.pick(t) for t in outputs]
        if [t.shape for t in picked] != [t.shape for t in crops]:
            self.problems.append("dense outputs and the crops' have different shapes")
            return replace(blank, why="not compared")
        walkers = Walkers(self.original, self.dense, self.image, at, batch) if self.geometry.exact else None
        bounds = walkers(self.image, at) if walkers else Bounds([])
        figures = compare_rows(picked, crops, bounds.total)
        check = replace(
            blank,
            windows=len(at),
            max_abs_difference=figures.largest,
            mean_abs_difference=figures.mean,
            relative_to_spread=figures.largest / figures.spread if figures.spread else None,
            class_agreement=figures.agreement,
            bound=figures.bound,
            bound_ratio=figures.ratio,
            bound_missing=bounds.missing,
        )
        return self._judged(check, figures, at, walkers)

    def _judged(self, check: DenseCheck, figures: Figures, at: Places, walkers: Walkers | None) -> DenseCheck:
        if not math.isfinite(figures.largest):
            self.problems.append("dense outputs, or the crops', hold NaN or infinity")
            return check
        if walkers is None:
            self._judge_agreement(check)
            return replace(check, ok=True, why="measured: " + "; ".join(self.geometry.inexact_because))
        wrong = []
        if figures.ratio is not None and figures.ratio > 1:
            wrong.append(
                f"dense and crops differ by {figures.largest:.3g}, {figures.ratio:.3g} times the bound"
            )
        try:
            check, said = self._in_float64(check, at.sample(FINE_WINDOWS), walkers)
            wrong += said
        except Exception as error:
            self.unverified.append(f"dense against crops in float64: {in_one_line(error)}")
            if figures.ratio is None:
                wrong.append("neither a bound nor float64 could be had")
        self.problems += wrong
        return replace(check, ok=not wrong, why="; ".join(wrong))

    def _judge_agreement(self, check: DenseCheck) -> None:
        """Too few windows with the same best class are a problem, few a warning; of class maps neither."""
        if check.class_agreement is None or self.evidence is not None:
            return
        said = f"{check.class_agreement:.1%} of {check.windows:,} windows have the same best class as when cropped"
        if check.class_agreement < self.min_agreement:
            self.problems.append(f"only {said}, fewer than the share of min_agreement={self.min_agreement:g}")
        elif check.class_agreement < ENOUGH_AGREEMENT:
            self.warnings.append(f"{said}, fewer than {ENOUGH_AGREEMENT:.0%}")

    def _in_float64(self, check: DenseCheck, at: Places, walkers: Walkers) -> tuple[DenseCheck, list[str]]:
        """The finer comparison, its limit (a running error bound, else the network module's), and a planted shift."""
        model, dense = output_comparison.copies_in(torch.float64, self.run, self.dense)
        image = self.image.to(torch.float64)
        with torch.no_grad():
            outputs = [t for _, t in leaves(plain_call(dense)(image))]
            crops = on_windows(lambda x: rows_of(model(x)), image, at, walkers.batch)
        bounds = walkers(image, at)
        if not bounds.total:
            scale = check.max_abs_difference or 0.0
            u = output_comparison.unit(self.dtype) if self.dtype != torch.float64 else 2.0**-24
            own = [max(scale, u * float(wide(c).abs().max())) for c in crops]
            self.unverified.append(
                f"no derived bound ({bounds.missing}): in float64 the limit of verify.network stood in for it"
            )
            bounds = Bounds(
                [
                    torch.full_like(wide(c), output_comparison.limit64(o, u))
                    for c, o in zip(crops, own, strict=True)
                ]
            )
        figures = compare_rows([at.pick(t) for t in outputs], crops, bounds.total)
        shifted = [at.pick(t.roll(1, -1)) for t in outputs]
        planted = compare_rows(shifted, crops, bounds.total)
        check = replace(
            check,
            float64_difference=figures.largest,
            float64_limit=figures.bound,
            planted_shift=planted.largest if outputs[0].shape[-1] > 1 else None,
        )
        assert figures.ratio is not None
        assert planted.ratio is not None
        wrong = []
        if figures.ratio > 1:
            wrong.append(
                f"in float64 dense and crops differ by {figures.largest:.3g}, {figures.ratio:.3g} times the limit"
            )
        if outputs[0].shape[-1] > 1 and planted.ratio <= 1:
            self.unverified.append("the bound is too coarse to see a shift by one place on this image")
        return check, wrong


def verify_dense(
    model: Any,
    dense: Any,
    x: Any,
    seed: int,
    gradients: bool,
    max_windows: int,
    min_agreement: float,
    report: Callable[[int, int], None],
) -> Verification:
    """`verify` for what `convolutionalize` gave."""
    with proof_settings(seed, model, dense.model):
        work = _Dense(model, dense, x, seed, max_windows, min_agreement)
        work.weights()
        layers = work.layers(report)
        if work.problems and any("NaN" in p for p in work.problems):
            return _answer(work, layers, NetworkCheck(), None, None)
        if work.evidence is not None and work.places_of_the_map():
            work.each_place_by_itself()
        check, gradient = work.at_one_window(gradients)
        against = work.against_windows(report)
        return _answer(work, layers, check, gradient, against)


def _answer(
    work: _Dense,
    layers: tuple[LayerCheck, ...],
    check: NetworkCheck,
    gradient: GradientCheck | None,
    against: DenseCheck | None,
) -> Verification:
    problems = [*work.problems, *(f"on one window: {p}" for p in check.problems)]
    if gradient and not gradient.ok:
        problems.append(f"gradients {gradient.why}")
    return Verification(
        equivalent=not problems,
        target=work.target,
        max_error=check.max_error,
        rounding_ratio=check.rounding_ratio,
        float64_error=check.float64_error,
        float64_limit=check.float64_limit,
        layers=layers,
        weights=work.compared,
        gradients=gradient,
        dense=against,
        first_difference=next((c.path for c in layers if not c.ok), None),
        problems=tuple(dict.fromkeys(problems)),
        unverified=tuple(dict.fromkeys([*work.unverified, *check.unverified])),
        warnings=tuple(work.warnings),
    )
