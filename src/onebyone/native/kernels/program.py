"""A network as a list of steps on channels-last maps, run by one call of C++: `program.cpp` says what each step is."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from itertools import accumulate
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.errors import BadInput
from onebyone.native.kernels.compiler import library
from onebyone.native.kernels.fork_safety import renew_after_fork, threads_here

_LINE = 16  # floats of a cache line
_PAGE = 2 << 20


class Kind(IntEnum):
    """As in program.cpp."""

    INPUT, CONVOLUTION, WINOGRAD, DEPTHWISE, MAX_POOL, MEAN, ELEMENTWISE = range(7)
    LINEAR, LAYER_NORM, ATTENTION, ROWS, TURNED = range(7, 12)


class Activation(IntEnum):
    """As in simd.h."""

    NONE, RELU, RELU6, HARDSWISH, HARDSIGMOID, SILU, SIGMOID, GELU, GELU_TANH = range(9)


class Meeting(IntEnum):
    """As in convolution.h: what an elementwise step does with its second operand."""

    ALONE, ADDED, MULTIPLIED, MULTIPLIED_BY_CHANNEL = range(4)


_POINTERS = ("x", "weight", "bias", "add", "third", "index", "scales", "signs", "y", "scratch")
_SIZES = (
    "samples", "height", "width", "channels", "outputs", "high", "wide", "kernel_h", "kernel_w", "stride_h", "stride_w",
    "pad_h", "pad_w", "dilation_h", "dilation_w", "activation", "pool", "levels",
)  # fmt: skip


class _Row(ctypes.Structure):
    """`Step` of convolution.h."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("apart", ctypes.c_int64 * 14),
        ("number", ctypes.c_double),
    )


@dataclass(eq=False)
class Map:
    """A map (N, C, H, W) that lies (N, H, W, C); it is kept until the step `last`.

    With a `base` it is that one's memory under another shape.
    """

    shape: tuple[int, int, int, int]
    last: int = -1
    offset: int = 0
    base: Map | None = None

    @property
    def memory(self) -> Map:
        """The map whose memory this is."""
        return self if self.base is None else self.base.memory

    @property
    def floats(self) -> int:
        """Its size in whole cache lines."""
        n, c, h, w = self.shape
        return _whole_lines(n * c * h * w)


@dataclass(eq=False)
class Step:
    """One step: from `x` (None: what the network is given), with `add` where it has a second operand, to `y`.

    `weight` is packed as the kind wants it; `sizes` are the kernel's, by the names of convolution.h. `scales` and
    `signs` keep rows of a linear layer apart, as scaling.h says.
    """

    kind: Kind
    x: Map | None
    y: Map
    weight: Tensor | None = None
    bias: Tensor | None = None
    add: Map | None = None
    third: Map | None = None
    index: Tensor | None = None
    scales: Tensor | None = None
    signs: Tensor | None = None
    activation: Activation = Activation.NONE
    pool: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    given: tuple[int, int, int, int] | None = None
    apart: tuple[int, ...] = ()
    number: float = 0.0

    @property
    def reads(self) -> list[Map]:
        """The maps that it reads."""
        return [m for m in (self.x, self.add, self.third) if m is not None]

    def settings(self, *names: str) -> list[list[int]]:
        """Both axes' numbers of `names`, out of "kernel", "stride", "pad" and "dilation"."""
        return [[self.sizes[f"{name}_{axis}"] for axis in "hw"] for name in names]

    def row(self) -> _Row:
        """Its pointers say no more than whether there is such an operand."""
        x = self.given or (0, 0, 0, 0) if self.x is None else self.x.shape
        _, outputs, high, wide = self.y.shape
        names = ("samples", "channels", "height", "width", "outputs", "high", "wide")
        found = dict(zip(names, (*x, outputs, high, wide), strict=True))
        ones = {f"{name}_{axis}": 1 for name in ("kernel", "stride", "dilation") for axis in "hw"}
        return _Row(
            kind=self.kind,
            third=self.third is not None,
            index=self.index is not None,
            scales=self.scales is not None,
            signs=self.signs is not None,
            activation=self.activation,
            pool=self.pool,
            apart=(ctypes.c_int64 * 14)(*self.apart),
            number=self.number,
            **{**ones, **found, **self.sizes},
        )


