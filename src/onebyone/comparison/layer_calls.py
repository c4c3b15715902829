"""One run of the network, watched: which linear layers and convolutions it calls, and on what."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from onebyone.errors import BadInput
from onebyone.laws import pointwise
from onebyone.pytorch.modules import layers
from onebyone.verification.evaluation_context import eval_mode

LINEAR, POINTWISE, KERNEL = "linear", "pointwise", "convolution"
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
)
_REMEMBERED = 12  # maps looked back on for the one that was flattened or pooled
_ORDERS = ((0, 1, 2), (1, 2, 0))  # channels first, channels last


@dataclass(frozen=True)
class Seen:
    """A layer as the run called it first.

    `kind` is "linear", "pointwise" (a convolution of kernel 1) or "convolution" (a larger kernel);
    `map_shape` the map (C, h, w) it reads, tokens as places and a vector as a map of one place. For a linear
    layer on a vector, `block` is the map (C, h, w) whose flattening the vector is, its axes in `order`, and
    `pooled` the map whose mean it is.
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
        """Channels (features) it takes."""
        return self.map_shape[0]

    @property
    def stride(self) -> tuple[int, ...]:
        """Of a convolution; empty for a linear layer."""
        given: Any = getattr(self.module, "stride", ())
        return (given,) if isinstance(given, int) else tuple(given)

    def weight(self) -> Tensor:
        """The weight as it is multiplied: (O, F), or (O, C/groups, *kernel)."""
        rule = layers.rule_of(layers.plain_class(self.module))
        with torch.no_grad():
            if rule is not None and rule.weight is not None:
                return rule.weight(self.module)
            return cast(Tensor, self.module.weight).detach()

    def bias(self) -> Tensor | None:
        """The bias (O,), or None."""
        bias = cast("Tensor | None", getattr(self.module, "bias", None))
        return None if bias is None else bias.detach()


