"""Read the outputs of a network from its graph: their names, their numbers of channels, and what their values are.

The last operator before an output determines what its values are. A linear layer or a convolution gives logits, a
softmax or a sigmoid probabilities, and their logarithms are log-probabilities. Operators that only move values are
skipped. After any other operator (tanh, ReLU, a product of two maps) the kind is unknown: None.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from onebyone.errors import Refused
from onebyone.laws.scores import ScoreKind
from onebyone.pytorch.lift.exported_graph import is_inplace
from onebyone.records import Refusal
from onebyone.results.any_size import Output


def names_of(tree: Any) -> tuple[str, ...]:
    """The names of the leaves of a network's result, in the order of `torch.utils._pytree`.

    >>> names_of({"logits": 0, "boxes": (1, 2)})
    ('logits', 'boxes.0', 'boxes.1')
    """
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    if isinstance(tree, Mapping) and type(tree) is not dict and len(tree) == len(paths):
        # records of transformers, for example, are registered without key paths
        return tuple(str(key) for key in tree)
    return tuple(".".join(_step(step) for step in path) or "0" for path in paths)


def _step(step: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(step, attribute):
            return str(getattr(step, attribute))
    return str(step)


def outputs_of(program_graph: fx.Graph, image: str, names: Sequence[str]) -> tuple[Output, ...]:
    """The outputs of a traced graph whose input is the placeholder `image`."""
    node = next(n for n in program_graph.nodes if n.op == "output")
    reader = _Reader(program_graph, image)
    return tuple(
        reader.output(name, value)
        for name, value in zip(names, node.args[0], strict=True)
        if value is not None
    )


#: A kind, and the number of values that a softmax normalised over (0 without a softmax).
_Known = tuple[ScoreKind, int]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MOVES = _names(
    "view view_as _unsafe_view reshape flatten unflatten squeeze unsqueeze permute transpose movedim t contiguous "
    "clone alias detach to _to_copy type_as slice select narrow expand expand_as flip chunk split split_with_sizes "
    "unbind getitem"
)
_LINEAR = _names(
    "linear addmm mm matmul bmm baddbmm einsum conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d "
    "conv_transpose3d batch_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training"
)
_MEANS = _names(
    "mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d"
)
_MAXIMA = _names("amax max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d")
_LOGITS = ScoreKind("logits")


class _Reader:
    """Determines the kinds of a graph's outputs, backwards from the outputs."""

    def __init__(self, graph: fx.Graph, image: str) -> None:
        self._of_image: set[fx.Node] = set()
        self._order = {node: number for number, node in enumerate(graph.nodes)}
        #: the operators that write into a node's tensor, in order
        self._writers: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.name == image or any(n in self._of_image for n in node.all_input_nodes):
                self._of_image.add(node)
            if node.op == "call_function" and is_inplace(node.target) and isinstance(node.args[0], fx.Node):
                self._writers.setdefault(node.args[0], []).append(node)

    def output(self, name: str, value: Any) -> Output:
        shape = getattr(value.meta.get("val"), "shape", ()) if isinstance(value, fx.Node) else ()
        channels = 1
        for n in shape[1:]:
            channels *= int(n)
        known = self._known(value)
        if known is None:
            return Output(name, channels)
        kind, group = known
        if kind.classes == "exclusive" and group != channels:
            # the softmax ran over a part of the channels: they are one of several groups of classes
            kind = ScoreKind(kind.values)
        return Output(name, channels, kind)

    def _current(self, node: fx.Node, reader: fx.Node | None) -> fx.Node:
        """The last operator that wrote into a tensor before `reader` reads it (None: before the end of the graph)."""
        end = len(self._order) if reader is None else self._order[reader]
        while earlier := [w for w in self._writers.get(node, ()) if self._order[w] < end]:
            node = earlier[-1]
        return node

    def _known(self, node: Any, reader: fx.Node | None = None) -> _Known | None:
        """The kind of a node's values when `reader` reads them."""
        if not isinstance(node, fx.Node) or node not in self._of_image:
            return None
        node = self._current(node, reader)
        if node.op != "call_function":
            return None
        name = _name(node.target)
        source = node.args[0] if node.args else None
        if name in ("softmax", "_softmax", "log_softmax", "_log_softmax"):
            values = "log-probabilities" if "log" in name else "probabilities"
            return ScoreKind(values, "exclusive"), int(node.meta["val"].shape[node.args[1]])
        if name == "sigmoid":
            return ScoreKind("probabilities", "multi-label"), 0
        if name in ("log_sigmoid", "log_sigmoid_forward"):
            return ScoreKind("log-probabilities", "multi-label"), 0
        if name in _LINEAR:
            return _LOGITS, 0
        if name in _MOVES or (name == "dropout" and not node.args[2]):
            return self._known(source, node)
        return self._of_known(name, node, source)

    def _of_known(self, name: str, node: fx.Node, source: Any) -> _Known | None:
        """The kind after an operator that keeps or changes the kind of its input."""
        if name in ("cat", "concat", "stack"):
            return _joined([self._known(part, node) for part in source])
        if name in ("add", "sub", "mul", "div", "neg"):
            return self._arithmetic(name, node)
        before = self._known(source, node)
        if before is None:
            return None
        kind, group = before
        if kind.values == "logits":
            return before if name in _MEANS | _MAXIMA else None
        if kind.values == "log-probabilities":
            return (ScoreKind("probabilities", kind.classes), group) if name == "exp" else None
        if name == "log":
            return ScoreKind("log-probabilities", kind.classes), group
        if name in _MEANS or name in ("clamp", "clip"):
            return before
        return (ScoreKind("probabilities", "multi-label"), 0) if name in _MAXIMA else None

    def _arithmetic(self, name: str, node: fx.Node) -> _Known | None:
        """Sums of logits are logits, and so are logits scaled by a constant."""
        parts = [a for a in node.args if isinstance(a, fx.Node) and a in self._of_image]
        scaled = len(parts) == 1 and (name == "mul" or parts[0] is node.args[0])
        if name in ("mul", "div") and not scaled:
            return None
        known = [self._known(part, node) for part in parts]
        return (_LOGITS, 0) if known and all(k is not None and k[0] == _LOGITS for k in known) else None


def _joined(parts: list[_Known | None]) -> _Known | None:
    kinds = {None if part is None else part[0] for part in parts}
    if len(kinds) != 1 or None in kinds:
        return None
    (kind,) = kinds
    assert kind is not None
    return (ScoreKind(kind.values) if kind.classes == "exclusive" else kind), 0


def _name(target: Any) -> str:
    """The operator's name without its namespace and without the underscore of the in-place form."""
    if isinstance(target, torch._ops.OpOverload):
        name: str = target._schema.name.rpartition("::")[2]
        return name.rstrip("_") if is_inplace(target) else name
    return "getitem" if target is operator.getitem else str(target)


def plain_containers(tree: Any) -> Any:
    """The network's nested outputs in plain dictionaries, lists and tuples, which a saved program can hold.

    A dataclass becomes a dictionary of its fields.
    """
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type | Mapping):
        tree = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if isinstance(tree, Mapping):
        return {key: plain_containers(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return (
            [plain_containers(v) for v in tree]
            if isinstance(tree, list)
            else tuple(plain_containers(v) for v in tree)
        )
    if tree is None or isinstance(tree, fx.Node):
        return tree
    raise Refused(
        [Refusal("", "output", f"its results are in a {type(tree).__name__}, not in plain containers")]
    )
