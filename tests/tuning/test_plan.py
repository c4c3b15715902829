"""Plans: saved as JSON, validated when read, and refused where they are not valid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from onebyone.errors import BadInput, Refused
from onebyone.tuning import TuningPlan

MACHINE = {"processor": "A", "features": ["avx2"], "cores": 2, "gpu": None, "precision": "highest"}
VERSIONS = {"torch": "2.13.0", "onnxruntime": "1.31"}
NETWORK = {"name": "Net", "parameters": 3, "weights": "aa", "operators": "bb"}
INPUTS = [{"path": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}]


@pytest.fixture
def plan() -> TuningPlan:
    return TuningPlan(
        machine=MACHINE,
        versions=VERSIONS,
        network=NETWORK,
        inputs=tuple(INPUTS),
        threads=2,
        device="cpu",
        dynamic_batch=False,
        candidates=({"name": "eager:original", "median_ms": 1.0, "refused": None},),
        choice={
            "name": "eager:layers(1)#2",
            "engine": "eager",
            "form": "layers",
            "dtype": None,
            "layers": {"0": "conv"},
        },
        why="because",
        layers=({"paths": ["0"]},),
        peak_gflops=100.0,
    )


def check(plan: TuningPlan, **changed: Any) -> None:
    here: dict[str, Any] = {
        "machine": MACHINE,
        "versions": VERSIONS,
        "network": NETWORK,
        "inputs": INPUTS,
        "threads": 2,
    }
    plan.check(**(here | changed))


def test_round_trip(plan: TuningPlan, tmp_path: Path) -> None:
    path = plan.save(tmp_path / "plan.json")
    assert TuningPlan.load(path) == plan
    assert json.loads(path.read_text())["choice"]["layers"] == {"0": "conv"}
    assert next(iter(plan.to_dict())) == "format"


def test_it_is_immutable(plan: TuningPlan) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.threads = 3  # type: ignore[misc]
    plan.to_dict()["choice"]["engine"] = "other"
    assert plan.choice["engine"] == "eager"


def test_a_plan_is_valid_where_it_was_made(plan: TuningPlan) -> None:
    check(plan)


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"machine": MACHINE | {"processor": "B"}}, "processor", "it was made for A, and here is B"),
        ({"machine": MACHINE | {"features": ["avx2", "avx512f"]}}, "processor", "vector instructions"),
        ({"machine": MACHINE | {"gpu": "H"}}, "processor", "the GPU: it was made for none, and here is H"),
        ({"machine": MACHINE | {"precision": "high"}}, "processor", "precision of float32"),
        ({"versions": {"torch": "2.14.0"}}, "version", "torch: it was made for 2.13.0, and here is 2.14.0"),
        ({"network": NETWORK | {"weights": "cc"}}, "network", "names and shapes"),
        ({"network": NETWORK | {"operators": "cc"}}, "network", "its operators are not those"),
        ({"threads": 1}, "threads", "made with 2, and there are 1 now"),
        (
            {"inputs": [{"path": "x", "shape": [8, 3, 8, 8], "dtype": "float32"}]},
            "input",
            "made for float32 1×3×8×8, and this is float32 8×3×8×8",
        ),
    ],
)
def test_elsewhere_a_plan_is_refused_with_the_reason(
    plan: TuningPlan, changed: dict[str, Any], kind: str, words: str
) -> None:
    with pytest.raises(Refused, match="the plan was made for something else") as caught:
        check(plan, **changed)
    assert [r.kind for r in caught.value.refusals] == [kind]
    assert words in caught.value.refusals[0].reason


def test_every_reason_is_reported(plan: TuningPlan) -> None:
    with pytest.raises(Refused) as caught:
        check(plan, threads=1, versions={"torch": "1"}, network=NETWORK | {"weights": "x"})
    assert {r.kind for r in caught.value.refusals} == {"threads", "version", "network"}


def test_versions_of_unused_libraries_may_differ(plan: TuningPlan) -> None:
    check(plan, versions=VERSIONS | {"onnxruntime": "2"})
    with pytest.raises(Refused):
        check(plan, versions=VERSIONS | {"onnxruntime": "2"}, libraries=("torch", "onnxruntime"))


def test_plans_with_a_dynamic_batch_are_valid_for_any_batch(plan: TuningPlan) -> None:
    free = dataclasses.replace(plan, dynamic_batch=True)
    check(free, inputs=[{"path": "x", "shape": [8, 3, 8, 8], "dtype": "float32"}])
    with pytest.raises(Refused):
        check(free, inputs=[{"path": "x", "shape": [8, 3, 9, 8], "dtype": "float32"}])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("choice"), "choice is missing"),
        (lambda d: d.update(threads="2"), "threads: expected int, got str"),
        (lambda d: d.update(threads=True), "threads: expected int, got bool"),
        (lambda d: d.update(format="onebyone plan 9"), "is not a plan"),
        (lambda d: d["choice"].update(engine=3), "choice: engine: expected str, got int"),
        (lambda d: d["choice"].update(layers={"0": 1}), "expected the name of a form for each path"),
        (lambda d: d.update(layers=[3]), "layers: expected a list of objects"),
        (lambda d: d.update(why="\x1b[2J"), "contains control characters"),
        (lambda d: d["machine"].update({"a\x9b": 1}), "contains control characters"),
        (lambda d: d["candidates"][0].update(name="\u202egnp"), "contains control characters"),
    ],
)
def test_invalid_plans_are_not_read(plan: TuningPlan, tmp_path: Path, change: Any, words: str) -> None:
    data = plan.to_dict()
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match=words):
        TuningPlan.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', "[" * 10**5, "\udcff"])
def test_invalid_json_is_not_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=r"plan=.*is not (valid JSON|a plan)"):
        TuningPlan.load(path)


def test_files(plan: TuningPlan, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"ends in \.json"):
        plan.save(tmp_path / "plan.txt")
    with pytest.raises(BadInput, match="cannot read"):
        TuningPlan.load(tmp_path / "none.json")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (2**24 + 1))
    with pytest.raises(BadInput, match="expected at most 16 MiB"):
        TuningPlan.load(large)


def test_infinities_are_saved_by_name(plan: TuningPlan) -> None:
    odd = dataclasses.replace(plan, candidates=({"name": "a", "max_error": float("inf")},))
    assert json.loads(odd.to_json())["candidates"][0]["max_error"] == "inf"
