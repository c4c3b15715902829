"""Graph level: operators that take an index, and operators whose result size depends on the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onebyone
from onebyone.pytorch.files.program_file import load_program
from tests.pytorch.integer_networks import exact, integer


class Net(nn.Module):
    """A network whose forward is `body`, which calls the linear layers `a` (4 → 6) and `b` (6 → 4) once each."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(4, 6), nn.Linear(6, 4), body
        self.c, self.d = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(self, *inputs)


def through(middle: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward with `middle` between the two layers; its input and output are rows of six."""
    return lambda net, x, *rest: net.b(middle(net.a(x), *rest))


def put(y: Tensor, index: Tensor) -> Tensor:
    y[index] = 2.0
    return y


torch.manual_seed(0)
X, Y = exact(5, 4), exact(5, 4)
PAIRS, OTHER_PAIRS = torch.tensor([0, 2]), torch.tensor([3, 1])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 1, 0, 4, 2, 3]])
OTHER_POSITIONS = ((Y, POSITIONS.flip(1)), (X, POSITIONS.roll(1, 0)))
INDEXED = (X, PAIRS), (Y, OTHER_PAIRS)
WITH_POSITIONS = (X, POSITIONS), *OTHER_POSITIONS
ALONE = (X,), (Y,)
ZERO = torch.zeros(5, 6)

# name → (what happens between the layers, inputs of several calls; the first is the example)
BETWEEN: dict[str, tuple[Callable[..., Tensor], tuple[tuple[Tensor, ...], ...]]] = {
    "index_select": (lambda y, i: y.index_select(0, i), INDEXED),
    "index_select, computed": (lambda y, i: y.index_select(0, i + 1), INDEXED),
    "index_select, from the values": (lambda y: y.index_select(0, y[:, 0].topk(3)[1]), ALONE),
    "index_select, channels": (lambda y, i: y.index_select(1, torch.cat([i, i, i]) + 1), INDEXED),
    "select by rows": (lambda y, i: y[i], INDEXED),
    "boolean rows": (lambda y: y[y[:, 0] > 0], ALONE),
    "boolean elements": (lambda y: y[y > 0][:, None].expand(-1, 6), ALONE),
    "masked_select": (lambda y: y.masked_select(y > 0)[:, None].expand(-1, 6), ALONE),
    "nonzero": (lambda y: y[(y[:, 0] > 0).nonzero()[:, 0]], ALONE),
    "where of one": (lambda y: y[torch.where(y[:, 0] > 0)[0]], ALONE),
    "where of three": (lambda y: torch.where(y > 0, y, 0.5), ALONE),
    "masked_fill": (lambda y: y.masked_fill(y > 1, 0), ALONE),
    "masked_scatter": (lambda y: y.masked_scatter(y > 0, y.flip(0)), ALONE),
    "gather": (lambda y, g: y.gather(0, g), WITH_POSITIONS),
    "gather, computed": (lambda y: y.gather(1, y.sort(dim=1, stable=True)[1]), ALONE),
    "take_along_dim": (lambda y: y.take_along_dim(y.sort(dim=0, stable=True)[1], 0), ALONE),
    "take": (lambda y, g: y.take(g), WITH_POSITIONS),
    "embedding": (lambda y, i: F.embedding(i, y), INDEXED),
    "scatter": (lambda y, g: y.scatter(0, g[:1], y[:1]), WITH_POSITIONS),
    "scatter_add": (lambda y, g: ZERO.scatter_add(0, g, y[:2]), WITH_POSITIONS),
    "scatter_reduce": (lambda y, g: ZERO.scatter_reduce(0, g, y[:2], "amax"), WITH_POSITIONS),
    "index_add": (lambda y, i: ZERO.index_add(0, i, y[:2]), INDEXED),
    "index_copy": (lambda y, i: ZERO.index_copy(0, i, y[:2]), INDEXED),
    "index_fill": (lambda y, i: y.index_fill(0, i, 1.0), INDEXED),
    "index_put": (lambda y, i: y.index_put((i,), torch.ones(6)), INDEXED),
    "index_put, written": (put, INDEXED),
    "index_put, boolean": (lambda y: put(y, y[:, 0] > 0), ALONE),
    "searchsorted": (lambda y: y + torch.searchsorted(torch.arange(6.0), y), ALONE),
    "bucketize": (lambda y: y + torch.bucketize(y, torch.arange(6.0)), ALONE),
    "unique": (lambda y: y.unique()[:, None].expand(-1, 6), ALONE),
    "unique rows": (lambda y: torch.unique(y, dim=0), ALONE),
    "repeat_interleave": (lambda y, i: y[:2].repeat_interleave(i, 0), INDEXED),
    "a computed length": (lambda y, i: y[: i[1].item()], INDEXED),
    "tensor_split": (lambda y: y.tensor_split((1, 3))[1], ALONE),
    "sort": (lambda y: y.sort(dim=0, stable=True)[0], ALONE),
    "boolean images": (
        lambda y: F.relu(y.reshape(5, 1, 6).expand(5, 3, 6)[y[:, 0] > 0].transpose(0, 1)),
        ALONE,
    ),
    "normalised after": (lambda y: F.layer_norm(y[y[:, 0] > 0], (6,)).round(), ALONE),
    "mean of what is left": (lambda y: y[y[:, 0] > 0].amax(0, True), ALONE),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_converted_and_right_for_other_values_too(name):
    """Both layers are converted, and the program computes what the network does, also on inputs whose indices, masks
    and counts differ from the example's."""
    middle, calls = BETWEEN[name]
    net = integer(Net(through(middle))).eval()
    c = onebyone.convert(net, level="graph", example=calls[0])
    assert [change.path for change in c.changes] == ["a", "b"]
    assert c.refused == ()
    for inputs in calls:
        expected = net(*(t.clone() for t in inputs))
        assert torch.equal(c.model.module()(*(t.clone() for t in inputs)), expected)


@pytest.mark.parametrize("name", ["boolean rows", "index_select, computed", "a computed length"])
def test_saved_and_read_again(name, tmp_path):
    middle, calls = BETWEEN[name]
    net = integer(Net(through(middle))).eval()
    c = onebyone.convert(net, level="graph", example=calls[0])
    program = load_program(c.save(tmp_path / "c.pt2")).program
    for inputs in calls:
        assert torch.equal(program.module()(*inputs), net(*inputs))


def test_the_counts_really_differ():
    """A mask that keeps two rows of the example, and other numbers of rows, none and all among them, later."""
    net = integer(Net(through(lambda y, mask: y[mask > 0]))).eval()
    mask = torch.tensor([0, 1, 0, 1, 0])
    c = onebyone.convert(net, level="graph", example=(X, mask))
    for other, count in ((mask, 2), (mask * 0, 0), (1 - mask, 3), (mask * 0 + 1, 5)):
        result = c.model.module()(X, other)
        assert result.shape == (count, 4)
        assert torch.equal(result, net(X, other))


def test_convolutions_on_a_number_of_images_that_depends_on_the_values():
    def chosen(net: Net, x: Tensor) -> Tensor:
        return net.d(net.c(x)[x[:, 0, 0, 0] > 0].relu())

    net, images = integer(Net(chosen)).eval(), exact(4, 4, 3, 2)
    c = onebyone.convert(net, to="linear", level="graph", example=images)
    assert [change.path for change in c.changes] == ["c", "d"]
    for x in (images, images.roll(1, 1) - 1):
        assert torch.equal(c.model.module()(x), net(x))
