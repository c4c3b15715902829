"""What `convert_module` refuses by name, what users register, and weights that are read or computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import PointwiseConvolution, PointwiseLinear
from onebyone.pytorch.modules.layers import register_layer
from tests.pytorch.integer_networks import integer


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


class Renamed(nn.Linear):
    """Overrides nothing that computes."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return "renamed"


class Hooked(nn.Linear):
    def _load_from_state_dict(self, *args, **kwargs):
        raise AssertionError


def patched() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x
    return layer


def refusals():
    yield "forward of its own", Twice(3, 3), "a subclass of nn.Linear with a forward of its own"
    yield "loading of its own", Hooked(3, 3), "_load_from_state_dict of its own"
    yield "patched", patched(), "its forward was replaced on the instance"
    yield "lazy", nn.LazyLinear(3), "not initialised yet"
    sparse = nn.Linear(3, 3)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    yield "sparse", sparse, "stored as torch.sparse_coo"
    float8 = nn.Linear(3, 3)
    float8.weight = nn.Parameter(float8.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    yield "float8", float8, "float8_e4m3fn: no convolution computes in it"
    wrapped = nn.Linear(3, 3)
    wrapped.weight = nn.Parameter(Sharded(wrapped.weight.detach()))
    yield "sharded", wrapped, "Sharded: a sharded, quantised or wrapped tensor"


class Sharded(torch.Tensor):
    """Stands for DTensor and the tensor subclasses of quantisation libraries."""


@pytest.mark.parametrize(("layer", "reason"), [pytest.param(m, r, id=i) for i, m, r in refusals()])
@pytest.mark.parametrize("level", ["layers", "native"])
def test_refused_by_name(layer, reason, level):
    c = convert_module(nn.Sequential(nn.Linear(3, 3), layer), to="conv", level=level)
    assert [change.path for change in c.changes] == ["0"]
    assert [r.path for r in c.refused] == ["1"]
    assert reason in c.refused[0].reason
    assert type(c.model[1]) is type(layer)
    assert reason.split(":")[0][:30] in str(c)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    c = convert_module(quantised, to="conv")
    assert c.changes == ()
    assert [r.path for r in c.refused] == ["0"]
    assert "quantised (torch.ao.nn.quantized.dynamic" in c.refused[0].reason
    x = torch.randn(2, 4)
    assert torch.equal(c.model(x), quantised(x))


@pytest.mark.parametrize("level", ["layers", "native"])
def test_quantisation_aware_layers_are_refused_for_what_they_do(level):
    """They do have a floating-point weight; what they multiply by is another, computed at each call."""
    from torch.ao.nn import qat
    from torch.ao.quantization import get_default_qat_qconfig

    config = get_default_qat_qconfig("fbgemm")
    net = nn.Sequential(qat.Conv2d(3, 4, 1, qconfig=config), nn.Flatten(), qat.Linear(36, 5, qconfig=config))
    for layer in (net[0], net[2]):
        assert layer.weight.is_floating_point()
        assert not torch.equal(layer.weight_fake_quant(layer.weight), layer.weight)
    for to, path in (("linear", "0"), ("conv", "2")):
        c = convert_module(net, to=to, level=level)
        assert c.changes == ()
        assert [r.path for r in c.refused] == [path]
        assert "its weight is fake-quantised at each call, for quantisation-aware" in c.refused[0].reason
        assert "no floating-point weight" not in c.refused[0].reason


def test_reference_layers_of_quantisation_are_refused_for_what_they_do():
    from torch.ao.nn.quantized.reference import Linear

    c = convert_module(nn.Sequential(Linear(3, 4)), to="conv")
    assert "): its weight is quantised at each call" in c.refused[0].reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused_and_go_on_working():
    net = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    c = convert_module(net, to="conv")
    assert [r.path for r in c.refused] == ["1"]
    assert "TorchScript" in c.refused[0].reason
    x = torch.randn(2, 4)
    assert c.model(x).shape == (2, 4)


def test_harmless_subclasses_convert():
    c = convert_module(nn.Sequential(integer(Renamed(3, 3))), to="conv")
    assert isinstance(c.model[0], PointwiseConvolution)
    assert "renamed" in repr(c.model)


class Transposed(nn.Module):
    """As Hugging Face's Conv1D: the weight is stored (in, out)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-2, 3, (n_in, n_out)).float())
        self.bias = nn.Parameter(torch.randint(-2, 3, (n_out,)).float())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_a_registered_layer_converts_and_an_unregistered_one_is_let_alone():
    class Own(Transposed):
        pass

    net = nn.Sequential(Own(4, 3))
    assert convert_module(net, to="conv").changes == ()
    register_layer(Own, "linear", weight=lambda m: m.weight.T)
    c = convert_module(net, to="conv")
    x = torch.randint(-2, 3, (2, 5, 4)).float()
    assert [change.kind for change in c.changes] == ["Own"]
    assert torch.equal(c.model(x), net(x))
    assert isinstance(convert_module(c.model, to="linear").model[0], Own)


def test_a_weight_that_is_computed_is_no_native_layers():
    class Doubled(Transposed):
        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight * 2) + self.bias

    register_layer(Doubled, "linear", weight=lambda m: m.weight.T * 2)
    c = convert_module(nn.Sequential(Doubled(4, 3)), to="conv", level="native")
    assert c.changes == ()
    assert "computed at each call" in c.refused[0].reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "linear"), "expected a subclass of torch.nn.Module"),
        ((nn.Linear, "pool"), "expected 'linear' or 'conv'"),
    ],
)
def test_register_layer_bad_input(arguments, message):
    with pytest.raises(BadInput, match=message):
        register_layer(*arguments)


class Reading(nn.Module):
    """Reads a layer's weight in its forward, as some attention blocks do, unless its flag says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 4), nn.Linear(4, 4)
        self.qkv_bias_separate = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.qkv(x) if self.qkv_bias_separate else F.linear(x, self.qkv.weight, self.qkv.bias)
        return self.proj(x)


class ReadingAlways(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.linear(x, self.qkv.weight, self.qkv.bias))


def test_a_layer_that_is_only_read_computes_the_same_and_is_found():
    x = torch.randint(-2, 3, (2, 3, 4)).float()
    for level in ("layers", "native"):
        net = integer(ReadingAlways())
        c = convert_module(net, to="conv", level=level)
        assert torch.equal(c.model(x), net(x))
        assert c.never_called(x) == ("qkv",)
        assert all(len(m._forward_pre_hooks) == 0 for m in c.model.modules())


def test_a_module_with_a_choice_is_told_to_call():
    net = integer(Reading())
    c = convert_module(net, to="conv")
    x = torch.randint(-2, 3, (2, 3, 4)).float()
    assert c.never_called(x) == ()
    assert torch.equal(c.model(x), net(x))
    assert not net.qkv_bias_separate
    back = convert_module(c.model, to="linear").model
    assert vars(back).keys() == vars(net).keys()
    assert not back.qkv_bias_separate
    assert not convert_module(net, to="conv", only="proj").model.qkv_bias_separate


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        weight = standardised(self)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised(module: nn.Module) -> Tensor:
    return (module.weight - module.weight.mean((1, 2, 3), keepdim=True)) * 2


@pytest.mark.parametrize("groups", [1, 2])
def test_pairs_of_computed_weights_have_a_plain_form(groups):
    """Both plain layers multiply by the weight they are given, so that any weight can be tried on them."""
    register_layer(Standardised, "conv", weight=standardised)
    layer = Standardised(4, 6, 1, stride=2, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-2, 3, layer.weight.shape) * (4 // groups))
        layer.bias.copy_(torch.randint(-2, 3, (6,)))
    c = convert_module(layer, to="linear")
    x = torch.randint(-2, 3, (2, 4, 5, 3)).float()
    original, converted = c.pairs[0].plain
    assert type(original) is nn.Conv2d
    assert type(converted) is PointwiseLinear
    assert torch.equal(c.model(x), layer(x))
    assert torch.equal(original(x), layer(x))
    assert torch.equal(converted(x), layer(x))
    fresh = torch.randint(-2, 3, layer.weight.shape).float()
    for plain in (original, converted):
        plain.weight.copy_(fresh)
        assert torch.equal(plain(x), F.conv2d(x, fresh, layer.bias, 2, groups=groups))
    assert torch.equal(c.model(x), layer(x))
    simple = convert_module(nn.Linear(2, 2), to="conv").pairs[0]
    assert simple.plain == (simple.original, simple.converted)
