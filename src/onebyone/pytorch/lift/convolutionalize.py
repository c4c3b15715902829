"""Turn a classifier of one window into a network that takes images of any size and classifies every window."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from onebyone.errors import BadInput, InexactWarning, Refused
from onebyone.laws.geometry import Field, Geometry
from onebyone.laws.scores import ScoreKind, read_kind
from onebyone.lifting.grid import PERIOD, Grid
from onebyone.lifting.values import Cannot, Lifted, Unknown
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.advice import advice
from onebyone.pytorch.lift.class_map import class_map
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.lift.exported_graph import Traced, trace
from onebyone.pytorch.lift.graph_lifter import GraphLifter
from onebyone.pytorch.lift.input_shapes import channel_guesses, hint, window_of
from onebyone.pytorch.lift.lifted_pairs import make_pair
from onebyone.pytorch.lift.outputs import names_of, outputs_of, plain_containers
from onebyone.pytorch.lift.rules import rule_for
from onebyone.pytorch.modules.structure import require_python
from onebyone.records import Labels, Refusal, by
from onebyone.results.any_size import ClassMap, Output

HEADS = ("window", "cam")
CONTEXTS = (None, "window", "image")


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
    """Make a classifier of `window` pixels a network that answers for every window of a larger image.

    Flatten and linear layers become convolutions without padding, the linear layers after them 1×1
    convolutions, pools over
    the whole map pools over each window's part of it. On an image of H × W pixels the result has
    ⌊(H − window)/stride⌋ + 1 places per axis. See `Geometry.exact` for whether they equal cropping every window.

    Parameters
    ----------
    model: a network of one image `(N, C, *window)` or, without a channel axis, `(N, *window)`; its structure is not
        touched.
    window: the size in pixels that the network was built for, per axis (one number: the same on each axis that its
        first layer slides over).
    channels: of the image; taken from the first layer where it tells. An input without a channel axis is tried too.
    head: "window", the numbers that cropping gives, or "cam", the class map before the last average pool. Where
        everything after that pool is linear, the map's means over the pool's places are the numbers of "window";
        where not, `class_map.nonlinear` names what is not.
    context: what squeeze-and-excitation and the like pool over: "window" (around each place), "image", or
    None: refused.
    labels: class names and preprocessing for the result to carry.
    score_kind: what the outputs are: "logits", "probabilities" or "log-probabilities", alone or followed by
        ":exclusive" or ":multi-label"; None reads it from each output's last operator, as `.outputs` tells.

    Raises
    ------
    Refused
        naming every operator that cannot be lifted, with its module path.
    BadInput
        where the network does not run on such a window, or an argument is none of those named.

    Warns
    -----
    InexactWarning
        where the receptive field of a network that pads is more than four times its window, and where another window
        close by would make it exact; `.advice` keeps the sentences.

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
    walk = _walk(traced, size, count, head, context, frozenset())
    if context == "image" and walk.context_pools:
        walk = _walk(traced, size, count, head, context, frozenset(walk.context_pools))
    elif head == "cam" and walk.context_pools:
        raise Refused([Refusal("", "head='cam'", "the network has global context inside; use head='window'")])
    if walk.refused:
        raise Refused(
            walk.refused, f"the network cannot be made to take images of any size (window {by(size)})"
        )
    network, geometry, evidence = _finish(walk)
    outputs = _outputs(traced, read_kind(score_kind))
    told = (
        advice(model, geometry, count, lambda other: _exact_at(model, other, count)) if not evidence else ()
    )
    for sentence in told:
        warnings.warn(sentence, InexactWarning, stacklevel=2)
    return ConvolutionalizedModule(
        model=network,
        geometry=geometry,
        changes=tuple(walk.changes),
        original=model,
        channels=count or 1,
        bare=count is None,
        nominal=size,
        head=head,
        context=context,
        class_map=evidence,
        labels=labels or Labels(),
        outputs=outputs,
        pairs=tuple(walk.pairs),
        advice=told,
    )


def _exact_at(model: nn.Module | ExportedProgram, window: tuple[int, ...], channels: int | None) -> bool:
    """Whether the network would be exact at another window."""
    walk = _walk(trace(model, window, channels), window, channels, "window", None, frozenset())
    return not walk.refused and _finish(walk)[1].exact


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
    """The network traced with the first number of channels that it runs with; the first one's error if with none."""
    errors: dict[int | None, BadInput] = {}
    for count in guesses:
        try:
            return trace(model, window, count), count
        except BadInput as error:
            errors[count] = error
    first = next((e for count, e in errors.items() if count is not None), errors[guesses[0]])
    raise BadInput(f"{first}{hint(model, window)}") from first


