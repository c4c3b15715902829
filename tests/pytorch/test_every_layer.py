"""Every linear layer and every 1×1 convolution of a network is either converted or refused, at every level.

The layers are counted by class and kernel alone, by code that shares nothing with the converter's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import onebyone


def layers(net: nn.Module, to: str) -> set[str]:
    """The paths of what `to` converts or refuses: by class and kernel."""
    found = set()
    for path, module in net.named_modules():
        name = type(module).__name__
        linear = isinstance(module, nn.Linear) or hasattr(module, "in_features")
        kernel = getattr(module, "kernel_size", (0,)) if "Conv" in name else (0,)
        on_patches = kernel == getattr(module, "stride", None)
        if (linear and to == "conv") or ((set(kernel) == {1} or on_patches) and to == "linear"):
            found.add(path)
    return found


class Calls(nn.Module):
    """`body(self, x)` on modules and tensors by name."""

    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(self, x)
        return out


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


class TwiceConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


def tied() -> nn.Module:
    net = Calls(
        lambda m, x: m.head(m.mid(m.table(x.long().abs() % 5))), table=nn.Embedding(5, 4), mid=nn.Linear(4, 4)
    )
    net.head = nn.Linear(4, 5, bias=False)
    net.head.weight = net.table.weight
    return net


def positions() -> nn.Module:
    """A bias made from a table of coordinates by two layers, as in Swin transformers of the second version."""
    mlp = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 4, bias=False))
    return Calls(
        lambda m, x: m.out(x + m.mlp(m.table).sigmoid()),
        mlp=mlp,
        table=torch.randn(7, 2),
        out=nn.Linear(4, 3),
    )


def queries() -> nn.Module:
    """Learned queries that pass a layer before they meet the input, as in DETR."""
    return Calls(
        lambda m, x: x @ m.q(m.queries).T, queries=nn.Parameter(torch.randn(5, 6)), q=nn.Linear(6, 4)
    )


def constant_image() -> nn.Module:
    return Calls(
        lambda m, x: m.c(x) + m.d(m.image),
        image=torch.randn(1, 5, 3, 2),
        c=nn.Conv2d(4, 6, 1),
        d=nn.Conv2d(5, 6, 1),
    )


def constant_rows() -> nn.Module:
    """A product written as a matrix product, of a buffer and a parameter."""
    return Calls(
        lambda m, x: x + m.rows @ m.lin.weight.T, rows=torch.randn(7, 3), lin=nn.Linear(3, 4, bias=False)
    )


def merged() -> nn.Module:
    """Low-rank factors multiplied with one another: arithmetic on weights, and one layer on the result."""
    return Calls(
        lambda m, x: F.linear(x, m.base.weight + m.up @ m.down),
        base=nn.Linear(4, 3, bias=False),
        up=nn.Parameter(torch.randn(3, 2)),
        down=nn.Parameter(torch.randn(2, 4)),
    )


def counted() -> nn.Module:
    """A weight scaled by a buffer that the forward pass writes to."""

    def body(m: Any, x: Tensor) -> Tensor:
        m.calls.add_(1)
        return F.linear(x, m.lin.weight * m.calls)

    return Calls(body, lin=nn.Linear(4, 3, bias=False), calls=torch.zeros(1))


def at_random() -> nn.Module:
    return Calls(lambda m, x: F.linear(x, F.dropout(m.lin.weight)), lin=nn.Linear(4, 3, bias=False))


def fake_quantised() -> nn.Module:
    from torch.ao.nn import qat
    from torch.ao.quantization import get_default_qat_qconfig

    config = get_default_qat_qconfig("fbgemm")
    return nn.Sequential(qat.Linear(4, 4, qconfig=config), nn.ReLU(), nn.Linear(4, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(6, 8, 1, stride=2),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, padding=1),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
        nn.Flatten(2),
        nn.Conv1d(4, 3, 1),
    )


def on_patches() -> nn.Module:
    """Convolutions whose kernel is their stride: plain, computed, in a subclass, and four that are refused."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 2, stride=2),
        parametrizations.weight_norm(nn.Conv2d(6, 4, (1, 2), stride=(1, 2))),
        TwiceConv2d(4, 4, 2, stride=2),
        nn.Conv2d(4, 4, 2, stride=2, groups=2),
        nn.Conv2d(4, 4, 2, stride=2, padding=1),
        nn.Conv2d(4, 4, 2, stride=2, dilation=2, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Flatten(2),
        nn.Conv1d(4, 3, 1),
    )


