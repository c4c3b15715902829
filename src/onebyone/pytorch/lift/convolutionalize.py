"""Turn a classifier of one window into a network that takes images of any size and classifies every window."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput, InexactWarning, Refused
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind, read_kind
from onebyone.lifting.class_map import window_of_class_map
from onebyone.lifting.inexact import WINDOWS
from onebyone.lifting.output_geometry import common_stride, joint_geometry, may_have_surplus, output_map
from onebyone.lifting.values import Lifted
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.advice import advice
from onebyone.pytorch.lift.class_map import class_map
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.lift.exported_graph import Traced, trace
from onebyone.pytorch.lift.graph_lifter import GraphLifter
from onebyone.pytorch.lift.input_shapes import channel_guesses, hint, window_of
from onebyone.pytorch.lift.lifted_pairs import make_pair
from onebyone.pytorch.lift.outputs import names_of, outputs_of, plain_containers
from onebyone.pytorch.lift.rules import decoder_for
from onebyone.pytorch.modules.structure import require_python
from onebyone.records import Labels, Refusal, by
from onebyone.results.any_size import CONTEXTS, HEADS, ClassMap, Output


def convolutionalize(
    model: nn.Module | ExportedProgram,
    window: int | Sequence[int],
    channels: int | None = None,
    *,
    head: str = "window",
    context: str | None = None,
    labels: Labels | None = None,
    score_kind: str | ScoreKind | None = None,
) -> ConvolutionalizedModule:
    """Turn a classifier of `window` pixels into a network that classifies every window of a larger image.

    Flatten and the linear layer after it become a convolution without padding, later linear layers become 1×1
    convolutions, and pools over the whole map become pools over each window's part of it. On an image of H × W pixels
    the result has ⌊(H − window)/stride⌋ + 1 positions per axis. `Geometry.exact` says whether its outputs equal those
    of cropped windows.

    Parameters
    ----------
    model: a network that takes one image `(N, C, *window)` or, without a channel axis, `(N, *window)`. It is not
    changed. window: the size in pixels that the network was built for, per axis. One number is the size of each axis
        that the first layer slides over.
    channels: the number of channels of the image. By default it is read from the first layer, if that has one; an input
        without a channel axis is tried too.
    head: "window", for the outputs of cropped windows, or "cam", for the class map before the last average pool. If
        everything after that pool is linear, means of the map over the pool's positions equal the outputs of "window";
        if not, `class_map.nonlinear` names the operators that are not linear.
    context: what squeeze-and-excitation and other global pooling inside the network pools over: "window" (around each
        position) or "image". None refuses such a network.
    labels: class names and preprocessing that the result carries.
    score_kind: what the outputs are: "logits", "probabilities" or "log-probabilities", alone or followed by
        ":exclusive" or ":multi-label". By default it is read from each output's last operator; see `.outputs`.

    Raises
    ------
    Refused
        naming every operator that cannot be converted, with its module path.
    BadInput
        if the network does not run on such a window, or an argument has an unknown value.

    Warns
    -----
    InexactWarning
        if the receptive field of a network that pads is more than four times its window, or if another window close by
        would make the network exact. `.advice` keeps the sentences.

    Example
    -------
    >>> import torch, onebyone
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    >>> d = convolutionalize(net, window=(8, 8))
    >>> d.model(torch.zeros(1, 3, 20, 31)).shape
    torch.Size([1, 10, 13, 24])
    """
    size = _check(model, window, channels, head, context)
    traced, count = _traced(model, size, channel_guesses(model, size) if channels is None else (channels,))
    lifter = _lift(traced, size, count, head, context, frozenset())
    if context == "image" and lifter.context_pools:
        lifter = _lift(traced, size, count, head, context, frozenset(lifter.context_pools))
    elif head == "cam" and lifter.context_pools:
        raise Refused([Refusal("", "head='cam'", "the network has global context inside; use head='window'")])
    _require_no_refusal(lifter)
    network, geometry, evidence = _finish(lifter)
    outputs = _outputs(traced, read_kind(score_kind))
    sentences = (
        advice(model, geometry, count, lambda other: _exact_at(model, other, count)) if not evidence else ()
    )
    for sentence in sentences:
        warnings.warn(sentence, InexactWarning, stacklevel=2)
    return ConvolutionalizedModule(
        model=network,
        geometry=geometry,
        changes=tuple(lifter.changes),
        original=model,
        channels=count or 1,
        bare=count is None,
        nominal=size,
        head=head,
        context=context,
        class_map=evidence,
        labels=labels or Labels(),
        outputs=outputs,
        pairs=tuple(lifter.pairs),
        advice=sentences,
    )


def _exact_at(model: nn.Module | ExportedProgram, window: tuple[int, ...], channels: int | None) -> bool:
    """Whether the network would be exact at another window."""
    lifter = _lift(trace(model, window, channels), window, channels, "window", None, frozenset())
    return not lifter.refused and _finish(lifter)[1].exact


def _check(
    model: object, window: int | Sequence[int], channels: int | None, head: str, context: str | None
) -> tuple[int, ...]:
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise BadInput(
            f"model is a {type(model).__name__}; a torch.nn.Module or an ExportedProgram was expected"
        )
    require_python(model)
    size = window_of(model, window)
    if channels is not None and (not isinstance(channels, int) or channels < 1):
        raise BadInput(f"channels is {channels!r}; a positive whole number was expected")
    if head not in HEADS:
        raise BadInput(f"head is {head!r}; 'window' or 'cam' was expected")
    if context not in CONTEXTS:
        raise BadInput(f"context is {context!r}; 'window', 'image' or None was expected")
    return size


def _traced(
    model: nn.Module | ExportedProgram, window: tuple[int, ...], guesses: tuple[int | None, ...]
) -> tuple[Traced, int | None]:
    """The network traced with the first number of channels that it accepts; if it accepts none, the first error."""
    errors: dict[int | None, BadInput] = {}
    for count in guesses:
        try:
            return trace(model, window, count), count
        except BadInput as error:
            errors[count] = error
    first = next((e for count, e in errors.items() if count is not None), errors[guesses[0]])
    raise BadInput(f"{first}{hint(model, window)}") from first


def _outputs(traced: Traced, kind: ScoreKind | None) -> tuple[Output, ...]:
    """The outputs as read from the graph; with `kind`, if it is stated, for all of them."""
    spec = traced.program.call_spec.out_spec
    names = names_of(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    outputs = outputs_of(traced.graph, traced.image, names)
    return tuple(replace(o, kind=kind) for o in outputs) if kind else outputs


def _lift(
    traced: Traced,
    window: tuple[int, ...],
    channels: int | None,
    head: str,
    context: str | None,
    image_wide: frozenset[str],
) -> GraphLifter:
    lifter = GraphLifter(traced, window, channels, head, context, image_wide)
    lifter.context_pools |= image_wide
    lifter.run(decoder_for, make_pair)
    return lifter


def _finish(lifter: GraphLifter) -> tuple[nn.Module, Geometry, ClassMap | None]:
    """Crop each output to one position per window, complete the graph, and make a module of it."""
    node = next(n for n in lifter.traced.graph.nodes if n.op == "output")
    leaves = [
        None if v is None else output_map(lifter, i, lifter.value(v)) for i, v in enumerate(node.args[0])
    ]
    _require_no_refusal(lifter)
    grids = [leaf.grid for leaf in leaves if leaf is not None]
    stride = common_stride(grids)
    window, evidence, reasons = lifter.window, None, list(lifter.inexact)
    if lifter.head == "cam":
        evidence, window = _class_map(lifter, stride)
        reasons.append(evidence.reason)
    image = lifter.proxy(next(n for n in lifter.graph.nodes if n.target is emitter.require_window))
    nodes = [
        None if leaf is None else _one_position_per_window(lifter, leaf, window, stride, image)
        for leaf in leaves
    ]
    out_spec = lifter.traced.program.call_spec.out_spec
    lifter.graph.output(plain_containers(pytree.tree_unflatten(nodes, out_spec)))
    geometry = joint_geometry(grids, stride, window, reasons, bool(lifter.image_wide))
    return _module(lifter), geometry, evidence


def _require_no_refusal(lifter: GraphLifter) -> None:
    if lifter.refused:
        what = (
            f"the network cannot be made to take images of any size (window {by(lifter.window)}); {WINDOWS}"
        )
        raise Refused(lifter.refused, what)


def _class_map(lifter: GraphLifter, stride: tuple[int, ...]) -> tuple[ClassMap, tuple[int, ...]]:
    """The class map, and the size in pixels of one of its positions, which is the smallest image that it takes."""
    evidence, jump = class_map(lifter)
    window = window_of_class_map(evidence.pool, jump, stride, lifter.window)
    for node in lifter.graph.nodes:
        if node.target is emitter.require_window:
            node.args = (node.args[0], window, *node.args[2:])
    return evidence, window


def _one_position_per_window(
    lifter: GraphLifter, value: Lifted, window: tuple[int, ...], stride: tuple[int, ...], image: fx.Proxy
) -> fx.Node:
    """The map at the windows' stride, cropped to the number of windows if it may have more positions."""
    handle = emitter.strided(value.handle, [s // j for s, j in zip(stride, value.grid.jump, strict=True)])
    if may_have_surplus(value.grid, stride, window, lifter.window):
        size: Any = image.shape
        counts = [(size[2 + a] - w) // s + 1 for a, (w, s) in enumerate(zip(window, stride, strict=True))]
        handle = emitter.limit(handle, counts)
    node: fx.Node = handle.node
    return node


def _module(lifter: GraphLifter) -> nn.Module:
    """The graph as a module with the network's parameters and buffers under their own names."""
    root = nn.Module()
    for path, module in lifter.modules.items():
        _attach(root, path, module)
    for name, tensor in lifter.traced.tensors.items():
        _attach(root, name, tensor)
    for name, buffer in lifter.recorder.buffers.items():
        root.register_buffer(name, buffer, persistent=False)
    network = fx.GraphModule(root, lifter.graph, "AnySize")
    network.graph.eliminate_dead_code()
    network.graph.lint()
    network.recompile()
    for (
        name,
        tensor,
    ) in lifter.traced.tensors.items():  # tensors that no operator reads stay in the state dict too
        _attach(network, name, tensor)
    for name in lifter.recorder.buffers:
        network.register_buffer(name, lifter.recorder.buffers[name], persistent=False)
    return network.eval()


def _attach(root: nn.Module, path: str, item: nn.Module | torch.Tensor) -> None:
    """Attach a module or tensor at a dotted path, unless the path is taken; parents are created as plain modules."""
    *parents, name = path.split(".")
    holder = root
    for parent in parents:
        child = holder._modules.get(parent)
        if child is None:
            child = nn.Module()
            holder.add_module(parent, child)
        holder = child
    if name in holder._parameters or name in holder._buffers or name in holder._modules:
        return
    if isinstance(item, nn.Module):
        holder.add_module(name, item)
    elif isinstance(item, nn.Parameter):
        holder.register_parameter(name, item)
    else:
        holder.register_buffer(name, item)
