"""`convert_module`: what is converted, what is refused, what stays as it was, and what is bad input."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.laws import grouped, pointwise, strided
from onebyone.pytorch.convert import convert_module
from onebyone.pytorch.dropins import DropIn, PointwiseConvolution, PointwiseLinear
from onebyone.pytorch.layers import register_layer


def integer_weights(model: nn.Module) -> nn.Module:
    """Small integers, so that both forms of a shallow network give the very same numbers."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-2, 3, p.shape))
    return model


def network() -> nn.Module:
    return integer_weights(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1, stride=2),
            nn.Conv2d(6, 4, 1, groups=2),
            nn.Flatten(2),
            nn.Linear(16, 5),
            nn.ReLU(),
            nn.Linear(5, 4, bias=False),
        )
    )


X = torch.randint(-2, 3, (2, 3, 8, 8)).float()


@pytest.mark.parametrize("level", ["layers", "native"])
def test_to_conv_and_back(level):
    net = network()
    c = convert_module(net, to="conv", level=level)
    assert [change.path for change in c.changes] == ["5", "7"]
    assert {change.law for change in c.changes} == {pointwise.NAME}
    assert c.refused == ()
    assert c.copied_bytes == 0
    assert torch.equal(c.model(X), net(X))
    assert not any(isinstance(m, nn.Linear) for m in c.model.modules())
    assert [p.path for p in c.pairs] == ["5", "7"]
    assert all(p.original is net[int(p.path)] and p.converted is c.model[int(p.path)] for p in c.pairs)


def test_to_linear_names_the_law_of_each():
    net = network()
    c = convert_module(net, to="linear")
    assert [(change.path, change.kind, change.law) for change in c.changes] == [
        ("2", "Conv2d", strided.NAME),
        ("3", "Conv2d", grouped.NAME),
    ]
    assert torch.equal(c.model(X), net(X))
    assert isinstance(c.model[0], nn.Conv2d)


def test_there_and_back_restores_the_layers_themselves():
    net = network()
    for to, back in (("conv", "linear"), ("linear", "conv")):
        c = convert_module(net, to=to)
        again = convert_module(c.model, to=back, only=[change.path for change in c.changes])
        assert [type(m) for m in again.model.modules()] == [type(m) for m in net.modules()]
        assert repr(again.model) == repr(net)
        assert set(vars(again.model[5])) == set(vars(net[5]))
        assert again.model[5].weight is net[5].weight


def test_converting_twice_changes_nothing_more():
    once = convert_module(network(), to="conv")
    twice = convert_module(once.model, to="conv")
    assert twice.changes == ()
    assert twice.refused == ()


def test_the_input_is_left_as_it_was():
    net = network()
    before = [(n, m, type(m), dict(vars(m))) for n, m in net.named_modules()]
    tables = [{k: dict(v) for k, v in vars(m).items() if isinstance(v, dict)} for m in net.modules()]
    for to in ("conv", "linear"):
        for level in ("layers", "native"):
            convert_module(net, to=to, level=level)
    after = list(net.named_modules())
    assert [(n, m) for n, m in after] == [(n, m) for n, m, _, _ in before]
    for (_, m), (_, _, cls, state) in zip(after, before, strict=True):
        assert type(m) is cls
        assert vars(m).keys() == state.keys()
        assert all(vars(m)[k] is state[k] for k in state)
    assert tables == [{k: dict(v) for k, v in vars(m).items() if isinstance(v, dict)} for m in net.modules()]


def test_parameters_are_the_very_objects_and_copy_parts_them():
    net = network()
    shared = convert_module(net, to="conv").model
    assert list(shared.state_dict()) == list(net.state_dict())
    assert all(a is b for a, b in zip(shared.parameters(), net.parameters(), strict=True))
    parted = convert_module(net, to="conv", copy=True).model
    for a, b in zip(parted.parameters(), net.parameters(), strict=True):
        assert a.data_ptr() != b.data_ptr()
        assert torch.equal(a, b)
    with torch.no_grad():
        parted[5].weight.zero_()
    assert net[5].weight.abs().sum() > 0


