"""The mutants of a file: mutmut's mutations, applied to the whole module."""

from __future__ import annotations
import __future__

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import libcst as cst
from libcst.metadata import WhitespaceInclusivePositionProvider
from mutmut.mutation import mutators

ROOT = Path(__file__).resolve().parents[2]
IS_FUNCTION = 1
"""CO_OPTIMIZED: the flag of the code of a function, which the body of a class does not have."""
_EMPTY = compile("", "module", "exec")
MODULE = (_EMPTY, _EMPTY)
"""Stands for a change outside functions."""


@dataclass(frozen=True)
class Mutant:
    """One changed module. `functions` are the changed function (original and mutated code); None outside functions."""

    key: str
    path: Path
    line: int
    before: str
    after: str
    source: str
    functions: tuple[CodeType, CodeType] | None

    @property
    def file(self) -> str:
        """The path in the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def function(self) -> str:
        """Qualified name of the changed function, or "(module)"."""
        return self.functions[0].co_qualname if self.functions else "(module)"

    def describe(self) -> dict[str, Any]:
        """The mutant for the summary."""
        shown = {"file": self.file, "line": self.line, "function": self.function}
        return shown | {"before": self.before, "after": self.after}


class Collector(cst.CSTVisitor):
    """Collects (node, mutated node, number of blocks around it) of one top-level statement."""

    def __init__(self) -> None:
        self.changes: list[tuple[cst.CSTNode, cst.CSTNode, int]] = []
        self.depth = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Mutate the node, and descend unless it is excluded."""
        if _excluded(node):
            return False
        for kind, operator in mutators.mutation_operators:
            if isinstance(node, kind):
                self.changes += [
                    (node, new, self.depth) for new in operator(node) if not _removes_assertion(node, new)
                ]
        self.depth += isinstance(node, cst.IndentedBlock)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        """Called after the children of a node."""
        self.depth -= isinstance(original_node, cst.IndentedBlock)


def _excluded(node: cst.CSTNode) -> bool:
    if isinstance(
        node, cst.Annotation | cst.Decorator | cst.Raise | cst.FormattedString | cst.Import | cst.ImportFrom
    ):
        return True
    if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict":
        return True
    if isinstance(node, cst.SimpleString):
        return " " in node.value or node.value.startswith(('"""', "'''"))
    if isinstance(node, cst.If) and isinstance(node.test, cst.Name):
        return node.test.value == "TYPE_CHECKING"
    return (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Name)
        and node.func.value in ("TypeVar", "cast")
    )


def _removes_assertion(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """Whether the mutation changes or removes `strict=` of a call, which is an assertion."""

    def strict(call: cst.CSTNode) -> list[cst.Arg]:
        arguments = call.args if isinstance(call, cst.Call) else ()
        return [a for a in arguments if a.keyword is not None and a.keyword.value == "strict"]

    before, after = strict(node), strict(mutated)
    return len(before) != len(after) or any(not a.deep_equals(b) for a, b in zip(before, after, strict=True))


def mutants_of(path: Path) -> list[Mutant]:
    """The distinct mutants of a file."""
    text = path.read_text(encoding="utf-8")
    wrapper = cst.MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
    module, spans = wrapper.module, wrapper.resolve(WhitespaceInclusivePositionProvider)
    line_starts = [0, *itertools.accumulate(map(len, text.splitlines(keepends=True)))]

    def span(node: cst.CSTNode) -> tuple[int, int]:
        """The first character of a node's code, and the one after its last."""
        first, last = spans[node].start, spans[node].end
        return line_starts[first.line - 1] + first.column, line_starts[last.line - 1] + last.column

    mutants: dict[str, Mutant] = {}
    sources: set[str] = set()
    for statement in module.body:
        begin, end = span(statement)
        original = _compiled(path, text[:begin], text[begin:end])
        collector = Collector()
        statement.visit(collector)
        for node, new, depth in collector.changes:
            first, last = span(node)
            indent = "\n" + module.default_indent * depth
            code = text[begin:first] + module.code_for_node(new).replace("\n", indent) + text[last:end]
            source = text[:begin] + code + text[end:]
            if source in sources:
                continue
            sources.add(source)
            try:
                difference = _difference(original, _compiled(path, text[:begin], code))
            except SyntaxError:
                continue
            if difference is not None:
                mutant = _mutant(path, text, source, difference)
                mutants[mutant.key] = mutant
    return list(mutants.values())


def _compiled(path: Path, head: str, statement: str) -> CodeType:
    """The code of a top-level statement that follows `head`, with its line numbers."""
    padded = "\n" * head.count("\n") + statement
    return compile(padded, str(path), "exec", __future__.annotations.compiler_flag, dont_inherit=True)


def _mutant(path: Path, text: str, source: str, difference: tuple[CodeType, CodeType]) -> Mutant:
    functions = None if difference is MODULE else difference
    old, new = text.splitlines(), source.splitlines()
    line = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    # the key stays when code elsewhere in the file changes, so that outcomes are kept
    function = functions[0] if functions else None
    offset = line - function.co_firstlineno if function else _occurrence(old, line)
    parts = (
        path.relative_to(ROOT),
        function and function.co_qualname,
        offset,
        old[line],
        new[line : line + 3],
    )
    key = hashlib.sha1(repr([str(part) for part in parts]).encode()).hexdigest()
    return Mutant(key, path, line + 1, old[line].strip(), new[line].strip(), source, functions)


def _occurrence(lines: Sequence[str], line: int) -> int:
    return lines[:line].count(lines[line])


def _difference(a: CodeType, b: CodeType) -> tuple[CodeType, CodeType] | None:
    """The outermost function that differs, before and after; MODULE if other code differs; None if nothing does."""
    if not _same_instructions(a, b):
        return MODULE
    for old, new in zip(nested(a), nested(b), strict=True):
        if not old.co_flags & IS_FUNCTION:
            if (inner := _difference(old, new)) is not None:
                return inner
        elif not _deeply_equal(old, new):
            return old, new
    return None


def nested(code: CodeType) -> list[CodeType]:
    """The code objects of the functions and classes defined directly in `code`."""
    return [c for c in code.co_consts if isinstance(c, CodeType)]


def _same_instructions(a: CodeType, b: CodeType) -> bool:
    def content(code: CodeType) -> tuple[object, ...]:
        constants = [repr(c) for c in code.co_consts if not isinstance(c, CodeType)]
        return code.co_code, constants, code.co_names, code.co_varnames, len(nested(code))

    return content(a) == content(b)


def _deeply_equal(a: CodeType, b: CodeType) -> bool:
    return _same_instructions(a, b) and all(
        _deeply_equal(x, y) for x, y in zip(nested(a), nested(b), strict=True)
    )
