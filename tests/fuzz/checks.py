"""What is checked of one network: the dense form against every crop and the oracle; the conversions, both ways.

Numbers are compared in float64 against how far the network's own numbers move when its input moves by some roundings:
what an error of computation can be mistaken for, measured, not guessed.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from onebyone.errors import BadInput, Refused
from onebyone.pytorch.graph.convert import convert_graph, exported
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import DropIn
from tests.fuzz.networks import Description, Net, randomised
from tests.fuzz.oracle import judge
from tests.fuzz.plan import first_name, plan_conversion, plan_graph


@dataclass(frozen=True)
class Finding:
    """Something wrong: in which part, what, and the network."""

    part: str
    what: str
    description: Description

    @property
    def bucket(self) -> tuple[str, str]:
        """What findings are put together by."""
        return self.part, self.what


@dataclass
class Tally:
    """Counts over all networks."""

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, *key: str) -> None:
        self.counts[key] += 1

    def __str__(self) -> str:
        width = max((len(" | ".join(k)) for k in self.counts), default=0)
        lines = [f"{' | '.join(key):{width}}  {n:6}" for key, n in sorted(self.counts.items())]
        return "\n".join([*lines, f"findings: {len(self.findings)}"])


Network = Callable[[torch.Tensor], torch.Tensor]


class Wrong(Exception):
    """A check failed."""


def check_all(description: Description, tally: Tally) -> list[Finding]:
    """Every check of one network; counts go to the tally, findings too."""
    found: list[Finding] = []
    for part, check in CHECKS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(randomised(Net(description)), tally)
        except Wrong as wrong:
            found.append(Finding(part, str(wrong), description))
        except Exception as error:  # what is neither an answer nor a refusal is a finding
            text = (str(error).splitlines() or [""])[0][:100]
            found.append(Finding(part, f"{type(error).__name__}: {text}", description))
    for finding in found:
        tally.findings.append(finding)
    return found


def require(true: bool, what: str) -> None:
    if not true:
        raise Wrong(what)


# the dense form


def check_dense(net: Net, tally: Tally) -> None:
    """Legal networks convert and are equal; illegal ones are refused; nothing has wrong numbers."""
    verdict = judge(net)
    d = net.description
    try:
        dense = convolutionalize(net, d.window, d.channels)
    except Refused as refused:
        require(verdict.label != "legal", f"a legal network is refused: {_kinds(refused)}")
        tally.add("dense", verdict.label, "refused", verdict.reason)
        if verdict.context:
            check_context(net, tally)
        return
    require(verdict.label != "illegal", f"an illegal network is converted ({verdict.reason})")
    require(  # (an open network is read only as far as it is clear: its numbers tell)
        verdict.label == "open" or dense.geometry.exact != verdict.padded,
        f"exact is {dense.geometry.exact}, the oracle saw padding: {verdict.padded}",
    )
    outcome = check_numbers(net, dense)
    tally.add("dense", verdict.label, outcome, verdict.reason)
    if verdict.label == "legal":
        tally.add("answers", "differ from window to window" if _alive(net, dense) else "are all the same")


def _alive(net: Net, dense: ConvolutionalizedModule) -> bool:
    """Whether the answers tell windows apart: if not, much could be wrong unseen."""
    size = [w + min(s, 12) for w, s in zip(dense.geometry.window, dense.geometry.stride, strict=True)]
    with torch.no_grad():
        places = dense.model(_image(net, size)).flatten(2)
    return bool((places != places[:, :, :1]).any()) or places.shape[2] == 1


def check_context(net: Net, tally: Tally) -> None:
    """Global context by choice: right on an image of one window, never called exact."""
    d = net.description
    for choice in ("window", "image"):
        try:
            dense = convolutionalize(net, d.window, d.channels, context=choice)
        except Refused:
            tally.add("context", choice, "refused")
            continue
        require(not dense.geometry.exact, f"context={choice!r} is called exact")
        check_numbers(net, dense)
        tally.add("context", choice, "right on one window")


def _kinds(refused: Refused) -> str:
    return "; ".join(f"{r.kind}: {r.reason.split(':')[0][:70]}" for r in refused.refusals)


def _wraps(net: Net) -> bool:
    """Whether circular padding lets one edge see the other, wherever that is."""
    return any(op.args.get("mode") == "circular" for op in net.description.ops)


def _crops_map(net: Net) -> bool:
    """Whether places are cropped: padding after that is not at the image's edge, so that even on an image of one window
    the dense form, which crops last, has other numbers."""
    return any(
        (op.kind in ("slice", "chunk") and op.args["axis"] > 0) or min(op.args.get("amounts", (0,))) < 0
        for op in net.description.ops
    )


def check_numbers(net: Net, dense: ConvolutionalizedModule) -> str:
    """The dense form on three images against the network on every crop; says "equal", or how far that holds."""
    window, stride = net.description.window, dense.geometry.stride
    require(dense.geometry.window == window, "the geometry tells another window")
    cropped = not dense.geometry.exact and _crops_map(net)
    outcome = "equal" if dense.geometry.exact else "padded" if cropped else "padded, equal on one window"
    for extra in (
        [0] * len(window),
        [s + 1 for s in stride],
        [(2 - a % 2) * s for a, s in enumerate(stride)],
    ):
        size = [w + min(e, 12) for w, e in zip(window, extra, strict=True)]
        image = _image(net, size)
        with torch.no_grad():
            got = dense.model(image)
            crops, slack = _crops(net, window, image, stride)
        places = dense.geometry.positions(size)
        require(tuple(got.shape[2:]) == places, f"{tuple(got.shape[2:])} places, {places} windows")
        require(got.shape == crops.shape, "other outputs than the network's")
        if dense.geometry.exact or not (any(extra) or cropped):
            off = (got - crops).abs() > slack
            require(
                not bool(off.any()) and bool(got.isfinite().all() == crops.isfinite().all()), "wrong numbers"
            )
    if not dense.geometry.exact and dense.context != "image" and not cropped and not _wraps(net):
        _check_shift(net, dense)
    return outcome


def _check_shift(net: Net, dense: ConvolutionalizedModule) -> None:
    """Move the image by one stride and the answers move by one place, wherever the receptive field that the geometry
    tells stays inside: what remains true with padding, if the geometry is right."""
    g = dense.geometry
    size = [max(w, r) + 3 * s for w, r, s in zip(g.window, g.receptive_field, g.stride, strict=True)]
    if max(size) > 90 or len(size) == 3:
        return
    image = _image(net, size)
    with torch.no_grad():
        here, slack = answers(dense.model, image)
        for axis, (step, off) in enumerate(zip(g.stride, g.receptive_field_offset, strict=True)):
            there = dense.model(image.narrow(axis + 2, step, size[axis] - step))
            first = max(1, -(-(step + off) // step))  # the first place that sees nothing of what was cropped
            a, b = here.movedim(axis + 2, 0)[first:], there.movedim(axis + 2, 0)[first - 1 :]
            require(
                bool(((a - b).abs() <= slack.max()).all()),
                "numbers do not move with the image: a wrong field",
            )


def _image(net: Net, size: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, net.description.channels, *size, generator=generator, dtype=torch.float64)


def _crops(
    net: Network, window: tuple[int, ...], image: torch.Tensor, stride: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network on every crop as `(N, outputs, *places)`, and what rounding may change of it."""
    starts = [range(0, n - w + 1, s) for n, w, s in zip(image.shape[2:], window, stride, strict=True)]
    counts = [len(s) for s in starts]
    crops = torch.stack(
        [
            image[(slice(None), slice(None), *(slice(a, a + w) for a, w in zip(at, window, strict=True)))]
            for at in itertools.product(*starts)
        ],
        1,
    )  # (N, places, C, *window)
    flat = crops.flatten(0, 1)
    out, slack = answers(net, flat)
    shape = (image.shape[0], -1, *out.shape[1:])
    return tuple(t.reshape(shape).flatten(2).movedim(1, -1).unflatten(-1, counts) for t in (out, slack))  # type: ignore[return-value]


