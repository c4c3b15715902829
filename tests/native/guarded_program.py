"""A test build of the engine: no part of its memory is shared, unwritten memory is NaN, and all between is guarded.

Every step runs alone. Before it, its scratch and the tensor that it is about to write hold NaN, so that memory which
is read before it was written shows in the result. After it, no float outside of these two may have changed. Where the
kernels were compiled with AddressSanitizer, memory that no step may read or write is poisoned instead: the sanitizer
then reports the very access, and zones inside the scratch (red_zones.h) are poisoned too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from onebyone.native.kernels.program import Kind, Map, Program, Step, _widest
from onebyone.tuning.engines import native

_SIGNAL = 0x7FA5A5A5  # a signalling NaN that no kernel makes
_RED = 1024


class GuardError(AssertionError):
    """A step wrote where it must not."""


class CheckedProgram(Program):
    """`Program` with guarded memory; `poisons` where the kernels are compiled with AddressSanitizer."""

    poisons = False

    def __init__(self, steps: Sequence[Step], result: Map, threads: int) -> None:
        readable = 4 * _widest(steps)  # behind a map, rows that are thrown away may be read
        self.zone = -(-(readable + _RED) // 16) * 16
        weights = [0 if step.weight is None else step.weight.numel() for step in steps]
        super().__init__(steps, result, threads)
        start, rows = self._memory.data_ptr(), self._rows
        maps = {id(m.memory): m.memory for s in steps for m in (s.y, *s.reads)}
        self._maps = {m: (m.offset, _numbers(m)) for m in maps.values()}
        scratch = max(self._kernel.onebyone_scratch(ctypes.byref(row), threads) for row in rows)
        self._scratch = ((rows[0].scratch - start) // 4, scratch)
        self._written = [step.y.memory for step in steps]
        self._first = [
            not any(s.y.memory is step.y.memory for s in steps[:i])
            and not any(m.memory is step.y.memory for m in step.reads)
            for i, step in enumerate(steps)
        ]
        zeros = ((self._zeros - start) // 4, _widest(steps))
        weighed = [((row.weight - start) // 4, n) for row, n in zip(rows, weights, strict=True) if n]
        self._guarded = torch.ones(len(self._memory), dtype=torch.bool)
        for begin, floats in (*self._maps.values(), self._scratch, zeros, *weighed):
            self._guarded[begin : begin + floats] = False
        self._memory.view(torch.int32)[self._guarded] = _SIGNAL
        if self.poisons:
            for begin, floats in self._maps.values():
                self._guarded[begin + floats : begin + floats + readable] = False
            for begin, end in _runs(self._guarded):
                self._kernel.onebyone_forbid(ctypes.c_void_p(start + 4 * begin), ctypes.c_int64(end - begin))

    def _run(self, ended: Any) -> None:
        for i, memory in enumerate(self._written):
            begin, floats = self._maps[memory]
            if self._first[i]:
                self._memory[begin : begin + floats] = float("nan")
            at, size = self._scratch
            self._memory[at : at + size] = float("nan")
            before = None if self.poisons else self._memory.view(torch.int32).clone()
            self._kernel.onebyone_run(ctypes.byref(self._rows[i]), 1, self._zeros, self._threads, None)
            if before is not None:
                changed = self._memory.view(torch.int32) != before
                changed[begin : begin + floats] = changed[at : at + size] = False
                if bool(changed.any()):
                    kind, beyond = Kind(self._rows[i].kind).name, int(changed.nonzero()[0]) - at - size
                    raise GuardError(
                        f"step {i} ({kind}) wrote {int(changed.sum())} floats outside its output and its scratch; "
                        f"the first lies {beyond} floats after the scratch"
                    )


def _numbers(tensor: Map) -> int:
    n, c, h, w = tensor.shape
    return n * c * h * w


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """Where each run of True begins and ends."""
    edges = torch.diff(
        mask.int(), prepend=torch.zeros(1, dtype=torch.int32), append=torch.zeros(1, dtype=torch.int32)
    )
    begins, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


@contextmanager
def checked(poisons: bool = False) -> Iterator[None]:
    """The engine `onebyone` builds checked programs for a while."""
    before, native.Program = native.Program, type("Checked", (CheckedProgram,), {"poisons": poisons})  # type: ignore[misc]
    try:
        yield
    finally:
        native.Program = before  # type: ignore[misc]
