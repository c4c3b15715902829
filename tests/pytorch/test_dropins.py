"""The drop-in layers against the layers that they replace: values, memory layouts, dtypes, transforms."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.errors import BadInput
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import (
    DropIn,
    PointwiseConvolution,
    PointwiseLinear,
    pointwise_convolution,
    pointwise_linear,
)

COPIES = {
    torch.ops.aten.clone.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten._unsafe_view.default,
}


class Ops(TorchDispatchMode):
    """Records every operator that runs."""

    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))

    @property
    def copies(self):
        return [f for f in self.seen if f in COPIES]


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small integers: every sum below is exact in every dtype, so results must be equal bit for bit."""
    if dtype.is_complex:
        return torch.complex(torch.randint(-2, 3, shape) * 1.0, torch.randint(-2, 3, shape) * 1.0).to(dtype)
    return torch.randint(-2, 3, shape).to(dtype)


SHAPES = [
    (5,),
    (4, 5),
    (2, 3, 5),
    (2, 3, 4, 5),
    (2, 3, 2, 2, 5),
    (1, 1, 5),
    (0, 5),
    (2, 0, 5),
    (1, 5),
    (2, 3, 0, 4, 5),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_as_convolution_at_every_rank(shape, bias):
    torch.manual_seed(0)
    x, w, b = integers(*shape), integers(3, 5), integers(3) if bias else None
    y = pointwise_convolution(x, w, b)
    assert torch.equal(y, F.linear(x, w, b))
    assert y.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 5])
def test_linear_as_convolution_in_every_dtype(dtype, channels):
    torch.manual_seed(1)
    x, w, b = (
        integers(2, 3, channels, dtype=dtype),
        integers(4, channels, dtype=dtype),
        integers(4, dtype=dtype),
    )
    y = pointwise_convolution(x, w, b)
    assert y.dtype == dtype
    assert torch.equal(y, F.linear(x, w, b))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_linear_as_convolution_of_transposed_and_sliced_input(order):
    torch.manual_seed(2)
    x = integers(4, 4, 4).permute(order)
    w = integers(3, 4)
    assert torch.equal(pointwise_convolution(x, w), F.linear(x, w))
    part = integers(4, 9, 8)[:, ::2, ::2]
    y = pointwise_convolution(part, w)
    assert torch.equal(y, F.linear(part, w))
    assert y.is_contiguous()


@pytest.mark.parametrize("shape", [(7, 16), (2, 9, 16), (2, 4, 5, 16), (1, 9, 16)], ids=str)
def test_token_tensors_are_read_and_written_in_place(shape):
    """No operator that copies runs, and the convolution itself is given the tokens' own memory as channels
    last.
    """
    x, w, b = torch.randn(shape), torch.randn(8, 16), torch.randn(8)
    with torch.no_grad(), Ops() as ops:
        y = pointwise_convolution(x, w, b)
    assert torch.ops.aten.convolution.default in ops.seen
    assert ops.copies == []
    assert y.is_contiguous()


