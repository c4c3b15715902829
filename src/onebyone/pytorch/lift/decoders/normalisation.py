"""Batch, layer, instance and group norms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from onebyone.lifting.operators import BatchNorm, GroupNorm, LayerNorm
from onebyone.lifting.values import Cannot, Const, handle_or_none
from onebyone.pytorch.lift.graph_lifter import Decoder, GraphLifter

aten = torch.ops.aten

_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norm(lifter: GraphLifter, node: fx.Node) -> BatchNorm:
    """A batch-norm module over the network's own tensors where they belong to one module, so that training goes on."""
    arguments = lifter.arguments(node)
    mean, variance, weight, bias = (arguments[n] for n in ("running_mean", "running_var", "weight", "bias"))
    if arguments.get("training"):
        raise Cannot("a batch norm that takes its statistics from the batch")
    epsilon, momentum = float(arguments["eps"]), float(arguments["momentum"])

    def apply(handle: Any) -> Any:
        path = _module_of(mean, variance, weight, bias)
        if path is not None:
            if path not in lifter.modules:
                features = int(mean.shape[0])
                lifter.modules[path] = _module(lifter, path, features, epsilon, momentum, weight is not None)
            return lifter.proxy(lifter.graph.call_module(path, (handle.node,)))
        tensors = [handle_or_none(t) for t in (mean, variance, weight, bias)]
        return lifter.call(F.batch_norm, handle, *tensors, False, momentum, epsilon)

    return BatchNorm(arguments["input"], mean, variance, weight, bias, epsilon, apply)


def _module_of(mean: Const, variance: Const, weight: Const | None, bias: Const | None) -> str | None:
    """The path of the module that all of the tensors belong to, under their usual names; None where there is none."""
    path = str(mean.name).rpartition(".")[0] if mean.name else ""
    names = {"running_mean": mean, "running_var": variance, "weight": weight, "bias": bias}
    belong = path and all(c is None or c.name == f"{path}.{n}" for n, c in names.items())
    return path if belong and (weight is None) == (bias is None) else None


def _module(
    lifter: GraphLifter, path: str, features: int, epsilon: float, momentum: float, affine: bool
) -> nn.Module:
    tensors = lifter.traced.tensors
    module: nn.Module = _MODULES[lifter.axes - 1](features, epsilon, momentum, affine, device="meta")
    for name in ("weight", "bias") if affine else ():
        tensor = tensors[f"{path}.{name}"]
        module.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        module.register_buffer(name, tensors.get(f"{path}.{name}"))
    return module.eval()


def layer_norm(lifter: GraphLifter, node: fx.Node) -> LayerNorm:
    arguments = lifter.arguments(node)
    axes, is_rms = len(arguments["normalized_shape"]), "rms_norm" in str(node.target)
    return LayerNorm(
        arguments["input"],
        axes,
        arguments.get("weight"),
        arguments.get("bias"),
        arguments.get("eps"),
        root_mean_square=is_rms,
    )


def instance_norm(lifter: GraphLifter, node: fx.Node) -> GroupNorm:
    arguments = lifter.arguments(node)
    if not arguments["use_input_stats"]:
        raise Cannot("an instance norm with running statistics")
    return GroupNorm(arguments["input"], None, arguments["weight"], arguments["bias"], arguments["eps"])


def group_norm(lifter: GraphLifter, node: fx.Node) -> GroupNorm:
    arguments = lifter.arguments(node)
    groups = int(arguments["num_groups"] if "num_groups" in arguments else arguments["group"])
    return GroupNorm(
        lifter.value(node.args[0]), groups, arguments["weight"], arguments["bias"], arguments["eps"]
    )


DECODERS: dict[Any, Decoder] = {
    **dict.fromkeys(
        (
            aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default,
            aten.cudnn_batch_norm.default,
        ),
        batch_norm,
    ),
    **dict.fromkeys(
        (aten.layer_norm.default, aten.native_layer_norm.default, aten.rms_norm.default), layer_norm
    ),
    aten.instance_norm.default: instance_norm,
    **dict.fromkeys((aten.group_norm.default, aten.native_group_norm.default), group_norm),
}  # fmt: skip
