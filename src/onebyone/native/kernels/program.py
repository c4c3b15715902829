"""A compiled network: its steps, their weights and the memory of its maps, run by one call of C++ (program.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onebyone.errors import BadInput
from onebyone.native.kernels.compiler import library
from onebyone.native.kernels.fork_safety import renew_after_fork, usable_threads
from onebyone.native.maps import Map, whole_lines
from onebyone.native.memory_plan import assign_memory
from onebyone.native.step_records import StepRecord
from onebyone.native.steps import InputStep, Kind, Present, Step

_LARGE_PAGE = 2 << 20  # bytes


class Program:
    """Steps with packed weights, and one block of memory for the maps, the scratch and the weights.

    A lock makes concurrent calls run one after another, since they share the block. Test builds set `guard`: that many
    floats behind each map and each other part of the block are kept unused (tests/native/guarded_program.py).
    """

    guard = 0

    def __init__(self, steps: Sequence[Step], result: Map, threads: int) -> None:
        self._library, self._threads, self._lock = kernel(), threads, Lock()
        renew_after_fork(self._renew_lock)
        first = steps[0]
        assert isinstance(first, InputStep)
        self._result, self._input_shape = result, first.shape
        present = Present()
        self._scratch_floats = max(
            self._library.onebyone_scratch_floats(s.record(present), threads) for s in steps
        )
        maps = assign_memory(steps, result, self.guard)
        weights = [_constant_of(s) for s in steps]
        row = _longest_row(steps)
        # kernels may read up to this far beyond the last row of a map, and discard what they read
        overread = 4 * row
        sizes = [maps + overread, whole_lines(self._scratch_floats), whole_lines(row)]
        sizes += [whole_lines(0 if w is None else w.numel()) for w in weights]
        self._memory, *begins = _memory_for([size + self.guard for size in sizes])
        (_, self._scratch_begin, self._zeros_begin), weight_begins = begins[:3], begins[3:]
        self._memory[self._zeros_begin : self._zeros_begin + row] = 0
        self._constants = [t for s in steps for t in s.constants_read]  # keeps them alive
        placed = _Placed(self._memory.data_ptr(), self._scratch_begin)
        records = []
        for i, (step, begin) in enumerate(zip(steps, weight_begins, strict=True)):
            weight, weights[i] = weights[i], None
            if weight is not None:
                self._memory[begin : begin + weight.numel()] = weight.flatten()
                placed.tensors = {id(weight): begin}
            records.append(step.record(placed))
            if weight is not None:  # the block holds its numbers now, and nothing else keeps these
                setattr(step, str(step.constant), weight.new_empty(0))
        self._records = (StepRecord * len(records))(*records)

    def __call__(self, image: Tensor) -> Tensor:
        """Run the steps on an image (N, C, H, W) in float32, of the shape that the program was compiled for."""
        if image.shape != self._input_shape or image.dtype != torch.float32:
            raise BadInput(
                f"image: is {tuple(image.shape)} in {image.dtype}; expected {self._input_shape} in torch.float32"
            )
        image = image.resolve_neg().contiguous()
        n, c, h, w = self._result.shape
        with self._lock:
            self._records[0].fields.input.input = image.data_ptr()
            self._run(None)
            begin = self._result.memory.offset
            result: Tensor = self._memory[begin : begin + n * c * h * w].view(n, h, w, c)
            return result.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    def _renew_lock(self) -> None:
        self._lock = Lock()

    def _run(self, end_times: Any) -> None:
        threads = usable_threads(self._threads)  # the scratch is large enough for any smaller number
        zeros = self._memory.data_ptr() + 4 * self._zeros_begin
        self._library.onebyone_run(self._records, len(self._records), zeros, threads, end_times)

    def timed(self, image: Tensor) -> list[tuple[str, float]]:
        """The kind of each step after the first, and the milliseconds that it took in one run."""
        self(image)
        end_times = (ctypes.c_double * len(self._records))()
        image = image.resolve_neg().contiguous()
        with self._lock:
            self._records[0].fields.input.input = image.data_ptr()
            self._run(end_times)
        kinds = [Kind(r.kind).name.lower() for r in self._records]
        return [(k, 1e3 * (b - a)) for k, a, b in zip(kinds[1:], end_times, end_times[1:], strict=False)]


class _Placed:
    """Addresses in a program's block of memory, which begins at `start`; `tensors` are offsets there, by id."""

    def __init__(self, start: int, scratch_begin: int) -> None:
        self.start, self.scratch = start, start + 4 * scratch_begin
        self.tensors: dict[int, int] = {}

    def of(self, operand: Map | Tensor | None) -> int | None:
        """The address of a map, or of a tensor in the block or outside it; None without an operand."""
        if operand is None:
            return None
        if isinstance(operand, Map):
            return self.start + 4 * operand.memory.offset
        begin = self.tensors.get(id(operand))
        return operand.data_ptr() if begin is None else self.start + 4 * begin


def _constant_of(step: Step) -> Tensor | None:
    """The tensor of a step that the program copies into its block."""
    constant = None if step.constant is None else getattr(step, step.constant)
    return constant if isinstance(constant, Tensor) else None


def _memory_for(sizes: Sequence[int]) -> tuple[Any, ...]:
    """Memory for parts of these sizes, in large pages if the system has them; and where each part begins."""
    total, page = sum(sizes), _LARGE_PAGE // 4
    block = torch.empty(total + page)
    begin = -block.data_ptr() % _LARGE_PAGE // 4
    kernel().onebyone_advise_large_pages(block.data_ptr() + 4 * begin, 4 * total)
    return block[begin : begin + total], *accumulate(sizes[:-1], initial=0)


def _longest_row(steps: Sequence[Step]) -> int:
    """The most floats that a kernel reads at once from one position."""
    return max(step.row_length for step in steps)


def in_panels(weight: Tensor, panel: int) -> Tensor:
    """Weights (O, n) packed for products with rows of n numbers: (⌈O/panel⌉, n, panel), padded with zeros.

    >>> in_panels(torch.ones(3, 5), 4).shape, in_panels(torch.ones(6, 5), 4)[1, 0]
    (torch.Size([1, 5, 4]), tensor([1., 1., 0., 0.]))
    """
    padded = F.pad(weight.double(), (0, 0, 0, -len(weight) % panel))
    return padded.reshape(-1, panel, weight.shape[1]).transpose(1, 2).float().contiguous()


@cache
def kernel() -> ctypes.CDLL:
    """The compiled library. Raises BadInput if it cannot be compiled."""
    compiled = library("program.cpp")
    for name in ("panel", "lanes", "step_bytes", "scratch_floats", "scratch_overrun"):
        getattr(compiled, f"onebyone_{name}").restype = ctypes.c_int64
    for sized in (compiled.onebyone_scratch_floats, compiled.onebyone_scratch_overrun):
        sized.argtypes = [ctypes.POINTER(StepRecord), ctypes.c_int]
    compiled.onebyone_run.argtypes = [
        ctypes.POINTER(StepRecord),
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    compiled.onebyone_run.restype = None
    compiled.onebyone_advise_large_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    compiled.onebyone_advise_large_pages.restype = None
    assert compiled.onebyone_step_bytes() == ctypes.sizeof(StepRecord)
    return compiled
