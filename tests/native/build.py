"""Networks, layers and single steps compiled for tests, and how far their results are from float64."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from onebyone.native.compiled_network import CompiledNetwork, compile_graph
from onebyone.native.kernels.fusion import lower
from onebyone.native.kernels.program import Program
from onebyone.native.maps import Map
from onebyone.native.planner import Planner
from onebyone.native.steps import Activation, InputStep, LinearStep, Step

U32 = 2.0**-24
needs_compiler = pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or os.environ.get("CI") == "true"),
    reason="there is no g++",
)


def traced(network: nn.Module, x: Tensor) -> fx.GraphModule:
    """A network's graph in evaluation mode, with the operators that `torch.export` gives, in a tenth of its time."""
    with torch.no_grad():
        module: fx.GraphModule = make_fx(network.eval(), pre_dispatch=True)(x)
    return module


def build(network: nn.Module, x: Tensor, threads: int = 2) -> CompiledNetwork:
    """The network compiled for inputs like x."""
    return compile_graph(traced(network, x), threads)


def steps_of(network: nn.Module, x: Tensor) -> list[Step]:
    """The steps of a network as they run."""
    module = traced(network, x)
    return Planner(module).plan(module.graph)[0]


def kinds(network: nn.Module, x: Tensor) -> list[str]:
    """The kinds of the steps of a network as they run."""
    return [step.kind.name for step in steps_of(network, x)]


def error(network: nn.Module, x: Tensor, threads: int = 2) -> float:
    """The largest error of a compiled network against float64, in units of float32's rounding of the largest output."""
    result = build(network, x, threads)(x)
    with torch.no_grad():
        exact = network.double()(x.double())
    network.float()
    assert result.shape == exact.shape
    assert result.dtype == torch.float32
    assert bool(result.isfinite().all())
    return float((result - exact).abs().max()) / (U32 * float(exact.abs().max()))


def layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    levels: int,
    add: bool = False,
    activation: Activation = Activation.NONE,
    threads: int = 2,
    fast_products: bool = False,
) -> Tensor:
    """x (rows, K) through one linear step with so many levels of Strassen's algorithm; with `add`, plus x (N = K)."""
    rows = len(x)
    first, source = input_step(x)
    output = Map((rows, len(weight), 1, 1))
    step = LinearStep(
        input=source,
        output=output,
        rows=rows,
        weight=weight,
        bias=bias,
        addend=source if add else None,
        activation=activation,
        levels=levels,
    )
    steps = lower([first, step], output, fast_products)
    return Program(steps, output, threads)(x.reshape(1, 1, 1, -1)).reshape(rows, len(weight))


def input_step(x: Tensor) -> tuple[InputStep, Map]:
    """The step that reads all numbers of x as one row, and its map."""
    shape = (1, 1, 1, x.numel())
    source = Map(shape)
    return InputStep(output=source, shape=shape), source


def run(x: Tensor, steps: list[Step], result: Map, threads: int = 2) -> Tensor:
    """The numbers of a map after these steps, whose first is `input_step(x)`; constants are used as they are."""
    return Program(steps, result, threads)(x.reshape(1, 1, 1, -1)).flatten()


def run_one(x: Tensor, floats: int, make: Any, threads: int = 2) -> Tensor:
    """The numbers that one step writes: `make(input=..., output=...)` makes it."""
    first, source = input_step(x)
    output = Map((1, floats, 1, 1))
    return run(x, [first, make(input=source, output=output)], output, threads)
