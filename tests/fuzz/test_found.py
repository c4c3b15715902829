"""What the fuzz found, as it was minimised: regressions that must stay mended."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fuzz.checks import CHECKS, Tally
from tests.fuzz.networks import Description, Net, Op, randomised

LINEAR = ("linear", {"out": 3})
FLAT = ("flatten", {"start": 0})
NORM: tuple[str, dict[str, Any]] = ("batch_norm", {})


def chain(channels: int, window: tuple[int, ...], *links: tuple[str, dict[str, Any]]) -> Description:
    """The operators one after another."""
    return Description(channels, window, tuple(Op(kind, (n,), args) for n, (kind, args) in enumerate(links)))


POOL = {"kernel": (2, 2), "stride": None, "padding": 0, "ceil": False, "count": True}
#: name → (network, what was wrong)
FOUND: dict[str, tuple[Description, str]] = {
    "a pool over other axes than the image's": (
        chain(3, (11,), ("avg_pool", POOL), FLAT, LINEAR),
        "ValueError instead of Refused",
    ),
    "a batch norm on a flattened map, then a flip": (
        chain(2, (5, 6), FLAT, NORM, ("flip", {"axes": (0,)}), LINEAR),
        "the pending constants do not move with the elements: wrong numbers",
    ),
    "a batch norm on a flattened map, then a roll": (
        chain(2, (7,), FLAT, NORM, ("roll", {"by": 1, "axis": 0}), LINEAR),
        "the pending constants do not move with the elements: wrong numbers",
    ),
    "a gated linear unit": (chain(2, (7, 6), ("glu", {"axis": 0}), FLAT, LINEAR), "no rule for glu"),
    "padding by a negative amount at the far edge": (
        chain(2, (7, 6), ("pad", {"amounts": (-1, -1, 0, -2)}), FLAT, LINEAR),
        "a crop that slicing does",
    ),
    "a group norm on a flattened map": (
        chain(1, (4, 10), FLAT, ("group_norm", {"groups": 2}), LINEAR),
        "refused where a layer norm is taken",
    ),
    "a batch norm on one chosen place": (
        chain(
            2,
            (5, 6),
            ("select", {"axis": 2, "index": 1}),
            ("select", {"axis": 1, "index": 2}),
            NORM,
            ("activation", {"name": "relu"}),
        ),
        "called constants by position",
    ),
    "a mean over the uneven bins of an adaptive pool": (
        chain(
            2,
            (4, 6),
            ("adaptive", {"how": "mean", "out": (3, 4)}),
            ("reduce", {"how": "mean", "axes": (1, 2), "keep": False}),
        ),
        "refused: the parts were no maps without their places",
    ),
    "a minimum over places": (
        chain(2, (6, 6), ("reduce", {"how": "amin", "axes": (1, 2), "keep": False})),
        "no minimum",
    ),
    "a strided 1×1 convolution of one channel, at graph level": (
        chain(
            1,
            (11,),
            ("conv", {"out": 1, "kernel": (1,), "stride": (3,)}),
            ("reduce", {"how": "mean", "axes": (1,), "keep": False}),
        ),
        "the stride is lost: wrong numbers",
    ),
    "a strided 1×1 convolution behind a reflecting pad, at graph level": (
        chain(
            1,
            (19,),
            ("pad", {"amounts": (0, 1), "mode": "reflect"}),
            ("conv", {"out": 2, "kernel": (1,), "bias": False, "stride": (3,)}),
            FLAT,
        ),
        "the stride is lost",
    ),
    "an adaptive pool from one place to several": (
        chain(
            1,
            (8, 4),
            ("conv", {"out": 4, "kernel": (8, 4)}),
            ("adaptive", {"how": "mean", "out": (1, 3)}),
            FLAT,
            LINEAR,
        ),
        "the place is not repeated",
    ),
    "an adaptive pool that is finer than the map on one axis": (
        chain(3, (2, 1), ("adaptive", {"how": "max", "out": (1, 2)}), FLAT, LINEAR),
        "the place is not repeated",
    ),
    "a mean over places taken in steps": (
        chain(
            2,
            (11, 9),
            ("slice", {"axis": 1, "start": 1, "stop": None, "step": 2}),
            ("reduce", {"how": "mean", "axes": (1, 2), "keep": False}),
        ),
        "not laid out as a map first",
    ),
    "a mean over the even bins of an adaptive pool": (
        chain(
            3,
            (8, 4),
            ("adaptive", {"how": "mean", "out": (4, 2)}),
            ("reduce", {"how": "mean", "axes": (1, 2), "keep": False}),
        ),
        "not laid out as a map first",
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_stays_mended(name: str) -> None:
    description, _ = FOUND[name]
    for check in CHECKS.values():
        check(randomised(Net(description)), Tally())
