"""Plans are applied without measuring, only where they are valid, and their outputs are checked."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput, NotEquivalent, Refused
from onebyone.tuning import Tuned, TuningPlan
from tests.tuning import networks
from tests.tuning.conftest import close, tuned


def test_a_plan_is_applied_without_measuring(
    made: tuple[nn.Module, Tensor, Tuned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebyone.tuning.clock import Clock

    network, x, t = made
    path = t.plan.save(tmp_path / "plan.json")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(Clock, "sample", never)
    again = onebyone.tune(network, x, plan=path)
    assert again.plan == t.plan
    assert torch.equal(again.model(x), t.model(x))


def with_choice(plan: TuningPlan, **choice: Any) -> TuningPlan:
    return dataclasses.replace(plan, choice={**plan.choice, "layers": {}, **choice})


def test_every_choice_can_be_applied(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    network, x, t = made
    for form, layers in (
        ("conv", {}),
        ("linear+channels_last", {}),
        ("graph-conv", {}),
        ("layers", {"2": "permute", "7": "bmm"}),
    ):
        plan = with_choice(t.plan, form=form, layers=layers)
        close(onebyone.tune(network, x, plan=plan).model(x), copy.deepcopy(network).eval()(x))


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"machine": {"processor": "another"}}, "processor"),
        ({"versions": {"torch": "1.0"}}, "version"),
        ({"threads": 99}, "threads"),
    ],
)
def test_elsewhere_a_plan_is_refused_unless_forced(
    made: tuple[nn.Module, Tensor, Tuned], changed: dict[str, Any], kind: str
) -> None:
    network, x, t = made
    plan = dataclasses.replace(t.plan, **changed)
    with pytest.raises(Refused) as caught:
        onebyone.tune(network, x, plan=plan)
    assert {r.kind for r in caught.value.refusals} == {kind}
    close(onebyone.tune(network, x, plan=plan, force=True).model(x), copy.deepcopy(network).eval()(x))


def test_a_plan_with_a_dynamic_batch_is_applied_to_another_batch() -> None:
    network = networks.tokens().eval()
    t = tuned(network, torch.randn(3, 4, 8), dynamic_batch=True)
    x = torch.randn(5, 4, 8)
    again = onebyone.tune(network, x, plan=t.plan)
    for n in (1, 5):
        close(again.model(x[:n]), network(x[:n]))
    with pytest.raises(Refused, match="input"):
        onebyone.tune(network, torch.randn(5, 3, 8), plan=t.plan)


def test_another_network_or_input_is_refused(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    network, x, t = made
    wider = nn.Sequential(*list(network)[:-1], nn.Linear(16, 6))  # type: ignore[call-overload]
    other_act = nn.Sequential(*list(network)[:-2], nn.ReLU(), network[-1])  # type: ignore[call-overload, index]
    for other in (wider, other_act):
        with pytest.raises(Refused, match="network"):
            onebyone.tune(other, x, plan=t.plan)
    with pytest.raises(Refused, match="made for float32 2×3×8×8, and this is float32 1×3×8×8"):
        onebyone.tune(network, x[:1], plan=t.plan)


def test_a_plan_that_is_not_equivalent_is_not_applied(made: tuple[nn.Module, Tensor, Tuned]) -> None:
    network, x, t = made
    constant = networks.engine("constant", networks.constant)
    plan = with_choice(t.plan, engine="constant", form="original")
    with networks.registered(constant), pytest.raises(NotEquivalent, match="rounding error"):
        onebyone.tune(network, x, plan=plan)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"engine": "warp"}, "engines='warp'"),
        ({"form": "knot"}, "form='knot': expected one of original"),
        ({"dtype": "int3"}, "dtype='int3'"),
        ({"form": "layers", "layers": {"no": "conv"}}, "no layer 'no'"),
    ],
)
def test_plans_with_unknown_names_are_refused(
    made: tuple[nn.Module, Tensor, Tuned], choice: dict[str, Any], words: str
) -> None:
    network, x, t = made
    with pytest.raises(BadInput, match=words):
        onebyone.tune(network, x, plan=with_choice(t.plan, **choice))
