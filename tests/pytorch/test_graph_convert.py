"""Programs converted at graph level compute the same function, layer by layer and as a whole."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from onebyone.errors import BadInput
from onebyone.laws.bounds import dot_bound, unit_roundoff
from onebyone.pytorch.graph import GraphConversion, convert_graph, layout_operators
from tests.pytorch.graph_networks import SPELLINGS, Spelled, Tied, blocks, mlp

BLOCKS = blocks()


def export(model: nn.Module, args: tuple[Any, ...], **options: Any) -> ExportedProgram:
    return torch.export.export(model.eval(), args, strict=False, **options)


def run(program: ExportedProgram, args: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return tree_leaves(program.module()(*args))


def wide(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if a.is_floating_point() else a for a in args)


def assert_same_function(model: nn.Module, args: tuple[Tensor, ...], after: ExportedProgram) -> None:
    """`after` is a conversion of `model` in float64. Its error is at most the error that the original makes in float32,
    scaled by the ratio of the two unit roundoffs, and by 16 for sums in another order.
    """
    with torch.no_grad():
        exact = tree_leaves(copy.deepcopy(model).eval().double()(*wide(args)))
        rounded = tree_leaves(copy.deepcopy(model).eval().float()(*args))
    ratio = unit_roundoff("float64") / unit_roundoff("float32")
    for right, narrow, got in zip(exact, rounded, run(after, wide(args)), strict=True):
        assert got.shape == right.shape
        float32_error = float((narrow.double() - right).abs().max()) + unit_roundoff("float32") * float(
            right.abs().max()
        )
        assert float((got - right).abs().max()) <= 16 * ratio * float32_error


def products_left(program: ExportedProgram, to: str) -> int:
    names = {"conv": ("linear", "addmm", "mm", "mv", "baddbmm"), "linear": ("conv1d", "conv2d", "conv3d")}[to]
    count = 0
    for node in program.graph.nodes:
        name = getattr(getattr(node.target, "_overloadpacket", None), "__name__", "")
        weight = node.args[1].meta["val"].shape if name in names else ()
        count += name in names and (to == "conv" or all(s == 1 for s in weight[2:]))
    return count


@cache
def converted(name: str, to: str) -> GraphConversion:
    """The conversion of a block in float64, made once for all tests; they do not change it."""
    model, args = BLOCKS[name]
    return convert_graph(copy.deepcopy(model).double(), to=to, example=wide(args))


@pytest.mark.parametrize("to", ["conv", "linear"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_convert_and_compute_the_same(name: str, to: str) -> None:
    (model, args), c = BLOCKS[name], converted(name, to)
    assert not c.refused
    assert products_left(c.model, to) == 0
    assert_same_function(model, args, c.model)
    assert c.layout_after.total() <= c.layout_before.total()


@pytest.mark.parametrize("name", BLOCKS)
def test_there_and_back(name: str) -> None:
    (model, args), there = BLOCKS[name], converted(name, "conv")
    back = convert_graph(there.model, to="linear")
    assert products_left(back.model, "linear") == 0
    assert_same_function(model, args, back.model)
    assert back.layout_after.total() <= there.layout_before.total()


@pytest.mark.parametrize("how", SPELLINGS)
def test_every_spelling_of_a_product_becomes_a_convolution(how: str) -> None:
    torch.manual_seed(0)
    model, x = Spelled(how), torch.randn(2, 3, 4)
    c = convert_graph(copy.deepcopy(model).double(), to="conv", example=x.double())
    assert len(c.changes) == 1
    assert not c.refused
    assert products_left(c.model, "conv") == 0
    assert_same_function(model, (x,), c.model)
    assert c.layout_after.total() <= c.layout_before.total()


def test_integers_come_out_bit_for_bit() -> None:
    """With small integers every sum is exact, so the result does not depend on the order of summation."""
    torch.manual_seed(1)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 6), nn.Conv2d(5, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.b(F.relu(self.a(x)))
            return self.c(y.reshape(2, 5, 2, 3).transpose(2, 3))

    model, x = Exact(), torch.randint(-3, 4, (2, 5, 6)).double()
    for p in model.parameters():
        p.data = torch.randint(-3, 4, p.shape).float()
    program = export(model.double(), (x,))
    for to in ("conv", "linear"):
        c = convert_graph(program, to=to)
        assert torch.equal(run(c.model, (x,))[0], run(program, (x,))[0])


@pytest.mark.parametrize("name", ["encoder", "ConvNeXt, convolutions", "squeeze, linear", "bottleneck"])
def test_each_product_stays_within_its_bound(name: str) -> None:
    """On the layer's own input, |Δ| ≤ 2γ(|W||x| + |b|); with a flipped weight the error is far larger."""
    to = "linear" if name in ("ConvNeXt, convolutions", "bottleneck") else "conv"
    c = converted(name, to)
    assert len(c.pairs) == len(c.changes)
    for pair in c.pairs:
        weight = pair.original.get_parameter("weight")
        shape = (
            (2, weight.shape[1] * getattr(pair.original, "groups", 1), 3, 5)
            if to == "linear"
            else (4, weight.shape[1])
        )
        x = torch.randn(shape, dtype=torch.float64)
        absolute = copy.deepcopy(pair.original)
        for p in absolute.parameters():
            p.data = p.abs()
        bound = dot_bound(weight.shape[1], absolute(x.abs()), unit_roundoff("float64"))
        right = pair.original(x)
        assert bool(((pair.converted(x) - right).abs() <= bound).all())
        faulty = copy.deepcopy(pair.converted)
        faulty.weight.data = faulty.weight.data.flip(1)
        assert weight.shape[1] == 1 or bool(((faulty(x) - right).abs() > bound).any())