def _outputs(traced: Traced, kind: ScoreKind | None) -> tuple[Output, ...]:
    """The outputs as the graph tells them; of the kind given, where one is."""
    spec = traced.program.call_spec.out_spec
    names = names_of(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    told = outputs_of(traced.graph, traced.image, names)
    return tuple(replace(o, kind=kind) for o in told) if kind else told


def _walk(
    traced: Traced,
    window: tuple[int, ...],
    channels: int | None,
    head: str,
    context: str | None,
    image_wide: frozenset[str],
) -> GraphLifter:
    walk = GraphLifter(traced, window, channels, head, context, image_wide)
    walk.context_pools |= image_wide
    walk.run(rule_for, make_pair)
    return walk


def _finish(walk: GraphLifter) -> tuple[nn.Module, Geometry, ClassMap | None]:
    """Crop each output to the places of the windows, close the graph, and give it the network's own tensors."""
    node = next(n for n in walk.traced.graph.nodes if n.op == "output")
    leaves = [None if v is None else _answer(walk, i, walk.value(v)) for i, v in enumerate(node.args[0])]
    results = [leaf for leaf in leaves if leaf is not None]
    if walk.refused:
        raise Refused(
            walk.refused, f"the network cannot be made to take images of any size (window {by(walk.window)})"
        )
    stride = tuple(
        math.lcm(*(math.lcm(r.grid.jump[a], r.grid.align[a]) for r in results)) for a in range(walk.axes)
    )
    window, evidence = walk.window, None
    if walk.head == "cam":
        evidence, window = _class_map(walk, stride)
    image = next(n for n in walk.graph.nodes if n.target is emitter.require_window)
    nodes = [
        None if leaf is None else _cropped(walk, leaf, window, stride, walk.proxy(image)).handle.node
        for leaf in leaves
    ]
    walk.graph.output(plain_containers(pytree.tree_unflatten(nodes, walk.traced.program.call_spec.out_spec)))
    fields = results[0].grid.fields
    for other in results[1:]:
        fields = tuple(_hull(f, g) for f, g in zip(fields, other.grid.fields, strict=True))
    reasons = list(walk.inexact)
    if evidence is not None:
        reasons.append(evidence.reason)
    fields = tuple(replace(f, jump=s) for f, s in zip(fields, stride, strict=True))
    return _module(walk), Geometry.from_fields(window, fields, reasons, bool(walk.image_wide)), evidence


def _class_map(walk: GraphLifter, stride: tuple[int, ...]) -> tuple[ClassMap, tuple[int, ...]]:
    """The class map, and the pixels of one of its places: the least image it takes from then on."""
    evidence, jump = class_map(walk)
    if stride != jump:
        why = f"the outputs are at stride {by(stride)} and the pool's map at {by(jump)}; use head='window'"
        raise Refused([Refusal("", "head='cam'", why)], "the network has no class map")
    window = tuple(w - (k - 1) * j for w, k, j in zip(walk.window, evidence.pool, jump, strict=True))
    for node in walk.graph.nodes:
        if node.target is emitter.require_window:
            node.args = (node.args[0], window, *node.args[2:])
    return evidence, window


def _hull(a: Field, b: Field) -> Field:
    """What two outputs see together (their strides are evened out afterwards)."""
    start, stop = min(a.start, b.start), max(a.start + a.size, b.start + b.size)
    return Field(a.jump, start, stop - start)


def _answer(walk: GraphLifter, number: int, value: Any) -> Lifted:
    """An output as a map of one place per window, its elements as channels."""
    if isinstance(value, Lifted) and value.affine is None and not value.grid.image_wide:
        try:
            if max(value.grid.nominal) > 1 and len(value.shape) == walk.axes + 1 and max(value.shape[1:]) > 1:
                raise Cannot(f"gives a map of {by(value.shape[1:])} places for one window, not a vector")
            return walk.at_one_position(value)
        except Cannot as reason:
            walk.refused.append(Refusal("", f"output {number}", str(reason)))
    elif not isinstance(value, Unknown):
        walk.refused.append(Refusal("", f"output {number}", "does not depend on the place in the image"))
    return Lifted(value, Grid.image(1, walk.window))  # never used: a refusal is on record


def _cropped(
    walk: GraphLifter, value: Lifted, window: tuple[int, ...], stride: tuple[int, ...], image: fx.Proxy
) -> Lifted:
    """The map at the windows' stride, with exactly one place a window."""
    steps = [s // j for s, j in zip(stride, value.grid.jump, strict=True)]
    handle = emitter.strided(value.handle, steps)
    exact = max(stride) <= PERIOD and all(
        all(-(-have // step) == (size + i - w) // s + 1 for i, have in enumerate(sizes))
        for sizes, step, s, w, size in zip(value.grid.sizes, steps, stride, window, walk.window, strict=True)
    )
    if not exact:
        have: Any = image.shape
        counts = [(have[2 + a] - w) // s + 1 for a, (w, s) in enumerate(zip(window, stride, strict=True))]
        handle = emitter.limit(handle, counts)
    return replace(value, handle=handle)


def _module(walk: GraphLifter) -> nn.Module:
    """The graph as a module that holds the network's parameters and buffers under their own names."""
    root = nn.Module()
    for path, module in walk.modules.items():
        _attach(root, path, module)
    for name, tensor in walk.traced.tensors.items():
        _attach(root, name, tensor)
    for name, buffer in walk.recorder.buffers.items():
        root.register_buffer(name, buffer, persistent=False)
    network = fx.GraphModule(root, walk.graph, "AnySize")
    network.graph.eliminate_dead_code()
    network.graph.lint()
    network.recompile()
    for (
        name,
        tensor,
    ) in walk.traced.tensors.items():  # those that no operator reads stay in the state dict too
        _attach(network, name, tensor)
    for name in walk.recorder.buffers:
        network.register_buffer(name, walk.recorder.buffers[name], persistent=False)
    return network.eval()


def _attach(root: nn.Module, path: str, item: nn.Module | torch.Tensor) -> None:
    """Put a module or tensor at a dotted path, with plain modules on the way; what is there already stays."""
    *way, name = path.split(".")
    holder = root
    for step in way:
        below = holder._modules.get(step)
        if below is None:
            below = nn.Module()
            holder.add_module(step, below)
        holder = below
    if name in holder._parameters or name in holder._buffers or name in holder._modules:
        return
    if isinstance(item, nn.Module):
        holder.add_module(name, item)
    elif isinstance(item, nn.Parameter):
        holder.register_parameter(name, item)
    else:
        holder.register_buffer(name, item)