def twice() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.ReLU(), shared, prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5))


TOKENS, IMAGE = torch.randn(7, 4), torch.randn(2, 4, 5, 6)
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "subclasses": (
        lambda: nn.Sequential(nn.Linear(4, 5), Twice(5, 3), nn.Linear(3, 2)),
        TOKENS,
    ),
    "tied": (tied, TOKENS),
    "positions": (positions, TOKENS),
    "queries": (queries, TOKENS),
    "constant image": (constant_image, torch.randn(1, 4, 3, 2)),
    "constant rows": (constant_rows, TOKENS),
    "merged": (merged, TOKENS),
    "counted": (counted, TOKENS),
    "at random": (at_random, TOKENS),
    "fake-quantised": (fake_quantised, TOKENS),
    "convolutions": (convolutions, IMAGE),
    "on patches": (on_patches, torch.randn(2, 4, 33, 65)),
    "twice": (twice, TOKENS),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(2, 7, 4)),
    "recurrent": (
        lambda: Calls(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(4, 5), head=nn.Linear(5, 2)),
        TOKENS,
    ),
    "normed": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
        TOKENS,
    ),
}
# what is listed beside the layers: products that belong to no layer of their own, an attention, a recurrent operator
BESIDE = {
    "encoder": {"self_attn", "self_attn.in_proj_weight"},
    "recurrent": {"rnn"},
    "queries": {"matmul"},  # of the input and what a layer made of the queries, which is constant
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("level", ["layers", "native", "graph"])
def test_every_layer_is_converted_or_refused(name, level):
    make, x = NETS[name]
    net = make().eval()
    for to in ("conv", "linear"):
        c = onebyone.convert(net, to=to, level=level, example=x)
        listed = [*(change.path for change in c.changes), *(r.path for r in c.refused)]
        first = {id(module): path for path, module in net.named_modules()}  # a layer used twice has two paths
        modules = dict(net.named_modules(remove_duplicate=False))
        paths = {first[id(modules[p])] if p in modules else p for p in listed}
        assert paths - BESIDE.get(name, set()) == layers(net, to)
        assert not {change.path for change in c.changes} & {r.path for r in c.refused}
    assert all(r.reason for r in c.refused)


@pytest.mark.parametrize("name", ["positions", "queries", "constant image", "constant rows", "merged"])
@pytest.mark.parametrize("to", ["conv", "linear"])
def test_layers_on_constants_are_converted_and_right(name, to):
    make, x = NETS[name]
    net = make().eval().double()
    x = x.double()
    c = onebyone.convert(net, to=to, level="graph", example=x)
    assert c.refused == ()
    right = net(x)
    for given in (x, x.flip(0) * 2):
        # sums of at most six terms, four deep, in float64
        assert (c.model.module()(given) - net(given)).abs().max() <= 1e-13 * (1 + right.abs().max())
    back = c.state_dict_to_original()
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("name", ["counted", "at random"])
def test_weights_that_change_from_call_to_call_are_refused_for_that(name):
    make, x = NETS[name]
    c = onebyone.convert(make().eval(), level="graph", example=x)
    assert [r.path for r in c.refused] == ["lin"] if name == "at random" else c.refused
    assert "its weight changes from call to call" in c.refused[0].reason
