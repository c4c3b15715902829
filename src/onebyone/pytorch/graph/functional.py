"""Replaces in-place operators of an exported program by their functional forms.

So every value can be stored in another layout. Where a view of a written tensor is read later, the whole program is
functionalised by torch.
"""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import GraphModule

from onebyone.functional_graphs import functional_graph
from onebyone.pytorch.files.exporting import quiet
from onebyone.pytorch.graph.program import with_graph


def functional_program(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place operators; the program itself where it has none."""
    graph = functional_graph(program.graph)
    if graph is program.graph:
        return program
    if graph is None:
        with quiet():
            functional: ExportedProgram = program.run_decompositions({})
        return functional
    return with_graph(program, GraphModule(program.graph_module, graph))
