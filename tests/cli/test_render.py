"""The tables state how many rows they omit, and count what they combine."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onebyone.cli import render


def shown(parts: list[render.RenderableType], width: int = 120) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for part in parts:
        console.print(part)
    return stream.getvalue()


def geometry(*reasons: str) -> render.Data:
    axes = ("window", "stride", "window_offset", "receptive_field", "receptive_field_offset")
    return {**{name: [8, 9] for name in axes}, "exact": not reasons, "inexact_because": list(reasons)}


def test_one_reason_is_told_once_for_all_its_operators() -> None:
    reasons = [f"features.{i} (conv): padding 1: a border" for i in range(5)] + [
        "pool: a partial place",
        "by choice",
    ]
    text = shown(render.geometry_tables(geometry(*reasons)), width=200)
    assert (
        "no: padding 1: a border (features.0 (conv), features.1 (conv), features.2 (conv) and 2 more)" in text
    )
    assert "a partial place (pool)" in text
    assert "by choice" in text
    assert text.count("a border") == 1


def test_an_exact_geometry() -> None:
    text = shown(render.geometry_tables(geometry()))
    assert "equals cropping every window  yes" in text
    assert "8×9" in text


def change(path: str) -> render.Data:
    words = {"kind": "Linear", "law": "a law", "before": "Linear 2×3", "after": "1×1 convolution 2×3"}
    return {"path": path, **words, "copied_bytes": 3 * 1024**2}


@pytest.mark.parametrize(("count", "hidden"), [(render.MOST_ROWS, 0), (render.MOST_ROWS + 7, 7)])
def test_a_long_table_says_how_much_it_leaves_out(count: int, hidden: int) -> None:
    changes = [change(f"layer{i}") for i in range(count)]
    text = shown(
        render.conversion_tables({"changes": changes, "refused": [], "copied_bytes": 0, "output": None})
    )
    assert ("more: --json lists all" in text) is bool(hidden)
    assert (f"and {hidden} more" in text) is bool(hidden)
    assert f"layer{render.MOST_ROWS - 1} " in text
    assert f"{count} layers converted" in text


def test_refusals_are_listed_with_their_reasons_and_markup_is_kept() -> None:
    refused = [{"path": "", "kind": "Odd[red]", "reason": "a reason that is long " * 12}]
    data = {"changes": [change("")], "refused": refused, "copied_bytes": 2048, "output": "w.pt2"}
    text = shown(render.conversion_tables(data), width=80)
    assert text.count("(top level)") == 2
    assert "Odd[red]" in text
    assert text.count("long") == 12
    assert "1 layer converted, 1 refused, 2.0 KiB copied; wrote w.pt2" in text
    assert max(map(len, text.splitlines())) <= 80


def verification(**changed: object) -> render.Data:
    layer = {
        "path": "fc",
        "kind": "Linear",
        "bitwise": True,
        "max_error": 1e-8,
        "bound": 2e-7,
        "ok": True,
        "why": "",
    }
    data = {
        "layers": [layer | {"planted_fault": 0.25}],
        "refused": [],
        "target": "dense = crops",
        "integer_probe": True,
        "max_error": 0.0,
        "class_agreement": 0.9375,
        "unverified": ["gradients"],
        "problems": [],
        "gradients": {"compared": 4, "ok": False},
        "equivalent": True,
    }
    return data | changed


def test_a_verification() -> None:
    text = shown(render.verification_tables(verification()))
    for words in (
        "bit for bit",
        "1e-08",
        "2e-07",
        "0.25",
        "93.75%",
        "4 tensors, DIFFER",
        "not verified: gradients",
    ):
        assert words in text
    assert text.splitlines()[-1] == "equivalent"


def test_a_failed_verification_says_what_failed() -> None:
    layer = verification()["layers"][0] | {"bitwise": False, "ok": False, "why": "rows swapped"}
    data = verification(layers=[layer], equivalent=False, problems=["fc: rows swapped"], integer_probe=False)
    text = shown(render.verification_tables(data))
    assert "DIFFER" in text
    assert "FAILS: rows swapped" in text
    assert "problem: fc: rows swapped" in text
    assert text.splitlines()[-1] == "NOT equivalent"


def test_cells_that_judge_are_coloured_on_a_terminal() -> None:
    table = render.table_of("Layers", ("layer", "verdict"), [("ok", "ok"), ("b", "FAILS: why"), ("c", "–")])
    stream = io.StringIO()
    Console(file=stream, width=60, highlight=False, force_terminal=True, color_system="standard").print(table)
    text = stream.getvalue()
    assert "\x1b[32mok" in text  # green
    assert "\x1b[1;31mFAILS: why" in text  # bold red
    assert text.count("\x1b[32m") == 1  # the layer named "ok" is not a verdict
    assert "\x1b" not in shown([table])  # no colours in a pipe