def test_a_transposed_weight_is_seen() -> None:
    """`assert_same_function` fails for a converted program with a wrong weight."""
    torch.manual_seed(2)
    model, args = mlp(12, 12), (torch.randn(2, 5, 12),)
    c = convert_graph(copy.deepcopy(model).double(), to="conv", example=wide(args))
    assert_same_function(model, args, c.model)
    c.model.state_dict["0.weight"].data = c.model.state_dict["0.weight"].data.transpose(0, 1).contiguous()
    with pytest.raises(AssertionError):
        assert_same_function(model, args, c.model)


@pytest.mark.parametrize(
    "name", ["mlp", "encoder", "transformer", "ConvNeXt, linear", "bottleneck", "MultiheadAttention"]
)
@pytest.mark.parametrize("to", ["conv", "linear"])
def test_a_dynamic_batch_stays_dynamic(name: str, to: str) -> None:
    model, args = BLOCKS[name]
    axis = 1 if name == "MultiheadAttention" else 0
    batch = Dim("batch", min=2, max=64)
    program = export(copy.deepcopy(model), args, dynamic_shapes=tuple({axis: batch} for _ in args))
    c = convert_graph(program, to=to)
    grown = tuple(torch.cat([a, a[:, :1] if axis else a[:1]], axis) for a in args)
    for got, right in zip(run(c.model, grown), run(program, grown), strict=True):
        assert got.shape == right.shape
        torch.testing.assert_close(got, right)
    assert [str(v) for v in c.model.range_constraints.values()] == [
        str(v) for v in program.range_constraints.values()
    ]
    assert c.layout_after.total() <= c.layout_before.total()


def test_the_mlps_of_a_transformer_and_of_convnext_need_no_more_layout_operators() -> None:
    tokens = convert_graph(mlp(12, 20), to="conv", example=torch.randn(2, 5, 12))
    assert (tokens.layout_before.total(), tokens.layout_after.total()) == (0, 0)
    image = convert_graph(BLOCKS["ConvNeXt, linear"][0], to="conv", example=BLOCKS["ConvNeXt, linear"][1])
    assert (image.layout_before.total(), image.layout_after.total()) == (2, 0)
    back = convert_graph(
        BLOCKS["ConvNeXt, convolutions"][0], to="linear", example=BLOCKS["ConvNeXt, convolutions"][1]
    )
    assert back.layout_after.total() <= back.layout_before.total() == 2


def test_a_transformer_runs_as_images() -> None:
    """No convolution of the result has the tokens in its batch axis, and the transpose of the patches is removed."""
    model, args = BLOCKS["transformer"]
    c = convert_graph(model, to="conv", example=args)
    pointwise = [n for n in c.model.graph.nodes if "conv2d" in str(n.target)][1:]
    assert all(n.args[0].meta["val"].shape[0] == 2 for n in pointwise)
    assert c.layout_after.total() <= c.layout_before.total()


def test_layout_operators_are_counted_by_their_definition() -> None:
    class Layouts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.permute(0, 2, 1)  # counts
            x = x.reshape(2, 12)  # moves data: counts
            x = x.view(2, 3, 4).flatten(1).unflatten(1, (4, 3))  # move nothing
            x = x.transpose(1, 2).contiguous().contiguous()  # transpose and the first contiguous count
            return x.unsqueeze(1).squeeze(1)[:, :2].clone()  # clone counts

    counts = layout_operators(export(Layouts(), (torch.randn(2, 3, 4),)))
    assert dict(counts) == {"permute": 1, "reshape": 1, "transpose": 1, "contiguous": 1, "clone": 1}


def test_tied_weights_stay_one_tensor() -> None:
    model = Tied()
    c = convert_graph(model, to="conv", example=torch.randint(0, 9, (2, 5)))
    state = c.model.state_dict
    assert state["embed.weight"] is state["head.weight"]
    assert state["head.weight"].shape == (9, 6, 1, 1)
    assert state["head.weight"].data_ptr() == model.head.weight.data_ptr()


