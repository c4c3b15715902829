"""The integers of a window probe depend on its seed alone."""

from __future__ import annotations

import torch
from torch import Tensor

from onebyone.verification.window_probes import check_window_pair
from tests.verification.test_window_probes import Params, dense, pair


def probed(seed: int, state: int) -> list[Tensor]:
    """The parameters and the map of a probe, with the global random numbers in some state."""
    seen: list[list[Tensor]] = []

    def converted(feature_map: Tensor, params: Params) -> Tensor:
        seen.append([feature_map, *(p for p in params.values() if p is not None)])
        return dense(feature_map, params)

    torch.manual_seed(state)
    check = check_window_pair(pair(converted), seed)
    assert check.ok, check.why
    return seen[0]


def test_the_seed_alone_decides_the_integers() -> None:
    first, again, other = probed(3, 0), probed(3, 1), probed(4, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
