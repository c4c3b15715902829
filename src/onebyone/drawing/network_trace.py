"""Records one run of a network: every layer that it calls, and the relevant functions between the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from onebyone.drawing.data import MAP, TOKENS, VECTOR, Sizes, TraceStep, Weight
from onebyone.errors import BadInput
from onebyone.pytorch.modules import layers
from onebyone.records import by, first_line
from onebyone.verification.calls import Args, Kwargs, observe_functions, observe_modules
from onebyone.verification.evaluation_context import proof_settings
from onebyone.verification.pytree import arguments, leaves

FUNCTIONS = {
    **dict.fromkeys(("flatten", "view", "reshape"), "flatten"),
    **dict.fromkeys(("add", "add_", "__add__", "__iadd__", "__radd__"), "sum"),
    **dict.fromkeys(("cat", "concat", "stack"), "join"),
    **dict.fromkeys(("relu", "relu_", "gelu", "silu", "sigmoid", "tanh", "hardswish"), "activation"),
    **dict.fromkeys(("leaky_relu", "elu", "mish", "softplus", "hardtanh", "relu6"), "activation"),
    **dict.fromkeys(("mean", "avg_pool1d", "avg_pool2d", "avg_pool3d"), "pool"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), "pool"),
    **{f"adaptive_{m}_pool{d}d": "pool" for m in ("avg", "max") for d in (1, 2, 3)},
    **{f"conv{d}d": "convolution" for d in (1, 2, 3)},
    "scaled_dot_product_attention": "attention",
    "linear": "linear",
}
"""Functions that become steps when called outside layers, by name; all others only rearrange values."""

_ACTIVATIONS = tuple(
    getattr(nn, name)
    for name in (
        *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Hardswish"),
        *("Hardtanh", "Hardsigmoid", "Sigmoid", "Tanh", "Softplus", "Softsign", "Softmax", "LogSoftmax"),
    )
)
_NAMED_ACTIVATIONS = {cls.__name__ for cls in _ACTIVATIONS} | {"GELUTanh", "QuickGELU", "Swish"}
_PARTS = {
    "Norm": "normalisation",
    "Pool": "pool",
    "Flatten": "flatten",
    **dict.fromkeys(("Dropout", "DropPath", "Identity"), "identity"),  # they have no effect in eval mode
}
"""Roles by a part of the class name, because other libraries have their own classes for them."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CHANNELS_FIRST = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.RNNBase, nn.Embedding, nn.EmbeddingBag)


def trace(model: nn.Module, example: Any) -> tuple[TraceStep, ...]:
    """The steps of a run on `example`: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises
    ------
    BadInput
        if the network does not run on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    >>> [(s.path, s.role, s.output) for s in trace(net, torch.zeros(1, 3, 4, 4))]
    [('0', 'convolution', (4, 2, 2)), ('1', 'activation', (4, 2, 2)), ('2', 'flatten', (16,)), ('3', 'linear', (5,))]
    """
    tensors = [t for _, t in leaves(example)]
    recorder = _StepRecorder(len(tensors[0]) if tensors and tensors[0].dim() else 0)
    args, kwargs = arguments(example)
    observed = observe_modules(
        dict(model.named_modules()),
        before=recorder.before_module,
        after=recorder.after_module,
        even_if_raising=True,
    )
    try:
        with proof_settings(0, model), observed, torch.no_grad(), observe_functions(recorder.after_function):
            model(*args, **kwargs)
    except Exception as error:
        shape = f" of shape {by(tensors[0].shape)}" if len(tensors) == 1 else ""
        raise BadInput(f"example{shape}: the network does not run on it: {first_line(error)}") from error
    return tuple(recorder.steps)


