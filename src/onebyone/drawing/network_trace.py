"""One run of a network, watched: every layer that it calls, and the functions between them that matter."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from onebyone.drawing.data import MAP, TOKENS, VECTOR, LayerCall, Sizes, Weight
from onebyone.errors import BadInput
from onebyone.pytorch.modules import layers
from onebyone.records import by, first_line
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
"""Functions called outside layers that become steps, by name; what else runs there only moves values about."""

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
    **dict.fromkeys(("Dropout", "DropPath", "Identity"), "identity"),  # they do nothing in evaluation
}
"""What a class is for, by a part of its name: other libraries have their own of each."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAST = ("LayerNorm", "RMSNorm", "Linear", "LSTM", "GRU", "RNN", "Embedding")
"""Classes, by the beginning or end of the name, whose channels are the last axis."""


def watch(model: nn.Module, example: Any) -> tuple[LayerCall, ...]:
    """The steps of a run on `example`: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises
    ------
    BadInput
        where the network does not run on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    >>> [(s.path, s.role, s.output) for s in watch(net, torch.zeros(1, 3, 4, 4))]
    [('0', 'convolution', (4, 2, 2)), ('1', 'activation', (4, 2, 2)), ('2', 'flatten', (16,)), ('3', 'linear', (5,))]
    """
    tensors = [t for _, t in leaves(example)]
    seen = _TraceWatcher(len(tensors[0]) if tensors and tensors[0].dim() else 0)
    with ExitStack() as stack:
        stack.enter_context(proof_settings(0, model))
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(seen.before(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(seen.after(path), always_call=True).remove)
        args, kwargs = arguments(example)
        try:
            with torch.no_grad(), seen:
                model(*args, **kwargs)
        except Exception as error:
            shape = f" of shape {by(tensors[0].shape)}" if len(tensors) == 1 else ""
            raise BadInput(f"example{shape}: the network does not run on it: {first_line(error)}") from error
    return tuple(seen.steps)


class _TraceWatcher(TorchFunctionMode):
    """What the hooks and the functions between them write down."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.steps: list[LayerCall] = []
        self.batch = batch
        self._open: list[
            tuple[str, bool, Sizes]
        ] = []  # modules that are running, and whether they are layers

    def before(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = [t for _, t in leaves((args, kwargs))]
            self._open.append((path, _is_layer(module), tuple(given[0].shape) if given else ()))

        return hook

    def after(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            _, is_layer, given = self._open.pop()
            results = [t for _, t in leaves(output)]
            if is_layer and results and not self._inside_a_layer():
                self._add(self._of_module(path, module, given, results[0]))

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(getattr(func, "__name__", "")).partition(".")[
            0
        ]  # an operator of aten names its overload too
        role = FUNCTIONS.get(name)
        if role is not None and isinstance(result, Tensor) and not self._inside_a_layer():
            self._function(name, role, args, result)
        return result

    def _inside_a_layer(self) -> bool:
        return any(is_layer for _, is_layer, _ in self._open)

    def _function(self, name: str, role: str, args: tuple[Any, ...], result: Tensor) -> None:
        tensors = [t for _, t in leaves(args)]
        given = tensors[0] if tensors else result
        if role == "flatten" and not (given.dim() > 2 and result.dim() == 2 and len(given) == len(result)):
            return  # it moves values about, and makes no vector of a map
        weights: tuple[Weight, ...] = ()
        kernel: Sizes = ()
        if role in ("linear", "convolution") and len(tensors) > 1:
            weights = tuple(
                Weight(n, tuple(t.shape)) for n, t in zip(("weight", "bias"), tensors[1:3], strict=False)
            )
            kernel = tuple(tensors[1].shape[2:])
            role = "pointwise" if kernel and set(kernel) == {1} else role
        path = self._open[-1][0] if self._open else ""
        self._add(self._step(path, name, role, tuple(given.shape), result, weights, kernel))

    def _of_module(self, path: str, module: nn.Module, given: Sizes, result: Tensor) -> LayerCall:
        held: Any = module
        is_conv = isinstance(module, _CONVOLUTIONS)
        pooled = role_of(module) == "pool"
        kernel = _sizes(held.kernel_size, result.dim() - 2) if is_conv or hasattr(held, "kernel_size") else ()
        stride = _sizes(held.stride, len(kernel)) if (is_conv or pooled) and kernel else ()
        weights = tuple(Weight(n, tuple(p.shape)) for n, p in module.named_parameters())
        return self._step(
            path,
            layers.plain_class(module).__name__,
            role_of(module),
            given,
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
        given: Sizes,
        result: Tensor,
        weights: tuple[Weight, ...] = (),
        kernel: Sizes = (),
        stride: Sizes = (),
        groups: int = 1,
    ) -> LayerCall:
        shape = tuple(int(n) for n in result.shape)
        if kind == "scaled_dot_product_attention" and len(shape) == 4:  # heads side by side are the channels
            shape = (shape[0], shape[2], shape[1] * shape[3])
        output = self._alone(shape)
        layout = self._layout(kind, role, output)
        return LayerCall(
            path, kind, role, layout, self._alone(given), output, weights, kernel, stride, groups
        )

    def _alone(self, shape: Sizes) -> Sizes:
        """The shape of one sample."""
        return shape[1:] if len(shape) > 1 and shape[0] == self.batch else shape

    def _layout(self, kind: str, role: str, shape: Sizes) -> str:
        if len(shape) < 2:
            return VECTOR
        if role in ("convolution", "pointwise", "pool") and kind != "mean":
            return MAP
        if kind.endswith(("1d", "2d", "3d")) or kind.startswith(("InstanceNorm", "GroupNorm")):
            return MAP
        if role in ("linear", "attention") or kind.startswith(_LAST) or kind.endswith(_LAST):
            return TOKENS
        same = [s for s in reversed(self.steps) if s.output == shape]
        if same:
            return same[0].layout
        return MAP if len(shape) > 2 else TOKENS

    def _add(self, step: LayerCall) -> None:
        self.steps.append(step)


def role_of(module: nn.Module) -> str:
    """What a layer is for, as `LayerCall.role` has it."""
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
    """Whether it is looked at as one: what it calls inside is its own affair."""
    whole = isinstance(module, (nn.MultiheadAttention, *_CONVOLUTIONS)) or layers.kind_of(module) is not None
    return whole or parametrize.is_parametrized(module) or next(module.children(), None) is None


def _sizes(value: Any, axes: int) -> Sizes:
    given = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return given * axes if len(given) == 1 else given
