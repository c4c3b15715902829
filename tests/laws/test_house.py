"""Rules for every law: it imports no framework, and has a name and an equation."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

from onebyone import laws

NAMES = sorted(module.name for module in pkgutil.iter_modules(laws.__path__))


def imported(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_law_imports_numpy_the_standard_library_and_other_laws_alone(name):
    for module in imported((Path(laws.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")):
        root = module.partition(".")[0]
        assert (
            root == "numpy"
            or root in sys.stdlib_module_names
            or module in ("onebyone.errors", "onebyone.records")
            or module.startswith("onebyone.laws.")
        ), module


@pytest.mark.parametrize("name", NAMES)
def test_every_law_has_a_name_and_an_equation_and_is_in_the_index(name):
    law = importlib.import_module(f"onebyone.laws.{name}")
    assert " " in law.NAME or name == law.NAME
    assert law.EQUATION
    assert "Equation" in (law.__doc__ or "")
    assert f"    {name} " in (laws.__doc__ or "")
