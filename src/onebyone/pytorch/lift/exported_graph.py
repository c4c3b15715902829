"""Read a network as an exported program of aten operators, with the names of its parameters and modules."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from onebyone.errors import BadInput, Refused
from onebyone.lifting.index import BATCH
from onebyone.memory import require_memory
from onebyone.pytorch.files.exporting import depends_on_values, why_not_followed
from onebyone.pytorch.files.exporting import evaluating as evaluating
from onebyone.pytorch.files.exporting import quiet as quiet
from onebyone.records import Refusal, first_line


@dataclass(frozen=True)
class Traced:
    """An exported program, read: its graph, the name of the tensor behind each constant placeholder, and the
    tensors. `fixed` names those that are part of the code (`torch.tensor([0, 2])` in a forward): no checkpoint
    changes them."""

    graph: fx.Graph
    image: str
    names: dict[str, str]
    tensors: dict[str, torch.Tensor]
    program: ExportedProgram
    fixed: frozenset[str] = frozenset()


def require_plain_names(model: nn.Module) -> None:
    """Raise BadInput for a name that torch.fx would write into its code unescaped, and so break or change the code.

    >>> require_plain_names(nn.Sequential())
    """
    for path, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        reserved = [name for name in path.split(".") if iskeyword(name)]
        if reserved:
            raise BadInput(
                f"model: has a module or parameter called {path!r}; expected names without {reserved[0]!r}, which "
                f"Python reserves, since PyTorch cannot run the graph of such a network; rename it, or use convert "
                f"with level='layers'"
            )
        if any(c in '"\\' or not c.isprintable() for c in path):
            raise BadInput(
                f"model: has a module or parameter called {path!r}; expected names without double quotes, "
                f"backslashes and line ends, which PyTorch's graphs cannot hold"
            )


def trace(model: nn.Module | ExportedProgram, window: Sequence[int], channels: int | None) -> Traced:
    """The network as a graph of aten operators, traced on a batch of `BATCH` windows, `(N, channels, *window)`, or
    `(N, *window)` where `channels` is None.

    A network in training mode is traced in eval mode. One in eval mode is traced as it is, so that a part which
    was left in training mode on purpose (dropout that samples, for example) is seen.

    Raises
    ------
    BadInput
        where the network does not run on such a window, or takes more than one input.
    """
    if isinstance(model, ExportedProgram):
        return read(_fits(model, window, channels))
    require_plain_names(model)
    _require_traceable(model)
    reference = next(iter(model.parameters()), torch.empty(0))
    dtype = reference.dtype if reference.is_floating_point() else torch.get_default_dtype()
    shape = (BATCH, *_sample(window, channels))
    require_memory("window", window, shape, dtype.itemsize)
    example = torch.zeros(*shape, dtype=dtype, device=reference.device)
    with evaluating(model) if model.training else nullcontext(), quiet():
        try:
            program = torch.export.export(model, (example,), strict=False)
        except Exception as error:
            raise BadInput(_why_not(model, example, error)) from error
    traced = read(program)
    if not _mutates_what_is_read_later(traced.graph):
        return traced
    try:
        with quiet():
            return read(program.run_decompositions({}))
    except RuntimeError as error:
        raise BadInput(
            f"model: torch.export cannot rewrite the operators that write in place: {first_line(error)}"
        ) from error


def _require_traceable(model: nn.Module) -> None:
    """Raise Refused for modules of PyTorch's own whose graph torch.export gets wrong or not at all."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.CrossMapLRN2d)]
    why = "torch.export cannot follow it; nn.LocalResponseNorm of an odd size computes the same and is converted"
    if paths:
        raise Refused([Refusal(path, "CrossMapLRN2d", why) for path in paths])


def read(program: ExportedProgram) -> Traced:
    """The parts of an exported program that lifting needs."""
    names, tensors, images, fixed = {}, {}, [], set()
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR) and spec.target:
            names[name] = spec.target
            if spec.kind == InputKind.CONSTANT_TENSOR:
                fixed.add(spec.target)
            held = program.state_dict.get(spec.target)
            tensors[spec.target] = held if held is not None else program.constants[spec.target]
        elif spec.kind == InputKind.USER_INPUT:
            images.append(name)
    if len(images) != 1:
        raise BadInput(f"model takes {len(images)} inputs; a network of one image was expected")
    return Traced(program.graph, images[0], names, tensors, program, frozenset(fixed))


