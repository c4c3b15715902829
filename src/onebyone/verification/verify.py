"""`verify`: does the converted network compute the same function, and how is that known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from onebyone.errors import BadInput
from onebyone.pytorch.modules.structure import require_python
from onebyone.records import LEAST_AGREEMENT
from onebyone.verification import activations, output_comparison, structure_checks
from onebyone.verification.dense import verify_dense
from onebyone.verification.end_to_end import compare_networks
from onebyone.verification.evaluation_context import proof_settings
from onebyone.verification.layer_subjects import UnverifiableError, module_subject
from onebyone.verification.layers import check_layer
from onebyone.verification.network_run import Grads, Runner, in_one_line
from onebyone.verification.output_comparison import NetworkCheck, Quartet
from onebyone.verification.pytree import leaves
from onebyone.verification.result import SAME_FUNCTION, GradientCheck, LayerCheck, Verification, WeightCheck
from onebyone.verification.weights import compare_weights


def verify(
    model: Any,
    converted: Any,
    x: Any = None,
    *,
    seed: int = 0,
    gradients: bool = True,
    max_windows: int = 4096,
    min_agreement: float = LEAST_AGREEMENT,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Whether `converted` computes what `model` computes, layer by layer and as a whole.

    `converted` is what `convert` or `convolutionalize` returned (they know which layer became which), or a
    bare module or callable: then only outputs (and, between modules, gradients) are compared. `x` is an
    example input: a tensor, a tuple of positional arguments, or a dict of keyword arguments; without one
    the layers are still probed, and `unverified` lists what was not. Proofs run in eval mode, with TF32 and
    autocast off; flags, random state and weights are left as they were. `max_windows` limits how many
    windows a dense form is compared on; one that is not exact (it pads) passes where at least a share
    `min_agreement` of them have the same best class as their crops, with a warning below 0.95.
    `progress(done, of)` is called after every layer.

    Raises
    ------
    BadInput
        where there is nothing to run, or `model` itself fails on `x`.
    Refused
        where one of two bare modules was compiled by TorchScript.

    >>> f, g = torch.nn.Linear(3, 2), torch.nn.Conv1d(3, 2, 1)
    >>> _ = g.load_state_dict({"weight": f.weight[..., None], "bias": f.bias})
    >>> verify(f, lambda x: g(x[..., None])[..., 0], torch.randn(4, 3)).equivalent
    True
    """
    report = progress or (lambda done, of: None)
    model = _runnable(model, "model")
    if hasattr(converted, "geometry") and hasattr(converted, "pairs"):
        return verify_dense(model, converted, x, seed, gradients, max_windows, min_agreement, report)
    if hasattr(converted, "pairs") and hasattr(converted, "model"):
        return _verify_conversion(model, converted, x, seed, gradients, report)
    if x is None:
        raise BadInput("x is missing: two callables can only be compared on an example input")
    other = _runnable(converted, "converted")
    require_python(model)
    require_python(other)
    with proof_settings(seed, model, other):
        _run_original(Runner(model, x, seed))
        return _whole(model, other, x, seed, gradients, None, _Findings())


class _Findings:
    """What has been found before the whole network is compared."""

    def __init__(self) -> None:
        self.layers: list[LayerCheck] = []
        self.weights: WeightCheck | None = None
        self.problems: list[str] = []
        self.unverified: list[str] = []


def _runnable(thing: Any, name: str) -> Any:
    if isinstance(thing, torch.export.ExportedProgram):
        return _without_dtype_checks(thing.module())
    if not callable(thing):
        raise BadInput(f"{name} is a {type(thing).__name__}, which is neither a network nor a callable")
    return thing


