"""Groups of blocks: what is done, or done again, as one."""

from __future__ import annotations

from itertools import pairwise

from onebyone.dense import plan_scan
from onebyone.dense.blocks import block_groups

from .networks import exact_net


def test_groups_are_whole_blocks() -> None:
    plan = plan_scan(exact_net().geometry, (83, 71), tile=4, shifts=2, aligned=True)
    groups = list(block_groups(plan, 5))
    assert [t for group in groups for t in group] == list(plan)
    for group, other in pairwise(groups):
        assert len(group) >= 5
        assert group[-1].block != other[0].block
