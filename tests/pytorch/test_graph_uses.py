"""Uses of a graph-level result: saving, unflattening, compiling, exporting to ONNX, further training; and refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import onebyone
from onebyone.errors import BadInput, Refused
from onebyone.laws.bounds import unit_roundoff
from onebyone.pytorch.files.program_file import load_program
from onebyone.pytorch.graph import convert_graph, copies_at_run_time
from tests.pytorch.graph_networks import Encoder, blocks, mlp

BLOCKS = blocks()
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch copies its own tree specs


@pytest.mark.parametrize(
    ("name", "to"), [("transformer", "conv"), ("bottleneck", "linear"), ("tied", "conv")]
)
def test_saves_loads_and_unflattens(name: str, to: str, tmp_path: Path) -> None:
    model, args = BLOCKS[name]
    c = convert_graph(model, to=to, example=args)
    right = c.model.module()(*args)
    loaded = load_program(c.save(tmp_path / "a.pt2"))
    assert torch.equal(loaded.program.module()(*args), right)
    assert '"layout_after"' in loaded.extra["onebyone.json"]
    tree = torch.export.unflatten(c.model)
    assert torch.equal(tree(*args), right)
    paths = {n for n, m in tree.named_modules() if n}
    assert paths <= {n for n, _ in model.named_modules()}
    with pytest.raises(BadInput, match=r"ends in .pt2 or .onnx"):
        c.save(tmp_path / "a.bin")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to"), [("encoder", "conv"), ("bottleneck", "linear")])
def test_compiles(name: str, to: str) -> None:
    model, args = BLOCKS[name]
    c = convert_graph(model, to=to, example=args)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(c.model.module())(*args), c.model.module()(*args))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"), [("transformer", "conv"), ("ConvNeXt, linear", "conv"), ("bottleneck", "linear")]
)
@pytest.mark.filterwarnings("ignore")
def test_exports_to_onnx(name: str, to: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, args = BLOCKS[name]
    c = convert_graph(model, to=to, example=args)
    path = tmp_path / "a.onnx"
    torch.onnx.export(c.model, args, dynamo=True, verbose=False).save(path)
    session = runtime.InferenceSession(path)
    given = {i.name: a.numpy() for i, a in zip(session.get_inputs(), args, strict=True)}
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, given)[0]), c.model.module()(*args).detach()
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def steps(
    forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, data: Tensor, count: int
) -> None:
    for i in range(count):
        optimizer.zero_grad()
        forward(data[i % len(data)]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["transformer", "ConvNeXt, convolutions"])
def test_training_continues(name: str, kind: str) -> None:
    """20 training steps after a conversion equal 20 steps without it. The bound is the difference to which one rounding
    of every weight, made instead of the conversion, grows in those steps, times 64.
    """
    torch.manual_seed(3)
    model, args = BLOCKS[name]
    data = torch.randn(5, *args[0].shape, dtype=torch.float64)

    def trained(change: str) -> dict[str, Tensor]:
        torch.manual_seed(4)
        net = copy.deepcopy(model).double().eval()
        optimizer = OPTIMIZERS[kind](net.parameters())
        steps(net, optimizer, data, 5)
        if change == "convert":
            to = "conv" if name == "transformer" else "linear"
            c = convert_graph(net, to=to, example=(args[0].double(),), optimizer=optimizer)
            assert c.changes
            module = c.model.module()
            steps(module, optimizer, data, 20)
            return {k: v.detach() for k, v in c.state_dict_to_original(module.state_dict()).items()}
        if change == "round":
            with torch.no_grad():
                for p in net.parameters():
                    p.mul_(1 + unit_roundoff("float64") * 2 * torch.randint(-1, 2, p.shape).double())
        steps(net, optimizer, data, 20)
        return {k: v.detach() for k, v in net.state_dict().items()}

    plain, converted, rounded = trained(""), trained("convert"), trained("round")
    for key, right in plain.items():
        grown = float((rounded[key] - right).abs().max()) + unit_roundoff("float64") * float(
            right.abs().max()
        )
        scale = max(float((rounded[k] - plain[k]).abs().max()) for k in plain)
        assert converted[key].shape == right.shape
        assert float((converted[key] - right).abs().max()) <= 64 * max(grown, scale), key


def test_state_that_depends_on_the_shape_is_refused() -> None:
    model, args = BLOCKS["mlp"]
    net = copy.deepcopy(model)
    optimizer = torch.optim.Adafactor(net.parameters())
    steps(net, optimizer, torch.randn(2, *args[0].shape), 2)
    groups = [list(g["params"]) for g in optimizer.param_groups]
    with pytest.raises(Refused, match="Adafactor"):
        convert_graph(net, to="conv", example=args, optimizer=optimizer)
    assert all(
        a is b
        for g, h in zip(groups, optimizer.param_groups, strict=True)
        for a, b in zip(g, h["params"], strict=True)
    )


class Odd(nn.Module):
    """Products that are not layers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.batched, self.weight = nn.Parameter(torch.randn(2, 4, 5)), nn.Parameter(torch.randn(5, 4))
        self.lstm, self.padded = nn.LSTM(4, 3, batch_first=True), nn.Conv1d(3, 2, 1, padding=1)
        self.vector = nn.Parameter(torch.randn(3))
        self.no_inputs, self.no_outputs = nn.Parameter(torch.zeros(3, 0)), nn.Parameter(torch.zeros(4, 0))

    def forward(self, x: Tensor) -> Any:
        if self.how == "batched":
            return torch.bmm(x, self.batched)
        if self.how == "einsum":
            return torch.einsum("bti,oi->bto", x, self.weight)
        if self.how == "lstm":
            return self.lstm(x)[0]
        if self.how == "vector":
            return self.vector @ x
        if self.how == "block":
            with torch.no_grad():
                y = F.linear(x, self.weight)
            return y + 1
        if self.how == "padded":
            return self.padded(x)
        if self.how == "no inputs":
            return F.linear(x[..., :0], self.no_inputs, self.vector)
        if self.how == "no outputs":
            return x @ self.no_outputs
        return F.linear(x, x[0, :, :])


