"""An exported program around a new graph."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, OutputSpec
from torch.fx import GraphModule, Node


def with_graph(
    program: ExportedProgram,
    module: GraphModule,
    state: Mapping[str, torch.Tensor] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """A program with the inputs and outputs of `program` and another graph.

    `state` and `constants` replace the parameters and constants. Placeholders must keep their names; the nodes that are
    returned may have new ones.
    """
    signature = program.graph_signature
    returned = next(n for n in reversed(module.graph.nodes) if n.op == "output").args[0]
    outputs: list[OutputSpec] = []
    for spec, node in zip(signature.output_specs, returned, strict=True):
        arg = copy(spec.arg)
        if isinstance(node, Node) and hasattr(arg, "name"):
            arg = replace(arg, name=node.name)
        outputs.append(OutputSpec(kind=spec.kind, arg=arg, target=spec.target))
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(list(signature.input_specs), outputs),
        state_dict=dict(program.state_dict if state is None else state),
        range_constraints=dict(program.range_constraints),
        module_call_graph=list(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=dict(program.constants if constants is None else constants),
        verifiers=program.verifiers,
    )
