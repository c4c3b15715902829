"""Kernels of onebyone's own: a network as a list of steps on channels-last maps and rows, in one call of C++.

What it has over the others: 1×1 convolutions are products of rows that lie as they are, 3×3 ones at stride 1 are
products of tiles (Winograd), and batch norms, biases, activations and residual additions are part of the step before
them; attention's scores stay in the caches, and what only moves numbers about (heads, windows, shifts) is not done but
read from where they are. On processors only, in float32, for convolutional networks and transformers of one input: a
network with another operator is refused by that operator's name.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from onebyone.native import attention, convolutions, elementwise, row_operators
from onebyone.native.graph_queries import constant
from onebyone.native.kernels.fusion import finished
from onebyone.native.kernels.program import Map, Program, Step, kernel
from onebyone.native.layout import MOVES, RESHAPES, SAME, Scores, Value, aten, moved, size
from onebyone.native.lowering import Planning, maps_of, with_norms_of_rows
from onebyone.tuning.call_signature import Call, Calling
from onebyone.tuning.engines.base import TORCH, Engine, EngineSetting, on_processors, register_engine
from onebyone.tuning.engines.exported_program import UnservedError, export

_NEW = {
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
}  # fmt: skip
_CHECKS = {aten._assert_tensor_metadata.default}
_STEPS: dict[Any, Callable[[Planning, Any], None]] = {
    **convolutions.HANDLERS,
    **row_operators.HANDLERS,
    **elementwise.HANDLERS,
    **attention.HANDLERS,
}


class Planner(Planning):
    """Reads an exported graph into steps. Raises UnservedError with the reason where it cannot."""

    def plan(self, graph: fx.Graph, fast_products: bool = False) -> tuple[list[Step], Map]:
        """The steps as they are run, and the map that is the answer."""
        steps, answer = self.read(graph)
        return finished(steps, answer, fast_products), answer

    def read(self, graph: fx.Graph) -> tuple[list[Step], Map]:
        """The steps with their weights as they are, and the map that is the answer."""
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        last = {given: node for node in graph.nodes for given in node.all_input_nodes}
        for self.now, node in enumerate(graph.nodes):
            if node.op == "placeholder":
                self._input_of(node)
            elif node.op == "get_attr":
                self._own(node)
            elif node.op == "output":
                answer = self._answer(node)
            elif node.op == "call_function" and node not in self.folded and node.target not in _CHECKS:
                self._call(node)
            elif (
                node.op == "call_module" and node.users
            ):  # torch.export's checks of the inputs' sizes have none
                raise UnservedError(f"it calls a module ({node.target})")
            for given in node.all_input_nodes:
                if last[given] is node:
                    self.values.pop(given, None)
        if not self.steps:
            raise UnservedError("it has no step to take")
        self.steps = with_norms_of_rows(self.steps, answer)
        return self.steps, answer

    def _input_of(self, node: Any) -> None:
        value = node.meta.get("val")
        if self.image is not None:
            raise UnservedError("it takes more than one input")
        if not isinstance(value, Tensor) or value.dim() not in (3, 4) or value.dtype != torch.float32:
            raise UnservedError("its input is no image (N, C, H, W) and no rows (N, T, C) in float32")
        self.image = node

    def _own(self, node: Any) -> None:
        found = constant(self.network, node)
        if found is not None:
            self.values[node] = found

    def _answer(self, node: Any) -> Map:
        given = leaves(node.args)
        if len(given) != 1 or not maps_of(self.values.get(given[0])):
            raise UnservedError("it gives more than one tensor")
        value = self.value(given[0])
        if value.moved is None:
            return value.memory
        flat = value.moved.reshape(-1)
        if len(flat) == size(value.memory) and torch.equal(flat, Value(value.memory).at.reshape(-1)):
            return value.memory
        lies = self.dense(value)
        return Map((1, 1, 1, size(lies)), base=lies)

    def _call(self, node: Any) -> None:
        target = node.target
        if self._evaluated(node):
            return
        self._require_served(node)
        self._require_settled(node)
        if target is operator.getitem:
            self.values[node] = self.any_value(node.args[0])[node.args[1]]
        elif target in SAME or (target is aten.pad.default and not any(node.args[1])):
            self._same(node)
        elif target in RESHAPES or target in MOVES:
            found = self.any_value(node.args[0])
            if isinstance(found, Scores) and target in RESHAPES:
                self.values[node] = found.reshaped(node)
                return
            value = self.value(node.args[0], scaled=True)
            places = {n: v if isinstance(v := self.values[n], Tensor) else v.at for n in node.all_input_nodes}
            self.values[node] = moved(value, node, places)
        elif target in _STEPS:
            _STEPS[target](self, node)
        else:
            raise UnservedError(f"it has a step that is not known here: {target}")

    def _same(self, node: Any) -> None:
        if "dropout" in str(node.target) and node.args[2]:
            raise UnservedError("it drops out at random")
        self.values[node] = self.any_value(node.args[0])

    def _evaluated(self, node: Any) -> bool:
        """Whether it is a constant; it is computed then, as PyTorch does, in the order of the graph."""
        given = node.all_input_nodes
        if not isinstance(node.target, torch._ops.OpOverload) and node.target is not operator.getitem:
            return False
        known = [_is_constant(self.values.get(n)) for n in given]
        if not all(known) and not (node.target in _NEW and all(known[1:])):
            return False
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise UnservedError(f"{node.target} is random")
        here = {n: self.values[n] if k else _like(n) for n, k in zip(given, known, strict=True)}
        self._require_own(node, here)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: here[n])
        with torch.no_grad():
            self.values[node] = node.target(*args, **kwargs)
        return True

    def _require_own(self, node: Any, here: dict[Any, Any]) -> None:
        """The network's own numbers must not be changed by reading it."""
        if not _in_place(node) or not isinstance(here.get(node.args[0]), Tensor):
            return
        mine = here[node.args[0]].untyped_storage().data_ptr()
        own = (*self.network.parameters(), *self.network.buffers())
        if any(t.untyped_storage().data_ptr() == mine for t in own):
            raise UnservedError(f"{node.target} changes one of its parameters")

    def _require_served(self, node: Any) -> None:
        for value in (v for v in _listed(node.meta.get("val")) if isinstance(v, Tensor)):
            if value.dtype != torch.float32:
                raise UnservedError(f"{node.target} gives {value.dtype}")
            if not all(isinstance(n, int) and n for n in value.shape):
                raise UnservedError(f"{node.target} gives nothing, or how much is not known")

    def _require_settled(self, node: Any) -> None:
        """What is changed in place must not be read again as it was."""
        if not _in_place(node):
            return
        found = self.any_value(node.args[0])
        if isinstance(found, Scores):
            names = [n for n, v in self.values.items() if isinstance(v, Scores) and v.q is found.q]
            again = any(self.order[u] > self.now for n in names for u in n.users)
        else:
            again = any(self.read_later(memory) for memory in maps_of(found))
        if again or isinstance(found, Tensor):
            raise UnservedError(f"{node.target} changes a value that is read again")


