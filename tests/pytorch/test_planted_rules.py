"""Wrong rules, planted one at a time: the comparison with every window sees each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onebyone.lifting.index import Groups
from onebyone.lifting.rules import along_axes, fill, sliding
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.lift.decoders import reduce as reduce_decoders
from tests.pytorch.anysize import deviation
from tests.pytorch.exact_networks import EXACT

#: What each fault changes is larger than this; rounding is below 1e-11.
SEEN = 1e-3


def _other_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of groups in the opposite order."""
    right = Groups.out_index

    def wrong(self: Groups, features: int) -> Any:
        places = int(np.prod(self.gather.nominal))
        group, place = np.divmod(self.lead, places)
        return right(replace(self, lead=(self.count - 1 - group) * places + place), features)

    monkeypatch.setattr(Groups, "out_index", wrong)


def _other_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant's elements at the opposite channels."""
    right = emitter.per_channel
    monkeypatch.setattr(emitter, "per_channel", lambda c, ids, axes: right(c, ids[::-1].copy(), axes))


def _other_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero channels that hold ones."""
    right = fill.filled
    for module in (fill, sliding):
        monkeypatch.setattr(module, "filled", lambda lifter, number, *rest: right(lifter, number + 1, *rest))


def _other_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window one place short in height."""
    right = along_axes._windows

    def wrong(*arguments: Any) -> Any:
        lifted = right(*arguments)
        return replace(lifted, handle=lifted.handle[..., 1:, :])

    monkeypatch.setattr(along_axes, "_windows", wrong)


def _other_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that runs over the groups in place of the elements."""
    right = reduce_decoders._over_other_axes

    def wrong(lifter: Any, node: Any, handle: Any, axes: list[int]) -> Any:
        return right(lifter, node, handle.transpose(1, 2), axes)

    monkeypatch.setattr(reduce_decoders, "_over_other_axes", wrong)


def _other_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose features are in the opposite order."""
    right = emitter.linear
    monkeypatch.setattr(emitter, "linear", lambda source, weight, *rest: right(source, weight.flip(1), *rest))


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], list[str]]] = {
    "groups": (
        _other_groups,
        ["softmax over groups of channels", "einsum of heads that share a weight", "maxout"],
    ),
    "constants": (
        _other_constant,
        [
            "maximum with a constant a channel",
            "slopes a channel",
            "einsum that scales channels",
        ],
    ),
    "fillings": (
        _other_number,
        ["zero channels from zeros_like", "features of a number", "zero channels in a shortcut"],
    ),
    "windows": (_other_size, ["variance over places", "log-sum-exp over places"]),
    "axes": (_other_axis, ["softmax over groups of channels", "running sum", "sorted channels"]),
    "kernels": (_other_kernel, ["einsum over channels", "matrix on the left", "tensordot"]),
}


@pytest.mark.parametrize(
    ("fault", "name"), [(fault, name) for fault, (_, names) in FAULTS.items() for name in names]
)
def test_a_wrong_rule_is_seen(fault: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, window, channels = EXACT[name]
    FAULTS[fault][0](monkeypatch)
    _, error = deviation(build(), window, channels)
    assert error > SEEN
