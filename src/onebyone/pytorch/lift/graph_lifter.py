"""PyTorch's lifter: an exported graph, one window in size, re-read with lifted values into a graph of any size.

For each node, a decoder (`rules.py`) says which neutral operator it is, or gives its value itself; the shared rules in
`onebyone.lifting.rules` do the rest and emit into the new graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from onebyone.lifting.grid import Grid
from onebyone.lifting.index import identity
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, LinearLayer, Rearrange
from onebyone.lifting.rules.table import RULES, lift
from onebyone.lifting.values import Cannot, Const, Deferred, Lifted, Unknown
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.arguments import arguments
from onebyone.pytorch.lift.constants import known_number, known_numbers, on_processor
from onebyone.pytorch.lift.exported_graph import Traced, is_inplace, is_random, module_path, unread

#: Why dropout that is always on, noise and the like are refused.
RANDOM = (
    "random at every call, so a window has no single result (for dropout, pass training=self.training to its "
    "function, and call eval() on the network)"
)

#: Says what a node's operator is: a neutral operator, or the node's value.
Decoder = Callable[["GraphLifter", fx.Node], Any]


class GraphLifter(Lifter):
    """The state of one conversion of a traced graph.

    `values` holds the lifted value of each node read so far, `modules` those that the new graph calls (batch norms,
    dropouts), `rearrangements` the nodes that are shape operators. `channels` is None for an image without a channel
    axis.
    """

    def __init__(
        self,
        traced: Traced,
        window: tuple[int, ...],
        channels: int | None,
        head: str = "window",
        context: str | None = None,
        image_wide: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(emitter, window, head, context, image_wide)
        self.traced, self.channels = traced, channels
        self.values: dict[fx.Node, Any] = {}
        self.modules: dict[str, nn.Module] = {}
        self.rearrangements: set[fx.Node] = set()
        self.pairs: list[Any] = []
        self.graph = fx.Graph()
        self.recorder = emitter.Recorder(self.graph, device_of_indices(traced))

    def run(
        self,
        decoder_of: Callable[[Any], Decoder | None],
        make_pair: Callable[[GraphLifter, fx.Node, LinearLayer], Any] | None = None,
    ) -> None:
        """Lift the whole graph.

        `decoder_of` gives the decoder of an operator, or None. `make_pair` is called for each linear layer as soon as
        it is lifted, and its results are kept in `pairs`.
        """
        self._decoder_of, self._make_pair = decoder_of, make_pair
        dead = unread(self.traced.graph)
        for node in self.traced.graph.nodes:
            if node in dead:
                continue
            if node.op == "placeholder":
                self.values[node] = self._placeholder(node)
            elif node.op == "get_attr":
                # a graph within the graph (autocast, for example): its caller is refused by name
                self.values[node] = node.target
            elif node.op == "call_function":
                self.values[node] = self._call_function(node)
                if is_inplace(node.target) and isinstance(node.args[0], fx.Node):
                    self.values[node.args[0]] = self.values[node]

    def _placeholder(self, node: fx.Node) -> Lifted | Const:
        name = self.traced.names.get(node.name)
        if name is None and node.name == self.traced.image:
            image = self.proxy(self.graph.placeholder("image"))
            checked = self.call(emitter.require_window, image, self.window, self.channels is None)
            grid = Grid.image(self.channels or 1, self.window)
            return Lifted(checked, grid, identity(self.window) if self.channels is None else None)
        assert name is not None, "exported_graph.read accepts one input"
        tensor, attribute = self.traced.tensors[name], name
        known = on_processor(tensor.detach()) if name in self.traced.fixed else None
        source = Deferred(lambda: self.proxy(self.graph.get_attr(attribute)))
        return Const(source, tuple(tensor.shape), name, known)

    def _call_function(self, node: fx.Node) -> Any:
        if is_random(node):
            self.refuse_node(node, RANDOM)
            return Unknown()
        number = known_number(node, self.values)
        if number is not None:
            return number
        inputs = [self.values[n] for n in node.all_input_nodes]
        flat = [v for value in inputs for v in (value if isinstance(value, tuple) else (value,))]
        if any(isinstance(v, Unknown) for v in flat):
            return Unknown()
        if not any(isinstance(v, Lifted) for v in flat):
            return self._constant(node)
        try:
            return self._lifted_results(node)
        except Cannot as reason:
            self.refuse_node(node, str(reason))
            return Unknown()

    def _lifted_results(self, node: fx.Node) -> Any:
        """The value of the node, or a tuple of values where the operator has several results; None for those that no
        rule gives."""
        decoder = self._decoder_of(node.target)
        if decoder is None:
            raise Cannot("this operator has no rule yet")
        result = decoder(self, node)
        if isinstance(result, Rearrange):
            self.rearrangements.add(node)
        if type(result) in RULES:
            before = len(self.linear_layers)
            result = lift(self, self.call_of(node), result)
            if self._make_pair is not None:  # now, since an operator that writes in place changes `values`
                self.pairs += [self._make_pair(self, node, layer) for layer in self.linear_layers[before:]]
        meta = node.meta.get("val")
        if isinstance(meta, (list, tuple)) and not isinstance(result, tuple):
            return (result, *(None,) * (len(meta) - 1))
        return result

    def _constant(self, node: fx.Node) -> Any:
        """An operator on constants alone: copied into the new graph as it is."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _node(self.values[n]))
        target = functional(node.target)
        result = self.graph.call_function(target, args, kwargs)
        meta = node.meta.get("val")
        if isinstance(meta, (list, tuple)):
            parts = [self.graph.call_function(operator.getitem, (result, i)) for i in range(len(meta))]
            return tuple(Const(self.proxy(p), tuple(m.shape)) for p, m in zip(parts, meta, strict=True))
        known = known_numbers(node, target, self.values)
        return Const(self.proxy(result), tuple(getattr(meta, "shape", ())), None, known)

    # what decoders use

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy for a node of the new graph."""
        return fx.Proxy(node, self.recorder)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Emit one call; arguments may be proxies, constants and lifted values, or hold them."""
        nodes = fx.node.map_aggregate((args, kwargs), _node)
        return self.proxy(self.graph.call_function(target, *nodes))

    def value(self, argument: Any) -> Any:
        """An operator's argument: the value of a node, or the plain value itself (lists of nodes too)."""
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, (list, tuple)):
            return [self.value(a) for a in argument]
        return argument

    def lifted(self, value: Any) -> Lifted:
        """A node or a value as a lifted value without a pending scale and shift; else raises `Cannot`."""
        return super().lifted(self.value(value))

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """The operator's arguments as values, by the names in its schema, with defaults."""
        return {name: self.value(argument) for name, argument in arguments(node).items()}

    def call_of(self, node: fx.Node) -> Call:
        """What the rules know of a node, whatever its operator."""
        sources = node.all_input_nodes

        def apply(*handles: Any) -> Any:
            by_node = dict(zip(sources, handles, strict=True))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: by_node[n])
            return self.call(functional(node.target), *args, **kwargs)

        meta = node.meta.get("val")
        results = [m for m in (meta if isinstance(meta, (list, tuple)) else [meta]) if m is not None]
        return Call(
            name=op_name(node.target),
            path=module_path(node),
            key=node.name,
            shapes=tuple(tuple(int(n) for n in m.shape[1:]) for m in results if isinstance(m, torch.Tensor)),
            dtype=next((m.dtype for m in results if isinstance(m, torch.Tensor)), None),
            operands=tuple(self.values[source] for source in sources),
            apply=apply,
        )

    def refuse_node(self, node: fx.Node, reason: str) -> None:
        """Record a refusal of a node's operator."""
        self.refuse(module_path(node), op_name(node.target), reason)


def _node(value: Any) -> Any:
    if isinstance(value, (Const, Lifted)):
        return value.handle.node
    if isinstance(value, fx.Proxy):
        return value.node
    if isinstance(value, tuple):
        return tuple(_node(v) for v in value)
    return value


def op_name(target: Any) -> str:
    """An operator's name as people write it: `aten.linear`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).replace("::", ".")
    return str(getattr(target, "__name__", target))


def functional(target: Any) -> Any:
    """The operator that makes a new tensor where this one writes in place (relu_ → relu)."""
    if not is_inplace(target):
        return target
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None)
    overload = getattr(packet, target._overloadname, None)
    if overload is None:
        raise Cannot("an in-place operator without a functional twin")
    return overload


def device_of_indices(traced: Traced) -> torch.device:
    """The device of the network's tensors; the processor for a network on the meta device, which keeps no numbers."""
    floating = (t.device for t in traced.tensors.values() if t.is_floating_point())
    device = next(floating, torch.device("cpu"))
    return torch.device("cpu") if device.type == "meta" else device
