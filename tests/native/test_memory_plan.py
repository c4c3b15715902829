"""The memory plan: maps that are needed at the same time never share memory."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from onebyone.native.maps import Map
from onebyone.native.memory_plan import assign_memory
from onebyone.native.steps import ElementwiseStep


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 60)), min_size=1, max_size=14)
)
def test_no_two_maps_that_are_kept_at_once_share_memory(given_: list[tuple[int, int, int]]) -> None:
    maps: list[Map] = []
    steps: list[ElementwiseStep] = []
    for i, (a, b, size) in enumerate(given_):
        y = Map((1, size, 1, 1))
        first, second = (maps[j % i] if i else y for j in (a, b))
        steps.append(ElementwiseStep(input=first, output=y, other=second))
        maps.append(y)
    total = assign_memory(steps, maps[-1])
    assert total <= sum(m.floats for m in maps)
    for i, step in enumerate(steps):
        # what this step reads and writes, and whatever is read after it
        live = [
            m for m in maps[: i + 1] if m is step.output or any(m in (s.input, s.other) for s in steps[i:])
        ]
        spans = sorted((m.offset, m.offset + m.floats) for m in live)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert all(end <= total for _, end in spans)
