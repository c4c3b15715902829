"""The plain data behind the figures, compared with the modules and with what the converted networks run."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import onebyone
from onebyone.drawing import Drawing, describe
from onebyone.errors import BadInput
from tests.drawing.networks import MADE, ZOO, Residual, drawing, network, zoo

BANK = [*MADE, *zoo()]


def linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize("name", BANK)
def test_through_json_and_back(name: str) -> None:
    data = drawing(name)
    assert Drawing.from_dict(json.loads(json.dumps(data.to_dict()))) == data


def test_what_is_no_drawing() -> None:
    whole = drawing("demo").to_dict()
    for key, value in {
        "steps": 3,
        "network": 5,
        "parameters": "many",
        "geometry": {"window": 1},
        "chains": [[1]],
    }.items():
        with pytest.raises(BadInput):
            Drawing.from_dict({**whole, key: value})
    with pytest.raises(BadInput, match="not a drawing"):
        Drawing.from_dict({k: v for k, v in whole.items() if k != "replaced"})


@pytest.mark.parametrize("name", BANK)
def test_counts_are_the_modules_own(name: str) -> None:
    model, _ = network(name)
    data = drawing(name)
    assert data.parameters == sum(p.numel() for p in model.parameters())
    called = {p: m for p, m in linear_modules(model).items() if not p.endswith("out_proj")}
    seen = {c.path: c for c in data.connected if not c.twin}
    assert set(seen) == set(called)
    for path, module in called.items():
        assert (seen[path].inputs, seen[path].outputs) == (module.in_features, module.out_features)
        assert seen[path].parameters == sum(p.numel() for p in module.parameters())
    points = {
        p: m
        for p, m in model.named_modules()
        if isinstance(m, nn.Conv1d | nn.Conv2d) and prod(m.kernel_size) == 1
    }
    own = {p.path: p for p in data.pointwise if not p.twin}
    assert set(own) == set(points)
    for path, conv in points.items():
        assert (own[path].inputs, own[path].outputs, own[path].groups) == (
            conv.in_channels,
            conv.out_channels,
            conv.groups,
        )
        assert own[path].parameters == sum(p.numel() for p in conv.parameters())


class Shapes(TorchDispatchMode):
    """Records the shapes of the results of all aten operators, independently of module hooks."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple) else (result,):
            if isinstance(t, Tensor):
                self.found.add(tuple(t.shape))
        return result


@pytest.mark.parametrize("name", ["demo", "signal", "residual", "tokens", "deep"])
def test_shapes_are_those_that_are_computed(name: str) -> None:
    model, x = network(name)
    with torch.no_grad(), Shapes() as shapes:
        y = model(x)
    data = drawing(name)
    assert {(1, *s.output) for s in data.steps} <= shapes.found
    assert data.steps[-1].output == tuple(y.shape[1:])


@pytest.mark.parametrize("name", BANK)
def test_the_weights_drawn_are_the_network_s(name: str) -> None:
    model, _ = network(name)
    modules = dict(model.named_modules())
    for c in drawing(name).connected:
        weight = modules[c.path].weight.detach().flatten(1)
        assert isinstance(weight, Tensor)
        part = weight[list(c.drawn_outputs)][:, list(c.drawn_inputs)]
        torch.testing.assert_close(torch.tensor(c.weights), part, rtol=1e-4, atol=0)
        assert c.largest == pytest.approx(float(weight.abs().max()), rel=1e-4)
        assert len(set(c.drawn_inputs)) == min(16, c.inputs)
        assert len(set(c.drawn_outputs)) == min(16, c.outputs)
    for p in drawing(name).pointwise:
        rows = modules[p.path].weight.detach().flatten(1)[list(p.drawn), :64]
        torch.testing.assert_close(torch.tensor(p.filters), rows, rtol=1e-4, atol=0)


class Kernels(TorchDispatchMode):
    """Records the kernels of all convolutions that a network runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func):
            self.found.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "name",
    ["demo", "signal", "residual", "volume", *zoo(ZOO[0], ZOO[2])],
)
def test_the_replacement_is_what_the_any_size_network_runs(name: str) -> None:
    model, x = network(name)
    data = drawing(name)
    assert (data.by, data.refused) == ("convolutionalize", ())
    dense = onebyone.convolutionalize(model, tuple(x.shape[2:]), x.shape[1])
    # at few positions a k×k layer is computed as rows, by no convolution
    side = {1: 100, 2: 10, 3: 5}[x.dim() - 2]
    sizes = [n + (side - 1) * s for n, s in zip(x.shape[2:], dense.geometry.stride, strict=True)]
    more = torch.zeros(*x.shape[:2], *sizes)
    with torch.no_grad(), Kernels() as after:
        dense.model(more)
    with torch.no_grad(), Kernels() as before:
        model(x)
    replaced = [r for r in data.replaced if r.kernel]
    assert after.found[len(before.found) :] == [r.kernel for r in replaced]
    assert [r.weight for r in replaced] == [tuple(m.weight.shape) for m in linear_modules(model).values()]
    assert all(prod(r.weight) == prod(r.kernel) == r.weights for r in replaced)
    assert data.geometry == dense.geometry


class Calls(TorchFunctionMode):
    """Records the kernels with which `F.conv2d` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "conv2d":
            self.found.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["tokens", "deep", "one layer", "attention", *zoo(ZOO[1])])
