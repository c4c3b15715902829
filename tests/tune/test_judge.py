"""The judge: what is the same function passes, and planted faults do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.tune.calling import Calling
from onebyone.tune.engines import Setting
from onebyone.tune.judge import Judge
from tests.tune import networks

SETTING = Setting(torch.device("cpu"), 1)


def judged(network: nn.Module, example: Any, change: Any = None, free: bool = False) -> Any:
    calling = Calling.of(network.eval(), example, free)
    judge = Judge(network, calling)
    call = networks.eager(network, calling, SETTING)
    return judge.check(call if change is None else lambda *a, **k: change(call(*a, **k)))


def test_the_network_itself_has_its_own_rounding_error() -> None:
    check = judged(networks.images(), torch.randn(2, 3, 8, 8))
    assert check.problem == ""
    assert check.ratio is not None
    assert 0 < check.ratio <= 1
    assert check.max_error == 0.0


def test_the_ratio_against_a_second_computation() -> None:
    """Error over the original's own, both against a float64 copy made here."""
    network, x = networks.images().eval(), torch.randn(2, 3, 8, 8)
    off = torch.zeros(2, 5)
    off[1, 3] = 1e-5
    calling = Calling.of(network, x)
    judge = Judge(network, calling)
    judge.references = judge.references[:1]
    with torch.no_grad():
        own = network(x)
        exact = networks.images().double().eval()(x.double())
    check = judge.check(lambda x: own + off)
    unit = 2.0**-24 * float(exact.abs().max())
    expected = float((own + off - exact).abs().max()) / max(float((own - exact).abs().max()), unit)
    assert check.ratio == pytest.approx(expected)
    assert check.max_error == pytest.approx(1e-5, rel=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y + 1e-3, "times the original's rounding error, limit 90.5"),
        (lambda y: y.bfloat16().float(), "times the original's rounding error"),
        (lambda y: y.roll(1, 1), "times the original's rounding error"),
        (lambda y: y * float("nan"), "holds NaN or infinity"),
        (lambda y: y[:, :4], r"places and shapes \[\('', \(2, 4\)\)\]"),
        (lambda y: (y, y), "places and shapes"),
    ],
)
def test_what_is_wrong_is_seen(change: Any, words: str) -> None:
    import re

    check = judged(networks.images(), torch.randn(2, 3, 8, 8), change)
    assert re.search(words, check.problem)


def test_an_answer_that_does_not_look_at_its_input() -> None:
    """Right on the example, and on nothing else."""
    network, x = networks.images().eval(), torch.randn(1, 3, 8, 8)
    calling = Calling.of(network, x)
    call = networks.constant(network, calling, SETTING)
    assert "rounding error" in Judge(network, calling).check(call).problem


def test_a_batch_that_is_baked_in() -> None:
    network, x = networks.tokens().eval(), torch.randn(2, 4, 8)
    calling = Calling.of(network, x, free_batch=True)
    check = Judge(network, calling).check(lambda x: network(x.reshape(2, -1, 8)[:, :4]))
    assert "shapes" in check.problem
    assert [r.calling.tensors[0].shape[0] for r in Judge(network, calling).references] == [2, 2, 5]


def test_a_call_that_fails_is_told() -> None:
    def fail(y: Tensor) -> Tensor:
        raise RuntimeError("no luck\nat all")

    assert judged(networks.tokens(), torch.randn(2, 4, 8), fail).problem == "it fails: RuntimeError: no luck"


def test_integers_must_be_equal() -> None:
    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    x = torch.tensor([[1.0, 3.0, 2.0]])
    assert judged(Best(), x).problem == ""
    assert "differs" in judged(Best(), x, lambda y: y + 1).problem


def test_without_a_float64_reference_outputs_are_compared_in_their_own_type() -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x.float())

    check = judged(Casts(), torch.randn(3, 4))
    assert (check.ratio, check.problem) == (None, "")
    assert "differs by" in judged(Casts(), torch.randn(3, 4), lambda y: y + 1e-3).problem


def test_bfloat16_is_measured_by_bfloat16() -> None:
    network, x = networks.images().eval(), torch.randn(2, 3, 8, 8)
    calling = Calling.of(network, x)
    judge = Judge(network, calling, short=torch.bfloat16)
    narrow = networks.images().bfloat16().eval()
    check = judge.check(lambda x: narrow(x.bfloat16()).float(), torch.bfloat16)
    assert check.problem == ""
    assert check.ratio is not None
    assert check.ratio > 100
    assert judge.check(lambda x: narrow(x.bfloat16()).float()).problem
    assert judge.check(lambda x: 1.5 * narrow(x.bfloat16()).float(), torch.bfloat16).problem


def test_a_network_that_does_not_run_or_is_not_finite() -> None:
    network = networks.images().eval()
    with pytest.raises(BadInput, match="the network fails on it"):
        Judge(network, Calling.of(network, torch.randn(1, 4, 8, 8)))
    with torch.no_grad():
        network[-1].bias[0] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(BadInput, match="NaN or infinity on the example"):
        Judge(network, Calling.of(network, torch.randn(1, 3, 8, 8)))
