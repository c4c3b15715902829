"""A test build of programs: no memory is shared, unwritten memory is NaN, and everything between is guarded.

Every step runs alone. Before it, its scratch and the map that it is about to write are filled with NaN, so that memory
that is read before it is written shows in the result. After it, no float outside these two may have changed. If the
kernels are compiled with AddressSanitizer, memory that no step may read or write is poisoned instead: the sanitizer
then reports the access itself. Zones inside the scratch (red_zones.h) are poisoned too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from onebyone.native import compiled_network
from onebyone.native.kernels.program import Program, _constant_of, _longest_row
from onebyone.native.maps import Map, whole_lines
from onebyone.native.steps import Kind, Step

_SIGNAL = 0x7FA5A5A5  # a signalling NaN that no kernel computes
_RED_ZONE = 1024


class GuardError(AssertionError):
    """A step wrote memory that is not its own."""


class GuardedProgram(Program):
    """`Program` with guarded memory; `poisons` if the kernels are compiled with AddressSanitizer."""

    poisons = False

    def __init__(self, steps: Sequence[Step], result: Map, threads: int) -> None:
        row = _longest_row(steps)
        readable = 4 * row  # behind a map: kernels may read rows there, and discard them
        self.guard = whole_lines(readable + _RED_ZONE)
        constants = [0 if (c := _constant_of(s)) is None else c.numel() for s in steps]
        super().__init__(steps, result, threads)
        start = self._memory.data_ptr()
        maps = {id(m.memory): m.memory for s in steps for m in (s.output, *s.inputs_read)}
        self._maps = {m: (m.offset, _element_count(m)) for m in maps.values()}
        self._scratch = (self._scratch_begin, self._scratch_floats)
        self._written = [step.output.memory for step in steps]
        self._first_write = [
            not any(s.output.memory is step.output.memory for s in steps[:i])
            and not any(m.memory is step.output.memory for m in step.inputs_read)
            for i, step in enumerate(steps)
        ]
        used = [*self._maps.values(), self._scratch, (self._zeros_begin, row)]
        begin = self._zeros_begin + whole_lines(row) + self.guard
        for floats in constants:  # they are one after another behind the zeros
            used.append((begin, floats))
            begin += whole_lines(floats) + self.guard
        self._guarded = torch.ones(len(self._memory), dtype=torch.bool)
        for begin, floats in used:
            self._guarded[begin : begin + floats] = False
        self._memory.view(torch.int32)[self._guarded] = _SIGNAL
        if self.poisons:
            for begin, floats in self._maps.values():
                self._guarded[begin + floats : begin + floats + readable] = False
            for begin, end in _runs(self._guarded):
                self._library.onebyone_poison(ctypes.c_void_p(start + 4 * begin), ctypes.c_int64(end - begin))

    def _run(self, end_times: Any) -> None:
        zeros = self._memory.data_ptr() + 4 * self._zeros_begin
        for i, memory in enumerate(self._written):
            begin, floats = self._maps[memory]
            if self._first_write[i]:
                self._memory[begin : begin + floats] = float("nan")
            at, size = self._scratch
            self._memory[at : at + size] = float("nan")
            before = None if self.poisons else self._memory.view(torch.int32).clone()
            self._library.onebyone_run(ctypes.byref(self._records[i]), 1, zeros, self._threads, None)
            if before is not None:
                changed = self._memory.view(torch.int32) != before
                changed[begin : begin + floats] = changed[at : at + size] = False
                if bool(changed.any()):
                    kind, beyond = Kind(self._records[i].kind).name, int(changed.nonzero()[0]) - at - size
                    raise GuardError(
                        f"step {i} ({kind}) wrote {int(changed.sum())} floats outside its output and its scratch; "
                        f"the first lies {beyond} floats after the scratch"
                    )


def _element_count(map_: Map) -> int:
    n, c, h, w = map_.shape
    return n * c * h * w


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """Where each run of True begins and ends."""
    edges = torch.diff(
        mask.int(), prepend=torch.zeros(1, dtype=torch.int32), append=torch.zeros(1, dtype=torch.int32)
    )
    begins, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


@contextmanager
def guarded(poisons: bool = False) -> Iterator[None]:
    """Networks are compiled to guarded programs for a while."""
    before = compiled_network.Program
    compiled_network.Program = type("Guarded", (GuardedProgram,), {"poisons": poisons})  # type: ignore[misc]
    try:
        yield
    finally:
        compiled_network.Program = before  # type: ignore[misc]
