"""Where in a program's memory each map is: maps that are not needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Sequence

from onebyone.native.maps import CACHE_LINE, Map
from onebyone.native.steps import Step


def assign_memory(steps: Sequence[Step], result: Map, guard: int = 0) -> int:
    """Set the `offset` of each map, so that maps needed at the same time never overlap. Returns the floats needed.

    With a `guard`, no memory is shared, and that many floats behind each map belong to no map: test builds use it.

    Maps that share memory have a common centre. Where two threads each process half of every map, each then writes
    where it has written before, and no data moves between the caches of their cores.

    >>> from onebyone.native.steps import InputStep, MeanStep
    >>> a, b, c = (Map((1, n, 1, 1)) for n in (32, 16, 64))
    >>> steps = [InputStep(output=a, shape=a.shape), MeanStep(output=b, input=a), MeanStep(output=c, input=b)]
    >>> assign_memory(steps, c), a.offset, b.offset, c.offset
    (80, 16, 64, 0)
    """
    for number, step in enumerate(steps):
        for used in (step.output, *step.inputs_read):
            used.memory.last_use = number
    result.memory.last_use = len(steps)
    slots: list[list[Map]] = []  # the maps that share one piece of memory, one after another
    for number, step in enumerate(steps):
        written = step.output.memory
        if any(written is m for slot in slots for m in slot):  # several steps write it
            continue
        free = [slot for slot in slots if slot[-1].last_use < number and not guard]
        if free:
            min(free, key=lambda slot: abs(max(m.floats for m in slot) - written.floats)).append(written)
        else:
            slots.append([written])
    begin = 0
    for slot in slots:
        size = max(m.floats for m in slot)
        for m in slot:
            m.offset = begin + (size - m.floats) // (2 * CACHE_LINE) * CACHE_LINE
        begin += size + guard
    return begin
