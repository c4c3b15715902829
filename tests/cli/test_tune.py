"""`onebyone tune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

QUICK = ("--shape", "1,3,16,16", "--engines", "eager", "--budget", "0.3")


def test_a_table_and_a_plan(run: Run, folder: Path) -> None:
    done = run("tune", ":plain", *QUICK, "-o", "plan.json")
    assert done.code == 0, done.err
    assert "eager:original" in done.out
    assert "Where the time goes" in done.out
    assert json.loads((folder / "plan.json").read_text())["format"] == "onebyone plan 1"


def test_json_and_applying_it(run: Run, folder: Path) -> None:
    done = run("tune", ":plain", *QUICK, "--json", "-o", "plan.json")
    assert done.code == 0, done.err
    assert done.json["choice"]["engine"] == "eager"
    assert done.json["candidates"] == json.loads((folder / "plan.json").read_text())["candidates"]
    again = run("tune", ":plain", "--shape", "1,3,16,16", "--plan", "plan.json", "--json")
    assert again.code == 0, again.err
    assert again.json["choice"] == done.json["choice"]


def test_fast_products_are_off_unless_asked_for_and_stated(run: Run, folder: Path) -> None:
    assert run("tune", ":plain", *QUICK, "--json").json["fast_products"] is False
    done = run("tune", ":plain", *QUICK, "--fast-products", "-o", "plan.json")
    assert done.code == 0, done.err
    assert "without an error bound for each" in " ".join(done.out.split())
    again = run("tune", ":plain", "--shape", "1,3,16,16", "--plan", "plan.json", "--json")
    assert again.json["fast_products"] is True


def test_a_plan_of_something_else(run: Run, folder: Path) -> None:
    assert run("tune", ":plain", *QUICK, "-o", "plan.json").code == 0
    plan = json.loads((folder / "plan.json").read_text())
    plan["machine"]["processor"] = "another"
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run("tune", ":plain", "--shape", "1,3,16,16", "--plan", "plan.json")
    assert done.code == 3
    assert "it was made for another, and here is" in done.err
    assert run("tune", ":plain", "--shape", "1,3,16,16", "--plan", "plan.json", "--force").code == 0
    assert run("tune", ":padded", "--shape", "1,3,16,16", "--plan", "plan.json").code == 3


@pytest.mark.parametrize(
    "words",
    [
        ("--engines", "warp"),
        ("--budget", "0"),
        ("--threads", "0"),
        ("--dtype", "float16"),
        ("--device", "tpu"),
        ("--plan", "nowhere.json"),
        ("--output", "plan.txt"),
        ("--shape", "1,3,9,9"),
    ],
)
def test_wrong_usage(run: Run, folder: Path, words: tuple[str, str]) -> None:
    done = run("tune", ":plain", *QUICK, *words)
    assert done.code == 2, done.err
    assert list(folder.iterdir()) == []
