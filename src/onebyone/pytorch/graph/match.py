"""Finding the products of an exported program: which nodes multiply by a constant weight, and which of those
cannot be converted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import GraphModule, Node

from onebyone.pytorch.graph.counting import operator_name
from onebyone.pytorch.graph.products import Product
from onebyone.pytorch.graph.rules import shape, tensor
from onebyone.pytorch.graph.weights import tied_names
from onebyone.records import Refusal

PRODUCTS = frozenset(["linear", "mm", "matmul", "bmm", "addmm", "mv", "baddbmm"])
CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d", "convolution"])
NOT_READ = {
    "einsum": "an einsum is not read as a product with a weight",
    "tensordot": "a tensordot is not read as a product with a weight",
    "bilinear": "a bilinear form has two inputs",
    "_trilinear": "a bilinear form has two inputs",
    "lstm": "a recurrent operator holds its products inside",
    "gru": "a recurrent operator holds its products inside",
    "rnn_tanh": "a recurrent operator holds its products inside",
    "rnn_relu": "a recurrent operator holds its products inside",
    "addbmm": "a product summed over the batch is no layer",
    "addmv": "a matrix times a vector with a sum is not read",
    "_native_multi_head_attention": "a fused attention operator holds its products inside",
    "_transformer_encoder_layer_fwd": "a fused transformer operator holds its products inside",
}
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def constant_placeholders(program: ExportedProgram) -> dict[str, str]:
    """Placeholder name → name of the parameter, buffer or constant it stands for; buffers the program writes
    to are left out.
    """
    written = {s.target for s in program.graph_signature.output_specs if s.kind == OutputKind.BUFFER_MUTATION}
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return {
        s.arg.name: str(s.target)
        for s in program.graph_signature.input_specs
        if s.kind in kinds and s.target not in written
    }


def constants(program: ExportedProgram) -> set[Node]:
    """Every node whose value depends on parameters, buffers and constants alone."""
    named = constant_placeholders(program)
    found: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in named:
                found.add(node)
        elif node.op == "call_function":
            inputs = node.all_input_nodes
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if inputs and not random and _holds_tensors(node) and all(n in found for n in inputs):
                found.add(node)
    return found


def trained(program: ExportedProgram) -> set[Node]:
    """The constants that depend on a parameter: of two constant factors, the one that is the weight."""
    inputs = program.graph_signature.input_specs
    parameters = {s.arg.name for s in inputs if s.kind == InputKind.PARAMETER}
    known = constants(program)
    found: set[Node] = set()
    for node in program.graph.nodes:
        if node in known and (node.name in parameters or any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def independent(program: ExportedProgram) -> set[Node]:
    """Every node whose value does not depend on the program's inputs: the constants, and what is made from buffers
    that the program writes to or from random numbers.
    """
    given = set(program.graph_signature.user_inputs)
    found: set[Node] = set()
    for node in program.graph.nodes:
        named = node.op == "placeholder" and node.name not in given
        made = node.op == "call_function" and all(n in found for n in node.all_input_nodes)
        if named or made:
            found.add(node)
    return found


def _holds_tensors(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) or (isinstance(value, list | tuple) and bool(value))


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """An argument by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def module_path(node: Node) -> str:
    """The dotted path of the module whose forward made the node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L__self__").removeprefix(".")


def layer_path(node: Node, weight: Node | None, program: ExportedProgram) -> str:
    """The path that a product goes by: the layer that its weight belongs to, or its module, or the node's name.

    A weight may have several names (tied) or be made from several tensors (a norm's direction and size): the module
    that the product is in decides, then the first tensor that is called a weight.
    """
    named, path = constant_placeholders(program), module_path(node)
    sources = [named[n.name] for n in _sources(weight) if n.name in named]
    ties = tied_names(program)
    if path in {_owner(name) for source in sources for name in ties.get(source, [source])}:
        return path
    owners = [_owner(source) for source in sources if len(sources) == 1 or _owner(source) != source]
    return owners[0] if owners else path or node.name


_WEIGHT = re.compile(r"\.(weight(_g|_v|_orig|_mask)?|parametrizations\.weight\.(original\d*|\d+\.\w+))$")


def _owner(name: str) -> str:
    """The path of the layer whose weight, or part of it, a tensor is; the name itself where it is called otherwise."""
    return _WEIGHT.sub("", name)


def _sources(weight: Node | None) -> list[Node]:
    """The placeholders that a value is made from, in the order of the arguments."""
    found: dict[Node, None] = {}
    pending = [] if weight is None else [weight]
    while pending:
        node = pending.pop()
        if node not in found:
            found[node] = None
            pending.extend(reversed(node.all_input_nodes))
    return [n for n in found if n.op == "placeholder"]


def base_matrix(node: Node) -> Node | str:
    """Behind `expand`: the matrix that every entry of the batch shares; or why there is none."""
    while operator_name(node) == "expand":
        source = node.all_input_nodes[0]
        if len(shape(source)) < 2 or shape(source)[-2:] != shape(node)[-2:]:
            return "the weight is broadcast along its own axes"
        node = source
    if any(size != 1 for size in shape(node)[:-2]):
        return "the weight has a batch axis: one matrix for each entry of the batch, not one layer"
    return node


def _dtype_reason(node: Node) -> str | None:
    value = tensor(node)
    if value is None or value.dtype in FLOATING:
        return None
    return f"dtype {str(value.dtype).removeprefix('torch.')} has no convolution kernel"


def _pair(
    node: Node, a: Node, b: Node, known: set[Node], weights: set[Node], **rest: Any
) -> Product | str | None:
    """The product a·b with one constant factor, or with two of which one is a weight."""
    of = known if (a in known) != (b in known) else weights
    if (a in of) == (b in of):
        return None
    x, weight = (a, b) if b in of else (b, a)
    left = weight is a
    found = base_matrix(weight) if len(shape(weight)) >= 2 else weight
    if isinstance(found, str):
        return found
    rank, ranks = len(shape(found)), len(shape(x))
    kind = str(node.target)
    if rank == 1:
        if left:
            return "a vector weight on the left leaves no channels"
        return Product(node, kind, x, ranks - 1, None, found, None, 0, **rest)
    if rank > 2 and len(shape(node)) != ranks:
        return "the weight has more axes than the input"
    channel = max(0, ranks - 2) if left else ranks - 1
    out, inner = (rank - 2, rank - 1) if left else (rank - 1, rank - 2)
    others = [shape(v)[:channel] + shape(v)[channel + 1 :] for v in (x, node)]
    if len(others[0]) != len(others[1]) or any(str(p) != str(q) for p, q in zip(*others, strict=True)):
        return "the weight broadcasts the input"
    return Product(node, kind, x, channel, channel, found, out, inner, **rest)


def match_linear(node: Node, known: set[Node], weights: set[Node]) -> Product | str | None:
    """A `linear`, `mm`, `matmul`, `bmm`, `addmm`, `baddbmm` or `mv` with one constant factor; a reason; or
    None for anything else. `weights` are the constants that depend on a parameter (see `trained`).
    """
    name = operator_name(node)
    if name not in PRODUCTS:
        return None
    if name == "linear":
        x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
        if not isinstance(x, Node) or not isinstance(weight, Node) or weight not in known:
            return None
        if len(shape(weight)) == 1:
            return "a vector weight"
        last = len(shape(x)) - 1
        return _dtype_reason(node) or Product(node, str(node.target), x, last, last, weight, 0, 1, bias)
    rest: dict[str, Any] = {}
    factors = node.args[-2:] if name in ("addmm", "baddbmm") else node.args[:2]
    if name in ("addmm", "baddbmm"):
        rest = {
            "bias": node.args[0],
            "alpha": node.kwargs.get("alpha", 1),
            "beta": node.kwargs.get("beta", 1),
        }
        factors = node.args[1:3]
    a, b = factors
    assert isinstance(a, Node)
    assert isinstance(b, Node)
    found = _pair(node, a, b, known, weights, **rest)
    return _dtype_reason(node) or found if isinstance(found, Product) else found


def match_convolution(node: Node, known: set[Node]) -> Product | str | None:
    """A convolution with a constant kernel of one place; a reason; or None for anything else."""
    name = operator_name(node)
    if name not in CONVOLUTIONS:
        return None
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    if not isinstance(x, Node) or not isinstance(weight, Node) or weight not in known:
        return None
    spatial = len(shape(weight)) - 2
    if any(size != 1 for size in shape(weight)[2:]):
        return None
    if name == "convolution" and node.args[6]:
        return "a transposed convolution"
    padding = argument(node, 4, "padding", 0)
    numbers: Iterable[Any] = (
        padding if isinstance(padding, list | tuple) else [0 if isinstance(padding, str) else padding]
    )
    if any(n != 0 for n in numbers):
        return f"padding {padding}: the border places see no input"
    stride = argument(node, 3, "stride", 1)
    steps = tuple(stride) if isinstance(stride, list | tuple) else (stride,)
    steps = steps * spatial if len(steps) == 1 else steps
    groups: Any = node.args[8] if name == "convolution" else argument(node, 6, "groups", 1)
    channel = len(shape(x)) - spatial - 1
    return _dtype_reason(node) or Product(
        node, str(node.target), x, channel, channel, weight, 0, 1, bias, groups=int(groups), stride=steps
    )


def weight_of(node: Node, known: set[Node]) -> Node | None:
    """The operand that a product is named after: the weight where the operator tells it, else the first constant."""
    if operator_name(node) == "linear" or operator_name(node) in CONVOLUTIONS:
        return node.args[1] if isinstance(node.args[1], Node) else None
    constant = [n for n in node.all_input_nodes if n in known]
    recurrent = operator_name(node) in NOT_READ and len(constant) > 1
    return None if recurrent or not constant else constant[0]


def not_read(node: Node, known: set[Node]) -> str | None:
    """Why an operator that multiplies by a constant is none of ours; None where it isn't one."""
    reason = NOT_READ.get(operator_name(node))
    tensors = [n for n in node.all_input_nodes if tensor(n) is not None]
    mixed = any(n in known for n in tensors) and any(n not in known for n in tensors)
    return reason if reason and mixed else None


def changing_weight(node: Node, known: set[Node], apart: set[Node]) -> str | None:
    """Why a layer whose weight is neither constant nor made from the inputs cannot be converted; None for all else.
    `apart` are the nodes that do not depend on the inputs (see `independent`).
    """
    name = operator_name(node)
    if name != "linear" and name not in CONVOLUTIONS:
        return None
    weight = node.args[1]
    if not isinstance(weight, Node) or weight in known or weight not in apart:
        return None
    if name in CONVOLUTIONS and any(size != 1 for size in shape(weight)[2:]):
        return None
    return "its weight changes from call to call: it is made from a buffer that the program writes to, or at random"


def products_inside(program: ExportedProgram, node: Node, to: str) -> int:
    """How many products a block that the node runs holds: `no_grad`, autocast, `cond` and the like are graphs
    of their own.
    """
    names = PRODUCTS if to == "conv" else CONVOLUTIONS
    blocks = (
        [n.target for n in node.all_input_nodes if n.op == "get_attr"] if node.op == "call_function" else []
    )
    inner = [getattr(program.graph_module, str(name), None) for name in blocks]
    return sum(operator_name(n) in names for b in inner if isinstance(b, GraphModule) for n in b.graph.nodes)


def refusal(node: Node, path: str, reason: str) -> Refusal:
    """A refusal that names the node's operator."""
    return Refusal(path, str(node.target), reason)