def module_path(node: fx.Node) -> str:
    """The dotted path of the module a node belongs to ("" at the top)."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def user_input(program: ExportedProgram) -> fx.Node:
    name = program.graph_signature.user_inputs[0]
    node: fx.Node = next(n for n in program.graph.nodes if n.name == name)
    return node


def _sample(window: Sequence[int], channels: int | None) -> list[int]:
    """The shape of one window."""
    return list(window) if channels is None else [channels, *window]


def _fits(program: ExportedProgram, window: Sequence[int], channels: int | None) -> ExportedProgram:
    """The program itself if it was exported at this window, in batches of at least two or any number."""
    shape, sample = tuple(user_input(program).meta["val"].shape), _sample(window, channels)
    fixed = [d if isinstance(d, int) else None for d in shape]
    if len(shape) != len(sample) + 1 or any(
        have is not None and have != want for have, want in zip(fixed[1:], sample, strict=True)
    ):
        raise BadInput(f"window {tuple(window)}: the program was exported for an input of shape {shape}")
    if fixed == [BATCH, *sample]:
        return program
    example = torch.zeros(BATCH, *sample, dtype=user_input(program).meta["val"].dtype)
    try:
        with quiet():
            module = program.module(check_guards=False)
            module._forward_pre_hooks.clear()  # they hold inputs to the example's batch, which most graphs need not
            return torch.export.export(module, (example,), strict=False)
    except Exception as error:
        raise BadInput(
            f"model: the program was exported for an input of shape {shape}, and its graph does not run on a batch of "
            f"{BATCH}; export it with a free batch dimension, or give the network that it was exported from"
        ) from error


def _why_not(model: nn.Module, example: torch.Tensor, error: Exception) -> str:
    """One sentence on why the network cannot be traced on the example: the module whose forward fails, where one does.

    The forward runs on shapes alone, so that a window far too large costs no more than another.
    """
    running: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
    handles = []
    for path, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda m, inputs, path=path: running.append((path, m, inputs)))
        )
        handles.append(module.register_forward_hook(lambda _m, _i, _o: running.pop() and None))
    size = "×".join(str(n) for n in example.shape[1:])
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
            model(fake.from_tensor(example))
    except Exception as failure:
        if not depends_on_values(failure):  # shapes alone cannot tell whether such a network runs
            path, module, inputs = running[-1] if running else ("", model, ())
            what = _mismatch(module, inputs) or first_line(failure)
            return (
                f"window: the network does not run on a {size} image{f' (at {path})' if path else ''}: {what}"
            )
    finally:
        for handle in handles:
            handle.remove()
    return f"model: torch.export cannot follow the network: {why_not_followed(error)}"


def _mismatch(module: nn.Module, inputs: tuple[Any, ...]) -> str:
    """The features that a linear layer takes and those that it gets, where they differ; else an empty string."""
    features = (
        inputs[0].shape[-1] if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].ndim else None
    )
    if isinstance(module, nn.Linear) and features is not None and features != module.in_features:
        return f"it takes {module.in_features} features and gets {features}"
    return ""


def _mutates_what_is_read_later(graph: fx.Graph) -> bool:
    """Whether some in-place operator changes a tensor that is read later under another name.

    Otherwise the operators can be read as if they made new tensors, which keeps dropout in the graph; if so, the
    program must be functionalised first.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    root: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        first = node.all_input_nodes[0] if node.all_input_nodes else None
        root[node] = root[first] if first is not None and _aliases(node) else node
    for node in graph.nodes:
        if not is_inplace(node.target):
            continue
        base = root[node.all_input_nodes[0]]
        for other, its_root in root.items():
            stale = its_root is base and order[other] < order[node]
            if stale and any(order[user] > order[node] for user in other.users):
                return True
    return False


def is_inplace(target: Any) -> bool:
    """Whether an operator writes into its first argument (relu_, add_, …)."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def unread(graph: fx.Graph) -> set[fx.Node]:
    """The operators whose results nothing reads (a part taken for its size alone, for example)."""
    dead: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not is_inplace(node.target) and all(u in dead for u in node.users):
            dead.add(node)
    return dead


def is_random(node: fx.Node) -> bool:
    """Whether the operator draws random numbers as it is called here: a dropout in eval mode does not."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    arguments.update({a.name: v for a, v in zip(target._schema.arguments, node.args, strict=False)})
    arguments.update(node.kwargs)
    switches = [
        arguments[name] for name in ("train", "training", "dropout_p", "dropout", "p") if name in arguments
    ]
    return all(switch is None or bool(switch) for switch in switches)


def _aliases(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function"  # getitem of a split
    return any(r.alias_info is not None for r in target._schema.returns) or target._schema.name in _MAY_ALIAS


_MAY_ALIAS = {"aten::reshape", "aten::flatten", "aten::contiguous", "aten::to", "aten::dropout"}
