"""Kernels of onebyone's own: a convolutional network as a list of steps on channels-last maps, in one call of C++.

What it has over the others: 1×1 convolutions are products of rows that lie as they are, 3×3 ones at stride 1 are
products of tiles (Winograd), and batch norms, biases, activations and residual additions are part of the step before
them; nothing is laid out anew from the first layer to the last, and no operator is dispatched. On processors only, in
float32, for convolutional classifiers: a network with another operator is refused by that operator's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from onebyone.tune.calling import Call, Calling
from onebyone.tune.engines.base import TORCH, Engine, Setting, on_processors, register_engine
from onebyone.tune.engines.exporting import UnservedError, export
from onebyone.tune.kernels.finishing import finished
from onebyone.tune.kernels.network import Activation, Kind, Map, Meeting, Program, Step, kernel, on_axes
from onebyone.tune.reading import constant, convolution_arguments, pool_arguments, with_norm

aten = torch.ops.aten
_ACTIVATIONS = {
    aten.relu.default: Activation.RELU,
    aten.relu_.default: Activation.RELU,
    aten.hardtanh.default: Activation.RELU6,
    aten.hardtanh_.default: Activation.RELU6,
    aten.relu6.default: Activation.RELU6,
    aten.hardswish.default: Activation.HARDSWISH,
    aten.hardswish_.default: Activation.HARDSWISH,
    aten.hardsigmoid.default: Activation.HARDSIGMOID,
    aten.hardsigmoid_.default: Activation.HARDSIGMOID,
    aten.silu.default: Activation.SILU,
    aten.silu_.default: Activation.SILU,
    aten.sigmoid.default: Activation.SIGMOID,
    aten.sigmoid_.default: Activation.SIGMOID,
}
_SAME = {
    aten.dropout.default, aten.dropout_.default, aten.contiguous.default, aten.clone.default, aten.detach.default,
    aten.alias.default, aten.feature_dropout.default,
}  # fmt: skip
_FLAT = {
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.squeeze.dims,
    aten.squeeze.default,
}
_MOST_TAPS, _NARROW = 64, 4


class Planner:
    """Reads an exported graph into steps. Raises UnservedError with the reason where it cannot."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.steps = network, list[Step]()
        self.maps: dict[fx.Node, Map] = {}
        self.image: Any = None
        self.folded: set[fx.Node] = set()
        self.order: dict[fx.Node, int] = {}

    def plan(self, graph: fx.Graph) -> tuple[list[Step], Map]:
        """The steps, and the map that is the answer."""
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "output":
                given = _leaves(node.args)
                if len(given) != 1 or given[0] not in self.maps:
                    raise UnservedError("it gives more than one tensor")
                answer = self.maps[given[0]]
            elif node.op == "call_function" and node not in self.folded:
                self._call(node)
            elif node.op == "call_module":
                self._guards(node)
        if not self.steps:
            raise UnservedError("it has no step to take")
        return finished(self.steps, answer), answer

    def _guards(self, node: fx.Node) -> None:
        if node.users:  # torch.export's checks of the inputs' sizes have none
            raise UnservedError(f"it calls a module ({node.target})")

    def _input(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if self.image is not None:
            raise UnservedError("it takes more than one input")
        if not isinstance(value, Tensor) or value.dim() != 4 or value.dtype != torch.float32:
            raise UnservedError("its input is no image (N, C, H, W) in float32")
        self.image = node

    def _call(self, node: Any) -> None:
        target = node.target
        self._require_settled(node)
        if target in _ACTIVATIONS:
            self._activation(node)
        elif target in _SAME:
            if "dropout" in str(target) and node.args[2]:
                raise UnservedError("it drops out at random")
            self.maps[node] = self._map(node.args[0])
        elif target in _FLAT:
            self._flat(node)
        elif target in _STEPS:
            _STEPS[target](self, node)
        else:
            raise UnservedError(f"it has a step that is not known here: {target}")

    def _require_settled(self, node: Any) -> None:
        """What is changed in place must not be read again as it was."""
        if str(node.target).split(".")[1].endswith("_") and node.args:
            value = self._map(node.args[0])
            names = [node.args[0], *(n for n, m in self.maps.items() if m is value)]
            if any(self.order[u] > self.order[node] for n in names for u in n.users):
                raise UnservedError(f"{node.target} changes a value that is read again")

    def _map(self, node: Any) -> Map:
        if node is self.image and node not in self.maps:
            n, c, h, w = node.meta["val"].shape
            self.maps[node] = Map((n, c, h, w))
            self._add(Step(Kind.INPUT, None, self.maps[node], given=(n, c, h, w)))
        if node not in self.maps:
            raise UnservedError(f"{getattr(node, 'name', node)} is not computed from the image alone")
        return self.maps[node]

    def _add(self, step: Step) -> Map:
        channels = step.y.shape[1]
        if step.kind in (Kind.DEPTHWISE, Kind.MAX_POOL, Kind.MEAN) and channels < kernel().onebyone_lanes():
            raise UnservedError(f"a map of {channels} channels is narrower than a vector")
        self.steps.append(step)
        return step.y

    def convolution(self, node: Any) -> None:
        """A convolution with the batch norm behind it."""
        a = convolution_arguments(node)
        weight, bias = constant(self.network, a["weight"]), constant(self.network, a["bias"])
        if weight is None or weight.dim() != 4 or (bias is None and a["bias"] is not None):
            raise UnservedError("a convolution's weight is not one of its parameters")
        weight, bias, norm = with_norm(self.network, node, weight, bias)
        if norm is not None:
            node = norm
            self.folded.add(norm)
        outputs, per_group, kernel_h, kernel_w = weight.shape
        sizes = on_axes((kernel_h, kernel_w), a["stride"], a["padding"], a["dilation"])
        y = Map(_image_shape(node))
        source = a["input"]
        narrow = a["groups"] == 1 and self._narrow(source, per_group, sizes)
        if narrow and kernel_h <= _MOST_TAPS:
            x = self._padded(source, sizes)
            sizes |= {"pad_h": 0, "pad_w": 0, "dilation_w": 0}
            self._add(Step(Kind.CONVOLUTION, x, y, weight, bias, sizes=sizes))
        elif a["groups"] == 1 and kernel_h * kernel_w <= _MOST_TAPS:
            self._add(Step(Kind.CONVOLUTION, self._map(source), y, weight, bias, sizes=sizes))
        elif a["groups"] == outputs and per_group == 1 and kernel_h * kernel_w <= _MOST_TAPS:
            self._add(Step(Kind.DEPTHWISE, self._map(source), y, weight, bias, sizes=sizes))
        else:
            raise UnservedError(f"a {kernel_h}×{kernel_w} convolution in {a['groups']} groups")
        self.maps[node] = y

    def _narrow(self, source: Any, channels: int, sizes: dict[str, int]) -> bool:
        """Whether it alone reads the image, of few channels: then a row of its kernel is one run of numbers."""
        alone = source is self.image and sum(u.op != "call_module" for u in source.users) == 1
        return alone and channels <= _NARROW and sizes["dilation_w"] == 1

    def _padded(self, source: Any, sizes: dict[str, int]) -> Map:
        n, c, h, w = source.meta["val"].shape
        x = Map((n, c, h + 2 * sizes["pad_h"], w + 2 * sizes["pad_w"]))
        pads = {"pad_h": sizes["pad_h"], "pad_w": sizes["pad_w"]}
        return self._add(Step(Kind.INPUT, None, x, sizes=pads, given=(n, c, h, w)))

    def linear(self, node: Any) -> None:
        """A linear layer on what one place holds, or on a flattened map: a product of rows."""
        given = [*node.args, None][:3]
        x = self._map(given[0])
        weight, bias = constant(self.network, given[1]), constant(self.network, given[2])
        if weight is None or (bias is None and given[2] is not None) or given[0].meta["val"].dim() != 2:
            raise UnservedError(
                "a linear layer on more than one row a sample, or whose weight is no parameter"
            )
        n, c, h, w = x.shape
        weight = weight.reshape(-1, c, h, w).permute(0, 2, 3, 1).flatten(1)  # as the map lies
        sizes = on_axes((1, 1), (1, 1), (0, 0), (1, 1)) | {"height": 1, "width": 1, "channels": c * h * w}
        y = Map((n, len(weight), 1, 1))
        self.maps[node] = self._add(Step(Kind.CONVOLUTION, x, y, weight[:, :, None, None], bias, sizes=sizes))

    def _activation(self, node: Any) -> None:
        kind = _ACTIVATIONS[node.target]
        if kind == Activation.RELU6 and tuple(node.args[1:]) not in ((0, 6), (0.0, 6.0), ()):
            raise UnservedError(f"hardtanh between {node.args[1:]}")
        x, last = self._map(node.args[0]), self._producer(node.args[0])
        takes = (Kind.CONVOLUTION, Kind.DEPTHWISE, Kind.ELEMENTWISE)
        if last is not None and last.kind in takes and last.activation == Activation.NONE:
            last.activation = kind
            self.maps[node] = x
            return
        self.maps[node] = self._add(Step(Kind.ELEMENTWISE, x, Map(x.shape), activation=kind, add=x))

    def _producer(self, node: Any) -> Step | None:
        """The step that a value comes from, where nothing else reads it."""
        if len(node.users) != 1:
            return None
        value = self.maps[node]
        names = [n for n, m in self.maps.items() if m is value]
        if any(len(n.users) > 1 for n in names):
            return None
        return next((s for s in self.steps if s.y is value), None)

    def sum(self, node: Any) -> None:
        """Two maps added: part of the convolution that one of them comes from, where nothing else reads that."""
        if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 2:
            raise UnservedError("a sum with a factor")
        pair = [self._map(a) for a in node.args[:2]]
        if pair[0].shape != pair[1].shape or node.args[0] is node.args[1] or _broadcast(node):
            raise UnservedError("a sum of maps of different shapes")
        for mine, other in ((1, 0), (0, 1)):
            step = self._producer(node.args[mine])
            if (
                step is None
                or step.kind != Kind.CONVOLUTION
                or step.add
                or step.activation != Activation.NONE
            ):
                continue
            known = next((i for i, s in enumerate(self.steps) if s.y is pair[other]), -1)
            if known < self.steps.index(step):
                step.add = pair[other]
                self.maps[node] = pair[mine]
                return
        self.maps[node] = self._met(pair[0], pair[1], Meeting.ADDED)

    def product(self, node: Any) -> None:
        """Two maps multiplied place by place, or one by a number for each channel (squeeze-and-excitation)."""
        a, b = (self._map(v) for v in node.args[:2])
        if _broadcast(node):
            raise UnservedError("a product of a map and a row of numbers")
        if a.shape == b.shape:
            self.maps[node] = self._met(a, b, Meeting.MULTIPLIED)
            return
        if a.shape[2:] == (1, 1):
            a, b = b, a
        if a.shape[:2] != b.shape[:2] or b.shape[2:] != (1, 1):
            raise UnservedError("a product of maps of different shapes")
        self.maps[node] = self._met(a, b, Meeting.MULTIPLIED_BY_CHANNEL)

    def _met(self, a: Map, b: Map, meeting: Meeting) -> Map:
        return self._add(Step(Kind.ELEMENTWISE, a, Map(a.shape), add=b, pool=meeting))

    def adaptive_pool(self, node: Any) -> None:
        """To one place, or to as many as there are."""
        x, (high, wide) = self._map(node.args[0]), _image_shape(node)[2:]
        if (high, wide) == x.shape[2:]:
            self.maps[node] = x
        elif (high, wide) == (1, 1):
            self.maps[node] = self._add(Step(Kind.MEAN, x, Map((*x.shape[:2], 1, 1))))
        else:
            raise UnservedError(f"an adaptive pool from {x.shape[2:]} to {(high, wide)} places")

    def mean(self, node: Any) -> None:
        """Over both axes of the image."""
        axes = {a % 4 for a in (node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]])}
        if axes != {2, 3} or node.args[0].meta["val"].dim() != 4:
            raise UnservedError(f"a mean over the axes {sorted(axes)}")
        x = self._map(node.args[0])
        self.maps[node] = self._add(Step(Kind.MEAN, x, Map((*x.shape[:2], 1, 1))))

    def max_pool(self, node: Any) -> None:
        """Any max pool without ceil_mode."""
        *settings, ceil = pool_arguments(node)
        if ceil:
            raise UnservedError("a max pool with ceil_mode")
        x, y = self._map(node.args[0]), Map(_image_shape(node))
        self.maps[node] = self._add(Step(Kind.MAX_POOL, x, y, sizes=on_axes(*settings)))

    def _flat(self, node: Any) -> None:
        x, shape = self._map(node.args[0]), tuple(node.meta["val"].shape)
        n, c, h, w = x.shape
        if shape not in ((n, c * h * w), x.shape):
            raise UnservedError(f"{node.target} to {shape}")
        moved = shape != x.shape and (h, w) != (1, 1)  # the numbers are in another order than PyTorch's
        if moved and any(u.target is not aten.linear.default for u in _readers(node)):
            raise UnservedError("a flattened map that is not read by linear layers alone")
        self.maps[node] = x


