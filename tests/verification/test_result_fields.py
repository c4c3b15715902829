"""What holds of a result where a check did not run: the default of every field, and the headers of the table."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import pytest

from onebyone.verification.result import (
    DenseCheck,
    Fault,
    GradientCheck,
    LayerCheck,
    Verification,
    WeightCheck,
    WeightDifference,
    _against,
    _plain,
)

NOT_MEASURED: dict[type, dict[str, Any]] = {
    Fault: {"seen_by_integers": None, "seen_by_bound": None, "deviation": None, "why": ""},
    LayerCheck: {
        "law": "", "bitwise": None, "max_error": None, "bound": None, "error_ratio": None, "compared": 0,
        "arithmetic": "", "faults": (), "ok": True, "why": "",
    },
    WeightDifference: {"differing": None, "values": None, "largest": None},
    WeightCheck: {"differing": (), "problems": (), "unverified": ()},
    GradientCheck: {"worst": "", "max_error": None, "error_ratio": None, "why": ""},
    DenseCheck: {
        "max_abs_difference": None, "mean_abs_difference": None, "relative_to_spread": None, "class_agreement": None,
        "bound": None, "bound_ratio": None, "bound_missing": "", "float64_difference": None, "float64_limit": None,
        "planted_shift": None, "why": "",
    },
    Verification: {
        "max_error": None, "rounding_ratio": None, "float64_error": None, "float64_limit": None, "layers": (),
        "weights": None, "gradients": None, "dense": None, "first_difference": None, "problems": (), "unverified": (),
        "nothing_verified": False, "warnings": (), "evaluators": (),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_MEASURED, ids=lambda kind: kind.__name__)
def test_what_was_not_measured_has_no_figure(kind: Any) -> None:
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    assert defaults == NOT_MEASURED[kind]
    assert {name: type(value) for name, value in defaults.items()} == {
        name: type(value) for name, value in NOT_MEASURED[kind].items()
    }


def test_results_as_plain_data_have_every_field() -> None:
    for result in (
        LayerCheck("p", "k"), WeightCheck(1, 2), GradientCheck(True, 1), DenseCheck("t", True, 1, (1,), (1,)),
        Verification(True, "t"),
    ):  # fmt: skip
        names = {field.name for field in fields(result)}
        data = result.to_dict()
        assert names <= set(data)
        for name, value in NOT_MEASURED[type(result)].items():
            assert data[name] == value or (value == () and data[name] == []), name
    assert set(LayerCheck("p", "k").to_dict()) - {f.name for f in fields(LayerCheck)} == {"planted_fault"}
    assert LayerCheck("p", "k", faults=(Fault("f", deviation=0.5),)).to_dict()["planted_fault"] == 0.5
    assert set(WeightCheck(1, 2).to_dict()) - {f.name for f in fields(WeightCheck)} == {"ok"}
    assert DenseCheck("t", True, 1, (1,), (1,)).to_dict()["windows"] == 1
    assert GradientCheck(True, 3).to_dict()["compared"] == 3
    assert set(Verification(True, "t").to_dict()) - {f.name for f in fields(Verification)} == {
        "integer_probe", "windows", "max_abs_difference", "bound", "class_agreement"
    }  # fmt: skip


def test_the_headers_of_the_table_of_layers() -> None:
    v = Verification(True, "t", layers=(LayerCheck("fc", "Linear", bitwise=True),))
    header = next(line for line in str(v).splitlines() if "verdict" in line)
    names = ["layer", "kind", "integers", "|Δ|", "bound", "smallest injected fault", "verdict"]
    assert [part.strip() for part in header.split("  ") if part.strip()] == names
    assert all(f">{name}</th>" in v._repr_html_() for name in names)


def test_a_page_shows_only_figures_that_were_measured() -> None:
    page = Verification(True, "t", max_error=0.5)._repr_html_()
    assert "largest difference" in page
    for absent in ("rounding ratio", "integer probes", "None", "smallest injected fault"):
        assert absent not in page
    noted = Verification(False, "t", unverified=("u",), warnings=("w",), problems=("p",))._repr_html_()
    assert noted.count("not verified: u") == noted.count("warning: w") == noted.count("problem: p") == 1


def test_a_figure_with_its_limit() -> None:
    assert _against(None, 1.0, "limit") is None
    assert _against(0.5, None, "limit") == "0.5"
    assert _against(0.5, 0.25, "bound") == "0.5 (bound 0.25)"
    assert _against(0.0, 0.0, "bound") == "0 (bound 0)"


def test_numbers_that_json_lacks_become_their_names() -> None:
    nested = {
        "a": (1.5, float("inf"), [float("nan"), {"b": -float("inf")}]),
        "c": True,
        "d": "text",
        "e": None,
    }
    assert _plain(nested) == {"a": [1.5, "inf", ["nan", {"b": "-inf"}]], "c": True, "d": "text", "e": None}
