"""The plan of `tune` on the page: its parts are shown, and an invalid plan is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onebyone.comparison import Comparison
from onebyone.errors import BadInput
from onebyone.report.tuning_plan import plan_view, read_plan
from onebyone.tuning.plan import TuningPlan
from tests.cli.conftest import run_command

PLAN: dict[str, Any] = {
    "machine": {"processor": "a processor", "cores": 2},
    "versions": {"torch": "2.13.0"},
    "inputs": [{"dtype": "float32", "shape": [1, 3, 224, 224]}],
    "threads": 2,
    "candidates": [
        {"name": "eager", "engine": "torch", "form": "linear", "median_ms": 58.0, "spread_ms": 1.5},
        {"name": "1×1", "engine": "openvino", "form": "conv", "median_ms": 26.0, "rounding_ratio": 1.1},
        {"name": "bf16", "engine": "torch", "form": "conv", "median_ms": 12.0, "refused": "too far off"},
        {"name": "broken", "engine": "x", "form": "y", "median_ms": None, "refused": "it does not run"},
    ],
    "choice": {"engine": "openvino", "form": "conv", "dtype": None, "layers": {}},
    "why": "it is the fastest of those that are right",
    "layers": [
        {
            "paths": ["blocks.0.fc", "blocks.1.fc", "blocks.2.fc"],
            "kind": "Linear",
            "shape": [384, 1536],
            "forms": [
                {"form": "linear", "median_ms": 2.0, "spread_ms": 0.1},
                {"form": "conv", "median_ms": 1.0, "spread_ms": 0.05},
            ],
            "chosen": "conv",
            "gflops": 430.0,
            "of_peak": 0.93,
        }
    ],
    "peak_gflops": 462.0,
}


def test_a_plan_is_shown(comparison: Comparison) -> None:
    page = comparison.to_html(plan=PLAN)
    for text in (
        "1×1 (chosen)",
        "26 ms",
        "58 ms (interquartile range 1.5)",
        "too far off",
        "It is the fastest of those that are right.",
    ):
        assert text in page
    assert "blocks.0.fc, blocks.1.fc and 1 more" in page
    assert "<strong>conv 1 ms (interquartile range 0.05) (chosen)</strong>" in page
    assert "93%" in page
    assert "462 GFLOP/s" in page


def test_candidates_are_in_order_and_one_is_chosen() -> None:
    shown = plan_view(read_plan(PLAN))
    assert [c["name"] for c in shown["candidates"]] == ["1×1", "eager"]
    assert [c["chosen"] for c in shown["candidates"]] == [True, False]
    assert [(c["name"], c["time"]) for c in shown["refused"]] == [("bf16", "12 ms"), ("broken", "–")]
    assert shown["choice"] == "engine openvino, form conv"
    named = plan_view(read_plan({**PLAN, "choice": "eager"}))
    assert [c["name"] for c in named["candidates"] if c["chosen"]] == ["eager"]


@pytest.mark.parametrize("key", list(PLAN))
def test_any_part_may_be_missing(comparison: Comparison, key: str) -> None:
    page = comparison.to_html(plan={k: v for k, v in PLAN.items() if k != key})
    assert 'id="plan"' in page


class WithDict:
    def to_dict(self) -> dict[str, Any]:
        return PLAN


def test_a_plan_comes_from_a_file_or_an_object(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN), encoding="utf-8")
    assert read_plan(tmp_path / "plan.json") == read_plan(WithDict()) == PLAN
    tuned = type("Tuned", (), {"plan": WithDict()})()
    assert read_plan(tuned) == PLAN


def test_the_plan_that_tune_writes_is_accepted() -> None:
    """The record of `tune` with these entries: every key that it writes is read."""
    record = TuningPlan(
        **{key: PLAN[key] for key in ("machine", "versions", "threads", "choice", "why", "peak_gflops")},
        network={"name": "net"},
        inputs=tuple(PLAN["inputs"]),
        device="cpu",
        dynamic_batch=False,
        candidates=tuple(PLAN["candidates"]),
        layers=tuple(PLAN["layers"]),
    )
    shown = plan_view(read_plan(record))
    assert [c["name"] for c in shown["candidates"]] == ["1×1", "eager"]
    assert dict(shown["facts"])["inputs"] == "dtype float32, shape 1×3×224×224"


def bad(**changes: Any) -> str:
    return json.dumps({**PLAN, **changes})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("\ufeff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "a list; expected a plan of tune, which is an object"),
        ("{}", "contains neither candidates nor layers"),
        (bad(candidates="x"), 'candidates is "x"; expected a list'),
        (bad(candidates=[3]), "candidates.0. is 3; expected an object"),
        (bad(candidates=[{"median_ms": "fast"}]), 'candidates.0.: median_ms is "fast"; expected a number'),
        (bad(candidates=[{"median_ms": True}]), "median_ms is true; expected a number"),
        (bad(layers=[{"forms": [1]}]), "layers.0..forms.0. is 1; expected an object"),
        (bad(layers=[{"forms": {"a": 1}}]), "layers.0.: forms is an object; expected a list"),
        (bad(threads=[2]), "threads is a list; expected a number"),
        (bad(choice=3), "choice is 3; expected text or an object"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=reason) as error:
        read_plan(tmp_path / "plan.json")
    assert "plan.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        read_plan(tmp_path / "none.json")
    monkeypatch.setattr("onebyone.report.tuning_plan.MAX_BYTES", 10)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN), encoding="utf-8")
    with pytest.raises(BadInput, match="larger than"):
        read_plan(tmp_path / "plan.json")


def test_numbers_that_json_cannot_hold(comparison: Comparison) -> None:
    page = comparison.to_html(plan={"candidates": [{"name": "x", "median_ms": float("inf")}]})
    assert "∞ ms" in page


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    few = ("compare", ":plain", "--rows", "D1,D4", "--shape", "1,3,16,16")
    plan, page = tmp_path / "plan.json", tmp_path / "r.html"
    plan.write_text(json.dumps(PLAN), encoding="utf-8")
    done = run_command(*few, "--html", page, "--plan", plan, "--json")
    assert done.code == 0, done.err
    assert done.json["html"] == str(page)
    assert "It is the fastest of those" in page.read_text(encoding="utf-8")
    assert run_command(*few, "--plan", plan).code == 2
    assert run_command(*few, "--html", tmp_path / "no" / "r.html").code == 2
    plan.write_text("[]", encoding="utf-8")
    other = tmp_path / "s.html"
    refused = run_command(*few, "--html", other, "--plan", plan)
    assert refused.code == 2
    assert "expected a plan of tune" in refused.err
    assert not other.exists()
