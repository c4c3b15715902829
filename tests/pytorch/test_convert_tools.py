"""Converted networks under torch.compile, torch.export, fx and checkpointing; dtypes; the cost of
converting.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import PointwiseConvolution, PointwiseLinear
from tests.pytorch.integer_networks import X, integer, network


@pytest.fixture(autouse=True)
def fresh_compiler():
    """The compiler gives up on a function that was compiled too often in one process: let no test inherit that."""
    torch._dynamo.reset()


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_compile_export_checkpointing(to):
    net = network().eval()
    model = convert_module(net, to=to).model
    expected = net(X)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(X), expected)
    program = torch.export.export(model, (X,), strict=False)
    assert torch.equal(program.module()(X), expected)
    checked = torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False)
    assert torch.equal(checked, expected)
    model.zero_grad()
    checked.sum().backward()
    kept = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    net(X).sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(kept, net.parameters(), strict=True))


def test_exports_with_free_batch_and_sequence():
    net = integer(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    model = convert_module(net, to="conv").model
    free = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    program = torch.export.export(model, (torch.randn(2, 5, 4),), dynamic_shapes=free, strict=False)
    for shape in ((2, 5, 4), (3, 9, 4), (7, 2, 4)):
        x = torch.randint(-2, 3, shape).float()
        assert torch.equal(program.module()(x), net(x))
    names = [str(n.target) for n in program.graph.nodes]
    assert "aten.conv2d.default" in names
    assert "aten.linear.default" not in names


def test_maps_export_with_free_sizes():
    """As free as the original's own export: a strided axis of one place is special to both."""
    net = integer(nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2)))
    model = convert_module(net, to="linear").model
    dim = torch.export.Dim
    free = ({0: dim("batch"), 2: dim("height", min=3), 3: dim("width", min=3)},)
    program = torch.export.export(model, (torch.randn(2, 3, 9, 8),), dynamic_shapes=free, strict=False)
    for shape in ((2, 3, 9, 8), (5, 3, 6, 7), (3, 3, 31, 4)):
        x = torch.randint(-2, 3, shape).float()
        assert torch.equal(program.module()(x), net(x))
    assert "aten.conv2d.default" not in [str(n.target) for n in program.graph.nodes]


class Own(nn.Module):
    """The compiler passes over the frames of torch's own containers when compiled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = integer(nn.Linear(192, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_a_network_compiled_in_place_is_compiled_again():
    net = Own().eval()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    net.compile(backend=backend)
    c = convert_module(net, to="conv")
    expected = c.model(X)
    assert "conv2d" in graphs[0]
    assert torch.equal(net(X), expected)
    assert "conv2d" not in graphs[1]


def test_a_compiled_network_is_compiled_again():
    """The compiler is given the converted network: its graph has a convolution where the original's had
    none.
    """
    net = integer(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))).eval()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    c = convert_module(torch.compile(net, backend=backend), to="conv")
    assert torch.equal(c.model(X), net(X))
    assert "conv2d" in graphs[-1]
    assert isinstance(c.model._orig_mod[1], PointwiseConvolution)
    assert isinstance(net[1], nn.Linear)


def test_traced_graph_modules_convert():
    net = network().eval()
    traced = torch.fx.symbolic_trace(net)
    code = traced.code
    c = convert_module(traced, to="linear")
    assert isinstance(c.model.get_submodule("2"), PointwiseLinear)
    assert torch.equal(c.model(X), net(X))
    c.model.graph.erase_node(next(n for n in c.model.graph.nodes if n.op == "output"))
    assert traced.code == code
    assert torch.equal(traced(X), net(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("to", ["conv", "linear"])
def test_other_dtypes_and_channels_last(dtype, to):
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Flatten(2), nn.Linear(64, 5)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randint(-1, 2, p.shape))
    x = X.clamp(-1, 1).to(dtype)  # sums stay below 3 * 64 + 1 < 2**8: exact in bfloat16 too
    assert torch.equal(convert_module(net, to=to).model(x), net(x))
    last = net.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert torch.equal(convert_module(last, to=to).model(x), last(x))


def test_cost_of_vgg16_in_storage():
    """New storage below 1 % of the weights' bytes, counted over untyped storages; here it is none at all."""
    with torch.device("meta"):
        sizes = [(25088, 4096), (4096, 4096), (4096, 1000)]
        vgg_head = nn.Sequential(*(nn.Linear(i, o) for i, o in sizes))
    vgg_head.to_empty(device="cpu")

    def storages(*models: nn.Module) -> dict[int, int]:
        return {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for m in models
            for t in m.state_dict().values()
        }

    before = storages(vgg_head)
    for level in ("layers", "native"):
        c = convert_module(vgg_head, to="conv", level=level)
        assert storages(vgg_head, c.model) == before
        assert c.copied_bytes == 0


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        for name in ("q", "k", "v", "o"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down, self.norm = nn.Linear(hidden, width, bias=False), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.o(self.q(x) + self.k(x) + self.v(x))
        return x + y + self.down(F.silu(self.gate(y)) * self.up(y))


@pytest.mark.parametrize("level", ["layers", "native"])
def test_seven_billion_parameters_on_meta(level):
    """32 blocks of the 7B shape: every layer converts, and nothing gets storage."""
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Embedding(32000, 4096), *(Block(4096, 11008) for _ in range(32)), nn.Linear(4096, 32000)
        )
    assert sum(p.numel() for p in model.parameters()) > 6.5e9
    c = convert_module(model, to="conv", level=level)
    assert len(c.changes) == 32 * 7 + 1
    assert all(p.is_meta for p in c.model.parameters())
    assert c.model(torch.empty(1, 8, dtype=torch.long, device="meta")).shape == (1, 8, 32000)
