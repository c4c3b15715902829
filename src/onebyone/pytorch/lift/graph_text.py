"""The graph of an any-size network as JSON text, and back, without its tensors.

An exported program describes symbolic sizes and guards too, which PyTorch needs seconds to read. An any-size network
has neither: its graph is a list of calls. The text is untrusted input. Everything that it may name is listed here:
tensor operators of `aten` that touch no files, these functions and methods, and these modules.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput
from onebyone.pytorch.files.program_checks import why_unsafe_operator
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.window_linear import linear_on_windows

VERSION = 1
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in (
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "matmul", "eq", "ne", "lt", "le",
        "gt", "ge", "and_", "or_",
    )},
    **{f"torch.{name}": getattr(torch, name) for name in (
        "sym_min", "sym_max", "sym_int", "cat", "conv1d", "conv2d", "conv3d", "full_like", "where", "sigmoid", "rsqrt",
        "einsum", "relu", "sqrt", "stack", "maximum", "minimum",
    )},
    **{f"functional.{name}": getattr(F, name) for name in (
        "max_pool1d", "max_pool2d", "max_pool3d", "batch_norm", "interpolate", "linear",
    )},
    "getattr": getattr,
    "onebyone.require_window": emitter.require_window,
    "onebyone.standardise": emitter._standardise,
    "onebyone.linear_on_windows": linear_on_windows,
}  # fmt: skip
_NAMES = {id(function): name for name, function in _FUNCTIONS.items()}
_ATTRIBUTES = frozenset({"shape"})  # the only ones that `getattr` may read
_METHODS = frozenset({
    "amax", "amin", "clone", "contiguous", "dim", "expand", "flatten", "index_select", "mean", "movedim", "narrow",
    "new_empty", "new_full", "new_zeros", "permute", "repeat_interleave", "reshape", "size", "sqrt", "squeeze", "sum",
    "transpose", "unflatten", "unfold", "unsqueeze", "view",
})  # fmt: skip
_BATCH_NORMS = {c.__name__: c for c in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}
_DROPOUTS = {
    c.__name__: c
    for c in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
}
_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)
_DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_FORMATS = {str(f): f for f in vars(torch).values() if isinstance(f, torch.memory_format)}

#: What reading a text may raise that is not what `graph_text` writes; MemoryError comes from the compiler, for an
#: expression that is nested too deeply.
DAMAGED = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, SyntaxError),
    *(AssertionError, OverflowError, MemoryError),
)


class NotStorable(Exception):
    """The graph has a part that the text has no name for; the message says which."""


def graph_text(network: fx.GraphModule) -> str:
    """The graph of an any-size network, whose one input is an image.

    Raises
    ------
    NotStorable
        if it calls something else than what is listed in this module.

    >>> class Doubled(nn.Module):
    ...     def forward(self, image): return image + image
    >>> text = graph_text(fx.symbolic_trace(Doubled()))
    >>> graph_module(text, {})(torch.ones(2))
    tensor([2., 2.])
    """
    numbers: dict[fx.Node, int] = {}
    nodes: list[dict[str, Any]] = []
    for node in network.graph.nodes:
        args: Any = node.args
        if node.op == "output":
            args = (_nested(network.graph, node.args[0]),)
        entry = {"op": node.op, "target": _target_text(network, node), "name": node.name}
        entry["args"] = [_plain(a, numbers) for a in args]
        entry["kwargs"] = {key: _plain(a, numbers) for key, a in node.kwargs.items()}
        numbers[node] = len(nodes)
        nodes.append(entry)
    return json.dumps({"version": VERSION, "nodes": nodes})


def graph_module(text: str, tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The any-size network of a text; `tensors` are its parameters and buffers by dotted name.

    Raises
    ------
    BadInput
        if the text is damaged, of another version, or names something that is not listed in this module.
    """
    try:
        return _read(json.loads(text), tensors)
    except DAMAGED as error:
        raise BadInput(f"the graph of the any-size network is damaged ({error!r})") from error


def _nested(graph: fx.Graph, output: Any) -> Any:
    """What the network returns. The graph of a program has it flat, with its structure beside it."""
    codegen: Any = graph._codegen
    information = getattr(codegen, "pytree_info", None)
    if information is None:
        return output
    if len([n for n in graph.nodes if n.op == "placeholder"]) != 1:
        raise NotStorable("several inputs")
    spec = information.out_spec
    return output if spec is None else pytree.tree_unflatten(list(output), spec)


def _target_text(network: fx.GraphModule, node: fx.Node) -> Any:
    target: Any = node.target
    if node.op == "call_module":
        return {"path": target, "module": _module_record(network.get_submodule(target))}
    if node.op == "call_method":
        if target not in _METHODS:
            raise NotStorable(f"the method {target}")
        return target
    if node.op != "call_function":
        return str(target)
    if isinstance(target, torch._ops.OpOverload):
        name = f"torch.ops.{target.namespace}.{target._opname}.{target._overloadname}"
        if target.namespace != "aten" or why_unsafe_operator(name) is not None:
            raise NotStorable(name)
        return name
    if id(target) not in _NAMES:
        raise NotStorable(getattr(target, "__qualname__", str(target)))
    return _NAMES[id(target)]