_STEPS: dict[Any, Callable[[Planner, Any], None]] = {
    aten.conv2d.default: Planner.convolution,
    aten.linear.default: Planner.linear,
    aten.add.Tensor: Planner.sum,
    aten.add_.Tensor: Planner.sum,
    aten.mul.Tensor: Planner.product,
    aten.mul_.Tensor: Planner.product,
    aten.adaptive_avg_pool2d.default: Planner.adaptive_pool,
    aten.mean.dim: Planner.mean,
    aten.max_pool2d.default: Planner.max_pool,
}


def _broadcast(node: Any) -> bool:
    """Whether operands have different numbers of axes: (N, C) and (N, C, 1, 1) are one map here, and not to PyTorch."""
    return len({a.meta["val"].dim() for a in node.args[:2]}) > 1


def _leaves(given: Any) -> list[Any]:
    found: list[Any] = []
    fx.map_arg(given, found.append)
    return found


def _readers(node: Any) -> list[Any]:
    """Who reads a value, dropouts between looked through."""
    found = []
    for user in node.users:
        found += _readers(user) if user.target in _SAME or user.target in _FLAT else [user]
    return found


def _image_shape(node: Any) -> tuple[int, int, int, int]:
    shape = tuple(node.meta["val"].shape)
    if len(shape) != 4 or not all(isinstance(n, int) for n in shape):
        raise UnservedError("a value that is no image of known size")
    return shape


def _build(network: nn.Module, calling: Calling, setting: Setting) -> Call:
    kernel()  # where it cannot be compiled, that is the reason
    exported = export(network, calling, setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = exported.program.module()
    steps, answer = Planner(module).plan(module.graph)
    program = Program(steps, answer, setting.threads)
    (leaf,) = _leaves(next(n for n in module.graph.nodes if n.op == "output").args)
    shape = tuple(leaf.meta["val"].shape)

    def call(*args: Any, **kwargs: Any) -> Any:
        (image,) = (*args, *kwargs.values())
        with torch.inference_mode():
            return exported.rebuild([program(image).reshape(shape)])

    call.program = program  # type: ignore[attr-defined]  # for who wants to know its steps' times
    return call


OWN = register_engine(
    Engine(
        "onebyone",
        _build,
        group=TORCH,
        wants=lambda form: form == "original",
        why_not=on_processors("its steps serve the sizes that they were made for alone"),
    )
)
