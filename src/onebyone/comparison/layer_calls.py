"""Records one run of a network: which linear layers and convolutions it calls, and on which inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.laws import pointwise
from onebyone.pytorch.modules import layers
from onebyone.records import first_line
from onebyone.verification.calls import Args, Kwargs, first_input, observe_functions, observe_modules
from onebyone.verification.evaluation_context import eval_mode

LINEAR, POINTWISE, KERNEL = "linear", "pointwise", "convolution"
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
)
_RECENT_MAPS = 12  # maps that are searched for the one that was flattened or pooled
_FLATTEN_ORDERS = ((0, 1, 2), (1, 2, 0))  # channels first, channels last


@dataclass(frozen=True)
class LayerCall:
    """The first call of a layer.

    `kind` is "linear", "pointwise" (a convolution with kernel size 1) or "convolution" (a larger kernel).
    `map_shape` is the input as a map (C, h, w): tokens are its positions, a vector is a map of one position. For a
    linear layer on a vector, `block` is the map (C, h, w) that was flattened into the vector, its axes in `order`,
    and `pooled` is the map whose mean the vector is. `tokens` is true for a linear layer on tokens.
    """

    path: str
    kind: str
    module: nn.Module
    map_shape: tuple[int, int, int]
    outputs: int
    groups: int
    parameters: int
    macs: int
    tokens: bool = False
    block: tuple[int, int, int] | None = None
    order: tuple[int, ...] = (0, 1, 2)
    pooled: tuple[int, int, int] | None = None
    activation: nn.Module | None = None

    @property
    def inputs(self) -> int:
        """Input channels (features)."""
        return self.map_shape[0]

    @property
    def stride(self) -> tuple[int, ...]:
        """The stride of a convolution; empty for a linear layer."""
        stride: Any = getattr(self.module, "stride", ())
        return (stride,) if isinstance(stride, int) else tuple(stride)

    def weight(self) -> Tensor:
        """The weight that is multiplied: (O, F), or (O, C/groups, *kernel)."""
        rule = layers.rule_of(layers.plain_class(self.module))
        with torch.no_grad():
            if rule is not None and rule.weight is not None:
                return rule.weight(self.module)
            return cast(Tensor, self.module.weight).detach()

    def bias(self) -> Tensor | None:
        """The bias (O,), or None."""
        bias = cast("Tensor | None", getattr(self.module, "bias", None))
        return None if bias is None else bias.detach()


def record_layer_calls(model: nn.Module, example: Any) -> tuple[LayerCall, ...]:
    """The linear layers and convolutions that a run on `example` calls, in the order of their first calls.

    `example` is a tensor, a tuple of positional arguments or a dict of keyword arguments. Layers whose
    weight is read without calling them (as in `nn.MultiheadAttention`) are not recorded.

    Raises
    ------
    BadInput
        if the network does not run on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 2 * 2, 5))
    >>> [(s.path, s.kind, s.block) for s in record_layer_calls(net, torch.zeros(1, 3, 2, 2))]
    [('0', 'pointwise', None), ('2', 'linear', (4, 2, 2))]
    """
    recorder = _CallRecorder()
    modules = dict(model.named_modules())
    try:
        with (
            eval_mode(model),
            observe_modules(modules, before=recorder.before_module, after=recorder.after_module),
            observe_functions(recorder.after_function),
            torch.no_grad(),
        ):
            run(model, example)
    except Exception as error:
        raise BadInput(
            f"example{_shape(example)}: the network does not run on it: {first_line(error)}"
        ) from error
    return tuple(recorder.calls.values())


def _shape(example: Any) -> str:
    return f" of shape {tuple(example.shape)}" if isinstance(example, Tensor) else ""


def run(model: nn.Module, example: Any) -> Any:
    """Run the network on an example: a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


