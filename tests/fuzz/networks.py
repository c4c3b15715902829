"""Small networks from plain descriptions: what the fuzz draws, prints, shrinks and rebuilds.

A description is a list of operators in the order they run. Value 0 is the image, value i + 1 is what operator i gives;
the last value is the network's output. Axes in arguments count without the batch: axis 0 is the channels of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVG_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ADAPTIVE = {
    "mean": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    "max": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # by the rank of the value
INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu, "elu": F.elu,
    "hardswish": F.hardswish, "clamp": lambda x: x.clamp(-1, 1), "neg": torch.neg, "leaky": F.leaky_relu,
    "scaled": lambda x: 2 * x + 1, "abs": torch.abs, "softplus": F.softplus,
}  # fmt: skip
IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
}
TWO = {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "max": torch.maximum}
REDUCE: dict[str, Callable[..., torch.Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "amax": torch.amax,
    "amin": torch.amin,
}


@dataclass(frozen=True)
class Op:
    """One operator: what it does, the values it reads, its arguments."""

    kind: str
    inputs: tuple[int, ...] = (0,)
    args: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Op({self.kind!r}, {self.inputs}, {self.args})"


@dataclass(frozen=True)
class Description:
    """A network as plain data: an image of `channels` and `window`, and the operators."""

    channels: int
    window: tuple[int, ...]
    ops: tuple[Op, ...] = ()

    def __repr__(self) -> str:
        lines = "".join(f"\n    {op!r}," for op in self.ops)
        return f"Description({self.channels}, {self.window}, ({lines}\n))"

    def last_read(self) -> list[int]:
        """For each value, the last operator that reads it (-1: none; the output is read by the end)."""
        last = [-1] * (len(self.ops) + 1)
        for number, op in enumerate(self.ops):
            for i in op.inputs:
                last[i] = number
        last[-1] = len(self.ops)
        return last


class Constant(nn.Module):
    """A parameter that is combined with the value."""

    def __init__(self, shape: tuple[int, ...], how: str) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(shape))
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.value if self.how == "matmul" else TWO[self.how](x, self.value)


def make(op: Op, shapes: list[tuple[int, ...]], axes: int) -> nn.Module | None:
    """The module an operator needs, if any; `shapes` are those of the values it reads, without the batch."""
    maker = MAKE.get(op.kind)
    return maker(op.args, shapes[0], axes) if maker else None


def _conv(a: dict[str, Any], shape: tuple[int, ...], axes: int) -> nn.Module:
    return CONV[a.get("dims", axes) - 1](
        shape[0], a["out"], a["kernel"], a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1),
        a.get("groups", 1), a.get("bias", True), a.get("mode", "zeros"),
    )  # fmt: skip


MAKE: dict[str, Callable[[dict[str, Any], tuple[int, ...], int], nn.Module]] = {
    "conv": _conv,
    "transposed": lambda a, s, n: TRANSPOSED[n - 1](s[0], a["out"], 2, 2),
    "linear": lambda a, s, n: nn.Linear(s[-1], a["out"], a.get("bias", True)),
    "batch_norm": lambda a, s, n: BATCH_NORM[len(s) - 1](s[0], affine=a.get("affine", True)),
    "batch_statistics": lambda a, s, n: BATCH_NORM[len(s) - 1](s[0], track_running_stats=False),
    "layer_norm": lambda a, s, n: nn.LayerNorm(s[-a["count"] :]),
    "rms_norm": lambda a, s, n: nn.RMSNorm(s[-a["count"] :]),
    "group_norm": lambda a, s, n: nn.GroupNorm(a["groups"], s[0]),
    "instance_norm": lambda a, s, n: INSTANCE_NORM[len(s) - 2](s[0]),
    "prelu": lambda a, s, n: nn.PReLU(a["count"]),
    "dropout": lambda a, s, n: nn.Dropout(0.5),
    "constant": lambda a, s, n: Constant(a["shape"], a["how"]),
    "matmul": lambda a, s, n: Constant((s[-1], a["out"]), "matmul"),
    "in_place": lambda a, s, n: IN_PLACE[a["name"]](),
}


def _shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, *size = x.shape
    return x.view(n, groups, c // groups, *size).transpose(1, 2).reshape(n, c, *size)


def _slice(x: torch.Tensor, axis: int, start: int, stop: int | None, step: int) -> torch.Tensor:
    where = [slice(None)] * x.dim()
    where[axis + 1] = slice(start, stop, step)
    return x[tuple(where)]


def _attention(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x @ x.transpose(-1, -2), -1) @ x


def _mix(x: torch.Tensor, how: str) -> torch.Tensor:
    if how == "flip":
        return x + x.flip(0)
    if how == "mean":
        return x - x.mean(0, keepdim=True)
    return x.softmax(0) if how == "softmax" else x + x.roll(1, 0)


def _adaptive(x: torch.Tensor, how: str, out: tuple[int, ...]) -> torch.Tensor:
    return ADAPTIVE[how][len(out) - 1](x, out)


def _max_pool(
    x: torch.Tensor, kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any, ceil: bool
) -> Any:
    return MAX_POOL[len(kernel) - 1](x, kernel, stride, padding, dilation, ceil)


def _avg_pool(
    x: torch.Tensor, kernel: tuple[int, ...], stride: Any, padding: Any, ceil: bool, count: bool
) -> Any:
    return AVG_POOL[len(kernel) - 1](x, kernel, stride, padding, ceil, count)


Run = Callable[[list[torch.Tensor], dict[str, Any]], torch.Tensor]
RUN: dict[str, Run] = {
    "activation": lambda v, a: ACTIVATIONS[a["name"]](v[0]),
    "max_pool": lambda v, a: _max_pool(v[0], **a),
    "avg_pool": lambda v, a: _avg_pool(v[0], **a),
    "adaptive": lambda v, a: _adaptive(v[0], **a),
    "reduce": lambda v, a: REDUCE[a["how"]](v[0], [d + 1 for d in a["axes"]], keepdim=a["keep"]),
    "softmax": lambda v, a: (torch.log_softmax if a.get("log") else torch.softmax)(v[0], a["axis"] + 1),
    "pad": lambda v, a: F.pad(v[0], a["amounts"], **({"mode": a["mode"]} if "mode" in a else {})),
    "slice": lambda v, a: _slice(v[0], **a),
    "select": lambda v, a: v[0].select(a["axis"] + 1, a["index"]),
    "flip": lambda v, a: v[0].flip([d + 1 for d in a["axes"]]),
    "roll": lambda v, a: v[0].roll(a["by"], a["axis"] + 1),
    "permute": lambda v, a: v[0].permute(0, *[d + 1 for d in a["order"]]),
    "reshape": lambda v, a: v[0].reshape(v[0].shape[0], *a["shape"]),
    "flatten": lambda v, a: v[0].flatten(a["start"] + 1),
    "unsqueeze": lambda v, a: v[0].unsqueeze(a["axis"] + 1),
    "squeeze": lambda v, a: v[0].squeeze(a["axis"] + 1),
    "chunk": lambda v, a: v[0].chunk(a["parts"], a["axis"] + 1)[a["take"]],
    "glu": lambda v, a: F.glu(v[0], a["axis"] + 1),
    "cat": lambda v, a: torch.cat(v, a["axis"] + 1),
    "stack": lambda v, a: torch.stack(v, a["axis"] + 1),
    "two": lambda v, a: TWO[a["how"]](v[0], v[1]),
    "add_": lambda v, a: v[0].add_(v[1]),
    "shuffle": lambda v, a: _shuffle(v[0], a["groups"]),
    "unshuffle": lambda v, a: F.pixel_unshuffle(v[0], a["by"]),
    "pixel_shuffle": lambda v, a: F.pixel_shuffle(v[0], a["by"]),
    "upsample": lambda v, a: F.interpolate(v[0], scale_factor=2),
    "mix": lambda v, a: _mix(v[0], a["how"]),
    "attention": lambda v, a: _attention(v[0]),
    "std": lambda v, a: v[0].std([d + 1 for d in a["axes"]], keepdim=True),
    "merge": lambda v, a: v[0].flatten(0, 1).relu().unflatten(0, (v[0].shape[0], -1)),
}


class Net(nn.Module):
    """The network of a description. `shapes[i]` is the shape of value i in one window, without the batch.

    An operator with `args["tied"] = j` runs operator j's module (or, with `args["share"] = "weight"`, a module of its
    own that holds operator j's weight).
    """

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self.shapes: list[tuple[int, ...]] = [(description.channels, *description.window)]
        self.layers = nn.ModuleDict()
        probe = [torch.zeros(2, *self.shapes[0])]
        self.eval()
        for number in range(len(description.ops)):
            self.append(number, probe)

    def append(self, number: int, probe: list[torch.Tensor]) -> None:
        """Build operator `number` and learn the shape of what it gives; raises what torch raises if it does not run."""
        op = self.description.ops[number]
        tied = op.args.get("tied")
        if tied is None or "share" in op.args:
            module = make(op, [self.shapes[i] for i in op.inputs], len(self.description.window))
            if module is not None:
                if tied is not None:
                    module.weight = self.layers[str(tied)].weight
                self.layers[str(number)] = module.eval()
        with torch.no_grad():
            probe.append(self.step(number, [probe[i].clone() for i in op.inputs]))
        self.shapes.append(tuple(probe[-1].shape[1:]))

    def step(self, number: int, values: list[torch.Tensor]) -> torch.Tensor:
        """Run one operator on values with the batch in front."""
        op = self.description.ops[number]
        run = RUN.get(op.kind)
        if run is not None:
            return run(values, op.args)
        source = number if "share" in op.args else op.args.get("tied", number)
        result: torch.Tensor = self.layers[str(source)](values[0])
        return result

    def values(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Every value, the image first."""
        values = [image]
        for number, op in enumerate(self.description.ops):
            values.append(self.step(number, [values[i] for i in op.inputs]))
        return values

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.values(image)[-1]


def randomised(net: Net, seed: int = 0) -> Net:
    """The network in float64 with distinct random weights and statistics."""
    net.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            scale = (parameter[0].numel() if parameter.dim() > 1 else 1) ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64) * 0.3)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5)
    return net.eval()