def test_the_input_is_left_as_it_was() -> None:
    model, args = BLOCKS["bottleneck"]
    program = export(copy.deepcopy(model), args)
    code, state = program.graph_module.code, {k: v.clone() for k, v in program.state_dict.items()}
    convert_graph(program, to="linear")
    assert program.graph_module.code == code
    assert all(torch.equal(v, state[k]) for k, v in program.state_dict.items())
    model.train()
    convert_graph(model, to="linear", example=args)
    assert all(m.training for m in model.modules())
    model.eval()


def test_storage_is_shared_and_state_dicts_map_both_ways() -> None:
    model, args = BLOCKS["transformer"]
    c = convert_graph(model, to="conv", example=args)
    assert {k: tuple(v.shape) for k, v in c.state_dict_to_original().items()} == {
        k: tuple(v.shape) for k, v in model.state_dict().items()
    }
    for name, value in c.state_dict_to_original(c.state_dict_from_original(model.state_dict())).items():
        assert torch.equal(value, model.state_dict()[name])
    linear = {f"{p}.weight" for p, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name in linear:
        assert c.model.state_dict[name].data_ptr() == model.state_dict()[name].data_ptr()
        assert c.model.state_dict[name].dim() == 4
    moved = {k for k, s in c.weights.shapes.items() if s.copied}
    assert moved == {
        "positions"
    }  # the class token and the norms are views; positions change their axes' order
    fresh, other = copy.deepcopy(model), copy.deepcopy(model)
    for p in fresh.parameters():
        p.data = torch.randn_like(p)
    module = c.model.module()
    module.load_state_dict(c.state_dict_from_original(fresh.state_dict()))
    other.load_state_dict(c.state_dict_to_original(module.state_dict()))
    for p, q in zip(other.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q)


def test_only_chooses_by_path() -> None:
    model, args = BLOCKS["encoder"]
    c = convert_graph(model, to="conv", example=args, only="mlp.*")
    assert [x.path for x in c.changes] == ["mlp.0", "mlp.3"]
    assert products_left(c.model, "conv") == 2
    assert (
        convert_graph(model, to="conv", example=args, only=lambda path, _: path.endswith("qkv"))
        .changes[0]
        .path
        == "attn.qkv"
    )
    with pytest.raises(BadInput, match=r"only='nothing' selects no product"):
        convert_graph(model, to="conv", example=args, only="nothing")


def test_a_program_with_nothing_to_convert_is_returned() -> None:
    model, args = BLOCKS["mixer"]
    program = export(model, args)
    c: GraphConversion = convert_graph(program, to="linear")
    assert c.model is program
    assert not c.changes


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 1, stride=2), (2, 4, 7)),
        (nn.Conv2d(4, 6, 1, groups=2, bias=False), (2, 4, 3, 5)),
        (nn.Conv2d(4, 6, 1, stride=(2, 3)), (4, 5, 7)),  # without a batch
        (nn.Conv2d(4, 6, 1, stride=3), (2, 4, 3, 7)),  # leaves a single row
        (nn.Conv3d(4, 6, 1, stride=(2, 1, 2), groups=2), (2, 4, 2, 3, 5)),
        (nn.Conv2d(4, 1, 1), (2, 4, 3, 5)),
        (nn.Conv2d(1, 4, 1), (2, 1, 3, 5)),
    ],
)
def test_strided_and_grouped_convolutions_become_linear(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    x = torch.randn(shape)
    c = convert_graph(copy.deepcopy(layer).double(), to="linear", example=x.double())
    assert len(c.changes) == 1
    assert products_left(c.model, "linear") == 0
    assert_same_function(layer, (x,), c.model)
    assert c.layout_after.total() == 0


class Reduced(nn.Module):
    """A linear layer, and a reduction of its result."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fc, self.how = nn.Linear(4, 6), how

    def forward(self, x: Tensor) -> Tensor:
        return REDUCTIONS[self.how](self.fc(x))


REDUCTIONS: dict[str, Any] = {
    "logsumexp over one axis": lambda y: y.logsumexp(2),
    "logsumexp over two axes": lambda y: y.logsumexp((1, 2)),
    "mean over two axes": lambda y: y.mean((0, 2), keepdim=True),
    "norm over two axes": lambda y: torch.linalg.vector_norm(y, dim=(1, 2)),
    "deviation of all": lambda y: torch.ops.aten.std.default(y, False),
    "rolled": lambda y: y.roll((1, 2), (2, 1)),
}


@pytest.mark.parametrize("how", REDUCTIONS)
def test_operators_along_several_axes_keep_all_of_them(how: str) -> None:
    """The result of the converted layer is stored with its channels second: every axis has another position."""
    torch.manual_seed(6)
    model, x = Reduced(how), torch.randn(2, 3, 4)
    c = convert_graph(copy.deepcopy(model).double(), to="conv", example=x.double())
    assert len(c.changes) == 1
    assert_same_function(model, (x,), c.model)
