"""The public interface, and that no other name looks public."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

import onebyone
from tests.interpreter import ROOT, run_python

VERBS = {
    "check",
    "compare",
    "convert",
    "convolutionalize",
    "detect",
    "draw",
    "evaluate",
    "info",
    "predict",
    "scan",
    "tune",
    "verify",
    "view",
}


def test_what_is_public() -> None:
    assert set(onebyone.__all__) == VERBS | {"Labels", "errors"}
    assert all(hasattr(onebyone, name) for name in onebyone.__all__)


def test_nothing_else_looks_public() -> None:
    import onebyone.cli.main  # the parts that get imported are attributes too, as Python has it

    public = {name for name in dir(onebyone) if not name.startswith("_")}
    assert public == set(onebyone.__all__)
    others = {n for n, v in vars(onebyone).items() if not n.startswith("_") and not isinstance(v, ModuleType)}
    assert others <= set(onebyone.__all__)


def test_version_is_the_distribution_s() -> None:
    assert onebyone.__version__ == metadata.version("onebyone")


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_is_documented_and_annotated(name: str) -> None:
    verb = getattr(onebyone, name)
    doc = inspect.getdoc(verb) or ""
    assert len(doc.splitlines()[0]) > 20
    for parameter in inspect.signature(verb).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"{parameter.name}:" in doc
    assert inspect.signature(verb).return_annotation is not inspect.Signature.empty


def test_no_module_has_the_name_of_a_public_function() -> None:
    modules = {module.name for module in pkgutil.iter_modules(onebyone.__path__)}
    assert modules & set(onebyone.__all__) == {"errors"}


def test_the_import_is_light() -> None:
    code = "import sys, onebyone; print([m for m in ('torch', 'numpy', 'rich', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", ["compare", "convert", "convolutionalize", "draw"])
@pytest.mark.parametrize("thing", [None, 3, [1], {"a": 1}, object()])
def test_what_is_not_a_network(verb: str, thing: object) -> None:
    arguments = {"window": 4} if verb == "convolutionalize" else {}
    with pytest.raises(onebyone.errors.BadInput, match="is not a network but of type"):
        getattr(onebyone, verb)(thing, **arguments)


def test_a_source_may_be_named() -> None:
    conversion = onebyone.convert("tests.cli.networks:plain")
    assert [change.path for change in conversion.changes] == ["4", "5"]


def test_the_command_of_the_readme() -> None:
    code = (
        "import torch, onebyone; m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*8*8, 32), "
        "torch.nn.ReLU(), torch.nn.Linear(32, 10)); d = onebyone.convolutionalize(m, window=(8, 8)); "
        "print(d.model(torch.randn(1, 3, 20, 31)).shape, d.geometry)"
    )
    done = run_python("-c", code, folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch.Size([1, 10, 13, 24])")
