"""Convolutions whose kernel is their stride in exported programs: linear where no layout operator is added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput
from onebyone.laws import patches
from onebyone.pytorch.graph import convert_graph
from onebyone.pytorch.graph.counting import layout_operators
from onebyone.pytorch.graph.emitter import FxEmitter
from onebyone.pytorch.graph.nodes import operator_name
from tests.pytorch.integer_networks import exact, integer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Tokens(nn.Module):
    """The beginning of a vision transformer: patches become tokens (N, T, O)."""

    def __init__(self, kernel: tuple[int, ...], bias: bool = True, channels: int = 3) -> None:
        super().__init__()
        self.embed = CONVOLUTIONS[len(kernel) - 1](channels, 8, kernel, stride=kernel, bias=bias)
        self.layer = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.embed(x).flatten(2).transpose(1, 2))


def names(program: torch.export.ExportedProgram) -> list[str]:
    return [operator_name(node) for node in program.graph.nodes if node.op == "call_function"]


def by_the_law(net: Tokens, x: Tensor) -> Tensor:
    """The network again, on NumPy arrays: the law's patches times the law's weight, then the second layer."""
    kernel = tuple(net.embed.kernel_size)
    rows = patches.patches(x.numpy(), kernel) @ patches.to_linear(net.embed.weight.detach().numpy()).T
    if net.embed.bias is not None:
        rows = rows + net.embed.bias.detach().numpy()
    rows = rows.reshape(len(x), -1, 8)
    return torch.from_numpy(rows @ net.layer.weight.detach().numpy().T + net.layer.bias.detach().numpy())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [(3,), (2, 2), (3, 2), (1, 4), (2, 2, 3)], ids=str)
def test_patch_embeddings_of_every_rank_bit_for_bit(kernel, bias):
    torch.manual_seed(0)
    net = integer(Tokens(kernel, bias)).eval()
    for rest in (0, 1):
        x = exact(2, 3, *(2 * k + a * k + rest * (k - 1) for a, k in enumerate(kernel)))
        c = convert_graph(net, to="linear", example=x)
        assert [(change.path, change.law, change.copied_bytes) for change in c.changes] == [
            ("embed", patches.NAME, 0)
        ]
        assert not c.refused
        assert not any(name.startswith("conv") for name in names(c.model))
        assert c.layout_after.total() <= c.layout_before.total()
        with torch.no_grad():
            assert torch.equal(c.model.module()(x), by_the_law(net, x))
            assert torch.equal(c.model.module()(x), net(x))


def test_parameters_are_shared_and_state_dicts_are_those_of_the_original():
    net = Tokens((2, 2)).eval()
    c = convert_graph(net, to="linear", example=torch.ones(1, 3, 4, 6))
    assert c.model.state_dict["embed.weight"].data_ptr() == net.embed.weight.data_ptr()
    state = c.state_dict_to_original()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_a_convolution_between_maps_is_kept_and_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    c = convert_graph(net, to="linear", example=torch.ones(2, 3, 6, 6))
    assert [change.path for change in c.changes] == ["2"]
    assert [refusal.path for refusal in c.refused] == ["0"]
    assert "more layout operators" in c.refused[0].reason
    alone = convert_graph(net[:2], to="linear", example=torch.ones(2, 3, 6, 6))
    assert not alone.changes
    assert len(alone.refused) == 1
    assert "conv2d" in names(alone.model)


@pytest.mark.parametrize(
    ("settings", "reason"), [({"padding": 1}, "shifts the patches"), ({"groups": 3}, "3 groups")]
)
def test_what_is_no_linear_layer_on_patches_is_refused_for_its_reason(settings, reason):
    net = nn.Sequential(nn.Conv2d(3, 6, 2, stride=2, **settings)).eval()
    c = convert_graph(net, to="linear", example=torch.ones(2, 3, 6, 6))
    assert [refusal.path for refusal in c.refused] == ["0"]
    assert reason in c.refused[0].reason


def test_overlapping_convolutions_are_not_listed():
    c = convert_graph(nn.Conv2d(3, 6, 3, stride=2).eval(), to="linear", example=torch.ones(2, 3, 7, 7))
    assert not c.refused
    assert not c.changes


def test_a_kernel_as_large_as_the_map_is_a_linear_layer_without_a_copy():
    net = integer(nn.Sequential(nn.Conv2d(3, 4, (4, 6), stride=(4, 6)), nn.Flatten(), nn.Linear(4, 2))).eval()
    x = exact(2, 3, 4, 6)
    c = convert_graph(net, to="linear", example=x)
    assert [change.path for change in c.changes] == ["0"]
    assert layout_operators(c.model).total() == 0
    assert torch.equal(c.model.module()(x), net(x))


def test_a_kernel_that_is_stored_channels_last_would_be_copied_at_each_call():
    net = Tokens((2, 2)).eval().to(memory_format=torch.channels_last)
    c = convert_graph(net, to="linear", example=torch.ones(2, 3, 4, 6))
    assert [refusal.path for refusal in c.refused] == ["embed"]
    assert c.layout_after.total() <= c.layout_before.total()


def test_only_selects_them_and_says_what_there_is():
    net = Tokens((2, 2)).eval()
    x = torch.ones(1, 3, 4, 6)
    assert [change.path for change in convert_graph(net, to="linear", example=x, only="emb*").changes] == [
        "embed"
    ]
    with pytest.raises(BadInput, match="selects no 1×1 convolution or convolution on patches"):
        convert_graph(net, to="linear", example=x, only="layer")
    assert not convert_graph(net, to="conv", example=x, only="layer").refused


def test_free_sizes_stay_free_and_remainders_are_dropped():
    net = integer(Tokens((2, 3))).eval()
    c = convert_graph(net, to="linear", example=exact(2, 3, 8, 9), dynamic_axes=(0, 2, 3))
    assert [change.path for change in c.changes] == ["embed"]
    for shape in ((5, 3, 11, 13), (3, 3, 4, 8)):
        x = exact(*shape)
        assert torch.equal(c.model.module()(x), net(x))


def test_verified_and_patches_in_another_order_are_caught(monkeypatch):
    torch.manual_seed(0)
    net, x = Tokens((2, 2)).eval(), torch.randn(2, 3, 4, 6)
    right = FxEmitter.patches
    found = onebyone.verify(net, onebyone.convert(net, to="linear", level="graph", example=x), x)
    assert found.equivalent
    assert [(layer.path, layer.bitwise) for layer in found.layers] == [("embed", True)]
    monkeypatch.setattr(FxEmitter, "patches", lambda self, x, cuts: right(self, x, cuts[::-1]))
    wrong = onebyone.convert(net, to="linear", level="graph", example=x)
    assert len(wrong.changes) == 1
    assert not onebyone.verify(net, wrong, x).equivalent


def test_written_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x = integer(Tokens((2, 3))).eval(), exact(2, 3, 5, 7)
    path = convert_graph(net, to="linear", example=x).save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.equal(torch.from_numpy(y), net(x).detach())
