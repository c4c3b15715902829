"""Help, version, quiet mode and progress of the command line, and one real process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

import onebyone
from onebyone.cli import main, session
from onebyone.cli.main import app
from tests.cli.conftest import NETWORKS, Run
from tests.interpreter import ROOT, run_python

VERBS = [
    "convert",
    "verify",
    "convolutionalize",
    "scan",
    "detect",
    "evaluate",
    "demo",
    "info",
    "check",
    "targets",
    "predict",
    "view",
    "compare",
    "draw",
    "tune",
]


def process(*words: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "onebyone", *words, folder=ROOT)


def test_version(run: Run) -> None:
    assert run("--version").out.strip() == f"onebyone {onebyone.__version__}"


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_fits(run: Run, monkeypatch: pytest.MonkeyPatch, columns: str, verb: str | None) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERMINAL_WIDTH", columns)
    done = run(*([verb] if verb else []), "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= int(columns)
    cut_off = [
        word for word in done.out.split() if word.endswith("…") and word not in {"A,B,…", "M,…", "S,…", "…"}
    ]
    assert cut_off == []
    if verb is None:
        assert all(name in done.out for name in VERBS)
        assert "Exit codes: 0 done" in done.out
    else:
        assert "--json" in done.out


def test_every_verb_has_json_and_a_docstring() -> None:
    commands = {c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
    assert sorted(commands) == sorted(VERBS)
    for command in commands.values():
        assert command.__doc__
        assert {"json", "quiet", "verbose"} <= set(command.__annotations__)


def test_the_script_is_this_command_line() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="onebyone")
    assert script.load() is main.run


def test_quiet_says_nothing_but_errors_and_json(run: Run) -> None:
    done = run("--quiet", "convert", ":not_finite")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert run("--quiet", "convert", ":plain", "--json").json["to"] == "conv"
    assert run("--quiet", "convert", ":missing").err.startswith("error: ")


def test_a_step_speaks_once_it_has_taken_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LONG", 0.0)
    monkeypatch.setattr(session, "_REPEAT", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with session.Session(sys.stdout).progress("Scanning") as tell:
        while "Scanning …" not in sys.stderr.getvalue():  # type: ignore[attr-defined]
            time.sleep(0.001)
        tell(3, 8)
    assert sys.stderr.getvalue() == "Scanning …\nScanning: 3 of 8\n"  # type: ignore[attr-defined]


def test_a_short_step_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LONG", 60.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with session.Session(sys.stdout).step("Opening"):
        pass
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with session.Session(sys.stdout).progress("Scanning") as tell:
        tell(3, 8)
    assert "3/8" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_markup_in_names_is_shown_as_it_is(run: Run, folder: Path) -> None:
    assert "[bold]x[/bold].pt2" in run("convert", "[bold]x[/bold].pt2").err


def test_plain_data() -> None:
    import numpy as np

    data = {
        "a": (1, float("nan"), float("-inf")),
        "b": np.float32(0.5),
        "c": np.arange(2),
        3: Path("x"),
        "d": {1},
    }
    assert session.plain(data) == {"a": [1, "nan", "-inf"], "b": 0.5, "c": [0, 1], "3": "x", "d": [1]}


def test_help_does_not_import_torch_or_numpy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from onebyone.cli.main import app;"
        "assert CliRunner().invoke(app, ['convert', '--help']).exit_code == 0;"
        "print([m for m in ('torch', 'numpy', 'PIL', 'rich.progress') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_of_its_own() -> None:
    good = process("convert", f"{NETWORKS}:chatty", "--json")
    assert good.returncode == 0
    assert [c["path"] for c in json.loads(good.stdout)["changes"]] == ["4", "5"]
    assert process("convert", "--nonsense").returncode == 2
