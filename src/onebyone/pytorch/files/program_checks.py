"""Check that the text of an exported program holds only names, arithmetic on sizes, and tensor operators.

The functions take plain data. Each `why_unsafe_*` returns None, or one clause that names the problem. The rules are
lists of what is allowed.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Iterator
from typing import Any

# The allowed operators. Of `higher_order`: those that contain graphs of the same operators and no source code.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.[a-zA-Z]\w*(\.[a-zA-Z]\w*)?|"
    r"torch\.ops\.(aten|prims)\.(_[a-zA-Z]\w*|__\w+__)(\.\w+)?|"
    r"torch\.ops\.higher_order\.(cond|scan|map_impl|while_loop|wrap_with_autocast|"
    r"wrap_with_set_grad_enabled)|"
    r"torch\.sym_(int|float|not|ite|max|min|sqrt)|math\.trunc|"
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|"
    r"rshift|getitem)"
)
_TOUCHES_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save|load|_?print)\b")
_NAMESPACE = re.compile(r"torch\.ops\.(\w+)\.")
# Inserted into generated source as attribute names: no quote, bracket, backslash or line end is allowed.
_LABEL = re.compile(r"[\w.@ :/+<>=-]*")
_MODULE_STACK = re.compile(r"[\w .,;:@/+\-\[\]()'<>=]*")
_IDENTIFIER_KEYS = frozenset({"name", "as_name", "forward_arg_names"})
_NAMED_BY_KEY = frozenset({"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"})
_PLAIN_TEXT = frozenset({"as_string", "as_strings"})  # arguments; repr quotes them wherever they are written
_TREES = frozenset({"in_spec", "out_spec"})
_CONTAINERS = frozenset(
    {
        None,
        "builtins.tuple",
        "builtins.list",
        "builtins.dict",
        "collections.OrderedDict",
        "torch.fx.immutable_collections.immutable_dict",  # torch.fx converts dictionaries and lists to these
        "torch.fx.immutable_collections.immutable_list",
    }
)
# The functions that SymPy's srepr writes, and torch's functions of sizes.
_CALL_NAMES = """
    Symbol Integer Rational Float Add Mul Pow Max Min Abs Not And Or Eq Ne Lt Le Gt Ge Piecewise ExprCondPair
    Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan ITE floor ceiling sqrt log exp
    max min FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift
    PowByNatural FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt
    RoundToInt RoundDecimal ToFloat Identity