def _without_dtype_checks(module: fx.GraphModule) -> fx.GraphModule:
    """The program without the checks that its tensors have the traced dtype: the proof runs it in float64 too."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    module.recompile()
    return module


def _verify_conversion(
    model: Any, conversion: Any, x: Any, seed: int, gradients: bool, report: Callable[[int, int], None]
) -> Verification:
    after = _runnable(conversion.model, "converted.model")
    found = _Findings()
    with proof_settings(seed, model, after):
        if isinstance(model, nn.Module) and isinstance(after, nn.Module):
            _check_structure(model, after, conversion, found)
        inputs = {} if x is None else _recorded(model, conversion.pairs, x, seed, found)
        for done, pair in enumerate(conversion.pairs, 1):
            _check_pair(pair, conversion, inputs.get(pair.path), seed + done, found, x is not None)
            report(done, len(conversion.pairs))
        _list_unprobed(conversion, found)
        if x is None:
            found.unverified.append(
                "without an example input: the whole network, its gradients, the layers on their own inputs"
            )
            return _concluded(found, NetworkCheck(), None, None, _why_nothing(conversion, found))
        back = _gradient_map(conversion, model, after)
        return _whole(model, after, x, seed, gradients, back, found)


def _list_unprobed(conversion: Any, found: _Findings) -> None:
    """Converted layers that have no pair: nothing runs them by themselves."""
    paired = {pair.path for pair in conversion.pairs}
    for change in getattr(conversion, "changes", ()):
        if change.path not in paired:
            found.unverified.append(
                f"{change.path or '(top level)'}: converted, but its weight or bias is no parameter of its own, "
                "so it has no integer probe"
            )


def _why_nothing(conversion: Any, found: _Findings) -> str:
    """Why a verification without an example has shown nothing; empty where a layer was probed."""
    if any(layer.bitwise is not None for layer in found.layers):
        return ""
    changes, refused = (getattr(conversion, name, ()) for name in ("changes", "refused"))
    if conversion.pairs or changes:
        return "nothing was verified: no converted layer could be probed and there is no example input"
    if refused:
        return f"nothing was verified: no layer was converted ({len(refused)} refused)"
    return "nothing was verified: the network has no layer to convert"


def _check_structure(model: nn.Module, after: nn.Module, conversion: Any, found: _Findings) -> None:
    """What needs no run, and so comes first: finite weights, equal ones, ties, layers in their places."""
    found.problems += structure_checks.not_finite(model, "original")
    if not found.problems:
        ours = {id(p) for p in model.parameters()}
        found.problems += structure_checks.not_finite(after, "converted", besides=ours)
    found.problems += structure_checks.out_of_place(conversion.pairs, model, after)
    problems, notes = structure_checks.untied(model, after)
    found.problems += problems
    found.unverified += notes
    to_original, from_original = (
        getattr(conversion, f"state_dict_{way}", None) for way in ("to_original", "from_original")
    )
    layers = [pair.path for pair in conversion.pairs]
    found.weights = compare_weights(model, after, to_original, from_original, layers)


def _recorded(model: Any, pairs: Any, x: Any, seed: int, found: _Findings) -> dict[str, Tensor]:
    if not isinstance(model, nn.Module):
        _run_original(Runner(model, x, seed))
        return {}
    with torch.no_grad():
        runner = Runner(model, x, seed)
        layers = {pair.path: pair.original for pair in pairs}
        return activations.record_inputs(lambda: _run_original(runner), model, layers)


def _run_original(runner: Runner) -> Any:
    try:
        with torch.no_grad():
            return runner()
    except Exception as error:
        raise BadInput(f"model fails on x: {in_one_line(error)}") from error


def _check_pair(
    pair: Any, conversion: Any, x: Tensor | None, seed: int, found: _Findings, expected_input: bool
) -> None:
    carry = getattr(conversion, "state_dict_from_original", None)
    try:
        # a layer that computes its weight at each call cannot be given integers; its twin on the weight as it is can
        before, after = getattr(pair, "plain", (pair.original, pair.converted))
        same = after is pair.converted
        law = str(getattr(pair, "law", ""))
        names = getattr(pair, "names", None)
        subject = module_subject(pair.path, before, after, law, carry if same else None, names)
        found.layers.append(check_layer(subject, x, seed))
    except UnverifiableError as reason:
        found.unverified.append(f"{pair.path}: {reason}")
        return
    except Exception as error:  # a layer that cannot be run is a finding
        kind = type(pair.original).__name__
        found.layers.append(LayerCheck(pair.path, kind, ok=False, why=in_one_line(error)))
        return
    if expected_input and x is None:
        found.unverified.append(
            f"{pair.path}: never called on the example input, so no bound on real weights"
        )


def _gradient_map(conversion: Any, model: Any, after: Any) -> Callable[[Grads], Grads] | None:
    """From the converted parameters' gradients to the original's: the state-dict map, where it only renames
    and reshapes.
    """
    if not isinstance(model, nn.Module) or not isinstance(after, nn.Module):
        return None
    shapes = {n: p.shape for n, p in model.named_parameters()}
    if {n: p.shape for n, p in after.named_parameters()} == shapes:
        return None
    to_original = getattr(conversion, "state_dict_to_original", None)
    if to_original is None:
        return None

    def back(grads: Mapping[str, Tensor]) -> Grads:
        return {n: g for n, g in to_original(grads).items() if n in shapes}

    return back


def _whole(
    model: Any,
    after: Any,
    x: Any,
    seed: int,
    gradients: bool,
    back: Callable[[Grads], Grads] | None,
    found: _Findings,
) -> Verification:
    original, converted = Runner(model, x, seed), Runner(after, x, seed)
    bad = [
        f"input {path} holds NaN or infinity".replace("input  ", "the input ")
        for path, t in leaves(x)
        if _bad(t)
    ]
    if bad:
        found.problems += bad
        return _concluded(found, NetworkCheck(), None, None)
    whole = compare_networks(original, converted, gradients, back)
    first = None
    if whole.four and (whole.check.problems or (whole.gradients and not whole.gradients.ok)):
        first = _first_difference(whole.four)
    return _concluded(found, whole.check, whole.gradients, first)


def _bad(t: Tensor) -> bool:
    return (t.is_floating_point() or t.is_complex()) and not bool(torch.isfinite(t).all())


def _first_difference(four: Quartet) -> str | None:
    a, b = four.wide_original, four.wide_converted
    if not isinstance(a.call, nn.Module) or not isinstance(b.call, nn.Module):
        return None

    def limit(t: Tensor) -> float:
        return output_comparison.limit64(four.u * float(t.abs().max()), four.u) if t.numel() else 0.0

    with torch.no_grad():
        try:
            return activations.first_difference(a, b, a.call, b.call, limit)
        except Exception:  # the converted network failed before any module differed
            return None


def _concluded(
    found: _Findings,
    check: NetworkCheck,
    gradient: GradientCheck | None,
    first: str | None,
    nothing: str = "",
) -> Verification:
    """The answer; `nothing` says why no check could run, where none could."""
    weights = found.weights
    failed = [
        *found.problems,
        *(weights.problems if weights else ()),
        *(f"{layer.path}: {layer.why}" for layer in found.layers if not layer.ok),
        *check.problems,
        *([f"gradients {gradient.why}"] if gradient and not gradient.ok else []),
    ]
    problems = [*failed, *([nothing] if nothing else [])]
    failing = next((layer.path for layer in found.layers if not layer.ok), None)
    if failing is None and weights and weights.differing:
        failing = weights.differing[0].name.rpartition(".")[0]
    return Verification(
        equivalent=not problems,
        target=SAME_FUNCTION,
        max_error=check.max_error,
        rounding_ratio=check.rounding_ratio,
        float64_error=check.float64_error,
        float64_limit=check.float64_limit,
        layers=tuple(found.layers),
        weights=weights,
        gradients=gradient,
        first_difference=first or failing,
        problems=tuple(dict.fromkeys(problems)),
        unverified=tuple(
            dict.fromkeys([*found.unverified, *(weights.unverified if weights else ()), *check.unverified])
        ),
        nothing_verified=bool(nothing) and not failed,
    )
