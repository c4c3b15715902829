"""Which nodes of an exported program are constant, trained, or independent of the inputs."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node


def constant_placeholders(program: ExportedProgram) -> dict[str, str]:
    """Placeholder name → name of its parameter, buffer or constant; without the buffers that the program writes to."""
    written = {s.target for s in program.graph_signature.output_specs if s.kind == OutputKind.BUFFER_MUTATION}
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    return {
        s.arg.name: str(s.target)
        for s in program.graph_signature.input_specs
        if s.kind in kinds and s.target not in written
    }


def constant_nodes(program: ExportedProgram) -> set[Node]:
    """Every node whose value depends only on parameters, buffers and constants."""
    placeholders = constant_placeholders(program)
    constant: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in placeholders:
                constant.add(node)
        elif node.op == "call_function":
            inputs = node.all_input_nodes
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if inputs and not random and _has_tensors(node) and all(n in constant for n in inputs):
                constant.add(node)
    return constant


def trained_nodes(program: ExportedProgram, constant: set[Node]) -> set[Node]:
    """The constant nodes that depend on a parameter: of two constant factors, the one that is the weight."""
    inputs = program.graph_signature.input_specs
    parameters = {s.arg.name for s in inputs if s.kind == InputKind.PARAMETER}
    trained: set[Node] = set()
    for node in program.graph.nodes:
        if node in constant and (node.name in parameters or any(n in trained for n in node.all_input_nodes)):
            trained.add(node)
    return trained


def input_independent_nodes(program: ExportedProgram) -> set[Node]:
    """Every node whose value does not depend on the program's inputs.

    These are the constants, and values made from random numbers or from buffers that the program writes to.
    """
    inputs = set(program.graph_signature.user_inputs)
    independent: set[Node] = set()
    for node in program.graph.nodes:
        is_state = node.op == "placeholder" and node.name not in inputs
        is_derived = node.op == "call_function" and all(n in independent for n in node.all_input_nodes)
        if is_state or is_derived:
            independent.add(node)
    return independent


def _has_tensors(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) or (isinstance(value, list | tuple) and bool(value))