class _CallRecorder:
    """Records layer calls and recent maps from the observed calls of modules and functions."""

    def __init__(self) -> None:
        self.calls: dict[str, LayerCall] = {}
        self._maps: deque[Tensor] = deque(maxlen=_RECENT_MAPS)
        self._last: str | None = None  # path of the previous module, if it was a recorded layer

    def after_function(self, function: Any, args: Args, kwargs: Kwargs, result: Any) -> None:
        if isinstance(result, Tensor) and result.dim() == 4 and not self._is_view(result):
            self._maps.append(result)

    def _is_view(self, result: Tensor) -> bool:
        """Whether it shares its storage with a recent map, its axes perhaps in another order."""
        pointer = result.untyped_storage().data_ptr()
        return any(m.untyped_storage().data_ptr() == pointer for m in self._maps)

    def before_module(self, path: str, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        x = first_input(args, kwargs)
        if not isinstance(x, Tensor):
            return
        if x.dim() == 4 and not self._is_view(x):
            self._maps.append(x)
        if path in self.calls:
            return
        call = _layer_call(path, module, x)
        if call is not None:
            self.calls[path] = self._with_source(call, x)

    def after_module(self, path: str, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        if path in self.calls:
            if self.calls[path].macs == 0 and isinstance(output, Tensor):
                self.calls[path] = _with_cost(self.calls[path], output)
            self._last = path
        elif self._last is not None and not list(module.children()):
            if isinstance(module, ACTIVATIONS):
                call = self.calls[self._last]
                self.calls[self._last] = replace(call, activation=call.activation or module)
            self._last = None

    def _with_source(self, call: LayerCall, x: Tensor) -> LayerCall:
        """The call with the most recent map that was flattened, or averaged, into its input vector `x`."""
        if call.kind != LINEAR or x.dim() != 2:
            return call
        for image in reversed(self._maps):
            if len(image) != len(x):
                continue
            if (
                image.shape[1:3].numel() == 1
            ):  # one position stored channels-last, not a row of many positions
                image = image.permute(0, 3, 1, 2)
            if _is_mean(image, x):
                return replace(call, pooled=_map_of(image))
            order = _flatten_order(image, x)
            if order is not None:
                call = replace(call, block=_map_of(image), order=order)
                if image.shape[2:].numel() > 1:
                    return call  # a map of one position may itself be the mean of an earlier map
        return call


def _flatten_order(image: Tensor, vector: Tensor) -> tuple[int, ...] | None:
    """The order of axes in which flattening the map gives the vector; None if there is no such order."""
    if image[0].numel() != vector.shape[1]:
        return None
    flat = ((order, image.permute(0, *(1 + a for a in order)).flatten(1)) for order in _FLATTEN_ORDERS)
    return next((order for order, flattened in flat if torch.equal(flattened, vector)), None)


def _is_mean(image: Tensor, vector: Tensor) -> bool:
    """Whether a vector is the mean of a map of several positions; another kernel may have rounded differently."""
    if not image.is_floating_point() or image.shape[2:].numel() == 1 or image.shape[:2] != vector.shape:
        return False
    mean = image.mean(dim=(2, 3))
    return torch.allclose(mean, vector, rtol=1e-3, atol=1e-5 * float(mean.abs().max()))


def _map_of(image: Tensor) -> tuple[int, int, int]:
    return int(image.shape[1]), int(image.shape[2]), int(image.shape[3])


def _layer_call(path: str, module: nn.Module, x: Tensor) -> LayerCall | None:
    """The call of a linear layer or convolution on `x`, before its cost is known; None for any other module."""
    kind = _kind(module)
    if kind is None:
        return None
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    if kind == LINEAR:
        _, channels, height, width = pointwise.image_shape(tuple(x.shape))
        outputs = int(layers.sample_weight(module).shape[0])
        return LayerCall(
            path, kind, module, (channels, height, width), outputs, 1, parameters, 0, x.dim() > 2
        )
    conv: Any = module
    dims = len(conv.kernel_size)
    if x.dim() != dims + 2:
        return None
    size = [int(n) for n in x.shape[2:]]
    shape = (int(x.shape[1]), prod(size[:-1]) if dims > 1 else size[0], size[-1] if dims > 1 else 1)
    return LayerCall(path, kind, module, shape, int(conv.out_channels), int(conv.groups), parameters, 0)


def _kind(module: nn.Module) -> str | None:
    kind = layers.kind_of(module)
    if kind is not None and layers.why_not(module) is None:
        return LINEAR if kind == layers.LINEAR else POINTWISE
    is_convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and kind is None
    return KERNEL if is_convolution and isinstance(module.weight, Tensor) else None


def _with_cost(call: LayerCall, output: Tensor) -> LayerCall:
    """The call with its multiply-accumulates for one image: each output sums one product per weight of its row."""
    if call.kind == LINEAR:
        outputs, per_output = output[0].numel() if output.dim() > 1 else output.numel(), call.inputs
    else:
        taps = prod(cast(Any, call.module).kernel_size)
        outputs, per_output = output[0].numel(), call.inputs // call.groups * taps
    return replace(call, macs=outputs * per_output)