def test_the_replacement_is_what_the_converted_network_runs(name: str) -> None:
    model, x = network(name)
    data = drawing(name)
    assert data.by == "convert"
    assert data.refused
    with torch.no_grad(), Calls() as before:
        model(x)
    with torch.no_grad(), Calls() as after:
        onebyone.convert(model).model(x)
    kernels = [r.kernel for r in data.replaced]
    assert sorted(after.found) == sorted([*before.found, *kernels])


def test_the_flatten_that_disappears() -> None:
    assert [(r.path, r.flatten, r.map) for r in drawing("demo").replaced] == [
        ("10", "9", (32, 5, 5)),
        ("12", None, (64, 1, 1)),
    ]
    assert [(r.path, r.flatten) for r in drawing("residual").replaced if r.kernel] == [("fc", "flatten")]
    assert all(r.flatten is None for r in drawing("tokens").replaced)  # nothing of it disappears there


def test_a_vector_made_by_other_means_is_a_flattened_map_too() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 2 * 3, 5)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.conv(x).movedim(1, -1).unbind(1)
            out: Tensor = self.fc(torch.cat([r.flatten(1) for r in rows], 1))
            return out

    (fc,) = describe(Rows(), torch.zeros(1, 3, 4, 5)).replaced
    assert (fc.map, fc.kernel, fc.flatten) == ((4, 2, 3), (5, 4, 2, 3), "flatten")


def test_layers_in_a_row() -> None:
    assert drawing("demo").chains == (("10", "12"),)
    assert drawing("deep").chains == (tuple(str(i) for i in range(21)),)
    assert drawing("tokens").chains == (*((f"blocks.{i}.1", f"blocks.{i}.3") for i in range(3)), ("head",))
    broken = nn.Sequential(
        nn.Linear(4, 4), nn.Softmax(-1), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.Linear(4, 2)
    )
    assert describe(broken, torch.zeros(1, 4)).chains == (("0",), ("4",))


def test_why_there_is_no_larger_image() -> None:
    assert "class token" in drawing("tokens").refused[0]
    assert "not an image" in drawing("deep").refused[0]
    assert drawing("deep").missing == {"window": "the network's input is not an image, signal or volume"}
    assert drawing("pointwise").missing == {
        "F3": "the network has no fully connected layer that was replaced"
    }


def test_the_network_is_left_as_it_was() -> None:
    model = Residual().train()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    describe(model, torch.zeros(2, 3, 32, 32))
    assert model.training
    assert all(m.training for m in model.modules())
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_batch_does_not_matter() -> None:
    model, x = network("residual")
    assert describe(model, x.expand(3, -1, -1, -1)) == drawing("residual")


def test_a_layer_used_twice_is_drawn_once() -> None:
    shared = nn.Linear(5, 5)
    data = describe(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(1, 5))
    assert [c.path for c in data.connected if not c.twin] == ["0"]
    assert [s.output for s in data.steps if s.role == "linear"] == [(5,), (5,)]


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_drawn_as_nothing(weight: float) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = weight  # type: ignore[index, operator]
    data = describe(model, torch.zeros(1, 3))
    assert data.connected[0].weights[0][0] == 0.0
    assert json.loads(json.dumps(data.to_dict(), allow_nan=False))


def test_what_cannot_be_read() -> None:
    model, _ = network("demo")
    with pytest.raises(BadInput, match=r"example of shape 1×3×9×9: the network does not run on it"):
        describe(model, torch.zeros(1, 3, 9, 9))
    with pytest.raises(BadInput, match=r"expected a torch\.nn\.Module"):
        describe(print, torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(BadInput):
        describe(model, torch.zeros(1, 1, 40, 40), window=(7, 7))


class BilinearLinear(nn.Module):
    """Enlarges a map; only its name looks like that of a fully connected layer."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2.0)


class Projection(nn.Module):
    """A fully connected layer by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


def test_layouts_follow_types_and_weights_and_not_names() -> None:
    maps = nn.Sequential(nn.Conv2d(3, 4, 3), BilinearLinear(), nn.BatchNorm2d(4))
    assert [s.layout for s in describe(maps, torch.zeros(1, 3, 6, 6)).steps] == ["map"] * 3
    tokens = nn.Sequential(Projection(), nn.LayerNorm(6), nn.GELU())
    assert [s.layout for s in describe(tokens, torch.zeros(1, 9, 4)).steps] == ["tokens"] * 3
