"""level="native": real modules, state dicts both ways, ties, storage."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.native import MapsLinear, TokensConv2d
from tests.pytorch.integer_networks import exact, integer


@pytest.mark.parametrize(
    "shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 5), (0, 5), (2, 0, 5)], ids=str
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_real_conv2d_at_every_rank(shape, bias):
    layer = integer(nn.Linear(5, 3, bias=bias))
    model = convert_module(layer, to="conv", level="native").model
    assert isinstance(model, TokensConv2d)
    assert type(model.conv) is nn.Conv2d
    assert tuple(model.conv.weight.shape) == (3, 5, 1, 1)
    assert model.conv.weight.data_ptr() == layer.weight.data_ptr()
    assert model.conv.bias is layer.bias
    x = exact(*shape)
    assert torch.equal(model(x), layer(x))
    assert model(x).is_contiguous()
    assert torch.equal(model.weight, layer.weight)
    assert (model.in_features, model.out_features) == (5, 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_a_real_linear_at_every_place(dims, stride, last):
    conv = integer((nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](6, 4, 1, stride=stride))
    model = convert_module(conv, to="linear", level="native").model
    assert isinstance(model, MapsLinear)
    assert type(model.linear) is nn.Linear
    assert model.linear.weight.data_ptr() == conv.weight.data_ptr()
    size = (5, 4, 3)[:dims]
    x = exact(2, *size, 6).movedim(-1, 1) if last else exact(2, 6, *size)
    assert torch.equal(model(x), conv(x))
    assert torch.equal(model(x[0]), conv(x[0]))
    assert torch.equal(model.weight, conv.weight)
    if not last:
        assert model(x).is_contiguous()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(6, 4, 1, groups=2), "block-diagonal"),
        (nn.Conv2d(6, 4, 1, padding=1), "has no padding"),
    ],
)
def test_refused_at_native_only(layer, reason):
    native = convert_module(layer, to="linear", level="native")
    assert reason in native.refused[0].reason
    assert native.model is not layer
    assert type(native.model) is nn.Conv2d
    assert convert_module(layer, to="linear").refused == ()


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            integer(nn.Linear(3, 4)), nn.BatchNorm1d(4), integer(nn.Linear(4, 2, bias=False))
        )
        self.again = self.body[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_state_dicts_map_both_ways_at_every_path():
    net = Nested().eval()
    c = convert_module(net, to="conv", level="native")
    assert "again.conv.weight" in c.model.state_dict()
    other = Nested().eval()
    other.body[1].running_mean.add_(1)
    state = c.state_dict_from_original(other.state_dict())
    assert list(state) == list(c.model.state_dict())
    assert state._metadata == other.state_dict()._metadata
    c.model.load_state_dict(state)
    x = exact(5, 3)
    assert torch.equal(c.model(x), other(x))
    back = c.state_dict_to_original(c.model.state_dict())
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in other.state_dict().items()}
    third = Nested().eval()
    third.load_state_dict(back)
    assert torch.equal(third(x), other(x))


def test_a_state_dict_of_other_shapes_is_bad_input():
    c = convert_module(Nested(), to="conv", level="native")
    state = Nested().state_dict()
    state["body.0.weight"] = torch.zeros(4, 5)
    with pytest.raises(BadInput, match=r"body.0.weight has shape \(4, 5\), expected \(4, 3\)"):
        c.state_dict_from_original(state)


def test_linears_that_share_a_weight_share_it_after():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    c = convert_module(net, to="conv", level="native")
    assert c.model[0].conv.weight is c.model[1].conv.weight
    assert len(c.changes) == 2
    one = convert_module(net, to="conv", level="native", only="0")
    assert one.changes == ()
    assert "shared with a layer that is not converted" in one.refused[0].reason


def test_ties_to_an_embedding_are_refused_and_the_refusal_spreads():
    embed, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embed.weight
    net = nn.Sequential(embed, nn.Linear(3, 3), head)
    c = convert_module(net, to="conv", level="native")
    assert [change.path for change in c.changes] == ["1"]
    assert [r.path for r in c.refused] == ["2"]
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    b.forward = lambda x: x
    spread = convert_module(nn.Sequential(a, b), to="conv", level="native")
    assert [r.path for r in spread.refused] == ["1", "0"]


def test_copy_gives_storage_of_its_own():
    layer = nn.Linear(3, 2)
    model = convert_module(layer, to="conv", level="native", copy=True).model
    assert model.conv.weight.data_ptr() != layer.weight.data_ptr()
    assert torch.equal(model.weight, layer.weight)


def test_a_weight_that_no_view_expresses_is_copied_once_and_counted():
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight = nn.Parameter(torch.randn(6, 4).T)
    c = convert_module(layer, to="conv", level="native")
    assert c.copied_bytes == 0  # transposed strides still make a view
    conv = nn.Conv2d(6, 4, 1).to(memory_format=torch.channels_last)
    assert convert_module(conv, to="linear", level="native").copied_bytes == 0


def test_native_deepcopies_compiles_and_exports():
    net = nn.Sequential(integer(nn.Linear(4, 3)), nn.ReLU(), integer(nn.Linear(3, 2))).eval()
    model = convert_module(net, to="conv", level="native").model
    x = exact(2, 5, 4)
    expected = net(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    assert torch.equal(torch.export.export(model, (x,), strict=False).module()(x), expected)
