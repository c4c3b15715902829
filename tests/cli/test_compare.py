"""`onebyone compare`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run

FEW = ("--rows", "S1,D1,D4,R2", "--shape", "1,3,16,16")


def test_rows_as_json(run: Run, folder: Path) -> None:
    done = run("compare", ":plain", *FEW, "--json", "--output", "r.json")
    assert done.code == 0
    rows = done.json["rows"]
    assert [row["id"] for row in rows] == ["S1", "D1", "D4", "R2"]
    assert all({"id", "statement", "verdict", "figures"} <= set(row) for row in rows)
    assert json.loads((folder / "r.json").read_text())["rows"] == rows


def test_a_table_for_people(run: Run) -> None:
    done = run("compare", ":plain", *FEW)
    assert done.code == 0
    assert "does not hold" in done.out
    assert "Layers compared" in done.out


def test_what_cannot_be_compared(run: Run) -> None:
    assert run("compare", ":plain", "--shape", "1,3,9,9").code == 2
    assert run("compare", ":plain", *FEW, "--output", "r.html").code == 2
    assert run("compare", ":plain", "--shape", "1,3,16,16", "--rows", "Z9").code == 2
    assert run("compare", ":plain", "--budget", "0").code == 2
