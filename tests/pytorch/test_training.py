"""Training goes on across the conversion: k steps after it equal k steps without, for every optimizer and
level.

Float64, with a bound on how far two runs may part. Both forms give each product and each gradient within
γₙ of the exact one (Higham, §3.1), so one step's parameters differ by relative units of roundoff, and the
steps' own arithmetic (a Lipschitz map at these sizes) carries earlier differences on. The bound below is
steps · n · u · (largest condition of a step), with the condition measured by nudging the start by one unit
of roundoff.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from onebyone.errors import Refused
from onebyone.pytorch.modules.convert import convert_module

U = torch.finfo(torch.float64).eps / 2
BEFORE, AFTER = 5, 20

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


class Net(nn.Module):
    """1×1 convolutions with and without stride, then linear layers, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.down = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)
        self.again = self.mix

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.down(torch.tanh(self.stem(x))))
        x = torch.tanh(self.mix(x.flatten(2).mT))
        return self.head(self.again(x).mean(1))


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 3, 6, 6, generator=g, dtype=torch.float64)
    return list(zip(x, torch.randint(0, 4, (count, 4), generator=g), strict=True))


def train(model: nn.Module, optimizer: Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def started(optimizer: str, nudge: float = 0.0) -> tuple[Net, Optimizer]:
    torch.manual_seed(0)
    net = Net().double()
    opt = OPTIMIZERS[optimizer](net.parameters())
    train(net, opt, batches(BEFORE, 1))
    if nudge:
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1 + nudge * (1 - 2 * torch.randint(0, 2, p.shape)))
    return net, opt


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def bound(optimizer: str, reference: dict[str, Tensor]) -> float:
    """AFTER steps, each disturbed by n products' roundoff, carried as far as a nudge of the start is
    carried.
    """
    terms, nudge = 4 * 36 * 8, 2.0**-40
    net, opt = started(optimizer, nudge)
    train(net, opt, batches(AFTER, 2))
    gain = distance(dict(net.state_dict()), reference) / nudge
    return 2 * AFTER * terms * U * max(gain, 1.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("to", ["conv", "linear"])
@pytest.mark.parametrize(
    ("level", "parted"), [("layers", False), ("layers", True), ("native", False), ("native", True)]
)
def test_steps_after_converting_equal_steps_without(optimizer, to, level, parted):
    net, opt = started(optimizer)
    train(net, opt, batches(AFTER, 2))
    reference = dict(net.state_dict())
    allowed = bound(optimizer, reference)

    half, half_opt = started(optimizer)
    untouched = copy.deepcopy(half.state_dict())
    given = half_opt if level == "native" or parted else None
    c = convert_module(half, to=to, level=level, copy=parted, optimizer=given)
    train(c.model, half_opt, batches(AFTER, 2))
    found = c.state_dict_to_original()
    assert distance(found, reference) <= allowed
    assert allowed < 1e-6  # and the steps themselves are far larger:
    assert distance(untouched, reference) > 1e-3
    trained = dict(half.state_dict())
    assert distance(trained, untouched if parted else reference) <= allowed


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_forgetting_the_state_would_be_seen(optimizer):
    """The planted fault: a fresh optimizer after the conversion ends far outside the bound."""
    net, opt = started(optimizer)
    train(net, opt, batches(AFTER, 2))
    reference = dict(net.state_dict())
    half, _ = started(optimizer)
    c = convert_module(half, to="conv", level="native")
    train(c.model, OPTIMIZERS[optimizer](c.model.parameters()), batches(AFTER, 2))
    assert distance(c.state_dict_to_original(), reference) > 100 * bound(optimizer, reference)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_manages_the_new_parameters_and_no_others(optimizer):
    net, opt = started(optimizer)
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.5})
    groups, entries = len(opt.param_groups), len(opt.state)
    c = convert_module(net, to="conv", level="native", optimizer=opt)
    managed = [p for g in opt.param_groups for p in g["params"]]
    assert {id(p) for p in c.model.parameters()} <= {id(p) for p in managed}
    assert len(opt.param_groups) == groups
    assert opt.param_groups[1]["lr"] == 0.5
    assert len(opt.state) == entries
    for p, state in opt.state.items():
        assert any(p is q for q in managed)
        assert all(v.shape in (p.shape, ()) for v in state.values() if isinstance(v, Tensor))
    loaded = OPTIMIZERS[optimizer](c.model.parameters())
    loaded.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    loaded.load_state_dict(opt.state_dict())


def test_gradients_so_far_are_carried():
    torch.manual_seed(0)
    net = Net().double()
    x, y = batches(1, 3)[0]
    F.cross_entropy(net(x), y).backward()
    c = convert_module(net, to="conv", level="native")
    assert torch.equal(c.model.mix.conv.weight.grad.flatten(1), net.mix.weight.grad)
    assert c.model.mix.conv.bias.grad is net.mix.bias.grad


def snapshot(opt: Optimizer) -> tuple[list[int], list[int]]:
    return [id(p) for g in opt.param_groups for p in g["params"]], [id(p) for p in opt.state]


class Factored(Optimizer):
    """Rows and columns, as Adafactor and Shampoo keep them."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() == 2:
                    self.state[p]["row"] = torch.zeros(p.shape[0])


class Listed(Factored):
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["preconditioners"] = [torch.eye(n) for n in p.shape]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda net: torch.optim.Adafactor(net.parameters()), "row_var has shape"),
        (
            lambda net: torch.optim.Muon([p for p in net.parameters() if p.dim() == 2]),
            "Muon is not known to treat",
        ),
        (lambda net: Factored(net.parameters()), r"row has shape \(8,\)"),
        (lambda net: Listed(net.parameters()), "preconditioners is a list"),
    ],
    ids=["adafactor", "muon", "factored", "listed"],
)
@pytest.mark.parametrize("stepped", [True, False])
def test_state_that_depends_on_shape_is_refused_and_nothing_changes(make, reason, stepped):
    torch.manual_seed(0)
    net = Net().double()
    opt = make(net)
    if stepped:
        train(net, opt, batches(1, 4))
    before = snapshot(opt)
    with pytest.raises(
        Refused, match=reason if stepped else "not known to treat every weight alike"
    ) as error:
        convert_module(net, to="conv", level="native", optimizer=opt)
    assert {r.path for r in error.value.refusals} == {"mix.weight", "head.weight"}
    assert snapshot(opt) == before
    convert_module(net, to="conv", level="layers", optimizer=opt)  # nothing to carry, nothing to refuse
    assert snapshot(opt) == before