class ConvolutionArguments(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.args, self.out = args, out
        return out


def test_the_convolution_gets_the_very_memory():
    x, w = torch.randn(2, 9, 16), torch.randn(8, 16)
    with torch.no_grad(), ConvolutionArguments() as seen:
        y = pointwise_convolution(x, w)
    image, kernel = seen.args[:2]
    assert image.data_ptr() == x.data_ptr()
    assert kernel.data_ptr() == w.data_ptr()
    assert seen.out.data_ptr() == y.data_ptr()
    assert image.shape == (2, 16, 9, 1)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert seen.out.is_contiguous(memory_format=torch.channels_last)


CONVS = [
    pytest.param(dims, stride, groups, id=f"{dims}d-s{stride}-g{groups}")
    for dims in (1, 2, 3)
    for stride in (1, 2, 3)
    for groups in (1, 2, 6)
]


def pointwise_layer(dims: int, stride: int, groups: int, bias: bool = True, **more) -> nn.Module:
    cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    conv = cls(6, 12, 1, stride=stride, groups=groups, bias=bias, **more)
    for p in conv.parameters():
        p.data = integers(*p.shape, dtype=p.dtype)
    return conv


@pytest.mark.parametrize(("dims", "stride", "groups"), CONVS)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("grad", [False, True], ids=["nograd", "grad"])
def test_convolution_as_linear(dims, stride, groups, last, grad):
    torch.manual_seed(3)
    conv = pointwise_layer(dims, stride, groups)
    size = (5, 4, 3)[:dims]
    x = integers(2, *size, 6).movedim(-1, 1) if last else integers(2, 6, *size)
    drop_in = convert_module(conv, to="linear").model
    with torch.set_grad_enabled(grad):
        expected, y = conv(x), drop_in(x)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last) if last and dims == 2 else y.is_contiguous()
    assert torch.equal(drop_in(x[0]), conv(x[0]))


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_as_linear_for_any_batch(n, groups):
    conv = pointwise_layer(2, 1, groups)
    x = integers(n, 6, 3, 4)
    drop_in = convert_module(conv, to="linear").model
    with torch.no_grad():
        assert torch.equal(drop_in(x), conv(x))
    assert drop_in(x).shape == (n, 12, 3, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_convolution_as_linear_in_every_dtype(dtype, groups):
    conv = pointwise_layer(2, 2, groups, dtype=dtype)
    x = integers(2, 6, 5, 4, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(convert_module(conv, to="linear").model(x), conv(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padded_pointwise_convolution(mode):
    """Zeros around a map answer with the bias; the other modes repeat places."""
    conv = pointwise_layer(2, 2, 1, padding=(1, 2), padding_mode=mode)
    x = integers(2, 6, 5, 4)
    y = convert_module(conv, to="linear").model(x)
    assert torch.equal(y, conv(x))
    if mode == "zeros":
        assert torch.equal(y[0, :, 0, 0], conv.bias)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding_is_none_for_a_pointwise_kernel(padding):
    conv = pointwise_layer(2, 1, 1, padding=padding, dilation=3)
    x = integers(2, 6, 5, 4)
    assert torch.equal(convert_module(conv, to="linear").model(x), conv(x))


def test_maps_are_never_transposed():
    """Channels first: the product is taken from the left; channels last: a linear layer reads the map as
    it lies.
    """
    conv = nn.Conv2d(6, 8, 1)
    drop_in = convert_module(conv, to="linear").model
    x = torch.randn(2, 6, 5, 4)
    with torch.no_grad(), Ops() as ops:
        drop_in(x)
    assert ops.copies == []
    assert torch.ops.aten.convolution.default not in ops.seen
    with torch.no_grad(), Ops() as ops:
        drop_in(x.to(memory_format=torch.channels_last))
    assert [f for f in ops.copies if f is not torch.ops.aten._unsafe_view.default][1:] == []  # the .to above
    assert torch.ops.aten.convolution.default not in ops.seen


def test_groups_are_never_a_dense_matrix():
    """The largest tensor met has the elements of the map, far fewer than the (O, C) block-diagonal matrix."""
    conv = nn.Conv2d(64, 64, 1, groups=64)
    drop_in = convert_module(conv, to="linear").model
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    with torch.no_grad(), Sizes():
        drop_in(torch.randn(1, 64, 2, 2))
    assert max(sizes) == 64 * 4 < 64 * 64


@pytest.mark.parametrize(
    ("layer", "to", "shape"),
    [
        (lambda **k: nn.Linear(5, 7, **k), "conv", (3, 4, 5)),
        (lambda **k: nn.Conv2d(6, 4, 1, stride=2, **k), "linear", (2, 6, 5, 4)),
        (lambda **k: nn.Conv2d(6, 4, 1, groups=2, **k), "linear", (2, 6, 5, 4)),
        (lambda **k: nn.Conv1d(6, 4, 1, **k), "linear", (2, 6, 5)),
    ],
)
def test_gradients_of_input_and_parameters(layer, to, shape):
    """gradcheck, and agreement with the original's gradients on integers, bit for bit."""
    torch.manual_seed(4)
    original = layer(dtype=torch.float64)
    for p in original.parameters():
        p.data = integers(*p.shape, dtype=torch.float64)
    converted = convert_module(original, to=to, copy=True).model
    x = integers(*shape, dtype=torch.float64).requires_grad_()
    z = x.detach().clone().requires_grad_()
    cotangent = integers(*original(x).shape, dtype=torch.float64)
    original(x).backward(cotangent)
    converted(z).backward(cotangent)
    assert torch.equal(x.grad, z.grad)
    for a, b in zip(original.parameters(), converted.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert torch.autograd.gradcheck(converted, (torch.randn(shape, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_meta_vmap_autocast(to):
    layer = nn.Linear(6, 4) if to == "conv" else nn.Conv2d(6, 4, 1, stride=2)
    shape = (2, 3, 6) if to == "conv" else (2, 6, 5, 4)
    drop_in = convert_module(layer, to=to).model
    on_meta = convert_module(copy.deepcopy(layer).to("meta"), to=to).model
    assert on_meta(torch.empty(shape, device="meta")).shape == layer(torch.empty(shape)).shape
    for p in drop_in.parameters():
        p.data = integers(*p.shape)
    x = integers(3, *shape)
    assert torch.equal(torch.vmap(drop_in)(x), torch.stack([drop_in(v) for v in x]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert drop_in(x[0]).dtype == layer(x[0]).dtype == torch.bfloat16


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_deepcopy_pickle_and_repr(to, tmp_path):
    layer = nn.Linear(6, 4) if to == "conv" else nn.Conv2d(6, 4, 1)
    x = torch.randn(2, 3, 6) if to == "conv" else torch.randn(2, 6, 5, 4)
    drop_in = convert_module(layer, to=to).model
    twin = copy.deepcopy(drop_in)
    assert twin.weight is not drop_in.weight
    assert torch.equal(twin(x), drop_in(x))
    torch.save(drop_in, tmp_path / "whole.pt")
    assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(x), drop_in(x))
    assert type(layer).__name__ in repr(drop_in)


def test_drop_ins_are_no_instances_of_what_they_stand_for_but_read_alike():
    linear, conv = nn.Linear(6, 4), nn.Conv2d(6, 4, 1, stride=2)
    a = convert_module(linear, to="conv").model
    b = convert_module(conv, to="linear").model
    assert isinstance(a, PointwiseConvolution)
    assert not isinstance(a, nn.Linear)
    assert isinstance(b, PointwiseLinear)
    assert not isinstance(b, nn.Conv2d)
    assert isinstance(a, DropIn)
    assert isinstance(b, DropIn)
    assert a.weight is linear.weight
    assert a.bias is linear.bias
    assert (a.in_features, a.out_features) == (6, 4)
    assert (b.in_channels, b.out_channels, b.stride, b.kernel_size) == (6, 4, (2, 2), (1, 1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_ragged_batches(layout):
    parts, w, b = [integers(3, 5), integers(1, 5)], integers(2, 5), integers(2)
    x = torch.nested.nested_tensor(parts, layout=layout)
    with Ops() as ops:
        y = pointwise_convolution(x, w, b)
    assert torch.ops.aten.convolution.default in ops.seen
    for got, part in zip(y.unbind(), parts, strict=True):
        assert torch.equal(got, F.linear(part, w, b))
    assert torch.equal((y + y).unbind()[0], 2 * y.unbind()[0])


def test_wrong_input_is_named():
    drop_in = convert_module(nn.Conv2d(3, 2, 1), to="linear").model
    with pytest.raises(BadInput, match=r"shape \(5,\); expected 4 axes"):
        drop_in(torch.zeros(5))
    with pytest.raises(RuntimeError, match=r"channels|shape|size"):
        convert_module(nn.Linear(3, 2), to="conv").model(torch.zeros(4, 5))


def test_function_forms_of_strides():
    x, w = integers(1, 3, 7, 5), integers(2, 3, 1, 1)
    for stride in itertools.product((1, 2, 3), repeat=2):
        assert torch.equal(pointwise_linear(x, w, stride=stride), F.conv2d(x, w, stride=stride))