def _module_record(module: nn.Module) -> dict[str, Any]:
    name = type(module).__name__
    if type(module) in _BATCH_NORMS.values():
        fields = ("num_features", "eps", "momentum", "affine", "track_running_stats")
        return {"class": name, **{f: getattr(module, f) for f in fields}}
    if type(module) in _DROPOUTS.values():
        return {"class": name, "p": getattr(module, "p", 0.5)}
    raise NotStorable(f"the module {name}")


def _plain(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    """An argument as JSON: containers other than lists, and values that JSON lacks, are mappings with one key."""
    if isinstance(value, fx.Node):
        return {"node": numbers[value]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [_plain(v, numbers) for v in value]
    if type(value) is tuple or isinstance(value, torch.Size):
        return {"tuple": [_plain(v, numbers) for v in value]}
    if isinstance(value, slice):
        return {"slice": [_plain(v, numbers) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(v, numbers) for key, v in value.items()}}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value)}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    raise NotStorable(f"an argument of type {type(value).__name__}")


def _read(data: Any, tensors: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']}")
    root, graph, nodes = fx.GraphModule(nn.Module(), fx.Graph(), "AnySize"), fx.Graph(), list[fx.Node]()
    for name, tensor in tensors.items():
        _put(root, name, tensor)
    operations = [entry["op"] for entry in data["nodes"]]
    if operations.count("placeholder") != 1 or operations.index("output") != len(operations) - 1:
        raise ValueError("not one input and, at the end, one output")
    for entry in data["nodes"]:
        op, target = str(entry["op"]), entry["target"]
        args = tuple(_value(a, nodes) for a in entry["args"])
        kwargs = {_identifier(key): _value(a, nodes) for key, a in entry["kwargs"].items()}
        if op == "output":
            graph.output(args[0])
            continue
        nodes.append(
            graph.create_node(op, _target(op, target, args, root), args, kwargs, _identifier(entry["name"]))
        )
    root.graph = graph
    root.graph.lint()
    return root.eval()


def _target(op: str, target: Any, args: tuple[Any, ...], root: nn.Module) -> Any:
    if op == "placeholder":
        return _identifier(target)
    if op == "get_attr":
        return _stored(root, _path(target))
    if op == "call_module":
        path = _path(target["path"])
        _put(root, path, _module(target["module"]))
        return path
    if op == "call_method" and target in _METHODS:
        return target
    if op == "call_function" and target in _FUNCTIONS:
        if target == "getattr" and args[1] not in _ATTRIBUTES:
            raise ValueError(f"the attribute {args[1]!r}")
        return _FUNCTIONS[target]
    if (
        op == "call_function"
        and str(target).startswith("torch.ops.aten.")
        and why_unsafe_operator(target) is None
    ):
        packet, overload = str(target).removeprefix("torch.ops.aten.").split(".")
        found = getattr(getattr(torch.ops.aten, packet), overload)
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise ValueError(f"{op} of {str(target)[:60]!r}")


def _module(record: Mapping[str, Any]) -> nn.Module:
    name = record["class"]
    if name in _DROPOUTS:
        return _DROPOUTS[name](float(record["p"]))
    momentum = record["momentum"]
    return _BATCH_NORMS[name](
        int(record["num_features"]),
        float(record["eps"]),
        None if momentum is None else float(momentum),
        bool(record["affine"]),
        bool(record["track_running_stats"]),
        device="meta",
    )


def _put(root: nn.Module, path: str, item: nn.Module | torch.Tensor) -> None:
    """Put a module or a tensor at a dotted path. Tensors that were there before a module become the module's."""
    *parents, name = _path(path).split(".")
    holder = root
    for parent in parents:
        if parent not in holder._modules:
            holder.add_module(parent, nn.Module())
        holder = holder.get_submodule(parent)
    if isinstance(item, nn.Parameter):
        holder.register_parameter(name, item)
        return
    if isinstance(item, torch.Tensor):
        holder.register_buffer(name, item)
        return
    before = holder._modules.get(name)
    stored: dict[str, Any] = {} if before is None else {**before._parameters, **before._buffers}
    expected = dict([*item.named_parameters(recurse=False), *item.named_buffers(recurse=False)])
    for key, tensor in expected.items():
        if stored[key].shape != tensor.shape:
            raise ValueError(f"the shape of {path}.{key}")
        if key in item._parameters:
            item._parameters[key] = stored[key]
        else:
            item._buffers[key] = stored[key]
    if before is None:
        holder.add_module(name, item)  # which refuses the names of attributes
    else:
        holder._modules[name] = item


def _stored(root: nn.Module, path: str) -> str:
    """The path of a parameter or buffer, and of no other attribute."""
    parent, _, name = path.rpartition(".")
    holder = root.get_submodule(parent)
    if name not in holder._parameters and name not in holder._buffers:
        raise ValueError(f"no tensor {path[:60]!r}")
    return path


def _value(value: Any, nodes: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_value(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[_index(content)]
    if kind == "tuple":
        return tuple(_value(v, nodes) for v in content)
    if kind == "slice":
        return slice(*(_value(v, nodes) for v in content))
    if kind == "dict":
        return {str(key): _value(v, nodes) for key, v in content.items()}
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device("cpu")
    named: dict[str, dict[str, Any]] = {"dtype": _DTYPES, "memory_format": _FORMATS}
    return named[kind][content]


def _index(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"node {number!r}")
    return number


def _path(path: Any) -> str:
    """A dotted path, which torch.fx writes into the code of the network."""
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ValueError(f"the name {str(path)[:60]!r}")
    return path


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise ValueError(f"the name {str(name)[:60]!r}")
    return name
