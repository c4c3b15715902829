"""level="native": a shell's `weight` and `bias`, read, written, set, deleted and trained as the layer's were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import onebyone
from onebyone.pytorch.files.sources import import_torchvision
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.layers import register_layer
from tests.pytorch.integer_networks import exact, integer


class Transposed(nn.Module):
    """A linear layer that stores its weight as (inputs, outputs)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(exact(n_in, n_out)), nn.Parameter(exact(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


register_layer(Transposed, "linear", weight=lambda m: m.weight.T)

# name → (layer, form, input)
LAYERS: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "linear": (lambda: integer(nn.Linear(4, 4)), "conv", (2, 3, 4)),
    "transposed": (lambda: Transposed(4, 4), "conv", (2, 3, 4)),
    "conv1d": (lambda: integer(nn.Conv1d(4, 4, 1, stride=2)), "linear", (2, 4, 5)),
    "conv2d": (lambda: integer(nn.Conv2d(4, 4, 1)), "linear", (2, 4, 3, 5)),
    "conv3d": (lambda: integer(nn.Conv3d(4, 4, 1)), "linear", (2, 4, 3, 2, 2)),
}


def add_in_place(layer: nn.Module, other: Tensor) -> None:
    layer.weight.data += other


def copy_in_place(layer: nn.Module, other: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(other).mul_(3)


def set_data(layer: nn.Module, other: Tensor) -> None:
    layer.weight.data = other


def set_data_through_a_name(layer: nn.Module, other: Tensor) -> None:
    weight = layer.weight
    weight.data = other
    weight.data += weight  # the name sees what was set


def set_parameter(layer: nn.Module, other: Tensor) -> None:
    layer.weight = nn.Parameter(other, requires_grad=False)


def delete_and_set(layer: nn.Module, other: Tensor) -> None:
    weight = layer.weight.detach()
    del layer.weight
    assert not hasattr(layer, "weight")
    layer.weight = weight + other  # a plain tensor, where a parameter was


def delete_and_register(layer: nn.Module, other: Tensor) -> None:
    delete_and_set(layer, other)
    merged = layer.weight
    del layer.weight
    layer.register_parameter("weight", nn.Parameter(merged.data - other * 2, requires_grad=False))


def new_bias(layer: nn.Module, other: Tensor) -> None:
    layer.bias = nn.Parameter(other.flatten()[:4].clone())
    layer.bias.data += 1


def no_bias(layer: nn.Module, other: Tensor) -> None:
    if isinstance(layer, Transposed):
        layer.bias.data = torch.zeros(4)
    else:
        layer.bias = None


WRITES = [
    *(add_in_place, copy_in_place, set_data, set_data_through_a_name, set_parameter),
    *(delete_and_set, delete_and_register, new_bias, no_bias),
]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_what_is_written_reaches_the_real_layer(name, write):
    """Against the same done to the layer itself."""
    make, to, shape = LAYERS[name]
    layer = make()
    shell = convert_module(layer, to=to, level="native", copy=True).model
    if write is no_bias and isinstance(layer, Transposed):
        shell.bias.data = torch.zeros(4)
        layer.bias.data = torch.zeros(4)
    else:
        other = exact(*layer.weight.shape)
        write(shell, other.clone())
        write(layer, other.clone())
    x = exact(*shape)
    assert torch.equal(shell.weight, layer.weight)
    assert torch.equal(shell(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_real_parameters(name):
    make, to, shape = LAYERS[name]
    layer = make()
    shell = convert_module(layer, to=to, level="native", copy=True).model
    x = exact(*shape)
    for module in (shell, layer):
        assert module.weight.requires_grad
        assert module.weight.grad is None
        (module(x).square().sum() + module.weight.pow(3).sum()).backward()  # called, and read
    assert torch.equal(shell.weight.grad, layer.weight.grad)
    assert [p.grad is not None for p in shell.parameters()] == [True, True]
    shell.weight.grad.zero_()
    assert all(not p.grad.any() for n, p in shell.named_parameters() if n.endswith("weight"))
    shell.weight.grad = None
    assert shell.weight.grad is None
    shell.weight.requires_grad_(False)
    assert [p.requires_grad for n, p in shell.named_parameters() if n.endswith("weight")] == [False]
    shell.weight.requires_grad = True
    assert shell.weight.requires_grad
    assert type(shell.weight * 1) is Tensor


@pytest.mark.parametrize("name", LAYERS)
def test_a_plain_tensor_instead_of_a_parameter_is_refused_as_the_layer_refuses_it(name):
    shell = convert_module(LAYERS[name][0](), to=LAYERS[name][1], level="native").model
    with pytest.raises(TypeError, match="cannot assign"):
        shell.weight = torch.zeros(4, 4)
    shell.weight = shell.weight  # its own parameter is one
    assert len(list(shell.parameters())) == 2


class LoraLinear(nn.Module):
    """A wrapper in PEFT's manner: merges into `base_layer.weight.data`, and takes it out again."""

    def __init__(self, base: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.base_layer, self.merged = base, False
        self.lora_A, self.lora_B = nn.Linear(4, rank, bias=False), nn.Linear(rank, 4, bias=False)
        integer(self.lora_A), integer(self.lora_B)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def delta(self) -> Tensor:
        return self.lora_B.weight @ self.lora_A.weight

    def merge(self, sign: int = 1) -> None:
        self.base_layer.weight.data += sign * self.delta()
        self.merged = sign == 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        return out if self.merged else out + self.lora_B(self.lora_A(x))


class LoraAttention(nn.Module):
    """`nn.MultiheadAttention` in PEFT's manner: at each call the merged weights are set in place of the parameters,
    and the parameters registered again after."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = integer(nn.MultiheadAttention(4, 2, batch_first=True))
        self.base_layer.out_proj = LoraLinear(self.base_layer.out_proj)
        self.lora_A, self.lora_B = integer(nn.Linear(4, 2, bias=False)), integer(nn.Linear(2, 12, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        attention, out = self.base_layer, self.base_layer.out_proj
        places = [(attention, "in_proj_weight", self.lora_B.weight @ self.lora_A.weight)]
        places.append((out.base_layer, "weight", out.delta()))
        for module, name, delta in places:
            merged = getattr(module, name).data.detach() + delta
            delattr(module, name)
            setattr(module, name, merged)
        result, _ = attention(x, x, x)
        for module, name, delta in places:
            weight = getattr(module, name).data - delta.data
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        return result


@pytest.mark.parametrize("level", ["layers", "native"])
def test_lora_on_attention(level):
    """Forward, and the gradients of the low-rank factors, which flow through the merged weights, twice over."""
    net = nn.Sequential(LoraAttention()).double()
    c = convert_module(net, to="conv", level=level, copy=True)
    assert {change.path.removeprefix("0.") for change in c.changes} == {
        *("base_layer", "base_layer.out_proj.base_layer"),
        *("base_layer.out_proj.lora_A", "base_layer.out_proj.lora_B", "lora_A", "lora_B"),
    }
    assert c.refused == ()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for _ in range(2):
        right, found = net(x), c.model(x)
        # sums of at most 4 terms, four deep, of numbers below 100: 2⁻⁵³ each time
        assert (found - right).abs().max() <= 1e-12 * right.abs().max()
        for model, out in ((net, right), (c.model, found)):
            model.zero_grad()
            out.square().sum().backward()
        for a, b in ((net[0].lora_B, c.model[0].lora_B), (net[0].lora_A, c.model[0].lora_A)):
            assert a.weight.grad.any()
            assert (a.weight.grad - b.weight.grad).abs().max() <= 1e-11 * a.weight.grad.abs().max()


@pytest.mark.parametrize("level", ["layers", "native"])
def test_lora_merged_and_taken_out_again(level):
    net = nn.Sequential(LoraLinear(integer(nn.Linear(4, 4))))
    c = convert_module(net, to="conv", level=level, copy=True)
    x = exact(3, 4)
    for sign in (1, -1):
        net[0].merge(sign)
        c.model[0].merge(sign)
        assert torch.equal(c.model(x), net(x))
        assert torch.equal(c.model[0].weight, net[0].weight)


@pytest.mark.parametrize("level", ["layers", "native"])
def test_a_wrapper_in_the_place_of_the_output_projection_is_read_as_the_original_reads_it(level):
    """`nn.MultiheadAttention` never calls what stands as `out_proj`: what a wrapper adds there has no effect."""
    net = integer(nn.MultiheadAttention(4, 2, batch_first=True)).double()
    net.out_proj = LoraLinear(net.out_proj).double()
    c = convert_module(net, to="conv", level=level)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    right = net(x, x, x)[0]
    assert (c.model(x, x, x)[0] - right).abs().max() <= 1e-12 * right.abs().max()


class LoralibLinear(nn.Linear):
    """As loralib's Linear: a subclass whose `train` merges into its own weight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.lora_A, self.lora_B = nn.Parameter(exact(2, n_in)), nn.Parameter(exact(n_out, 2))
        self.merged = False
        integer(self)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.lora_B.data @ self.lora_A.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.lora_A.T @ self.lora_B.T


@pytest.mark.parametrize("level", ["layers", "native"])
def test_loralib_layers_are_refused_by_name_and_go_on(level):
    net = nn.Sequential(LoralibLinear(4, 4), integer(nn.Linear(4, 4)))
    c = convert_module(net, to="conv", level=level, copy=True)
    assert [change.path for change in c.changes] == ["1"]
    assert "a subclass of nn.Linear with a forward" in c.refused[0].reason
    x = exact(3, 4)
    for mode in (False, True, False):
        assert torch.equal(c.model.train(mode)(x), net.train(mode)(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm],
    ids=lambda f: f.__module__,
)
def test_hooks_that_delete_and_set_the_weight_are_refused_and_go_on(wrap):
    net = nn.Sequential(wrap(nn.Linear(4, 4)), nn.Linear(4, 4)).eval()
    c = convert_module(net, to="conv", level="native")
    assert [r.path for r in c.refused] == ["0"]
    assert [change.path for change in c.changes] == ["1"]
    x = torch.randn(3, 4)
    assert (c.model(x) - net(x)).abs().max() < 1e-5


@pytest.mark.parametrize("copied", [False, True])
def test_a_transposed_layer_is_copied_once_and_reported(copied):
    net = nn.Sequential(Transposed(4, 6), nn.ReLU(), Transposed(6, 6))
    net[2].bias.grad = exact(6)
    for to, kind in (("conv", nn.Conv2d), ("linear", nn.Linear)):
        c = convert_module(net, to=to, level="native", copy=copied)
        assert [(change.path, change.copied_bytes) for change in c.changes] == [("0", 96), ("2", 144)]
        layers = [m for m in c.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert [type(layer) for layer in layers] == [kind, kind]
        assert all(layer.weight.is_contiguous() for layer in layers)
        x = exact(3, 5, 4)
        assert torch.equal(c.model(x), net(x))
        assert onebyone.verify(net, c, x).equivalent
        # state dicts, both ways, square matrices too
        other = nn.Sequential(Transposed(4, 6), nn.ReLU(), Transposed(6, 6))
        fresh = convert_module(copy.deepcopy(net), to=to, level="native", copy=True).model
        fresh.load_state_dict(c.state_dict_from_original(other.state_dict()))
        assert torch.equal(fresh(x), other(x))
        other.load_state_dict(c.state_dict_to_original())
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), net.parameters(), strict=True))


def test_a_transposed_layer_is_linear_already_at_the_level_of_layers():
    c = convert_module(nn.Sequential(Transposed(4, 6)), to="linear")
    assert c.changes == ()
    assert c.refused[0].reason == (
        'it is a linear layer already, on a weight stored as (inputs, outputs); level="native" makes an nn.Linear of it'
    )


def test_a_fault_in_a_transposed_copy_is_caught():
    net = nn.Sequential(Transposed(5, 5))
    for to in ("conv", "linear"):
        c = convert_module(net, to=to, level="native", copy=True)
        layer = next(m for m in c.model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        layer.weight.data = layer.weight.data.transpose(0, 1).contiguous()
        assert not onebyone.verify(net, c, exact(3, 5)).equivalent


@pytest.mark.parametrize("to", ["conv", "linear"])
def test_an_optimizer_goes_on_with_a_transposed_layer(to):
    """Against the original, trained on by an optimizer of its own."""
    torch.manual_seed(
        0
    )  # Adam divides by √v: where a gradient is next to nothing, it makes much of its rounding

    def trained(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            net(X).square().sum().backward()
            optimizer.step()

    X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    net = nn.Sequential(Transposed(4, 4)).double()
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    trained(net, optimizer, 3)
    twin = copy.deepcopy(net)
    other = torch.optim.Adam(twin.parameters(), 0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    c = convert_module(net, to=to, level="native", copy=True, optimizer=optimizer)
    trained(c.model, optimizer, 3)
    trained(twin, other, 3)
    back = c.state_dict_to_original()
    assert all((back[k] - v).abs().max() < 1e-12 for k, v in twin.state_dict().items())


@pytest.mark.slow
def test_gpt2():
    transformers = pytest.importorskip("transformers")
    import_torchvision()  # transformers imports it, wherever its compiled part belongs
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "n_positions": 7}
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    names = {f"transformer.h.0.{n}" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    with torch.no_grad():
        right = net(ids).logits
        for to in ("conv", "linear"):
            c = convert_module(net, to=to, level="native")
            assert {change.path for change in c.changes} == names
            # the head is tied to the embedding; as a linear layer it stays what it is
            assert [r.path for r in c.refused] == (["lm_head"] if to == "conv" else [])
            assert (c.model(ids).logits - right).abs().max() <= 1e-5 * right.abs().max()
            assert onebyone.verify(net, c, {"input_ids": ids}).equivalent
            assert net.load_state_dict(c.state_dict_to_original()).missing_keys == []
        assert torch.equal(net(ids).logits, right)
