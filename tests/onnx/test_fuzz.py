"""A sample of the random graphs of `tests.onnx.fuzz`, and the one of the planted faults that it must see."""

from __future__ import annotations

from collections import Counter

import pytest

from onebyone.onnx import axes
from tests.onnx import fuzz
from tests.onnx.fuzz import FLOATING_MOVES, check


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random_graphs(first: int) -> None:
    counts = Counter(outcome for seed in range(first, first + 20) for outcome in check(seed))
    assert (
        sum(n for outcome, n in counts.items() if "converted" in outcome and "0 conv" not in outcome) > 8
    ), counts


@pytest.mark.parametrize("seed", [196, 247, 278, 424, 535, 1112])
def test_what_random_graphs_found(seed: int) -> None:
    """Outputs before positions, a bias further down, a weight of one number, maps of converted layers, beta of 0, and a
    shared weight that was left behind by a layer which could not be converted."""
    assert list(check(seed, FLOATING_MOVES))


@pytest.mark.parametrize("seed", [220, 268, 300, 308])
def test_saturated_probes_that_random_graphs_found(seed: int) -> None:
    """A Clip between equal bounds and a scale far below the result hid every fault from the verifier's probe."""
    assert list(check(seed))


@pytest.mark.slow
def test_many_random_graphs() -> None:
    _check_all(range(2000))


def test_a_wrong_order_of_axes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = axes.merged

    def wrong(writer, value, labels, groups, sizes):  # type: ignore[no-untyped-def]
        return right(writer, value, list(reversed(labels)), groups, sizes)

    monkeypatch.setattr(axes, "merged", wrong)
    with pytest.raises(Exception, match=r"wrong by|cannot run|differ|Incompatible|seed"):
        _check_all(range(40))


def test_a_sweep_with_a_fault_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(seed: int) -> list[str]:
        assert seed != 1, "wrong by 1"
        return ["conv: 1 converted"]

    monkeypatch.setattr(fuzz, "check", faulty)
    for count, code in ((1, 0), (2, 1)):
        monkeypatch.setattr("sys.argv", ["fuzz", "--count", str(count)])
        assert fuzz.main() == code
    assert "WRONG: AssertionError" in capsys.readouterr().out


def _check_all(seeds: range) -> None:
    for seed in seeds:
        list(check(seed))
