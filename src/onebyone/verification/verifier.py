"""Verify that a converted network computes the same function as the original, and report how that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.records import LEAST_AGREEMENT
from onebyone.results import AnySize, Converted, LayerPair, UnverifiableError
from onebyone.results.traces import TracedNetwork
from onebyone.verification import activations, layer_matching, output_comparison, structure_checks
from onebyone.verification.any_size_checks import verify_any_size
from onebyone.verification.end_to_end import compare_networks
from onebyone.verification.evaluation_context import proof_settings
from onebyone.verification.layer_checks import check_layer
from onebyone.verification.network_run import Grads, Runner, as_callable, in_one_line
from onebyone.verification.output_comparison import NetworkCheck, NetworkRuns
from onebyone.verification.pytree import arguments, leaves
from onebyone.verification.result import SAME_FUNCTION, GradientCheck, LayerCheck, Verification, WeightCheck
from onebyone.verification.weights import compare_weights

Progress = Callable[[int, int], None]


def verify(
    model: Any,
    converted: Any,
    x: Any = None,
    *,
    seed: int = 0,
    gradients: bool = True,
    max_windows: int = 4096,
    min_agreement: float = LEAST_AGREEMENT,
    progress: Progress | None = None,
) -> Verification:
    """Whether `converted` computes what `model` computes, layer by layer and as a whole.

    Parameters
    ----------
    model: the original: a module, an exported program, or any callable.
    converted: what `convert` or `convolutionalize` returned (these results know which layer replaced which; see
        `onebyone.results.protocols`), or a module or callable: then only outputs and, between modules, gradients are
        compared. Of a network outside PyTorch (`onebyone.results.traces`) outputs are compared, and where they differ
        inner values.
    x: an example input: a tensor, a tuple of positional arguments, or a dict of keyword arguments. Without one the
        layers are still probed, and `unverified` lists what was not.
    seed: the seed of the probes and of the networks' own random numbers.
    gradients: whether gradients are compared.
    max_windows: an any-size network is compared with at most this many cropped windows.
    min_agreement: an any-size network that pads is equivalent if at least this share of the windows have the same best
        class as when cropped. A share below 0.95 gives a warning.
    progress: `progress(done, total)` is called after every layer.

    The networks run in eval mode, with TF32 and autocast off; flags, random state and weights are restored afterwards.

    Raises
    ------
    BadInput
        if there is nothing to run, `model` is a conversion, or it fails on `x`.

    >>> f, g = torch.nn.Linear(3, 2), torch.nn.Conv1d(3, 2, 1)
    >>> _ = g.load_state_dict({"weight": f.weight[..., None], "bias": f.bias})
    >>> verify(f, lambda x: g(x[..., None])[..., 0], torch.randn(4, 3)).equivalent
    True
    """
    report = progress or (lambda done, total: None)
    if isinstance(model, AnySize | Converted):
        raise BadInput(
            f"model is a {type(model).__name__}; expected the original network first: verify(model, converted, example)"
        )
    known = isinstance(converted, AnySize | Converted)
    original = as_callable(converted.runnable(model) if known else model, "model")
    if isinstance(converted, AnySize):
        return verify_any_size(original, converted, x, seed, gradients, max_windows, min_agreement, report)
    if isinstance(converted, Converted):
        return _verify_conversion(original, converted, x, seed, gradients, report)
    if x is None:
        raise BadInput("x: is missing; two callables can only be compared on an example input")
    if isinstance(converted, TracedNetwork):
        return _verify_traced(original, converted, x, seed)
    other = as_callable(converted, "converted")
    with proof_settings(seed, original, other):
        _run_original(Runner(original, x, seed))
        return _compare_end_to_end(original, other, x, seed, gradients, None, _Findings())


@dataclass
class _Findings:
    """What was found before the whole networks are compared."""

    layers: list[LayerCheck] = field(default_factory=list)
    weights: WeightCheck | None = None
    problems: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)


def _verify_traced(model: Any, other: TracedNetwork, x: Any, seed: int) -> Verification:
    """Compare a network with one of another structure, which has no gradients and computes in float32."""

    def in_order(outputs: Any) -> Any:
        return [t for _, t in leaves(outputs)]

    original, exported = (Runner(call, x, seed, in_order) for call in (model, other))
    with proof_settings(seed, model):
        _run_original(original)
        check = compare_networks(original, exported, gradients=False).check
        first = _first_differing_layer(original, other) if check.problems else None
    check.unverified = [
        note.replace("gradients, rounding_ratio", "rounding_ratio") for note in check.unverified
    ]
    check.unverified += [
        "gradients: an exported network has none",
        "the weights one by one: they are compared through the outputs on this example only",
    ]
    verification = _verification(_Findings(), check, None, first)
    return replace(verification, evaluators=(f"converted: {other.evaluator}",))


def _first_differing_layer(original: Runner, other: TracedNetwork) -> str | None:
    """The first layer of a module that the other network computes differently; None where that cannot be found."""
    if not isinstance(original.call, nn.Module):
        return None
    try:
        runs = output_comparison.network_runs(original, original)
        narrow, exact = runs.original, runs.wide_original
        outputs = layer_matching.record_outputs(
            narrow, exact, lambda y, z: output_comparison.limit_in_own_dtype(y, z, runs.u)
        )
        args, kwargs = arguments(original.example)
        return layer_matching.first_differing_layer(outputs, other.trace(*args, **kwargs))
    except Exception:  # the other network fails, or the original has no copy in float64
        return None


def _verify_conversion(
    model: Any, conversion: Converted, x: Any, seed: int, gradients: bool, report: Progress
) -> Verification:
    after = as_callable(conversion.runnable(conversion.model), "converted.model")
    with proof_settings(seed, model, after):
        has_modules = isinstance(model, nn.Module) and isinstance(after, nn.Module)
        findings = _check_structure(model, after, conversion) if has_modules else _Findings()
        inputs = {} if x is None else _recorded_inputs(model, conversion, x, seed)
        for done, pair in enumerate(conversion.pairs, 1):
            _check_pair(pair, conversion, inputs.get(pair.path), x is not None, seed + done, findings)
            report(done, len(conversion.pairs))
        _list_unprobed(conversion, findings)
        if x is None:
            findings.unverified.append(
                "without an example input: the whole network, its gradients, the layers on their own inputs"
            )
            return _verification(findings, NetworkCheck(), None, None, _why_nothing(conversion, findings))
        map_gradients = _gradient_map(conversion, model, after)
        return _compare_end_to_end(model, after, x, seed, gradients, map_gradients, findings)


def _check_structure(model: nn.Module, after: nn.Module, conversion: Converted) -> _Findings:
    """The checks that need no run: finite weights, equal weights, tied weights, converted layers at their paths."""
    weights = compare_weights(
        model,
        after,
        conversion.state_dict_to_original,
        conversion.state_dict_from_original,
        [pair.path for pair in conversion.pairs],
    )
    shared = {id(p) for p in model.parameters()}
    not_finite = structure_checks.not_finite(model, "original") or structure_checks.not_finite(
        after, "converted", except_ids=shared
    )
    misplaced = structure_checks.misplaced(conversion.pairs, model, after)
    untied, notes = structure_checks.untied(model, after)
    return _Findings(weights=weights, problems=[*not_finite, *misplaced, *untied], unverified=notes)


def _recorded_inputs(model: Any, conversion: Converted, x: Any, seed: int) -> dict[str, Tensor]:
    """What each converted layer is called on when the original runs on `x`; the original must run on it."""
    runner = Runner(model, x, seed)
    if not isinstance(model, nn.Module):
        _run_original(runner)
        return {}
    layers = {pair.path: pair.original for pair in conversion.pairs}
    with torch.no_grad():
        return activations.record_inputs(lambda: _run_original(runner), model, layers)


def _run_original(runner: Runner) -> Any:
    try:
        with torch.no_grad():
            return runner()
    except Exception as error:
        raise BadInput(f"model fails on x: {in_one_line(error)}") from error


def _check_pair(
    pair: LayerPair,
    conversion: Converted,
    layer_input: Tensor | None,
    has_example: bool,
    seed: int,
    findings: _Findings,
) -> None:
    try:
        functions = pair.functions(conversion.state_dict_from_original)
        findings.layers.append(check_layer(functions, layer_input, seed))
    except UnverifiableError as reason:
        findings.unverified.append(f"{pair.path}: {reason}")
        return
    except Exception as error:  # a layer that fails is a result, not an error of the verifier
        kind = type(pair.original).__name__
        findings.layers.append(LayerCheck(pair.path, kind, ok=False, why=in_one_line(error)))
        return
    if has_example and layer_input is None:
        findings.unverified.append(
            f"{pair.path}: never called on the example input, so no bound on real weights"
        )


def _list_unprobed(conversion: Converted, findings: _Findings) -> None:
    """Note the converted layers without a pair: no check runs them in isolation."""
    paired = {pair.path for pair in conversion.pairs}
    for change in conversion.changes:
        if change.path not in paired:
            findings.unverified.append(
                f"{change.path or '(top level)'}: converted, but its weight or bias is not a parameter of its own, "
                "so it has no integer probe"
            )


def _why_nothing(conversion: Converted, findings: _Findings) -> str:
    """Why a verification without an example has shown nothing; empty if a layer was probed."""
    if any(layer.bitwise is not None for layer in findings.layers):
        return ""
    if conversion.pairs or conversion.changes:
        return "nothing was verified: no converted layer could be probed and there is no example input"
    if conversion.refused:
        return f"nothing was verified: no layer was converted ({len(conversion.refused)} refused)"
    return "nothing was verified: the network has no layer to convert"


def _gradient_map(conversion: Converted, model: Any, after: Any) -> Callable[[Grads], Grads] | None:
    """Maps the gradients of the converted parameters to the original's names and shapes; None if they are the same.

    It is the state-dict map, because a gradient has its parameter's shape and is renamed and reshaped with it.
    """
    if not isinstance(model, nn.Module) or not isinstance(after, nn.Module):
        return None
    shapes = {n: p.shape for n, p in model.named_parameters()}
    to_original = conversion.state_dict_to_original
    if to_original is None or {n: p.shape for n, p in after.named_parameters()} == shapes:
        return None

    def map_gradients(grads: Mapping[str, Tensor]) -> Grads:
        return {n: g for n, g in to_original(grads).items() if n in shapes}

    return map_gradients


def _compare_end_to_end(
    model: Any,
    after: Any,
    x: Any,
    seed: int,
    gradients: bool,
    map_gradients: Callable[[Grads], Grads] | None,
    findings: _Findings,
) -> Verification:
    original, converted = Runner(model, x, seed), Runner(after, x, seed)
    not_finite = [
        f"input {path} holds NaN or infinity".replace("input  ", "the input ")
        for path, t in leaves(x)
        if not _finite(t)
    ]
    if not_finite:
        findings.problems += not_finite
        return _verification(findings, NetworkCheck(), None, None)
    comparison = compare_networks(original, converted, gradients, map_gradients)
    first = None
    failed = comparison.check.problems or (comparison.gradients and not comparison.gradients.ok)
    if comparison.runs and failed:
        first = _first_difference(comparison.runs)
    return _verification(findings, comparison.check, comparison.gradients, first)


def _finite(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex()) or bool(torch.isfinite(t).all())


def _first_difference(runs: NetworkRuns) -> str | None:
    a, b = runs.wide_original, runs.wide_converted
    if not isinstance(a.call, nn.Module) or not isinstance(b.call, nn.Module):
        return None

    def limit(t: Tensor) -> float:
        return output_comparison.limit64(runs.u * float(t.abs().max()), runs.u) if t.numel() else 0.0

    with torch.no_grad():
        try:
            return activations.first_difference(a, b, a.call, b.call, limit)
        except Exception:  # the converted network failed before any module differed
            return None


def _verification(
    findings: _Findings,
    check: NetworkCheck,
    gradient: GradientCheck | None,
    first_difference: str | None,
    nothing: str = "",
) -> Verification:
    """The outcome; `nothing` says why no check could run, if none could."""
    weights = findings.weights
    failed = [
        *findings.problems,
        *(weights.problems if weights else ()),
        *(f"{layer.path}: {layer.why}" for layer in findings.layers if not layer.ok),
        *check.problems,
        *([f"gradients {gradient.why}"] if gradient and not gradient.ok else []),
    ]
    problems = [*failed, *([nothing] if nothing else [])]
    failing = next((layer.path for layer in findings.layers if not layer.ok), None)
    if failing is None and weights and weights.differing:
        failing = weights.differing[0].name.rpartition(".")[0]
    unverified = [*findings.unverified, *(weights.unverified if weights else ()), *check.unverified]
    return Verification(
        equivalent=not problems,
        target=SAME_FUNCTION,
        max_error=check.max_error,
        rounding_ratio=check.rounding_ratio,
        float64_error=check.float64_error,
        float64_limit=check.float64_limit,
        layers=tuple(findings.layers),
        weights=weights,
        gradients=gradient,
        first_difference=first_difference or failing,
        problems=tuple(dict.fromkeys(problems)),
        unverified=tuple(dict.fromkeys(unverified)),
        nothing_verified=bool(nothing) and not failed,
    )