def _in_place(node: Any) -> bool:
    """By its name: `aten.relu_.default`."""
    return bool(node.args) and str(node.target).split(".")[-2:][0].endswith("_")


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]


def _is_constant(found: Any) -> bool:
    return isinstance(found, Tensor) or (isinstance(found, tuple | list) and all(map(_is_constant, found)))


def _like(node: Any) -> Tensor:
    """A stand-in for a value of which only the sizes matter."""
    return torch.zeros(()).expand(node.meta["val"].shape)


def leaves(given: Any) -> list[Any]:
    """The nodes among arguments."""
    found: list[Any] = []
    fx.map_arg(given, found.append)
    return found


def _build(network: torch.nn.Module, calling: Calling, setting: EngineSetting) -> Call:
    kernel()  # where it cannot be compiled, that is the reason
    exported = export(network, calling, setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = exported.program.module()
    planner = Planner(module)
    steps, answer = planner.plan(module.graph, setting.fast_products)
    program = Program(steps, answer, setting.threads)
    (leaf,) = leaves(next(n for n in module.graph.nodes if n.op == "output").args)
    shape, rows = tuple(leaf.meta["val"].shape), planner.image.meta["val"].dim() == 3

    rebuild = exported.rebuild  # alone: the exported program would keep the weights as they were

    def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        (image,) = (*args, *kwargs.values())
        return image.unsqueeze(1) if rows else image  # type: ignore[no-any-return]

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return rebuild([program(given(args, kwargs)).reshape(shape)])

    def times(*args: Any, **kwargs: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, ms in program.timed(given(args, kwargs)):
            found[kind] = found.get(kind, 0.0) + ms
        return found

    call.survives_fork = True  # type: ignore[attr-defined]
    call.program, call.times = program, times  # type: ignore[attr-defined]  # for who wants to know where its time goes
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