def observe(model: nn.Module, example: Any) -> tuple[Seen, ...]:
    """The linear layers and convolutions that a run on `example` calls, in the order of their first calls.

    `example` is a tensor, a tuple of positional arguments or a dict of keyword arguments. Layers whose
    weight is read without calling them (in `nn.MultiheadAttention`) are not seen.

    Raises
    ------
    BadInput
        where the network does not run on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 2 * 2, 5))
    >>> [(s.path, s.kind, s.block) for s in observe(net, torch.zeros(1, 3, 2, 2))]
    [('0', 'pointwise', None), ('2', 'linear', (4, 2, 2))]
    """
    watch = _CallWatcher()
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(watch.before(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(watch.after(path)).remove)
        try:
            with torch.no_grad(), watch:
                run(model, example)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadInput(f"example{_shape(example)}: the network does not run on it: {said}") from error
    return tuple(watch.seen.values())


def _shape(example: Any) -> str:
    return f" of shape {tuple(example.shape)}" if isinstance(example, Tensor) else ""


def run(model: nn.Module, example: Any) -> Any:
    """The network on an example: a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


class _CallWatcher(TorchFunctionMode):
    """What the hooks write down, and the maps that functions between the modules give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Seen] = {}
        self._maps: deque[Tensor] = deque(maxlen=_REMEMBERED)
        self._last: str | None = None  # the layer called last, until something else is

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() == 4 and not self._is_view(result):
            self._maps.append(result)
        return result

    def _is_view(self, result: Tensor) -> bool:
        """Whether it is a map that is remembered already, its axes perhaps in another order."""
        where = result.untyped_storage().data_ptr()
        return any(m.untyped_storage().data_ptr() == where for m in self._maps)

    def before(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next(iter(args), None) if args else next(iter(kwargs.values()), None)
            if not isinstance(given, Tensor):
                return
            if given.dim() == 4 and not self._is_view(given):
                self._maps.append(given)
            if path in self.seen:
                return
            found = _read(path, module, given)
            if found is not None:
                self.seen[path] = self._with_source(found, given)

        return hook

    def after(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if path in self.seen:
                if self.seen[path].macs == 0 and isinstance(output, Tensor):
                    self.seen[path] = _with_cost(self.seen[path], output)
                self._last = path
            elif self._last is not None and not list(module.children()):
                if isinstance(module, ACTIVATIONS):
                    before = self.seen[self._last]
                    self.seen[self._last] = _replaced(before, activation=before.activation or module)
                self._last = None

        return hook

    def _with_source(self, found: Seen, given: Tensor) -> Seen:
        """Where a vector comes from: the latest map that it is the flattening or the mean of."""
        if found.kind != LINEAR or given.dim() != 2:
            return found
        for image in reversed(self._maps):
            if len(image) != len(given):
                continue
            if image.shape[1:3].numel() == 1:  # one place with its channels last, not a row of many places
                image = image.permute(0, 3, 1, 2)
            if _is_mean(image, given):
                return _replaced(found, pooled=_map_of(image))
            order = _flattened(image, given)
            if order is not None:
                found = _replaced(found, block=_map_of(image), order=order)
                if image.shape[2:].numel() > 1:
                    return found  # else it may be the mean of an earlier map
        return found


def _flattened(image: Tensor, given: Tensor) -> tuple[int, ...] | None:
    """The order of axes in which flattening the map gives the vector; None where none does."""
    if image[0].numel() != given.shape[1]:
        return None
    flat = ((order, image.permute(0, *(1 + a for a in order)).flatten(1)) for order in _ORDERS)
    return next((order for order, vector in flat if torch.equal(vector, given)), None)


def _is_mean(image: Tensor, given: Tensor) -> bool:
    """Whether a vector is the mean of a map of several places, be it by another kernel that rounds otherwise."""
    if not image.is_floating_point() or image.shape[2:].numel() == 1 or image.shape[:2] != given.shape:
        return False
    mean = image.mean(dim=(2, 3))
    return torch.allclose(mean, given, rtol=1e-3, atol=1e-5 * float(mean.abs().max()))


def _map_of(image: Tensor) -> tuple[int, int, int]:
    return int(image.shape[1]), int(image.shape[2]), int(image.shape[3])


def _replaced(seen: Seen, **changes: Any) -> Seen:
    return Seen(**{**vars(seen), **changes})


def _read(path: str, module: nn.Module, given: Tensor) -> Seen | None:
    """The layer, if it is a linear layer or a convolution that can be read; its cost is not known yet."""
    kind = _kind(module)
    if kind is None:
        return None
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    if kind == LINEAR:
        _, channels, height, width = pointwise.image_shape(tuple(given.shape))
        outputs = int(layers.sample_weight(module).shape[0])
        return Seen(path, kind, module, (channels, height, width), outputs, 1, parameters, 0, given.dim() > 2)
    conv: Any = module
    dims = len(conv.kernel_size)
    if given.dim() != dims + 2:
        return None
    size = [int(n) for n in given.shape[2:]]
    shape = (int(given.shape[1]), prod(size[:-1]) if dims > 1 else size[0], size[-1] if dims > 1 else 1)
    return Seen(path, kind, module, shape, int(conv.out_channels), int(conv.groups), parameters, 0)


def _kind(module: nn.Module) -> str | None:
    kind = layers.kind_of(module)
    if kind is not None and layers.why_not(module) is None:
        return LINEAR if kind == layers.LINEAR else POINTWISE
    large = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and kind is None
    return KERNEL if large and isinstance(module.weight, Tensor) else None


def _with_cost(seen: Seen, output: Tensor) -> Seen:
    """Multiply-accumulates of one image: every output is a sum of as many products as a weight row has."""
    if seen.kind == LINEAR:
        places, per_output = output[0].numel() if output.dim() > 1 else output.numel(), seen.inputs
    else:
        taps = prod(cast(Any, seen.module).kernel_size)
        places, per_output = output[0].numel(), seen.inputs // seen.groups * taps
    return _replaced(seen, macs=places * per_output)