"""
_CALLS = frozenset(_CALL_NAMES.split())
_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "isnan", "floor", "ceil", "trunc", "sqrt"})
_MAX_EXPRESSION = 20_000  # characters
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Name, ast.Load),
    *(ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Call),
)


def why_unsafe_payload(config: Any, folder: str, empty: set[str]) -> str | None:
    """Why the table of stored tensors lists more than plain tensors; None if it does not.

    `empty` names the records without bytes, for which torch would create zeros of any size that the table states.

    >>> why_unsafe_payload({"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}, "weights", set())
    "keeps 'w' as a pickle, which could hold code and was not run"
    """
    for name, entry in config["config"].items():
        record = str(entry["path_name"])
        if not _LABEL.fullmatch(name):
            return f"has a tensor with an unsafe name ({name[:60]!r})"
        if not re.fullmatch(r"(weight|tensor)_\w+", record):
            return f"keeps {name!r} in {folder} as an object that is not a tensor ({record[:60]!r})"
        if entry.get("use_pickle"):
            return f"keeps {name!r} as a pickle, which could hold code and was not run"
        sizes = [size.get("as_int") for size in (entry.get("tensor_meta") or {}).get("sizes", [])]
        if record in empty and 0 not in sizes:
            return f"has no values for {name!r}"
    return None


def why_unsafe_program(program: Any) -> str | None:
    """Why a program (`models/model.json`, parsed) holds more than names, arithmetic and tensor operators; else None.

    >>> why_unsafe_program({"graph_module": {"graph": {"nodes": [{"target": "torch.os.system"}]}}})
    "calls 'torch.os.system', which is not a tensor operator"
    """
    return next((reason for key, text in _texts(program) if (reason := _why_unsafe_text(key, text))), None)


def why_unsafe_expression(text: str, methods: bool = False) -> str | None:
    """Why an expression is not arithmetic on sizes; else None. `methods` allows `L['x'].size()[0]`, as in guards.

    >>> why_unsafe_expression("Add(Symbol('s16', integer=True), Integer(-2))")
    >>> print(why_unsafe_expression("__import__('os').system('true')"))
    has a size that is not arithmetic ("__import__('os').system('true')")
    """
    problem = f"has a size that is not arithmetic ({text[:60]!r})"
    if len(text) > _MAX_EXPRESSION:
        return "has a size with an implausibly long expression"
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return problem
    return None if all(_allowed(node, methods) for node in ast.walk(tree)) else problem


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested plain data, with its key; the keys of a mapping are listed under `key/`."""
    stack: list[tuple[str, Any]] = [(key, value)]
    while stack:
        where, item = stack.pop()
        if isinstance(item, str):
            yield where, item
        elif isinstance(item, list):
            stack.extend((where, inner) for inner in item)
        elif isinstance(item, dict):
            for name, inner in item.items():
                yield f"{where}/", name
                # a node's metadata says where it came from; only names in the module stack are used
                stack.append((f"metadata.{name}" if where == "metadata" else name, inner))


def _why_unsafe_text(key: str, text: str) -> str | None:
    if key == "target" or key == "as_operator":
        return why_unsafe_operator(text)
    if key == "expr_str":
        return why_unsafe_expression(text)
    if key == "guards_code":
        return why_unsafe_expression(text, methods=True)
    if key in _TREES:
        return _why_unsafe_tree(text)
    if key.startswith("metadata"):
        if key == "metadata.nn_module_stack" and not _MODULE_STACK.fullmatch(text):
            return f"has an unsafe module path ({text[:60]!r})"
        return None
    if key in _PLAIN_TEXT:
        return None
    if key in _IDENTIFIER_KEYS or key.rstrip("/") in _NAMED_BY_KEY:
        safe = text == "" or (text.isidentifier() and not keyword.iskeyword(text))
        return None if safe else f"has an unsafe name ({text[:60]!r})"
    return None if _LABEL.fullmatch(text) else f"has an unsafe label ({text[:60]!r})"


def why_unsafe_operator(target: str) -> str | None:
    """Why the name of an operator is not that of a tensor operator that touches no files; else None.

    >>> why_unsafe_operator("torch.ops.aten.from_file.default")
    "calls 'torch.ops.aten.from_file.default', which reads or writes files"
    """
    if _TOUCHES_FILES.match(target):
        return f"calls {target!r}, which reads or writes files"
    if _OPERATOR.fullmatch(target):
        return None
    if _NAMESPACE.match(target):
        return f"calls {target!r}, an operator of a library that onebyone does not load"
    return f"calls {target[:60]!r}, which is not a tensor operator"


def _why_unsafe_tree(text: str) -> str | None:
    """Why inputs or outputs are nested in other than plain containers, whose types would be imported by name."""
    stack = [json.loads(text)[1]]
    while stack:
        spec = stack.pop()
        if spec["type"] not in _CONTAINERS:
            return (
                f"nests its inputs or outputs in {str(spec['type'])[:60]!r}; only plain containers are read"
            )
        keys = json.loads(spec["context"]) if spec["context"] else None
        plain = keys is None or (isinstance(keys, list) and all(isinstance(k, str | int) for k in keys))
        if not plain or any(isinstance(k, str) and not k.isidentifier() for k in keys or ()):
            return f"has unsafe names of inputs or outputs ({str(spec['context'])[:60]!r})"
        stack.extend(spec["children_spec"])
    return None


def _allowed(node: ast.AST, methods: bool) -> bool:
    if isinstance(node, ast.Call):
        function = node.func
        named = isinstance(function, ast.Name) and function.id in _CALLS
        return named or (methods and isinstance(function, ast.Attribute) and function.attr in _METHODS)
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or node.value.isidentifier()
    if isinstance(node, ast.Name):
        return (
            node.id in _CALLS
            or re.fullmatch(r"[usz]\d+|zuf?\d+|true|false|True|False|oo|int_oo|inf|L|math", node.id)
            is not None
        )
    if isinstance(node, ast.Attribute):
        return methods and node.attr in _METHODS
    return isinstance(node, _ARITHMETIC) or (methods and isinstance(node, ast.Subscript))
