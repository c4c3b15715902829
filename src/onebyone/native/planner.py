"""The planner: reads an exported graph node by node and lowers it to the steps of a compiled network.

What makes compiled networks fast: 1×1 convolutions are matrix products on rows that are used where they are; 3×3
convolutions at stride 1 use Winograd's algorithm; batch norms, biases, activations and residual additions are fused
into the step before them; the scores of attention never leave the cache; and operators that only rearrange elements
(heads, windows, shifts) cost nothing, because later steps read the elements where they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from onebyone.native import attention, convolutions, elementwise, row_operators
from onebyone.native.graph_queries import own_tensor
from onebyone.native.kernels.fusion import lower
from onebyone.native.layout import (
    IDENTITIES,
    REARRANGEMENTS,
    RESHAPES,
    Scores,
    Value,
    aten,
    element_count,
    rearranged,
)
from onebyone.native.lowering import Lowering, gather_before_norms, maps_of
from onebyone.native.maps import Map
from onebyone.native.steps import Step
from onebyone.native.unsupported import UnsupportedError

_CREATED_LIKE = {
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
}  # fmt: skip
"""Operators that read only the shape of their first argument."""
_ASSERTIONS = {aten._assert_tensor_metadata.default}
HANDLERS: dict[Any, Callable[[Lowering, Any], None]] = {
    **convolutions.HANDLERS,
    **row_operators.HANDLERS,
    **elementwise.HANDLERS,
    **attention.HANDLERS,
}
"""By operator: the function that lowers it to steps."""


class Planner(Lowering):
    """Lowers an exported graph to steps. Raises UnsupportedError with the reason if it cannot."""

    def plan(self, graph: fx.Graph, fast_products: bool = False) -> tuple[list[Step], Map]:
        """The steps as they run, and the map of the network's output."""
        steps, answer = self.read(graph)
        return lower(steps, answer, fast_products), answer

    def read(self, graph: fx.Graph) -> tuple[list[Step], Map]:
        """The steps with weights in PyTorch's shapes, and the map of the network's output."""
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        last_user = {argument: node for node in graph.nodes for argument in node.all_input_nodes}
        for self.current, node in enumerate(graph.nodes):
            if node.op == "placeholder":
                self._set_input(node)
            elif node.op == "get_attr":
                self._set_constant(node)
            elif node.op == "output":
                answer = self._output(node)
            elif node.op == "call_function" and node not in self.folded and node.target not in _ASSERTIONS:
                self._call(node)
            elif (
                node.op == "call_module" and node.users
            ):  # torch.export's checks of input sizes have no users
                raise UnsupportedError(f"it calls a module ({node.target})")
            for argument in node.all_input_nodes:
                if last_user[argument] is node:
                    self.values.pop(argument, None)
        if not self.steps:
            raise UnsupportedError("it computes nothing")
        self.steps = gather_before_norms(self.steps, answer)
        return self.steps, answer

    def _set_input(self, node: Any) -> None:
        value = node.meta.get("val")
        if self.image is not None:
            raise UnsupportedError("it takes more than one input")
        if not isinstance(value, Tensor) or value.dim() not in (3, 4) or value.dtype != torch.float32:
            raise UnsupportedError("expected a float32 input of shape (N, C, H, W) or (N, T, C)")
        self.image = node

    def _set_constant(self, node: Any) -> None:
        constant = own_tensor(self.network, node)
        if constant is not None:
            self.values[node] = constant

    def _output(self, node: Any) -> Map:
        results = nodes_among(node.args)
        if len(results) != 1 or not maps_of(self.values.get(results[0])):
            raise UnsupportedError("it returns more than one tensor")
        value = self.value(results[0])
        if value.offsets is None:
            return value.memory
        flat = value.offsets.reshape(-1)
        as_image = Value(value.memory).element_offsets.reshape(-1)
        if len(flat) == element_count(value.memory) and torch.equal(flat, as_image):
            return value.memory
        rows = self.contiguous(value)
        return Map((1, 1, 1, element_count(rows)), base=rows)

    def _call(self, node: Any) -> None:
        target = node.target
        if self._evaluate_constant(node):
            return
        self._require_float32(node)
        self._require_safe_mutation(node)
        if target is operator.getitem:
            self.values[node] = self.any_value(node.args[0])[node.args[1]]
        elif target in IDENTITIES or (target is aten.pad.default and not any(node.args[1])):
            self._pass_through(node)
        elif target in RESHAPES or target in REARRANGEMENTS:
            value = self.any_value(node.args[0])
            if isinstance(value, Scores) and target in RESHAPES:
                self.values[node] = value.reshaped(node)
                return
            value = self.value(node.args[0], scaled=True)
            offsets = {
                n: v if isinstance(v := self.values[n], Tensor) else v.element_offsets
                for n in node.all_input_nodes
            }
            self.values[node] = rearranged(value, node, offsets)
        elif target in HANDLERS:
            HANDLERS[target](self, node)
        else:
            raise UnsupportedError(f"it has an unsupported operator: {target}")

    def _pass_through(self, node: Any) -> None:
        if "dropout" in str(node.target) and node.args[2]:
            raise UnsupportedError("it has random dropout")
        self.values[node] = self.any_value(node.args[0])

    def _evaluate_constant(self, node: Any) -> bool:
        """Whether a node is a constant; if so, PyTorch computes it, in the order of the graph."""
        arguments = node.all_input_nodes
        if not isinstance(node.target, torch._ops.OpOverload) and node.target is not operator.getitem:
            return False
        constant = [_is_constant(self.values.get(n)) for n in arguments]
        if not all(constant) and not (node.target in _CREATED_LIKE and all(constant[1:])):
            return False
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise UnsupportedError(f"{node.target} is random")
        values = {
            n: self.values[n] if is_constant else _of_same_shape(n)
            for n, is_constant in zip(arguments, constant, strict=True)
        }
        self._require_unchanged_parameters(node, values)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        with torch.no_grad():
            self.values[node] = node.target(*args, **kwargs)
        return True

    def _require_unchanged_parameters(self, node: Any, values: dict[Any, Any]) -> None:
        """Reading the graph must not change the network's own tensors."""
        if not _is_in_place(node) or not isinstance(values.get(node.args[0]), Tensor):
            return
        changed = values[node.args[0]].untyped_storage().data_ptr()
        own = (*self.network.parameters(), *self.network.buffers())
        if any(t.untyped_storage().data_ptr() == changed for t in own):
            raise UnsupportedError(f"{node.target} changes one of its parameters")

    def _require_float32(self, node: Any) -> None:
        for value in (v for v in _as_list(node.meta.get("val")) if isinstance(v, Tensor)):
            if value.dtype != torch.float32:
                raise UnsupportedError(f"{node.target} returns {value.dtype}")
            if not all(isinstance(n, int) and n for n in value.shape):
                raise UnsupportedError(f"{node.target} returns an empty tensor, or one of unknown size")

    def _require_safe_mutation(self, node: Any) -> None:
        """A value that is changed in place must not be read again as it was before."""
        if not _is_in_place(node):
            return
        value = self.any_value(node.args[0])
        if isinstance(value, Scores):
            names = [n for n, v in self.values.items() if isinstance(v, Scores) and v.q is value.q]
            read_again = any(self.order[u] > self.current for n in names for u in n.users)
        else:
            read_again = any(self.read_later(memory) for memory in maps_of(value))
        if read_again or isinstance(value, Tensor):
            raise UnsupportedError(f"{node.target} changes a value that is read again")


def _is_in_place(node: Any) -> bool:
    """Whether an operator changes its first argument, by its name: `aten.relu_.default`."""
    return bool(node.args) and str(node.target).split(".")[-2:][0].endswith("_")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_constant, value))
    return isinstance(value, Tensor)


def _of_same_shape(node: Any) -> Tensor:
    """A tensor of a node's shape, for operators that read nothing else."""
    return torch.zeros(()).expand(node.meta["val"].shape)


def nodes_among(arguments: Any) -> list[Any]:
    """The nodes among nested arguments."""
    nodes: list[Any] = []
    fx.map_arg(arguments, nodes.append)
    return nodes
