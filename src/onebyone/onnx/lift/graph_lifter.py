"""ONNX's lifter: a graph of one window in size, re-read with lifted values into a graph of any size.

For each node, a decoder (`rules.py`) says which neutral operator it is, or gives its value itself; the shared rules in
`onebyone.lifting.rules` do the rest and emit into the new graph. Nodes that depend on constants alone are computed, so
that chains such as Shape, Gather, Concat and Reshape run on integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onebyone.errors import BadInput
from onebyone.lifting.grid import Grid, Integers
from onebyone.lifting.index import BATCH
from onebyone.lifting.lifter import Lifter
from onebyone.lifting.operators import Call, Rearrange
from onebyone.lifting.rules.shape import rearrange
from onebyone.lifting.rules.table import RULES, lift
from onebyone.lifting.values import Cannot, Const, Lifted, Unknown
from onebyone.onnx.lift.emitter import OnnxEmitter
from onebyone.onnx.lift.input_shapes import InputLayout
from onebyone.onnx.lift.single_nodes import DoesNotFit, Operand, evaluate, infer_outputs
from onebyone.onnx.lift.weights import Array, ConstantHandle
from onebyone.records import by

#: A second size of the batch: constants that differ between the two depend on the size of the batch.
OTHER_BATCH = 3
_RANDOM = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_HAS_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

#: Says what a node's operator is: a neutral operator, or the value or values of the node.
Decoder = Callable[["OnnxGraphLifter", ir.Node], Any]


class OnnxGraphLifter(Lifter):
    """The state of one conversion of a graph.

    Attributes:
        graph: the graph of one window, without functions.
        layout: how its input is laid out.
        values: the lifted value or constant of each value read so far.
        of_other_batch: for constants that depend on the size of the batch, the numbers for `OTHER_BATCH` samples.
    """

    def __init__(
        self,
        graph: ir.Graph,
        opset: int,
        layout: InputLayout,
        head: str = "window",
        context: str | None = None,
        image_wide: frozenset[str] = frozenset(),
    ) -> None:
        taken = {str(v.name) for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
        self.writer = OnnxEmitter(opset, taken - {str(v.name) for v in graph.initializers.values()})
        super().__init__(self.writer, layout.window, head, context, image_wide)
        self.graph, self.opset, self.layout = graph, opset, layout
        self.values: dict[ir.Value, Any] = {}
        self.of_other_batch: dict[ir.Value, Array] = {}
        self.image = layout.image_value()

    def run(self, decoder_of: Callable[[ir.Node], Decoder | None]) -> None:
        """Lift the whole graph; `decoder_of` gives the decoder of a node's operator, or None."""
        self._decoder_of = decoder_of
        grid = Grid.image(self.layout.channels or 1, self.window)
        image = Lifted(self.image, grid)
        self.values[self.layout.source] = image.with_index(self.layout.index())
        self._read(self.graph)

    def _read(self, graph: ir.Graph) -> None:
        """Lift the nodes of a graph, or of a branch."""
        for value in graph.initializers.values():
            if value.const_value is not None:
                self.values[value] = _const(ConstantHandle.of_tensor(value.const_value, str(value.name)))
        needed = _needed(graph)
        for node in graph:
            if node not in needed:
                continue
            self.writer.path = path_of(node)
            for output, result in zip(node.outputs, self._results(node), strict=False):
                self.values[output] = result

    def _results(self, node: ir.Node) -> Sequence[Any]:
        operands = [self.values[v] for v in node.inputs if v is not None]
        unknown = [Unknown()] * len(node.outputs)
        if any(isinstance(v, Unknown) for v in operands):
            return unknown
        try:
            if node.op_type in _RANDOM and node.domain == "":
                raise Cannot("random at every call, so a window has no single result")
            if node.op_type == "If" and isinstance(operands[0], Const):
                return self._branch(node)
            if any(attribute.type in _HAS_GRAPHS for attribute in node.attributes.values()):
                raise Cannot("control flow: an operator with a graph of its own")
            if node.op_type in ("Shape", "Size") and node.domain == "" and isinstance(operands[0], Lifted):
                return self._sizes(node, operands[0])
            if not any(isinstance(v, Lifted) for v in operands):
                return self._constants(node)
            return self._lifted_results(node)
        except DoesNotFit as reason:
            size = by((*((self.layout.channels,) if self.layout.channels else ()), *self.window))
            raise BadInput(
                f"window: the model does not run on a {size} image (at {path_of(node)}, {name_of(node)}): {reason}"
            ) from reason
        except Cannot as reason:
            self.refuse(path_of(node), name_of(node), str(reason))
            return unknown

    def _branch(self, node: ir.Node) -> list[Any]:
        """The results of the branch that a constant condition takes."""
        if node.inputs[0] in self.of_other_batch:
            raise Cannot("control flow that depends on the size of the batch")
        taken = "then_branch" if bool(np.all(self.numbers(node, 0))) else "else_branch"
        branch = node.attributes[taken].as_graph()
        self._read(branch)
        return [self.values[value] for value in branch.outputs]

    def _lifted_results(self, node: ir.Node) -> Sequence[Any]:
        decoder = self._decoder_of(node)
        if decoder is None:
            raise Cannot("this operator has no rule yet")
        operator = decoder(self, node)
        if isinstance(operator, Rearrange):
            result = rearrange(operator)
        elif type(operator) in RULES:
            result = lift(self, self.call_of(node), operator)
        else:
            result = operator
        results = list(result) if isinstance(result, tuple) else [result]
        if any(output.uses() or output.is_graph_output() for output in node.outputs[len(results) :]):
            raise Cannot(
                "a second result that depends on where the window lies (the indices of a max-pool, for example)"
            )
        if not isinstance(operator, Rearrange):  # that was run by the operator itself
            self._require_shapes(node, results)
        return results

    def _require_shapes(self, node: ir.Node, results: Sequence[Any]) -> None:
        """What the rules give has the shape that ONNX says, for one window."""
        for value, (_, sizes) in zip(results, self.inferred(node), strict=False):
            wrong = isinstance(value, Lifted) and any(
                isinstance(size, int) and size != have
                for size, have in zip(sizes[1:], value.shape, strict=False)
            )
            if isinstance(value, Lifted) and (wrong or (sizes and len(sizes) != len(value.shape) + 1)):
                raise Cannot(
                    f"gives {value.shape} for one window by its rule, where ONNX infers {tuple(sizes[1:])}"
                )

    def _constants(self, node: ir.Node) -> list[Const]:
        """A node on constants alone: computed, for a second size of the batch too where it depends on it."""
        literal = literal_of(node)
        if literal is not None:
            return [_const(literal)]
        arrays = {str(v.name): self.values[v].handle.array for v in node.inputs if v is not None}
        results = evaluate(node, arrays, self.opset)
        others = {str(v.name): self.of_other_batch[v] for v in node.inputs if v in self.of_other_batch}
        if others:
            for output, result, other in zip(
                node.outputs, results, evaluate(node, arrays | others, self.opset), strict=True
            ):
                if not np.array_equal(result, other):
                    self.of_other_batch[output] = other
        named = zip(results, node.outputs, strict=True)
        return [
            _const(ConstantHandle.of_array(np.asarray(array), str(output.name))) for array, output in named
        ]

    def _sizes(self, node: ir.Node, value: Lifted) -> list[Const]:
        """Shape or Size of a value that depends on the image, in a batch of BATCH windows."""
        output = node.outputs[0]
        found = []
        for batch in (BATCH, OTHER_BATCH):
            shape = np.asarray([batch, *value.shape], dtype=np.int64)
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
            found.append(np.asarray(shape.prod()) if node.op_type == "Size" else shape[start:end])
        if not np.array_equal(found[0], found[1]):
            self.of_other_batch[output] = found[1]
        return [_const(ConstantHandle.of_array(found[0], str(output.name)))]

    # what decoders use

    def operand(self, node: ir.Node, number: int) -> Any:
        """The value of an operand; None where it is left out."""
        source = node.inputs[number] if number < len(node.inputs) else None
        return None if source is None else self.values[source]

    def integers(self, node: ir.Node, number: int) -> list[int] | None:
        """The numbers of a constant operand, such as a shape; None where it is left out.

        Raises:
            Cannot: the operand depends on the image's pixels.
        """
        array = self.numbers(node, number)
        return None if array is None else [int(n) for n in array.reshape(-1)]

    def numbers(self, node: ir.Node, number: int) -> Array | None:
        """The array of a constant operand; None where it is left out."""
        value = self.operand(node, number)
        if value is None:
            return None
        if not isinstance(value, Const):
            raise Cannot("a setting (a shape, an axis, an index) that depends on the image's pixels")
        array: Array = value.handle.array
        return array

    def inferred(self, node: ir.Node) -> list[tuple[ir.DataType, tuple[int | str | None, ...]]]:
        """The type and shape of each output, for a batch of BATCH windows."""
        known = {}
        for source in node.inputs:
            if source is None:
                continue
            value = self.values[source]
            if isinstance(value, Lifted):
                known[str(source.name)] = Operand(self.dtype_of(value), (BATCH, *value.shape))
            else:
                weight, sizes = value.handle, value.shape
                if node.op_type == "Concat" and sizes[:1] == (self.layout.batch,):
                    sizes = (BATCH, *sizes[1:])  # made for the only batch that the model takes
                known[str(source.name)] = Operand(weight.dtype, sizes, value.known)
        return infer_outputs(node, known, self.opset)

    def dtype_of(self, value: Lifted) -> ir.DataType:
        """The element type of a value."""
        dtype: ir.DataType = value.handle.dtype
        return dtype

    def call_of(self, node: ir.Node) -> Call:
        """What the rules know of a node.

        Raises:
            Cannot: a constant operand depends on the size of the batch.
        """
        sources = list(dict.fromkeys(v for v in node.inputs if v is not None))
        if any(v in self.of_other_batch for v in sources):
            raise Cannot("the size of the batch enters the numbers that it computes")
        kinds, shapes = zip(*self.inferred(node), strict=True)
        return Call(
            name=name_of(node),
            path=path_of(node),
            key=str(node.outputs[0].name),
            shapes=tuple(tuple(int(n) for n in sizes[1:] if isinstance(n, int)) for sizes in shapes),
            dtype=kinds[0].numpy() if kinds[0] != ir.DataType.UNDEFINED else None,
            operands=tuple(self.values[source] for source in sources),
            apply=lambda *handles: self.emit_as_it_is(node, dict(zip(sources, handles, strict=True))),
        )

    def emit_as_it_is(
        self, node: ir.Node, handles: dict[ir.Value, Any], changed: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        """The node's own operator on other handles, with some attributes changed; gives its first result."""
        attributes = {a.name: a for a in (*node.attributes.values(), *changed)}
        inputs = [None if v is None else handles.get(v, self.handle_of(v)) for v in node.inputs]
        return self.writer.node(
            node.op_type, inputs, attributes.values(), domain=node.domain, label=path_of(node)
        )[0]

    def handle_of(self, source: ir.Value) -> Any:
        """The handle of a value of the graph."""
        return self.values[source].handle

    def run_on_integers(self, node: ir.Node, source: int, numbers: Integers) -> list[Integers]:
        """The outputs of a shape operator whose operand number `source` holds `numbers`."""
        arrays = {}
        for number, value in enumerate(node.inputs):
            if value is not None:
                arrays[str(value.name)] = numbers if number == source else self.numbers(node, number)
        return evaluate(node, arrays, self.opset)  # type: ignore[arg-type]


def literal_of(node: ir.Node) -> ConstantHandle | None:
    """The constant of a Constant node; None for other operators."""
    if node.op_type != "Constant" or node.domain != "":
        return None
    name = str(node.outputs[0].name)
    for key, attribute in node.attributes.items():
        if key == "value":
            return ConstantHandle.of_tensor(attribute.as_tensor(), name)
        if key in ("value_int", "value_ints"):
            return ConstantHandle.of_array(np.asarray(attribute.value, dtype=np.int64), name)
        if key in ("value_float", "value_floats"):
            return ConstantHandle.of_array(np.asarray(attribute.value, dtype=np.float32), name)
    raise Cannot("a constant of strings or a sparse one")


def path_of(node: ir.Node) -> str:
    """The node's name, or that of its first result where it has none."""
    return node.name or next((v.name for v in node.outputs if v.name), node.op_type)


def name_of(node: ir.Node) -> str:
    """The operator's name, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}"


def _const(weight: ConstantHandle) -> Const:
    return Const(weight, weight.shape, weight.name, weight.known)


def _needed(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that an output depends on, those that its branches read included."""
    waiting = [value.producer() for value in graph.outputs]
    needed: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in needed:
            continue
        needed.add(node)
        waiting += [value.producer() for value in node.inputs if value is not None]
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                branch = attribute.as_graph()
                read = [v for inner in branch.all_nodes() for v in inner.inputs if v is not None]
                waiting += [value.producer() for value in (*read, *branch.outputs)]
    return needed
