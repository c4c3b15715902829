"""The results of a verification: frozen records that print as tables, become JSON, or raise an error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from onebyone.errors import NotEquivalent
from onebyone.records import Readable, html_result, html_table, table

SAME_FUNCTION = "converted = original"
DENSE_EXACT = "dense = crops"
DENSE_PADDED = "dense ≈ crops (padded)"
CLASS_MAP = "means of the class map = crops"
CLASS_MAP_MEASURED = "means of the class map ≈ crops (measured)"
TILED = "tiled = whole"


@dataclass(frozen=True)
class Fault:
    """A fault that was injected into a layer's weights, to show that the checks would see it.

    Attributes
    ----------
    name: what the fault is.
    seen_by_integers: whether the integer probe differed.
    seen_by_bound: whether some output on real weights and inputs exceeded the bound (None: not run).
    deviation: the largest change of an output on real weights and inputs (None: not run).
    why: why the fault was not seen on real weights; empty if it was.
    """

    name: str
    seen_by_integers: bool | None = None
    seen_by_bound: bool | None = None
    deviation: float | None = None
    why: str = ""


@dataclass(frozen=True)
class LayerCheck:
    """The checks of one converted layer.

    Attributes
    ----------
    path, kind, law: which layer it is, what it was, and the law that the conversion applied.
    bitwise: whether the integer probe agreed bit for bit, in outputs and gradients (None: not run).
    max_error: the largest |Δ| on real weights and the layer's recorded input.
    bound: the largest of the elementwise bounds 2γₙ(|W||x|+|b|) there.
    error_ratio: the largest |Δ| ÷ its bound; at most 1 to pass.
    compared: the number of values that were compared.
    arithmetic: the type whose unit roundoff the bound uses.
    faults: the injected faults, and whether the checks saw them.
    ok: whether the layer passed.
    why: why it did not pass, or what the check could not see.
    """

    path: str
    kind: str
    law: str = ""
    bitwise: bool | None = None
    max_error: float | None = None
    bound: float | None = None
    error_ratio: float | None = None
    compared: int = 0
    arithmetic: str = ""
    faults: tuple[Fault, ...] = ()
    ok: bool = True
    why: str = ""

    @property
    def planted_fault(self) -> float | None:
        """The largest deviation that an injected fault made on real weights and inputs, for the smallest such fault."""
        deviations = [f.deviation for f in self.faults if f.deviation is not None]
        return min(deviations) if deviations else None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self) | {"planted_fault": self.planted_fault}


@dataclass(frozen=True)
class WeightDifference:
    """A tensor of the converted network that differs from the original's.

    `name` is its name in the original, `what` the difference in words. `differing` of `values` numbers differ in some
    bit, by up to `largest` (None if the two tensors cannot be subtracted).
    """

    name: str
    what: str
    differing: int | None = None
    values: int | None = None
    largest: float | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.what}"


@dataclass(frozen=True)
class WeightCheck:
    """The comparison of both networks' weights, bit for bit: `compared` tensors with `values` numbers in all.

    `differing` lists the tensors that differ. `problems` describes them in words, and the tensors that only one network
    has. `unverified` lists what could not be compared.
    """

    compared: int
    values: int
    differing: tuple[WeightDifference, ...] = ()
    problems: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every tensor that was compared equals the original's."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self) | {"ok": self.ok}


@dataclass(frozen=True)
class GradientCheck:
    """The comparison of gradients of a random weighted sum of the outputs.

    `compared` is the number of tensors, `worst` the name of the one with the largest ratio. The ratio is |Δ| in float64
    over the original's own rounding error in its dtype (see `verification.output_comparison`).
    """

    ok: bool
    compared: int
    worst: str = ""
    max_error: float | None = None
    error_ratio: float | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DenseCheck:
    """The comparison of any-size outputs with those of cropped windows (or of a tiled run with one of the whole image).

    Attributes
    ----------
    target: the name of what was compared.
    ok: whether the comparison passed.
    windows: the number of windows that were compared.
    expected, found: the expected and the actual number of output positions per axis.
    max_abs_difference, mean_abs_difference: over all outputs and windows.
    relative_to_spread: the largest difference ÷ the standard deviation of the crops' outputs.
    class_agreement: the share of windows with the same best class.
    bound: the largest of the derived elementwise bounds (None if an operator has no error rule).
    bound_ratio: the largest difference ÷ its bound.
    bound_missing: the operator without a rule.
    float64_difference, float64_limit: the same comparison in float64.
    planted_shift: the difference that a shift by one position makes in float64.
    why: why the comparison failed, or why it was only measured.
    """

    target: str
    ok: bool
    windows: int
    expected: tuple[int, ...]
    found: tuple[int, ...]
    max_abs_difference: float | None = None
    mean_abs_difference: float | None = None
    relative_to_spread: float | None = None
    class_agreement: float | None = None
    bound: float | None = None
    bound_ratio: float | None = None
    bound_missing: str = ""
    float64_difference: float | None = None
    float64_limit: float | None = None
    planted_shift: float | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Verification(Readable):
    """The outcome of `verify`.

    Attributes
    ----------
    equivalent: true only if something was checked, every check that ran passed, and nothing was NaN or infinite.
    target: the name of what was verified.
    max_error: the largest |converted − original| in the network's own dtype.
    rounding_ratio: the converted network's rounding error ÷ the original's (see `verification.output_comparison`).
    float64_error, float64_limit: the largest difference in float64, and the limit of that output.
    layers: the checks of the converted layers.
    weights: the comparison of all tensors (None for two callables, whose weights are not related).
    gradients: the comparison of gradients.
    dense: for an any-size network, the comparison with cropped windows.
    first_difference: the path of the first layer that differs.
    problems: what did not pass.
    unverified: what was not checked, and why.
    nothing_verified: whether no check could run; then `equivalent` is false.
    warnings: what passed but deserves attention, such as an any-size network that few crops agree with.
    evaluators: what computed the numbers that were compared, where PyTorch did not.
    """

    equivalent: bool
    target: str
    max_error: float | None = None
    rounding_ratio: float | None = None
    float64_error: float | None = None
    float64_limit: float | None = None
    layers: tuple[LayerCheck, ...] = ()
    weights: WeightCheck | None = None
    gradients: GradientCheck | None = None
    dense: DenseCheck | None = None
    first_difference: str | None = None
    problems: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    nothing_verified: bool = False
    warnings: tuple[str, ...] = ()
    evaluators: tuple[str, ...] = ()

    @property
    def integer_probe(self) -> bool | None:
        """Whether all integer probes agreed bit for bit; None if none was run."""
        run = [layer.bitwise for layer in self.layers if layer.bitwise is not None]
        return all(run) if run else None

    @property
    def windows(self) -> int | None:
        """How many windows were compared."""
        return self.dense.windows if self.dense else None

    @property
    def max_abs_difference(self) -> float | None:
        """Largest difference between the dense output and the crops'."""
        return self.dense.max_abs_difference if self.dense else None

    @property
    def bound(self) -> float | None:
        """The derived bound on that difference (its largest element); None if there is none."""
        return self.dense.bound if self.dense else None

    @property
    def class_agreement(self) -> float | None:
        """Share of windows whose best class is the same."""
        return self.dense.class_agreement if self.dense else None

    def check(self) -> Verification:
        """Return this verification if the networks are equivalent.

        Raises
        ------
        NotEquivalent
            otherwise, with the problems and the first layer that differs.
        """
        if self.equivalent:
            return self
        if self.nothing_verified:
            raise NotEquivalent("; ".join(self.problems), self)
        where = f"; first differing layer: {self.first_difference}" if self.first_difference else ""
        raise NotEquivalent(f"not equivalent ({self.target}): " + "; ".join(self.problems[:5]) + where, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. NaN and infinity, which JSON does not have, become their names."""
        data: dict[str, Any] = {
            "equivalent": self.equivalent,
            "nothing_verified": self.nothing_verified,
            "target": self.target,
            "max_error": self.max_error,
            "rounding_ratio": self.rounding_ratio,
            "float64_error": self.float64_error,
            "float64_limit": self.float64_limit,
            "integer_probe": self.integer_probe,
            "weights": self.weights.to_dict() if self.weights else None,
            "layers": [layer.to_dict() for layer in self.layers],
            "gradients": self.gradients.to_dict() if self.gradients else None,
            "dense": self.dense.to_dict() if self.dense else None,
            "windows": self.windows,
            "max_abs_difference": self.max_abs_difference,
            "bound": self.bound,
            "class_agreement": self.class_agreement,
            "first_difference": self.first_difference,
            "problems": list(self.problems),
            "unverified": list(self.unverified),
            "warnings": list(self.warnings),
            "evaluators": list(self.evaluators),
        }
        plain: dict[str, Any] = _plain(data)
        return plain

    def _repr_html_(self) -> str:
        """What `print` shows, for a notebook."""
        parts = [html_table([], [figure for figure in self._figures() if figure[1] is not None])]
        if self.layers:
            parts.append(html_table(_LAYER_HEADERS, [_layer_row(layer) for layer in self.layers]))
        notes = [f"problem: {p}" for p in self.problems] + [f"warning: {w}" for w in self.warnings]
        notes += [f"not verified: {u}" for u in self.unverified]
        return html_result(f"{'✓' if self.equivalent else '✗'} {self._headline()}", *parts, notes=notes)

    def _headline(self) -> str:
        if self.nothing_verified:
            return f"NOTHING VERIFIED ({self.target})"
        return f"{'equivalent' if self.equivalent else 'NOT equivalent'} ({self.target})"

    def __str__(self) -> str:
        lines = [self._headline()]
        lines += [f"  {name}: {value}" for name, value in self._figures() if value is not None]
        if self.layers:
            lines.append(table(_LAYER_HEADERS, [_layer_row(layer) for layer in self.layers]))
        lines += [f"problem: {p}" for p in self.problems]
        lines += [f"warning: {w}" for w in self.warnings]
        lines += [f"not verified: {u}" for u in self.unverified]
        return "\n".join(lines)

    def _figures(self) -> list[tuple[str, str | None]]:
        g, d, w = self.gradients, self.dense, self.weights
        probe = self.integer_probe
        return [
            ("integer probes", None if probe is None else ("equal bit for bit" if probe else "DIFFER")),
            (
                "weights",
                None if w is None else f"{w.compared} tensors, {'equal bit for bit' if w.ok else 'DIFFER'}",
            ),
            ("largest difference", _figure(self.max_error)),
            ("rounding ratio", _figure(self.rounding_ratio)),
            ("in float64", _against(self.float64_error, self.float64_limit, "limit")),
            ("gradients", None if g is None else f"{g.compared} tensors, {'agree' if g.ok else 'DIFFER'}"),
            ("first differing layer", self.first_difference),
            ("computed by", "; ".join(self.evaluators) or None),
            (
                "windows",
                None if d is None else f"{d.windows} compared, {d.found} positions, {d.expected} expected",
            ),
            ("dense against crops", None if d is None else _against(d.max_abs_difference, d.bound, "bound")),
            (
                "dense in float64",
                None if d is None else _against(d.float64_difference, d.float64_limit, "limit"),
            ),
            ("bound", f"none: {d.bound_missing}" if d and d.bound_missing else None),
            ("relative to spread", None if d is None else _figure(d.relative_to_spread)),
            (
                "same best class",
                None if d is None or d.class_agreement is None else f"{d.class_agreement:.2%}",
            ),
        ]


_LAYER_HEADERS = ["layer", "kind", "integers", "|Δ|", "bound", "smallest injected fault", "verdict"]


def _layer_row(layer: LayerCheck) -> list[str]:
    bits = {True: "bit for bit", False: "DIFFER", None: "–"}[layer.bitwise]
    verdict = ("ok" if layer.ok else "FAILS") + (f": {layer.why}" if layer.why else "")
    figures = [_figure(v) or "–" for v in (layer.max_error, layer.bound, layer.planted_fault)]
    return [layer.path or "(top level)", layer.kind, bits, *figures, verdict]


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _against(value: float | None, limit: float | None, name: str) -> str | None:
    if value is None:
        return None
    return f"{value:.3g}" + (f" ({name} {limit:.3g})" if limit is not None else "")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