def on_axes(
    kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int]
) -> dict[str, int]:
    """Settings of both axes as a step has them.

    >>> on_axes((3, 5), (1, 2), (0, 0), (1, 1))["kernel_w"]
    5
    """
    given = {"kernel": kernel, "stride": stride, "pad": pad, "dilation": dilation}
    return {f"{name}_{axis}": v for name, both in given.items() for axis, v in zip("hw", both, strict=True)}


class Program:
    """The steps with their weights, and one piece of memory for all maps. One call at a time.

    A test build keeps `zone` floats free behind each map and each other part of the memory (tests/native/guarded_program.py).
    """

    zone = 0

    def __init__(self, steps: Sequence[Step], result: Map, threads: int) -> None:
        self._kernel, self._threads, self._lock = kernel(), threads, Lock()
        renew_after_fork(self._renew)
        assert [s.kind for s in steps].index(Kind.INPUT) == 0
        assert steps[0].given is not None
        self._result, self._given = result, steps[0].given
        rows = [s.row() for s in steps]
        scratch = max(self._kernel.onebyone_scratch(r, threads) for r in rows)
        maps = placed(steps, result, self.zone)
        weights = [_whole_lines(0 if s.weight is None else s.weight.numel()) for s in steps]
        # what a kernel reads beyond the last of its rows, to throw it away, is memory too
        sizes = [maps + 4 * _widest(steps), _whole_lines(scratch), _whole_lines(_widest(steps)), *weights]
        self._memory, *parts = _block([size + self.zone for size in sizes])
        (_, scratch_at, zeros_at), weights_at = parts[:3], parts[3:]
        start = self._memory.data_ptr()
        self._kept = [t for s in steps for t in (s.bias, s.index, s.scales, s.signs) if t is not None]
        for row, step, at in zip(rows, steps, weights_at, strict=True):
            for name in ("x", "add", "third"):
                value = getattr(step, name)
                setattr(row, name, None if value is None else start + 4 * value.memory.offset)
            for name in ("bias", "index", "scales", "signs"):
                held = getattr(step, name)
                setattr(row, name, None if held is None else held.data_ptr())
            row.y, row.scratch = start + 4 * step.y.memory.offset, start + 4 * scratch_at
            if step.weight is not None:
                row.weight = start + 4 * at
                self._memory[at : at + step.weight.numel()] = step.weight.flatten()
                step.weight = None  # what is kept of it is in the block
        self._zeros = start + 4 * zeros_at
        self._memory[zeros_at : zeros_at + _widest(steps)] = 0
        self._rows = (_Row * len(rows))(*rows)

    def __call__(self, image: Tensor) -> Tensor:
        """image (N, C, H, W) in float32, of the sizes that it was made for."""
        if image.shape != self._given or image.dtype != torch.float32:
            raise BadInput(
                f"image: is {tuple(image.shape)} in {image.dtype}; expected {self._given} in torch.float32"
            )
        image = image.resolve_neg().contiguous()
        n, c, h, w = self._result.shape
        with self._lock:
            self._rows[0].x = image.data_ptr()
            self._run(None)
            begin = self._result.memory.offset
            found: Tensor = self._memory[begin : begin + n * c * h * w].view(n, h, w, c)
            return found.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    def _renew(self) -> None:
        self._lock = Lock()

    def _run(self, ended: Any) -> None:
        threads = threads_here(self._threads)  # the scratch is large enough for any smaller number
        self._kernel.onebyone_run(self._rows, len(self._rows), self._zeros, threads, ended)

    def timed(self, image: Tensor) -> list[tuple[str, float]]:
        """Each step's kind and the milliseconds it took in one run; the first step's are not told."""
        self(image)
        ended = (ctypes.c_double * len(self._rows))()
        image = image.resolve_neg().contiguous()
        with self._lock:
            self._rows[0].x = image.data_ptr()
            self._run(ended)
        kinds = [Kind(r.kind).name.lower() for r in self._rows]
        return [(k, 1e3 * (b - a)) for k, a, b in zip(kinds[1:], ended, ended[1:], strict=False)]


