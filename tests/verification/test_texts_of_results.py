"""What results say: the names of what was verified, and fields of a check that did not run."""

from __future__ import annotations

import inspect

import pytest

from onebyone.errors import BadInput
from onebyone.records import LEAST_AGREEMENT
from onebyone.verification import result, verify
from onebyone.verification.result import Fault, LayerCheck, Verification, WeightCheck, WeightDifference


def test_the_names_of_what_was_verified() -> None:
    for target, text in (
        (result.SAME_FUNCTION, "converted = original"),
        (result.DENSE_EXACT, "dense = crops"),
        (result.DENSE_PADDED, "dense ≈ crops (padded)"),
        (result.CLASS_MAP, "means of the class map = crops"),
        (result.CLASS_MAP_MEASURED, "means of the class map ≈ crops (measured)"),
        (result.TILED, "tiled = whole"),
    ):
        assert str(Verification(True, target)) == f"equivalent ({text})"


def test_faults_and_weights_without_figures() -> None:
    (fault,) = LayerCheck("p", "k", faults=(Fault("f"),)).to_dict()["faults"]
    assert fault == {
        "name": "f", "seen_by_integers": None, "seen_by_bound": None, "deviation": None, "why": "",
    }  # fmt: skip
    (difference,) = WeightCheck(1, 2, (WeightDifference("n", "differs"),)).to_dict()["differing"]
    assert difference == {"name": "n", "what": "differs", "differing": None, "values": None, "largest": None}


def test_settings_of_a_verification_that_are_not_given() -> None:
    with pytest.raises(BadInput, match=r"^x: is missing"):
        verify(len, len)
    defaults = {name: p.default for name, p in inspect.signature(verify).parameters.items()}
    assert (defaults["seed"], defaults["gradients"], defaults["progress"]) == (0, True, None)
    assert (defaults["max_windows"], defaults["min_agreement"]) == (4096, LEAST_AGREEMENT)
