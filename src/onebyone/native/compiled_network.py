"""Compile an exported network, and call it."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram

from onebyone.native.kernels.program import Program, kernel
from onebyone.native.planner import Planner, nodes_among


class CompiledNetwork:
    """A network as one list of steps. Call it with an input of the shape that it was compiled for.

    Calls from several threads run one after another.
    """

    def __init__(self, program: Program, output_shape: tuple[int, ...], takes_rows: bool) -> None:
        self.program = program
        self.output_shape = output_shape
        self._takes_rows = takes_rows

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for an input (N, C, H, W) or (N, T, C) in float32.

        Raises BadInput for another shape or dtype.
        """
        return self.program(self._as_image(x)).reshape(self.output_shape)

    def times(self, x: Tensor) -> dict[str, float]:
        """The milliseconds that one run spends in each kind of step."""
        times: dict[str, float] = {}
        for kind, ms in self.program.timed(self._as_image(x)):
            times[kind] = times.get(kind, 0.0) + ms
        return times

    def _as_image(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) if self._takes_rows else x


def compile_network(
    exported: ExportedProgram, threads: int = 1, fast_products: bool = False
) -> CompiledNetwork:
    """Compile a network in evaluation mode that `torch.export` has traced.

    The network takes one float32 tensor, an image (N, C, H, W) or rows (N, T, C), and returns one tensor. Its weights
    are copied. `threads` is how many threads each call uses. With `fast_products`, the rows of linear layers share
    error bounds (`onebyone.laws.scaling`), which is faster, and wrong where rows differ very much in size.

    Raises UnsupportedError for a network with another interface or an unsupported operator, and BadInput if the
    kernels cannot be compiled on this machine.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU()).eval()
    >>> x = torch.rand(1, 3, 8, 8)
    >>> compiled = compile_network(torch.export.export(model, (x,)))
    >>> torch.allclose(compiled(x), model(x), atol=1e-6)
    True
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = exported.module()
    return compile_graph(module, threads, fast_products)


def compile_graph(module: fx.GraphModule, threads: int = 1, fast_products: bool = False) -> CompiledNetwork:
    """Compile a graph of ATen operators, whose nodes have their results' shapes in `meta["val"]`.

    See `compile_network` for the arguments and errors.
    """
    require_compiler()
    planner = Planner(module)
    steps, answer = planner.plan(module.graph, fast_products)
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    (result,) = nodes_among(output.args)
    output_shape = tuple(result.meta["val"].shape)
    takes_rows = planner.image.meta["val"].dim() == 3
    return CompiledNetwork(Program(steps, answer, threads), output_shape, takes_rows)


def require_compiler() -> None:
    """Compile the kernels, once per process. Raises BadInput with the reason if that is not possible."""
    kernel()
