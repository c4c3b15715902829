"""The commands check, targets, and convert and verify with --target."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from onebyone.cli.main import app
from onebyone.targets import profile_names
from tests.onnx.models import graph, integers, model

PROFILE = """
name = "mine"
title = "My chip"
[[constraint]]
kind = "layer"
operators = ["Conv"]
quantity = "input-channels"
maximum = 4
source = "our own measurement"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    m = model(
        graph("1,6,4,4", "1,3", "a = Conv(x, w) b = Flatten(a) y = MatMul(b, v)"),
        {"w": integers(3, 6, 1, 1), "v": integers(48, 3)},
    )
    ir.save(m, tmp_path / "net.onnx")
    (tmp_path / "mine.toml").write_text(PROFILE, encoding="utf-8")
    (tmp_path / "wrong.toml").write_text(PROFILE.replace("maximum", "maximun"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout  # progress of slow steps is on stderr


def test_check_lists_the_numbers(folder: Path) -> None:
    code, output = run("check", "net.onnx", "--target", "mine.toml", "--target", "conv-only", "--json")
    assert code == 3
    data = json.loads(output)
    assert data["targets"] == ["mine", "conv-only"]
    assert data["operations"] == 3
    offenders = [
        (o["path"], o["target"], o["constraint"], o["found"], o["allowed"], o["mendable"])
        for o in data["offenders"]
    ]
    assert offenders == [
        ("a", "mine", "input-channels", 6, 4, True),
        ("y", "conv-only", "form", "MatMul", "Conv", True),
    ]
    assert data["offenders"][0]["source"] == "our own measurement"


def test_what_a_target_pads_is_a_note(folder: Path) -> None:
    code, output = run("check", "net.onnx", "--target", "ane", "--json")
    assert code == 3
    (note,) = json.loads(output)["notes"]
    assert note.startswith(
        "ane pads the last axis to a multiple of 32: that of 4 of 4 tensors (the first is x, of 4)"
    )


def test_check_of_a_model_that_fits(folder: Path) -> None:
    code, output = run("check", "net.onnx", "--target", "nvidia-dla")
    assert code == 0
    assert "nothing found in 3 operations" in output


def test_convert_and_verify(folder: Path) -> None:
    assert run("convert", "net.onnx", "--target", "mine.toml", "-o", "out.onnx")[0] == 0
    assert run("check", "out.onnx", "--target", "mine.toml")[0] == 0
    code, output = run("verify", "net.onnx", "--target", "mine.toml", "--shape", "1,6,4,4", "--json")
    assert code == 0
    assert json.loads(output)["equivalent"]


def test_targets_are_listed_with_their_sources() -> None:
    code, output = run("targets", "--json")
    assert code == 0
    listed = json.loads(output)["targets"]
    assert [t["name"] for t in listed] == list(profile_names())
    assert all(c["source"] for t in listed for c in t["constraints"])
    code, output = run("targets", "amd-dpu")
    assert code == 0
    assert "UG1414" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "net.onnx", "--target", "hexagon"), "hexagon: is not known"),
        (("check", "net.onnx", "--target", "wrong.toml"), "has the unknown key 'maximun'"),
        (("check", "net.onnx", "--target", "missing.toml"), "missing.toml"),
        (("convert", "net.onnx", "--target", "hexagon", "-o", "out.onnx"), "is not known"),
        (("targets", "hexagon"), "is not known"),
        (
            ("convert", "net.onnx", "--target", "4d", "--target", "mine.toml", "-o", "out.onnx"),
            "--target: 2 targets were given (4d, mine); a network is converted for one",
        ),
        (("verify", "net.onnx", "--target", "4d", "--target", "rknn"), "2 targets were given (4d, rknn)"),
    ],
)
def test_bad_input(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.output + result.stderr
    assert not (folder / "out.onnx").exists()