def answers(net: Network, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's answers, and how far they may be off: 16 times what the network makes of inputs and parameters
    moved at random by about 2^12 roundings (the largest of four), and 2^12 roundings of the largest answer."""
    generator = torch.Generator().manual_seed(2)

    def moved(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 2**-40 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    out = net(image)
    worst = out.abs().max() * 2**-40 + torch.zeros_like(out)
    for _ in range(4):
        if not isinstance(net, nn.Module):
            again = net(moved(image))
        else:
            parameters = {name: moved(p) for name, p in net.named_parameters()}
            again = torch.func.functional_call(net, parameters, (moved(image),))
        worst = torch.maximum(worst, 16 * (again - out).abs().max() + torch.zeros_like(out))
    return out, worst


class Several(nn.Module):
    """Some values of a network, as several outputs."""

    def __init__(self, net: Net, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.outputs = net, outputs

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = self.net.values(image)
        return tuple(values[i] for i in self.outputs)


def check_outputs(net: Net, tally: Tally) -> None:
    """A network with two outputs: the first vector, and the last; their strides may differ. A third of the networks."""
    d = net.description
    vectors = [i for i in range(1, len(d.ops)) if len(net.shapes[i]) == 1]
    if not vectors or len(d.ops) % 3:
        return
    verdicts = [judge(net), judge(Net(Description(d.channels, d.window, d.ops[: vectors[0]])))]
    if any(v.label != "legal" for v in verdicts):
        return
    both = Several(net, (vectors[0], len(d.ops)))
    dense = convolutionalize(both, d.window, d.channels)
    exact = not any(v.padded for v in verdicts)
    require(dense.geometry.exact == exact, f"two outputs: exact is {dense.geometry.exact}")
    image = _image(net, [w + 2 * min(s, 8) - 1 for w, s in zip(d.window, dense.geometry.stride, strict=True)])
    if not exact and _crops_map(net):
        return
    image = image if exact else _image(net, list(d.window))
    with torch.no_grad():
        for number, got in enumerate(dense.model(image)):
            one = Several(net, (both.outputs[number],))
            crops, slack = _crops(lambda x, one=one: one(x)[0], d.window, image, dense.geometry.stride)
            require(got.shape == crops.shape, "two outputs: other places than windows")
            require(not bool(((got - crops).abs() > slack).any()), "two outputs: wrong numbers")
    tally.add("two outputs", "equal" if exact else "padded, equal on one window")


def check_window(net: Net, tally: Tally) -> None:
    """At a window where the network does not run, one sentence says so."""
    d = net.description
    other = tuple(w - 1 if w > 2 else w + 1 for w in d.window)
    with torch.no_grad():
        try:
            net(torch.zeros(2, d.channels, *other, dtype=torch.float64))
        except Exception:
            runs = False
        else:
            runs = True
    if runs:
        return
    try:
        convolutionalize(net, other, d.channels)
    except BadInput:
        tally.add("window that does not fit", "BadInput")
        return
    except Refused:
        raise Wrong("a window that does not fit is refused, not called bad input") from None
    raise Wrong("a window at which the network does not run is taken")


# the conversions


def check_layers(net: Net, tally: Tally) -> None:
    """Both ways, drop-in and native: the layers that the oracle names and no other, the same numbers, and back."""
    image = _image(net, list(net.description.window))
    with torch.no_grad():
        want, slack = answers(net, image)
    before = {name: (type(m), m.training) for name, m in net.named_modules()}
    for to, level in itertools.product(("conv", "linear"), ("layers", "native")):
        c = convert_module(net, to=to, level=level)
        legal, illegal = plan_conversion(net, to, level)
        require(
            {x.path for x in c.changes} == legal, f"to={to}, {level}: other layers are converted than can be"
        )
        require(
            {x.path for x in c.refused} == illegal, f"to={to}, {level}: other layers are refused than must be"
        )
        with torch.no_grad():
            require(bool(((c.model(image) - want).abs() <= slack).all()), f"to={to}, {level}: wrong numbers")
        require({n: (type(m), m.training) for n, m in net.named_modules()} == before, "the model was touched")
        tally.counts["layers", f"to {to}", level, "converted"] += len(legal)
        tally.counts["layers", f"to {to}", level, "refused"] += len(illegal)
        if level == "layers":
            require(_tensors(c.model) == _tensors(net), "the parameters are not the original's")
            back = (
                convert_module(c.model, to="linear" if to == "conv" else "conv", only=_drop_in)
                if legal
                else None
            )
            if back is not None:
                kinds = {n: (type(m), m.training) for n, m in back.model.named_modules()}
                require(kinds == before, f"to={to}, and back: not the layers that were")
                with torch.no_grad():
                    require(
                        bool(torch.equal(back.model(image), net(image))), f"to={to}, and back: other numbers"
                    )


def _drop_in(_path: str, module: nn.Module) -> bool:
    return isinstance(module, DropIn)


def _tensors(model: nn.Module) -> dict[str, int]:
    return {name: id(t) for name, t in model.named_parameters(remove_duplicate=False)}


def check_graph(net: Net, tally: Tally) -> None:
    """The exported program, both ways: as many products as the oracle counts, the same numbers."""
    image = _image(net, list(net.description.window))
    program = exported(net, image)
    with torch.no_grad():
        want, slack = answers(net, image)
    for to in ("conv", "linear"):
        c = convert_graph(program, to=to)
        legal = plan_graph(net, to)
        got = sorted(first_name(net, x.path) for x in c.changes)
        require(got == legal, f"graph to={to}: other products are converted than can be")
        with torch.no_grad():
            have = c.model.module()(image)
        require(bool(((have - want).abs() <= slack).all()), f"graph to={to}: wrong numbers")
        tally.counts["graph", f"to {to}", "converted"] += len(legal)
        tally.counts["graph", f"to {to}", "refused"] += len(c.refused)


CHECKS: dict[str, Any] = {
    "dense": check_dense,
    "outputs": check_outputs,
    "window": check_window,
    "layers": check_layers,
    "graph": check_graph,
}
