"""Attention: whose output projection is read and never called, and which evaluates through a fused
function.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.pytorch.modules.attention import PointwiseAttention
from onebyone.pytorch.modules.convert import convert_module
from onebyone.pytorch.modules.dropins import PointwiseConvolution

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor"
)


class Ops(TorchDispatchMode):
    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))

    def count(self, *names: str) -> int:
        return sum(any(n in s for n in names) for s in self.seen)


PRODUCTS = (
    "addmm",
    "aten.mm.",
    "aten.linear",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
)


def close(a: Tensor | None, b: Tensor | None, scale: float = 1.0) -> bool:
    """Float64: a few hundred operations on numbers near 1 differ by some hundred units of 2⁻⁵³."""
    if a is None or b is None:
        return a is b
    same_nan = torch.equal(torch.isnan(a), torch.isnan(b))
    return (
        a.shape == b.shape and same_nan and float((a - b).detach().nan_to_num().abs().max()) <= 1e-13 * scale
    )


OPTIONS = [
    dict(zip(("batch_first", "bias", "add_bias_kv", "add_zero_attn", "kdim"), values, strict=True))
    for values in itertools.product((True, False), (True, False), (True, False), (True, False), (None, 6))
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(k for k, v in o.items() if v) or "plain")
def test_every_option_with_every_mask(options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, vdim=options["kdim"], **options).double()
    for p in attention.parameters():
        nn.init.normal_(p)
    drop_in = convert_module(attention, to="conv").model
    assert isinstance(drop_in, PointwiseAttention)
    n, length, keys, width = 3, 4, 5, options["kdim"] or 8
    shapes = [(n, length, 8), (n, keys, width), (n, keys, width)]
    q, k, v = (torch.randn(s, dtype=torch.float64) for s in shapes)
    if not options["batch_first"]:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    padding = torch.zeros(n, keys, dtype=torch.bool)
    padding[1, 3:] = True
    flat = torch.ones(length, keys, dtype=torch.bool).triu(2)
    full = torch.randn(n * 2, length, keys, dtype=torch.float64)
    for train in (True, False):
        attention.train(train)
        drop_in.train(train)
        for kpm, mask, need, average in itertools.product(
            (None, padding), (None, flat, full), (True, False), (True, False)
        ):
            if kpm is not None and mask is full:
                continue  # torch warns of mixed mask types
            more = {
                "key_padding_mask": kpm,
                "attn_mask": mask,
                "need_weights": need,
                "average_attn_weights": average,
            }
            for a, b in zip(attention(q, k, v, **more), drop_in(q, k, v, **more), strict=True):
                assert close(a, b, 100)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_self_attention_causal_and_without_a_batch(batch_first, batched, grad):
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
    drop_in = convert_module(attention, to="conv").model
    x = torch.randn((5, 5, 8) if batched else (5, 8), dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        for more in (
            {},
            {"attn_mask": causal, "is_causal": True, "need_weights": False},
            {"attn_mask": causal, "is_causal": True},
            {"need_weights": False},
        ):
            for a, b in zip(attention(x, x, x, **more), drop_in(x, x, x, **more), strict=True):
                assert close(a, b)
        if batched:
            # the hint alone is refused as the original's slow path does
            with pytest.raises(RuntimeError, match="attn_mask"):
                drop_in(x, x, x, is_causal=True)


def test_gradients_and_dropout():
    torch.manual_seed(2)
    attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).double()
    parted = convert_module(attention, to="conv", copy=True).model
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    for need in (True, False):
        torch.manual_seed(3)
        a = attention(x, x, x, need_weights=need)[0]
        torch.manual_seed(3)
        b = parted(x, x, x, need_weights=need)[0]
        assert close(a, b)
        a.sum().backward()
        b.sum().backward()
    for p, q in zip(attention.parameters(), parted.parameters(), strict=True):
        assert close(p.grad, q.grad, 100)


@pytest.mark.parametrize("level", ["layers", "native"])
@pytest.mark.parametrize("train", [True, False])
def test_all_products_are_convolutions_and_are_reported(level, train):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train(train)
    c = convert_module(nn.Sequential(attention), to="conv", level=level)
    assert [(change.path, change.kind) for change in c.changes] == [
        ("0", "MultiheadAttention"),
        ("0.out_proj", "NonDynamicallyQuantizableLinear"),
    ]
    x = torch.randn(2, 5, 8)
    with torch.no_grad(), Ops() as ops:
        c.model[0](x, x, x, need_weights=False)
    assert ops.count("aten.convolution") == 2
    assert ops.count(*PRODUCTS) == 0
    y = torch.randn(2, 3, 8)
    with torch.no_grad(), Ops() as ops:
        c.model[0](x, y, y, need_weights=False)
    assert ops.count("aten.convolution") == 4
    assert ops.count(*PRODUCTS) == 0


def test_tokens_are_not_copied_for_the_projections():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = convert_module(attention, to="conv").model
    x = torch.randn(2, 5, 8)
    with torch.no_grad(), Ops() as ops:
        model(x, x, x, need_weights=False)
    assert ops.count("aten.contiguous", "aten.copy_") == 0


@pytest.mark.parametrize("only", ["0", "0.out_proj"])
def test_projection_and_attention_go_together(only):
    net = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    c = convert_module(net, to="conv", only=only)
    assert [change.path for change in c.changes] == ["0", "0.out_proj"]
    assert isinstance(c.model[0].out_proj, PointwiseConvolution)
    back = convert_module(c.model, to="linear", only=only)
    assert type(back.model[0]) is nn.MultiheadAttention
    assert type(back.model[0].out_proj) is type(net[0].out_proj)


def test_subclasses_are_refused_with_their_projection():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    c = convert_module(nn.Sequential(Own(8, 2)), to="conv")
    assert c.changes == ()
    assert [r.path for r in c.refused] == ["0", "0.out_proj"]
    assert "Own" in c.refused[0].reason
    assert "never called" in c.refused[1].reason


LAYERS = {
    "encoder": lambda **k: nn.TransformerEncoderLayer(16, 4, 32, **k),
    "stack": lambda **k: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, **k), 2),
    "stack-norm": lambda **k: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, **k), 2, nn.LayerNorm(16)
    ),
    "gelu": lambda **k: nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", norm_first=True, **k),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("level", ["layers", "native"])
def test_encoders_train_evaluate_and_take_padding(name, batch_first, level):
    """Evaluation without gradients is where the original goes through its fused kernel, and pads with
    zeros.
    """
    torch.manual_seed(4)
    net = LAYERS[name](batch_first=batch_first, dropout=0.0).double()
    c = convert_module(net, to="conv", level=level)
    assert c.refused == ()
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = padding[2, 6:] = True
    for train, grad in ((True, True), (False, True), (False, False)):
        net.train(train)
        c.model.train(train)
        with torch.set_grad_enabled(grad):
            for more in ({}, {"src_key_padding_mask": padding}):
                assert close(net(x, **more), c.model(x, **more), 100)
    with torch.no_grad(), Ops() as ops:
        c.model(x)
    assert ops.count(*PRODUCTS) == 0
    assert ops.count("aten.convolution") == len(c.changes)


def test_back_again_the_fused_path_is_back():
    net = LAYERS["stack"](batch_first=True).eval()
    flags = [layer.activation_relu_or_gelu for layer in net.layers]
    c = convert_module(net, to="conv")
    assert [layer.activation_relu_or_gelu for layer in net.layers] == flags
    back = convert_module(c.model, to="linear").model
    assert [layer.activation_relu_or_gelu for layer in back.layers] == flags
    with torch.no_grad(), Ops() as ops:
        back(torch.randn(2, 3, 16))
    assert ops.count("_transformer_encoder_layer_fwd") == 2


@pytest.mark.parametrize("level", ["layers", "native"])
def test_whole_transformer(level):
    torch.manual_seed(5)
    net = nn.Transformer(16, 4, 2, 2, 32, batch_first=True).double().eval()
    c = convert_module(net, to="conv", level=level)
    assert c.refused == ()
    assert not any(type(m) is nn.Linear for m in c.model.modules())
    source, target = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 4, 16, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    with torch.no_grad():
        assert close(net(source, target, tgt_mask=mask), c.model(source, target, tgt_mask=mask), 100)
    net.load_state_dict(c.state_dict_to_original())


def test_attention_compiles_and_exports():
    net = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).double().eval()
    model = convert_module(net, to="conv").model
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    expected = net(x)
    assert close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected, 100)
    program = torch.export.export(model, (x,), strict=False)
    assert close(program.module()(x), expected, 100)
    targets = [str(n.target) for n in program.graph.nodes]
    assert targets.count("aten.conv2d.default") == 4
    assert "aten.linear.default" not in targets
