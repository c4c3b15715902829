"""Runs the command line in this process, in an empty folder, and captures its output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import testing
from typer.testing import CliRunner

from onebyone.cli.main import app

NETWORKS = "tests.cli.networks"
# CliRunner.invoke makes all commands from their functions at every call; once is enough.
vars(testing)["_get_command"] = cache(vars(testing)["_get_command"])


@dataclass(frozen=True)
class Answer:
    """The result of a command: exit code and both output streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


def run_command(*words: object) -> Answer:
    """Run `onebyone words…`; `:plain` means the factory of that name in tests.cli.networks."""
    arguments = [f"{NETWORKS}{w}" if str(w).startswith(":") else str(w) for w in words]
    result = CliRunner().invoke(app, arguments)
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables wide enough not to wrap the expected text, whatever the terminal."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return empty


@pytest.fixture
def run(folder: Path) -> Run:
    return run_command


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved dense network `d.pt2`, an image `image.npy`, and its score map `s.npz`: made by the commands."""
    shelf = tmp_path_factory.mktemp("shelf")
    np.save(shelf / "image.npy", np.random.default_rng(0).random((30, 41, 3)).astype(np.float32))
    made = run_command(
        "convolutionalize", ":plain", "--window", 16, "-o", shelf / "d.pt2", "--classes", "a,b,c,d,e"
    )
    assert made.code == 0, made.err
    made = run_command("scan", shelf / "d.pt2", shelf / "image.npy", "--output", shelf / "s.npz")
    assert made.code == 0, made.err
    return shelf