@pytest.mark.parametrize(
    ("how", "to", "reason"),
    [
        ("batched", "conv", "batch axis"),
        ("einsum", "conv", "einsum"),
        ("lstm", "conv", "recurrent"),
        ("vector", "conv", "vector weight on the left"),
        ("padded", "linear", "padding"),
        ("block", "conv", "block with its own graph"),
        ("no inputs", "conv", "its weight has shape (3, 0): nothing to multiply"),
        ("no outputs", "conv", "its weight has shape (4, 0): nothing to multiply"),
    ],
)
def test_refused_by_name_with_the_reason(how: str, to: str, reason: str) -> None:
    c = convert_graph(Odd(how), to=to, example=torch.randn(2, 3, 4))
    assert not c.changes
    assert len(c.refused) == 1
    assert reason in c.refused[0].reason
    assert c.refused[0].kind.startswith("aten.") or how == "block"
    assert reason in str(c)


def test_a_product_of_two_inputs_is_not_a_layer() -> None:
    c = convert_graph(Odd("computed"), to="conv", example=torch.randn(2, 3, 4))
    assert not c.changes
    assert not c.refused


def test_bad_arguments() -> None:
    with pytest.raises(BadInput, match="to='both'"):
        convert_graph(mlp(3, 4), to="both", example=torch.randn(2, 3))
    with pytest.raises(BadInput, match="give example="):
        convert_graph(mlp(3, 4))
    with pytest.raises(BadInput, match=r"expected an nn\.Module"):
        convert_graph("a string")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"^example: the network does not run on it: mat1 and mat2 shapes"):
        convert_graph(mlp(3, 4), example=torch.randn(2, 5))


def test_names_that_python_reserves() -> None:
    """PyTorch exports such a network, and fails with a SyntaxError where the program is run."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    net.add_module("lambda", nn.Conv2d(4, 2, 1))
    said = "called 'lambda'; expected names without 'lambda', which Python reserves"
    with pytest.raises(BadInput, match=said):
        convert_graph(net, to="linear", example=torch.randn(1, 3, 5, 5))
    with pytest.raises(BadInput, match=said):
        onebyone.convolutionalize(net, window=3)
    x = torch.randn(1, 3, 5, 5)
    c = onebyone.convert(net, to="linear")
    assert torch.allclose(c.model(x), net(x), atol=1e-5)


def test_a_write_that_a_view_observes_is_functionalised() -> None:
    """A view of the tensor is read after the write: replacing this operator alone would be wrong."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            part = y[:, :, :2]
            y.mul_(2)
            part.add_(1)
            return y.relu_() + part.sum()

    model, x = Writes().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    c = convert_graph(model, to="conv", example=x)
    assert len(c.changes) == 1
    torch.testing.assert_close(c.model.module()(x), model(x.clone()), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model, x = Encoder().to(dtype), torch.randn(2, 5, 12, dtype=dtype)
    c = convert_graph(model, to="conv", example=x)
    exact = copy.deepcopy(model).double()(x.double()).detach()
    own = float((model(x).detach().double() - exact).abs().max()) + torch.finfo(dtype).eps * float(
        exact.abs().max()
    )
    out = c.model.module()(x).detach()
    assert out.dtype == dtype
    assert float((out.double() - exact).abs().max()) <= 4 * own


def test_meta_tensors_convert() -> None:
    with torch.device("meta"):
        model = Encoder()
    c = convert_graph(model, to="conv", example=torch.empty(2, 5, 12, device="meta"))
    assert len(c.changes) == 4
    assert all(v.is_meta for v in c.model.state_dict.values())


def test_copies_at_run_time_are_counted() -> None:
    class Copies(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2).reshape(2, 12)

    program = torch.export.export(Copies(), (torch.randn(2, 3, 4),), strict=False)
    assert copies_at_run_time(program, (torch.randn(2, 3, 4),))["aten::clone"] == 1


def test_an_example_of_keyword_arguments() -> None:
    """As transformers are called: a dict of named inputs, some of them left out."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, mask: Tensor | None = None, input_ids: Tensor | None = None) -> Tensor:
            return self.fc(input_ids) if mask is None else self.fc(input_ids) * mask

    net, x = Named().eval().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    c = convert_graph(net, to="conv", example={"input_ids": x})
    assert [change.path for change in c.changes] == ["fc"]
    right = x @ net.fc.weight.T + net.fc.bias
    torch.testing.assert_close(c.model.module()(input_ids=x), right, rtol=1e-14, atol=1e-14)


def test_layers_that_are_given_a_buffer_are_converted() -> None:
    """As relative positions are in Swin V2: a table of coordinates, which no input reaches, goes through an MLP."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(1, 5, 5, 2))
            self.mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(self.table).permute(0, 3, 1, 2)

    net, x = Positions().eval().double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    c = convert_graph(net, to="conv", example=x)
    assert sorted([change.path for change in c.changes] + [r.path for r in c.refused]) == ["mlp.0", "mlp.2"]
    hidden = (net.table @ net.mlp[0].weight.T + net.mlp[0].bias).clamp(min=0)
    right = x + (hidden @ net.mlp[2].weight.T).permute(0, 3, 1, 2)
    torch.testing.assert_close(c.model.module()(x), right, rtol=1e-13, atol=1e-13)
