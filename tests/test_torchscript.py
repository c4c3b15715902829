"""Every function and command refuses modules compiled by TorchScript, also nested ones, with path and class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import onebyone
from onebyone import errors
from onebyone.cli.main import app

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

IMAGE = torch.zeros(2, 3, 8, 8)
VERBS: dict[str, Callable[[nn.Module], Any]] = {
    "convert at graph level": lambda m: onebyone.convert(m, level="graph", example=IMAGE),
    "convolutionalize": lambda m: onebyone.convolutionalize(m, 8, 3),
    "tune": lambda m: onebyone.tune(m, IMAGE, budget=1, engines="eager"),
    "compare": lambda m: onebyone.compare(m, IMAGE, budget=1),
    "draw": lambda m: onebyone.draw(m, IMAGE),
    "verify": lambda m: onebyone.verify(plain(), m, IMAGE),
    "verify the original": lambda m: onebyone.verify(m, plain(), IMAGE),
}


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()


def scripted() -> nn.Module:
    return torch.jit.script(plain())


def traced() -> nn.Module:
    return torch.jit.trace(plain(), IMAGE)


def nested() -> nn.Module:
    return nn.Sequential(scripted(), nn.Linear(2, 2)).eval()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("build", "path", "kind"),
    [
        (scripted, "", "RecursiveScriptModule"),
        (traced, "", "TopLevelTracedModule"),
        (nested, "0", "RecursiveScriptModule"),
    ],
)
def test_refused_by_every_verb(verb: str, build: Callable[[], nn.Module], path: str, kind: str) -> None:
    with pytest.raises(errors.Refused, match="compiled by TorchScript: give the network as it was") as caught:
        VERBS[verb](build())
    assert [(r.path, r.kind) for r in caught.value.refusals] == [(path, kind)]


@pytest.mark.parametrize("verb", ["convolutionalize --window 8", "tune --budget 1", "compare", "draw"])
def test_refused_on_the_command_line(verb: str, tmp_path: Any) -> None:
    name, *options = verb.split()
    if name == "draw":
        options += ["--output", str(tmp_path)]
    result = CliRunner().invoke(app, [name, "tests.test_torchscript:nested", *options])
    assert result.exit_code == 3, result.output
    assert "compiled by TorchScript" in result.output


def test_convert_lists_such_a_module_and_converts_the_others() -> None:
    c = onebyone.convert(nested())
    assert [(r.path, r.kind) for r in c.refused] == [("0", "RecursiveScriptModule")]
    assert [change.path for change in c.changes] == ["1"]
