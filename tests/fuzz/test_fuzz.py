"""Random networks against the oracle; the oracle against labels known by hand; planted faults, which must be found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onebyone.laws.geometry import Sliding
from onebyone.lifting.index import Stencil
from onebyone.pytorch.lift import emitter
from onebyone.pytorch.modules import convert, dropins
from tests.fuzz.__main__ import run, smallest
from tests.fuzz.checks import Tally, check_all
from tests.fuzz.networks import Description, Net, Op
from tests.fuzz.oracle import judge
from tests.fuzz.plan import plan_conversion


def _holds(examples: int) -> Tally:
    tally = run(examples)
    print(f"\n{tally}")
    assert not tally.findings, "\n".join(f"{f.part}: {f.what}\n{f.description!r}" for f in smallest(tally))
    return tally


def _sum(tally: Tally, *key: str) -> int:
    return sum(n for k, n in tally.counts.items() if k[: len(key)] == key)


def test_random_networks() -> None:
    """A small share; the slow test has many."""
    tally = _holds(15)
    assert _sum(tally, "dense", "legal") > 0
    assert _sum(tally, "dense", "illegal", "refused") > 0
    assert _sum(tally, "layers", "to conv", "layers", "converted") > 0
    assert _sum(tally, "layers", "to linear", "layers", "converted") > 0


@pytest.mark.slow
def test_two_thousand_random_networks() -> None:
    tally = _holds(2000)
    assert tally.counts[("networks",)] >= 2000
    assert _sum(tally, "dense", "legal", "equal") > 1000
    assert _sum(tally, "dense", "illegal", "refused") > 200
    assert _sum(tally, "layers", "to conv", "layers", "converted") > 1000
    assert _sum(tally, "layers", "to linear", "layers", "converted") > 400


# the oracle


CONV = ("conv", {"out": 4, "kernel": (3, 3)})
CEIL_POOL = {"stride": None, "padding": (0, 0), "ceil": True, "count": True}
FLIP = ("flip", {"axes": (1,)})


def chain(*links: tuple[str, dict[str, Any]]) -> tuple[Op, ...]:
    """The operators one after another, then a flatten and a linear layer."""
    links = (*links, ("flatten", {"start": 0}), ("linear", {"out": 3}))
    return tuple(Op(kind, (n,), args) for n, (kind, args) in enumerate(links))


def less_its_mean(axes: tuple[int, ...]) -> tuple[Op, ...]:
    """The image minus its mean over some axes."""
    mean = Op("reduce", (0,), {"how": "mean", "axes": axes, "keep": True})
    return (
        mean,
        Op("two", (0, 1), {"how": "sub"}),
        Op("flatten", (2,), {"start": 0}),
        Op("linear", (3,), {"out": 3}),
    )


def of_two_strides() -> tuple[Op, ...]:
    """A corner of the image, added to the image pooled to the same size."""
    corner = {"start": 0, "stop": 4, "step": 1}
    pool = {"kernel": (2, 2), "stride": None, "padding": 0, "dilation": 1, "ceil": False}
    return (
        Op("conv", (0,), {"out": 2, "kernel": (1, 1)}),
        Op("slice", (1,), {"axis": 1, **corner}),
        Op("slice", (2,), {"axis": 2, **corner}),
        Op("max_pool", (0,), pool),
        Op("two", (3, 4), {"how": "add"}),
        Op("flatten", (5,), {"start": 0}),
        Op("linear", (6,), {"out": 3}),
    )


#: name → (operators on two channels of 8×8 pixels, label, whether padding is seen)
LABELS: dict[str, tuple[tuple[Op, ...], str, bool]] = {
    "a plain network": (chain(CONV), "legal", False),
    "padding": (chain(("conv", {"out": 4, "kernel": (3, 3), "padding": 1})), "legal", True),
    "same padding of a 1×1 kernel is none": (
        chain(("conv", {"out": 4, "kernel": (1, 1), "padding": "same"})),
        "legal",
        False,
    ),
    "a whole ceil_mode place": (chain(("avg_pool", {"kernel": (2, 2), **CEIL_POOL})), "legal", False),
    "a partial ceil_mode place": (chain(("avg_pool", {"kernel": (3, 3), **CEIL_POOL})), "legal", True),
    "a position embedding": (chain(("constant", {"shape": (2, 8, 8), "how": "add"})), "illegal", False),
    "a constant a channel": (chain(("constant", {"shape": (2, 1, 1), "how": "add"})), "legal", False),
    "a spatial flip, then a convolution": (chain(FLIP, CONV), "illegal", False),
    "a spatial flip, then a flatten": (chain(CONV, FLIP), "legal", False),
    "a linear layer along the width": (chain(("linear", {"out": 3})), "illegal", False),
    "the window minus its mean": (less_its_mean((1, 2)), "illegal", False),
    "each place minus its mean over channels": (less_its_mean((0,)), "legal", False),
    "maps of different strides": (of_two_strides(), "open", False),
    "a map for an answer": (chain(CONV)[:1], "illegal", False),
    "the batch mixed": (chain(("mix", {"how": "mean"})), "illegal", False),
    "the maximum of two maps end to end": (
        (
            Op("batch_norm", (0,), {}),
            Op("cat", (0, 1), {"axis": 1}),
            Op("reduce", (2,), {"how": "amax", "axes": (1, 2), "keep": False}),
        ),
        "open",
        False,
    ),
    "maxima over rows that straddle the channels": (
        chain(
            ("reshape", {"shape": (128,)}),
            ("roll", {"by": 1, "axis": 0}),
            ("reshape", {"shape": (8, 16)}),
            ("reduce", {"how": "amax", "axes": (1,), "keep": False}),
        )[:4],
        "illegal",
        False,
    ),
    "padding that nothing reads": (
        (
            Op("conv", (0,), {"out": 1, "kernel": (3, 3), "padding": 1}),
            Op("reduce", (0,), {"how": "mean", "axes": (1, 2), "keep": False}),
        ),
        "legal",
        False,
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_oracle_on_known_networks(name: str) -> None:
    ops, label, padded = LABELS[name]
    verdict = judge(Net(Description(2, (8, 8), ops)))
    assert (verdict.label, verdict.padded) == (label, padded)


def test_the_oracle_keeps_tied_weights_together() -> None:
    convolution = {"out": 2, "kernel": (1, 1), "groups": 1}
    net = Net(
        Description(
            2,
            (3, 3),
            (
                Op("conv", (0,), {**convolution, "padding": 1}),
                Op("conv", (1,), {**convolution, "tied": 0, "share": "weight"}),
            ),
        )
    )
    assert plan_conversion(net, "linear", "layers") == ({"layers.0", "layers.1"}, set())
    assert plan_conversion(net, "linear", "native") == (set(), {"layers.0", "layers.1"})


# planted faults

SCALED = Description(
    2,
    (8, 7),
    chain(CONV, ("constant", {"shape": (4, 1, 1), "how": "mul"}), ("permute", {"order": (1, 2, 0)})),
)
CEIL = Description(2, (8, 7), LABELS["a partial ceil_mode place"][0])
POINTWISE = Description(2, (4, 5), chain(("conv", {"out": 3, "kernel": (1, 1)})))


def test_nothing_is_found_without_a_fault() -> None:
    for description in (SCALED, CEIL, POINTWISE):
        assert not check_all(description, Tally())


def test_a_flatten_order_assumed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are taken to be in the kernel's order, whatever the graph says."""
    monkeypatch.setattr(Stencil, "feature_order", lambda self, channels: (None, None))
    assert any(f.what == "wrong numbers" for f in check_all(SCALED, Tally()))


def test_an_exactness_claimed_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sliding, "partial_last", lambda self, size: False)
    assert any("exact is True" in f.what for f in check_all(CEIL, Tally()))


def test_a_constant_in_the_wrong_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = emitter.per_channel
    monkeypatch.setattr(emitter, "per_channel", lambda c, ids, axes: right(c, ids[::-1].copy(), axes))
    assert any(f.what == "wrong numbers" for f in check_all(SCALED, Tally()))


def test_a_bias_dropped_by_a_drop_in_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropped(
        x: torch.Tensor, weight: torch.Tensor, bias: Any = None, *rest: Any, **named: Any
    ) -> torch.Tensor:
        return right(x, weight, None, *rest, **named)

    right = dropins.pointwise_linear
    monkeypatch.setattr(dropins, "pointwise_linear", dropped)
    assert any("to=linear, layers: wrong numbers" in f.what for f in check_all(POINTWISE, Tally()))


def test_a_layer_that_is_passed_over_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_is_candidate", lambda module, to: False)
    found = check_all(POINTWISE, Tally())
    assert any("other layers are converted" in f.what for f in found)
