"""The package declares all that it imports, with tested versions; tools/wheel.py tests the wheel itself."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "fontTools": "fonttools",
    "mpl_toolkits": "matplotlib",
    "onnx_ir": "onnx-ir",
    "onnx_shape_inference": "onnx-shape-inference",
    "openslide": "openslide-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[>=]", r)[0] for r in requirements}


def imports(tree: ast.AST) -> set[str]:
    """The distributions that a module imports anywhere, without the standard library and this package."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names |= {
                str(name.value).partition(".")[0] for name in node.args if isinstance(name, ast.Constant)
            }
    own = {"onebyone", *sys.stdlib_module_names}
    return {DISTRIBUTIONS.get(name, name) for name in names - own}


def test_every_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    known = declared(PROJECT["dependencies"]).union(*(declared(r) for k, r in extras.items() if k != "dev"))
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "src").rglob("*.py")
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))) - known
    }
    assert undeclared == set()


def test_every_requirement_states_the_version_that_is_tested() -> None:
    extras = PROJECT["optional-dependencies"]
    requirements = {r for rs in (PROJECT["dependencies"], *extras.values()) for r in rs if "[" not in r}
    assert {r for r in requirements if not re.fullmatch(r"[\w-]+>=[\d.]+", r)} == set()


def test_the_classifiers_name_every_python_that_is_tested() -> None:
    versions = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert {"3.11", "3.12", "3.13"} <= versions