class _StepRecorder:
    """Records layers, and functions that are called between layers, from the observed calls."""

    def __init__(self, batch: int) -> None:
        self.steps: list[TraceStep] = []
        self.batch = batch
        self._running: list[tuple[str, bool, Sizes]] = []  # modules: path, whether a layer, input shape

    def before_module(self, path: str, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        inputs = [t for _, t in leaves((args, kwargs))]
        self._running.append((path, _is_layer(module), tuple(inputs[0].shape) if inputs else ()))

    def after_module(self, path: str, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        _, is_layer, input_shape = self._running.pop()
        results = [t for _, t in leaves(output)]
        if is_layer and results and not self._inside_a_layer():
            self.steps.append(self._module_step(path, module, input_shape, results[0]))

    def after_function(self, function: Any, args: Args, kwargs: Kwargs, result: Any) -> None:
        # the name of an aten operator ends in its overload
        name = str(getattr(function, "__name__", "")).partition(".")[0]
        role = FUNCTIONS.get(name)
        if role is not None and isinstance(result, Tensor) and not self._inside_a_layer():
            self._add_function(name, role, args, result)

    def _inside_a_layer(self) -> bool:
        return any(is_layer for _, is_layer, _ in self._running)

    def _add_function(self, name: str, role: str, args: tuple[Any, ...], result: Tensor) -> None:
        tensors = [t for _, t in leaves(args)]
        x = tensors[0] if tensors else result
        if role == "flatten" and not (x.dim() > 2 and result.dim() == 2 and len(x) == len(result)):
            return  # it does not turn a map into a vector
        weights: tuple[Weight, ...] = ()
        kernel: Sizes = ()
        if role in ("linear", "convolution") and len(tensors) > 1:
            weights = tuple(
                Weight(n, tuple(t.shape)) for n, t in zip(("weight", "bias"), tensors[1:3], strict=False)
            )
            kernel = tuple(tensors[1].shape[2:])
            role = "pointwise" if kernel and set(kernel) == {1} else role
        path = self._running[-1][0] if self._running else ""
        self.steps.append(self._step(path, name, role, None, tuple(x.shape), result, weights, kernel))

    def _module_step(self, path: str, module: nn.Module, input_shape: Sizes, result: Tensor) -> TraceStep:
        layer: Any = module
        is_conv = isinstance(module, _CONVOLUTIONS)
        pooled = role_of(module) == "pool"
        kernel = (
            _sizes(layer.kernel_size, result.dim() - 2) if is_conv or hasattr(layer, "kernel_size") else ()
        )
        stride = _sizes(layer.stride, len(kernel)) if (is_conv or pooled) and kernel else ()
        weights = tuple(Weight(n, tuple(p.shape)) for n, p in module.named_parameters())
        return self._step(
            path,
            layers.plain_class(module).__name__,
            role_of(module),
            module,
            input_shape,
            result,
            weights,
            kernel,
            stride,
            int(getattr(module, "groups", 1)) if is_conv else 1,
        )

    def _step(
        self,
        path: str,
        kind: str,
        role: str,
        module: nn.Module | None,
        input_shape: Sizes,
        result: Tensor,
        weights: tuple[Weight, ...] = (),
        kernel: Sizes = (),
        stride: Sizes = (),
        groups: int = 1,
    ) -> TraceStep:
        shape = tuple(int(n) for n in result.shape)
        if kind == "scaled_dot_product_attention" and len(shape) == 4:  # the channels are those of all heads
            shape = (shape[0], shape[2], shape[1] * shape[3])
        read, output = self._sample(input_shape), self._sample(shape)
        is_map = role in ("convolution", "pointwise", "pool") and kind != "mean"
        layout = MAP if is_map and len(output) > 1 else self._layout(role, module, read, output)
        return TraceStep(path, kind, role, layout, read, output, weights, kernel, stride, groups)

    def _sample(self, shape: Sizes) -> Sizes:
        """The shape without the batch."""
        return shape[1:] if len(shape) > 1 and shape[0] == self.batch else shape

    def _layout(self, role: str, module: nn.Module | None, read: Sizes, output: Sizes) -> str:
        """The layout of an output: by the kind of layer or its weight, else that of an earlier value of its shape."""
        if len(output) < 2:
            return VECTOR
        if role in ("linear", "attention"):
            return TOKENS
        layout = None if module is None else _layout_by_weight(module, read, output)
        if layout is not None:
            return layout
        for shape in (output, read if len(read) == len(output) else output):
            for step in reversed(self.steps):
                if step.output == shape:
                    return step.layout
        return MAP if len(output) > 2 else TOKENS


def _layout_by_weight(module: nn.Module, read: Sizes, output: Sizes) -> str | None:
    """MAP if the channels of a layer come first, TOKENS if they come last, None if the layer does not tell.

    A weight (O, F) is that of a linear layer if F and O are the last sizes of input and output. A weight (C) belongs
    to the axis that has this size, unless both the first and the last axis have it.

    >>> _layout_by_weight(nn.LayerNorm(5), (7, 5), (7, 5)), _layout_by_weight(nn.LayerNorm(5), (5, 7, 7), (5, 7, 7))
    ('tokens', 'map')
    """
    if isinstance(module, _CHANNELS_FIRST):
        return MAP
    if isinstance(module, _CHANNELS_LAST):
        return TOKENS
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if len(shape) == 2 and (read[-1:], output[-1:]) == (shape[1:], shape[:1]):
        return TOKENS
    first, last = output[:1] == shape, output[-1:] == shape
    return None if first == last else MAP if first else TOKENS


def role_of(module: nn.Module) -> str:
    """The role of a layer; see `TraceStep.role`."""
    kind = layers.kind_of(module)
    if kind is not None:
        return "linear" if kind == layers.LINEAR else "pointwise"
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    name = layers.plain_class(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, _ACTIVATIONS) or name in _NAMED_ACTIVATIONS:
        return "activation"
    return next((role for part, role in _PARTS.items() if part in name), "other")


def _is_layer(module: nn.Module) -> bool:
    """Whether it is recorded as one layer, so that the calls inside it are ignored."""
    is_known = (
        isinstance(module, (nn.MultiheadAttention, *_CONVOLUTIONS)) or layers.kind_of(module) is not None
    )
    return is_known or parametrize.is_parametrized(module) or next(module.children(), None) is None


def _sizes(value: Any, axes: int) -> Sizes:
    sizes = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return sizes * axes if len(sizes) == 1 else sizes