def test_state_dicts_load_both_ways_at_layers():
    net, other = network(), network()
    c = convert_module(net, to="conv")
    c.model.load_state_dict(other.state_dict())
    assert torch.equal(c.model(X), other(X))
    fresh = network()
    fresh.load_state_dict(c.model.state_dict())
    assert torch.equal(fresh(X), other(X))
    assert c.state_dict_to_original().keys() == net.state_dict().keys()


def test_training_the_result_trains_the_original():
    net = network()
    c = convert_module(net, to="conv")
    c.model(X).sum().backward()
    assert net[5].weight.grad is not None
    assert c.model[5].weight.grad is net[5].weight.grad


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)
        self.twin = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) + self.twin(x)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("body.*", ["body.0", "body.2"]),
        ("*head", ["head"]),
        ("twin", ["head"]),  # the same module at its second path
        (["body.0", "head"], ["body.0", "head"]),
        (lambda path, module: module.out_features == 3, ["head"]),
        (lambda path, module: path.endswith(".2"), ["body.2"]),
    ],
)
def test_only(only, expected):
    c = convert_module(Named(), to="conv", only=only)
    assert [change.path for change in c.changes] == expected
    assert [n for n, m in c.model.named_modules() if isinstance(m, DropIn)] == expected


def test_a_module_used_twice_stays_one():
    model = integer_weights(Named())
    c = convert_module(model, to="conv")
    assert c.model.head is c.model.twin
    assert c.model.head is not model.head
    x = torch.randint(-2, 3, (5, 4)).float()
    assert torch.equal(c.model(x), model(x))
    assert list(c.model.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model is a int: expected a torch.nn.Module"),
        ({"to": "pool"}, "to='pool': expected 'conv' or 'linear'"),
        ({"level": "deep"}, "level='deep': expected"),
        (
            {"only": "*.nothing"},
            r"only='\*.nothing' matches no linear layer of the network; it has body.0, body.2, head",
        ),
        ({"only": ["head", "x"]}, "only='x' matches no linear layer"),
        ({"only": lambda p, m: False}, "matches no linear layer"),
        ({"only": []}, r"only=\[\]: expected a glob"),
        ({"only": [3]}, r"only=\[3\]: expected a glob"),
        ({"optimizer": "sgd"}, "optimizer is a str: expected a torch.optim.Optimizer"),
        ({"to": "linear", "only": "head"}, "matches no 1×1 convolution of the network; it has none"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(BadInput, match=message):
        convert_module(**{"model": Named(), "to": "conv", **arguments})


def test_root_itself():
    for level in ("layers", "native"):
        layer = integer_weights(nn.Linear(3, 2))
        c = convert_module(layer, to="conv", level=level)
        x = torch.randint(-2, 3, (4, 3)).float()
        assert c.changes[0].path == ""
        assert torch.equal(c.model(x), layer(x))
        other = integer_weights(nn.Linear(3, 2))
        c.model.load_state_dict(c.state_dict_from_original(other.state_dict()))
        assert torch.equal(c.model(x), other(x))


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused_and_go_on_working():
    net = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    c = convert_module(net, to="conv")
    assert [r.path for r in c.refused] == ["1"]
    assert "TorchScript" in c.refused[0].reason
    x = torch.randn(2, 4)
    assert c.model(x).shape == (2, 4)


def test_harmless_subclasses_convert():
    c = convert_module(nn.Sequential(integer_weights(Renamed(3, 3))), to="conv")
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
    native = convert_module(net, to="conv", level="native")
    assert "computed at each call" in native.refused[0].reason


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


def test_report_prints_and_serialises():
    c = convert_module(nn.Sequential(nn.Linear(3, 2), Twice(2, 2)), to="conv")
    text = str(c)
    assert "1 converted, 1 refused, 0 bytes copied" in text
    assert "Linear 2×3" in text
    report = json.loads(json.dumps(c.to_dict()))
    assert report["changes"][0]["path"] == "0"
    assert report["refused"][0]["kind"] == "Twice"
    assert (report["to"], report["level"]) == ("conv", "layers")


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
        net = integer_weights(ReadingAlways())
        c = convert_module(net, to="conv", level=level)
        assert torch.equal(c.model(x), net(x))
        assert c.never_called(x) == ("qkv",)
        assert all(len(m._forward_pre_hooks) == 0 for m in c.model.modules())


def test_a_module_with_a_choice_is_told_to_call():
    net = integer_weights(Reading())
    c = convert_module(net, to="conv")
    x = torch.randint(-2, 3, (2, 3, 4)).float()
    assert c.never_called(x) == ()
    assert torch.equal(c.model(x), net(x))
    assert not net.qkv_bias_separate
    back = convert_module(c.model, to="linear").model
    assert vars(back).keys() == vars(net).keys()
    assert not back.qkv_bias_separate
    assert not convert_module(net, to="conv", only="proj").model.qkv_bias_separate


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def test_saves_weights_with_their_report_also_when_tied(tmp_path):
    model = Tied()
    c = convert_module(model, to="conv")
    path = c.save(tmp_path / "tied.safetensors")
    with safe_open(path, "pt") as stored:
        report = json.loads(stored.metadata()["onebyone.json"])
        state = {k: stored.get_tensor(k) for k in stored.keys()}  # noqa: SIM118
    assert report["changes"] == c.to_dict()["changes"]
    assert json.loads((tmp_path / "tied.json").read_text()) == report
    other = Tied()
    other.load_state_dict(state)
    assert torch.equal(other.head.weight, model.head.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tied.json", "tied.safetensors"]


def test_saves_a_program_and_leaves_the_mode(tmp_path):
    c = convert_module(network().train(), to="conv")
    c.model[6].eval()
    path = c.save(tmp_path / "net.pt2", example=X)
    assert c.model.training
    assert not c.model[6].training
    extra = {"onebyone.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert torch.equal(program.module()(X), c.model(X))
    assert json.loads(extra["onebyone.json"])["to"] == "conv"


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    c = convert_module(nn.Linear(3, 2), to="conv")
    target = tmp_path / "net.safetensors"
    target.write_bytes(b"before")

    def half(tensors, path, metadata):
        with open(path, "wb") as stream:
            stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onebyone.pytorch.conversion.save_file", half)
    with pytest.raises(BadInput, match="cannot write"):
        c.save(target)
    assert target.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_what_cannot_be_saved_is_said(tmp_path):
    c = convert_module(nn.Linear(3, 2), to="conv")
    for path, message in [
        (tmp_path / "net.onnx", "expected a name that ends in"),
        (tmp_path / "missing" / "net.safetensors", "cannot write"),
        (tmp_path / "net.pt2", "needs an example input"),
    ]:
        with pytest.raises(BadInput, match=message):
            c.save(path)
    meta = convert_module(nn.Linear(3, 2, device="meta"), to="conv")
    with pytest.raises(BadInput, match="meta device"):
        meta.save(tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


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
    net = integer_weights(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    model = convert_module(net, to="conv").model
    free = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    program = torch.export.export(model, (torch.randn(2, 5, 4),), dynamic_shapes=free, strict=False)
    for shape in ((2, 5, 4), (3, 9, 4), (7, 2, 4)):
        x = torch.randint(-2, 3, shape).float()
        assert torch.equal(program.module()(x), net(x))
    names = [str(n.target) for n in program.graph.nodes]
    assert "aten.conv2d.default" in names
    assert "aten.linear.default" not in names


def test_a_compiled_network_is_compiled_again():
    """The compiler is given the converted network: its graph has a convolution where the original's had
    none.
    """
    net = integer_weights(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))).eval()
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