def placed(steps: Sequence[Step], result: Map, zone: int = 0) -> int:
    """Give each map its place: where no map lies that is kept at the same time. Returns how many floats they take.

    With a `zone`, each map has a place of its own and that many floats behind it.

    Maps that lie in one place one after the other have one middle: of two threads that have halves of every map, each
    then writes where it has written before, and fetches nothing from the other's caches first.

    >>> a, b, c = (Map((1, n, 1, 1)) for n in (32, 16, 64))
    >>> steps = [Step(Kind.INPUT, None, a), Step(Kind.MEAN, a, b), Step(Kind.MEAN, b, c)]
    >>> placed(steps, c), a.offset, b.offset, c.offset
    (80, 16, 64, 0)
    """
    for number, step in enumerate(steps):
        for used in (step.y, *step.reads):
            used.memory.last = number
    result.memory.last = len(steps)
    lanes: list[list[Map]] = []
    for number, step in enumerate(steps):
        here = step.y.memory
        if any(here is m for lane in lanes for m in lane):  # several steps write it
            continue
        free = [lane for lane in lanes if lane[-1].last < number and not zone]
        if free:
            min(free, key=lambda lane: abs(max(m.floats for m in lane) - here.floats)).append(here)
        else:
            lanes.append([here])
    begin = 0
    for lane in lanes:
        size = max(m.floats for m in lane)
        for m in lane:
            m.offset = begin + (size - m.floats) // (2 * _LINE) * _LINE
        begin += size + zone
    return begin


def _whole_lines(floats: int) -> int:
    return -(-floats // _LINE) * _LINE


def _block(sizes: Sequence[int]) -> tuple[Any, ...]:
    """Memory for parts of these sizes, in pages as large as there are; and where each part begins."""
    total, page = sum(sizes), _PAGE // 4
    whole = torch.empty(total + page)
    begin = -whole.data_ptr() % _PAGE // 4
    kernel().onebyone_large_pages(whole.data_ptr() + 4 * begin, 4 * total)
    return whole[begin : begin + total], *accumulate(sizes[:-1], initial=0)


def _widest(steps: Sequence[Step]) -> int:
    """The most numbers that one place in the padding stands for."""
    rows = (s.sizes.get("channels", s.x.shape[1]) for s in steps if s.x is not None)
    return max(rows, default=0)


def in_panels(weight: Tensor, panel: int) -> Tensor:
    """Weights (O, n) for products with rows of n numbers: (⌈O/panel⌉, n, panel), filled up with zeros.

    >>> in_panels(torch.ones(3, 5), 4).shape, in_panels(torch.ones(6, 5), 4)[1, 0]
    (torch.Size([1, 5, 4]), tensor([1., 1., 0., 0.]))
    """
    filled = F.pad(weight.double(), (0, 0, 0, -len(weight) % panel))
    return filled.reshape(-1, panel, weight.shape[1]).transpose(1, 2).float().contiguous()


@cache
def kernel() -> ctypes.CDLL:
    """The compiled library. Raises BadInput where it cannot be compiled."""
    found = library("program.cpp")
    for name in ("panel", "lanes", "step_bytes", "scratch", "scratch_missing"):
        getattr(found, f"onebyone_{name}").restype = ctypes.c_int64
    for sized in (found.onebyone_scratch, found.onebyone_scratch_missing):
        sized.argtypes = [ctypes.POINTER(_Row), ctypes.c_int]
    found.onebyone_run.argtypes = [
        ctypes.POINTER(_Row),
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    found.onebyone_run.restype = None
    found.onebyone_large_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.onebyone_large_pages.restype = None
    assert found.onebyone_step_bytes() == ctypes.sizeof(_Row)
    return found
