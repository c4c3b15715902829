"""What a verification found: plain frozen records, a table for people, a dict for JSON, or an error."""

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
    """A fault planted in a layer's weights, to show that the check can see it.

    `seen_by_integers`: the integer probe differed. `seen_by_bound`: on real weights and inputs some element
    was beyond the bound (None where not run); `deviation` the largest difference it made there; `why` says
    what kept it hidden.
    """

    name: str
    seen_by_integers: bool | None = None
    seen_by_bound: bool | None = None
    deviation: float | None = None
    why: str = ""


@dataclass(frozen=True)
class LayerCheck:
    """One converted layer.

    `bitwise`: the integer probe agreed bit for bit, outputs and gradients (None: not run). On real weights
    and the layer's own recorded input: `max_error` the largest |Δ|, `bound` the largest of the elementwise
    bounds 2γₙ(|W||x|+|b|), `error_ratio` the largest |Δ| ÷ its bound (at most 1 to pass), `compared` how
    many values, `arithmetic` whose unit roundoff the bound uses, `planted_fault` the smallest largest
    deviation a planted fault made. `ok` is the verdict; `why` its reason, or what the check could not see.
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
        """The smallest, over the planted faults, of the largest deviation each made on real weights and
        inputs.
        """
        seen = [f.deviation for f in self.faults if f.deviation is not None]
        return min(seen) if seen else None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self) | {"planted_fault": self.planted_fault}


@dataclass(frozen=True)
class WeightDifference:
    """A tensor of the converted network that is not the original's: its name there, and `what` differs.

    `differing` of `values` numbers differ in some bit, by up to `largest` (None where the two cannot be subtracted).
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
    """The weights of both networks, bit for bit: `compared` tensors of `values` numbers in all.

    `differing` lists those that differ; `problems` says so in words, with the tensors that one network alone has;
    `unverified` what could not be compared.
    """

    compared: int
    values: int
    differing: tuple[WeightDifference, ...] = ()
    problems: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every tensor that was compared is the original's."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self) | {"ok": self.ok}


@dataclass(frozen=True)
class GradientCheck:
    """Gradients of a random weighted sum of the outputs: `compared` tensors, the worst one's name and ratio.

    The ratio is |Δ| in float64 over the original's own rounding error in its dtype (see
    `verification.output_comparison`).
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
    """A dense output against every window cropped and run by itself (or a tiled one against the whole).

    `windows`: how many were compared; `expected` and `found`: output places per axis. `max_abs_difference`,
    and its derived elementwise `bound` (the largest; None where an operator has no rule: `bound_missing`
    says which); `bound_ratio` the largest difference ÷ its bound. `float64_difference` is the same
    comparison in float64. For padded networks: `mean_abs_difference`, `relative_to_spread` (largest
    difference ÷ the standard deviation of the crops' outputs) and `class_agreement`, the share of windows
    with the same best class.
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

    `equivalent` is true only if something was checked, every check that ran passed and nothing was NaN or infinite;
    `problems` lists what did not pass, `unverified` what was not looked at. `weights`: the tensors of both networks,
    compared bit for bit (None: two callables, whose weights nothing relates). `nothing_verified`: no check could run,
    so that nothing is known; then `equivalent` is false. `max_error`: largest |converted − original| in
    the network's own dtype. `rounding_ratio`: see `verification.output_comparison`. `integer_probe`: all layers bit for
    bit (None: none was run). `warnings`: what passed and deserves a look, such as dense results that few crops agree
    with.
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

    @property
    def integer_probe(self) -> bool | None:
        """Whether all integer probes agreed bit for bit; None where none was run."""
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
        """The derived bound on that difference (its largest element); None where there is none."""
        return self.dense.bound if self.dense else None

    @property
    def class_agreement(self) -> float | None:
        """Share of windows whose best class is the same."""
        return self.dense.class_agreement if self.dense else None

    def check(self) -> Verification:
        """Itself if equivalent.

        Raises
        ------
        NotEquivalent
            naming the first layer that differs and the figures.
        """
        if self.equivalent:
            return self
        if self.nothing_verified:
            raise NotEquivalent("; ".join(self.problems), self)
        where = f"; first differing layer: {self.first_difference}" if self.first_difference else ""
        raise NotEquivalent(f"not equivalent ({self.target}): " + "; ".join(self.problems[:5]) + where, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a number that JSON cannot hold (NaN, infinity) becomes its name."""
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
            (
                "windows",
                None if d is None else f"{d.windows} compared, {d.found} places, {d.expected} expected",
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


_LAYER_HEADERS = ["layer", "kind", "integers", "|Δ|", "bound", "smallest planted fault", "verdict"]


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
