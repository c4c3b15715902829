"""The arithmetic and pages of the benchmarks, on synthetic results; the measurements themselves are not tested."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import report, report_gpu
from bench.models.profile import faster_peers
from bench.models.summary import HEAD, PEER_COLUMNS, geomean, means, rows
from bench.report_mutants import SOURCES, mutation_section
from bench.zoo.work import ROOT

RESULTS = ROOT / "bench" / "results"


def result(name: str, **peers: float) -> dict[str, Any]:
    """Results of a network: the ratios of its peers with any engine; PyTorch alone takes twice as long."""
    ours = {
        "engine": "eager",
        "form": "conv",
        "layers_flipped": 0,
        "median_ms": 10.0,
        "spread_ms": 0.1,
        "rounding_ratio": 1.25,
        "of_peak": 0.5,
    }
    return {
        "name": name,
        "peak_gflops": 100.0,
        "ours": {"all": ours, "torch": ours},
        "peers": {n: {"ratio_all": r, "ratio_torch": r / 2} for n, r in peers.items()},
    }


TWO = [
    result("a", eager=4.0, compile=3.0, compile_freezing=2.0, onnxruntime=1.0),
    result("b", eager=1.0, compile=2.0, compile_freezing=4.0, onnxruntime=4.0, openvino=0.5),
]


def test_geometric_means() -> None:
    assert geomean([]) is None
    assert geomean([2.0, 8.0]) == pytest.approx(4.0)
    found = means(TWO)
    assert found["eager"] == pytest.approx(2.0)
    assert found["compile"] == pytest.approx(2.0)  # the faster of the two on each network: 2 and 2
    assert found["best_peer"] == pytest.approx(math.sqrt(1.0 * 0.5))
    assert found["onnxruntime_torch_only"] == pytest.approx(1.0)
    assert found["openvino_torch_only"] == pytest.approx(
        0.25  # measured on one of the two networks only
    )


def test_rows_have_the_length_of_the_header() -> None:
    found = rows(TWO)
    assert {len(r) for r in found} == {len(HEAD)}
    assert found[1][-len(PEER_COLUMNS) :] == ["2.00", "–", "1.50", "1.00", "0.50", "–"]


def test_fast_products_are_shown_if_they_were_measured() -> None:
    assert "eager_fast_products" not in means(TWO)
    fast = result("a", eager=4.0, openvino=2.0)
    fast["ours"]["fast"] = fast["ours"]["all"] | {"rounding_ratio": None}
    for peer in fast["peers"].values():
        peer["ratio_fast"] = 1.5 * peer["ratio_all"]
    found = means([fast, TWO[1]])
    assert found["eager_fast_products"] == pytest.approx(6.0)
    assert found["best_peer_fast_products"] == pytest.approx(3.0)
    assert [r[1].split(":")[0] for r in rows([fast])] == ["any engine", "PyTorch alone", "fast products"]


def test_only_faster_peers_are_profiled() -> None:
    assert faster_peers(TWO[0]) == ["onnxruntime"]
    assert faster_peers(TWO[1]) == ["openvino"]
    assert faster_peers(result("c", onnxruntime=2.0, openvino=2.1)) == []


def test_the_page_names_the_faster_peers_or_else_the_closest() -> None:
    slower = [result("a", onnxruntime=4.0, openvino=4.2), result("b", eager=6.0, openvino=2.5)]  # halved
    assert "None. The closest is OpenVINO on b, which takes 1.25 times as long." in report.profiled(
        [], slower
    )
    times = {"ours": {"linear": 4.0}, "onnxruntime": {"Conv": 3.0}}
    rows = report.profiled([{"name": "a", "ours": "onebyone", "ms": times}], TWO)
    assert rows[-1] == "| **a** | onebyone: `linear` 4.00 | ONNX Runtime: `Conv` 3.00 |"


@pytest.mark.parametrize("theme", report.INK)
def test_the_plot_is_valid_svg_and_reproducible(theme: str) -> None:
    first = report.plot({"models": TWO}, theme)
    assert first == report.plot({"models": TWO}, theme)
    ElementTree.fromstring(first)


def test_the_page_is_up_to_date() -> None:
    """docs/bench.md equals the page generated from the committed results."""
    names = (*report.PARTS, *report.FORMS_ON_GPU)
    *data, first, second = (json.loads((RESULTS / f"{n}.json").read_text(encoding="utf-8")) for n in names)
    assert (ROOT / "docs" / "bench.md").read_text(encoding="utf-8") == report.page(*data, [first, second])


def test_the_other_form_of_layers_with_several_positions_is_compared() -> None:
    def shape(kind: str, size: list[int], **milliseconds: float) -> dict[str, Any]:
        return {"kind": kind, "input": size, "forms": {k: {"median_ms": v} for k, v in milliseconds.items()}}

    shapes = [
        shape("linear", [2, 5, 8], linear=2.0, conv=3.0),
        shape("linear", [2, 8], linear=2.0, conv=9.0),  # one position
        shape("linear", [2, 1, 8], linear=2.0, conv=9.0),
        shape("conv", [2, 8, 1, 3], linear=1.0, conv=4.0),
        shape("conv", [2, 8, 1, 1], linear=1.0, conv=9.0),
        shape("conv", [2, 8, 4, 4], conv=9.0),  # has no other form
    ]
    assert report_gpu._other_form({"shapes": shapes}, "linear") == [1.5]
    assert report_gpu._other_form({"shapes": shapes}, "conv") == [0.25]


def test_the_committed_results_are_consistent() -> None:
    """All ten networks are present, none is slower than in eager mode, and the means follow from the networks."""
    data = json.loads((RESULTS / "models.json").read_text(encoding="utf-8"))
    assert len(data["models"]) == 10
    assert data["geomean"] == pytest.approx(means(data["models"]))
    for network in data["models"]:
        assert network["ours"]["torch"]["rounding_ratio"] is not None
        assert network["peers"]["eager"]["ratio_all"] > 0.97, network[
            "name"
        ]  # the spread of two runs of one thing


def test_the_section_on_mutants_counts_what_is_left() -> None:
    """Changes that were not run, and survivors without a reason, are shown."""
    survivors = [{"equivalent": "Only speed."}, {"equivalent": None}]
    whole = {"mutants": 1200, "tested": 1200, "killed": 1198, "survivors": survivors}
    part = {"mutants": 1200, "tested": 300, "killed": 300, "survivors": []}
    lines = mutation_section({"mutmut": "3.8.1", "rooms": {"laws": whole, "layout": part}})
    assert lines[-2:] == [
        "| `laws` | the mathematics | 1,200 | 1,198 (99.8%) | 2, 1 of them without a reason |",
        "| `layout` | the planner of layouts | 300 of 1,200 | 300 (100.0%) | 0 |",
    ]


def test_every_room_of_the_mutation_tester_is_described() -> None:
    rooms = pytest.importorskip("tools.mutants.__main__", reason="needs mutmut").ROOMS
    assert set(SOURCES) == set(rooms)
