"""What conversions return: tables, JSON and protocols, on a front end of five lines that knows no framework."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from onebyone.errors import BadInput
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Change, Labels, Refusal
from onebyone.results import AnySize, ClassMap, Conversion, Converted, Convolutionalized, Output


@dataclass(frozen=True, eq=False)
class NumbersConversion(Conversion[list[int]]):
    """The "network" is a list of numbers, stored doubled."""

    def state_dict_from_original(self, state: Any) -> dict[str, Any]:
        return {name: 2 * value for name, value in state.items()}

    def state_dict_to_original(self, state: Any = None) -> dict[str, Any]:
        return {name: value // 2 for name, value in (state or {}).items()}

    def save(self, path: Any, example: Any = None) -> Path:
        Path(path).write_text(self.report())
        return Path(path)


@dataclass(frozen=True, eq=False)
class OperatorConversion(NumbersConversion):
    CHANGE_COLUMNS: ClassVar[dict[str, str]] = {"path": "path", "operator": "kind"}
    KIND: ClassVar[str] = "operator"

    def headline(self) -> str:
        return f"{super().headline()}, and more"


CHANGES = (
    Change("a", "Linear", "some law", "Linear 2×3", "1×1 convolution 2×3", 2000),
    Change("", "Linear", "some law", "Linear 4×4", "1×1 convolution 4×4", 24),
)
REFUSED = (Refusal("", "Odd", "it cannot be done"),)


def conversion(kind: type[NumbersConversion] = NumbersConversion, **changes: Any) -> NumbersConversion:
    values: dict[str, Any] = {
        "model": [1],
        "changes": CHANGES,
        "refused": REFUSED,
        "to": "conv",
        "level": "layers",
    }
    return kind(**{**values, **changes})


def test_the_table_of_a_conversion() -> None:
    lines = str(conversion()).splitlines()
    assert lines[0] == "to conv (layers): 2 converted, 1 refused, 2,024 bytes copied"
    assert lines[1].split() == ["path", "before", "after", "law"]
    assert lines[3].startswith("a            Linear 2×3  1×1 convolution 2×3  some law")
    assert lines[4].startswith("(top level)  Linear 4×4  ")
    assert lines[5].split() == ["refused", "kind", "reason"]
    assert lines[7].startswith("(top level)  Odd   it cannot be done")


def test_tables_without_rows_are_left_out() -> None:
    assert "refused  " not in str(conversion(refused=()))
    assert (
        str(conversion(changes=(), refused=())) == "to conv (layers): 0 converted, 0 refused, 0 bytes copied"
    )


def test_a_front_end_may_choose_its_columns() -> None:
    text = str(conversion(OperatorConversion))
    assert text.splitlines()[0].endswith("bytes copied, and more")
    assert text.splitlines()[1].split() == ["path", "operator"]
    assert "refused      operator  reason" in text
    assert "some law" not in text


def test_the_same_in_a_notebook() -> None:
    html = conversion(refused=(Refusal("p", "<Odd>", "1 < 2"),))._repr_html_()
    assert "to conv (layers): 2 converted" in html
    assert "&lt;Odd&gt;" in html
    assert html.count("<table>") == 2


def test_the_report_is_json_and_is_what_a_file_holds(tmp_path: Path) -> None:
    made = conversion()
    data = json.loads(made.save(tmp_path / "c.json").read_text())
    assert data.pop("onebyone") == "conversion"
    assert data == made.to_dict()
    assert data["copied_bytes"] == 2024
    assert [Change(**c) for c in data["changes"]] == list(CHANGES)
    assert [Refusal(**r) for r in data["refused"]] == list(REFUSED)


@dataclass(frozen=True)
class NumbersAnySize(Convolutionalized[str, str]):
    def save(self, path: Any) -> None:
        Path(path).write_text(str(self))


GEOMETRY = Geometry(
    window=(8, 8),
    stride=(2, 2),
    window_offset=(0, 0),
    receptive_field=(8, 8),
    receptive_field_offset=(0, 0),
    exact=True,
    inexact_because=(),
)


def any_size(**changes: Any) -> NumbersAnySize:
    values: dict[str, Any] = {
        "model": "dense",
        "geometry": GEOMETRY,
        "changes": CHANGES,
        "original": "crops",
        "channels": 3,
        "nominal": (8, 8),
    }
    return NumbersAnySize(**{**values, **changes})


def test_an_any_size_result_prints_its_changes_and_its_geometry() -> None:
    made = any_size()
    table, geometry = str(made).split("\n\n")
    assert table.splitlines()[0].split() == ["layer", "kind", "before", "after", "bytes", "copied"]
    assert geometry == str(GEOMETRY)
    assert "exact: equals cropping every window" in made._repr_html_()


def test_labels_must_fit_the_outputs() -> None:
    made = any_size(outputs=(Output("0", 2, ScoreKind("logits")),))
    named = made.with_labels(Labels(classes=("cat", "dog")))
    assert named.labels.classes == ("cat", "dog")
    assert (named.model, made.labels.classes) == ("dense", ())
    assert type(named) is NumbersAnySize
    with pytest.raises(BadInput):
        made.with_labels(Labels(classes=("cat", "dog", "cow", "pig")))
    with pytest.raises(BadInput):
        any_size(labels=Labels(std=(0.0, 1.0, 1.0)))


def test_an_any_size_result_as_json() -> None:
    class_map = ClassMap((6, 6), ("5 (aten.relu)",))
    data = any_size(
        head="cam", class_map=class_map, outputs=(Output("a", 2), Output("b", 1, ScoreKind("logits")))
    ).to_dict()
    again = json.loads(json.dumps(data))
    assert ClassMap.from_dict(again["class_map"]) == class_map
    assert [Output.from_dict(o) for o in again["outputs"]] == [
        Output("a", 2),
        Output("b", 1, ScoreKind("logits")),
    ]
    assert Geometry.from_dict(again["geometry"]) == GEOMETRY
    assert (again["bare"], again["context"], again["nominal"]) == (False, None, [8, 8])
    assert any_size().to_dict()["class_map"] is None


def test_the_reason_of_a_class_map_names_what_is_not_linear() -> None:
    assert ClassMap((7, 6)).reason == (
        "head='cam': the class evidence at each position, before the mean over 7×6 positions; means of the map over as "
        "many positions equal the outputs of cropped windows"
    )
    names = tuple(f"{i} (aten.relu)" for i in range(5))
    assert ClassMap((2,), names[:1]).reason.endswith("because 0 (aten.relu) is not linear")
    assert ClassMap((2,), names[:3]).reason.endswith(", 2 (aten.relu) is not linear")
    assert ClassMap((2,), names).reason.endswith("2 (aten.relu) and 2 more is not linear")


def test_results_satisfy_the_protocols_that_the_verifier_reads() -> None:
    assert isinstance(conversion(), Converted)
    assert isinstance(any_size(), AnySize)
    assert not isinstance(conversion(), AnySize)
    assert not isinstance(any_size(), Converted)
    assert not isinstance(len, Converted | AnySize)


def test_no_framework_is_imported() -> None:
    code = "import sys, onebyone.results; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_front_end_may_wrap_its_networks_for_the_verifier() -> None:
    """A network that is not callable by itself, verified through what `runnable` makes of it."""
    torch = pytest.importorskip("torch")
    from onebyone.verification import verify

    @dataclass(frozen=True, eq=False)
    class MatrixConversion(NumbersConversion):
        def runnable(self, network: list[list[float]]) -> Any:
            layer = torch.nn.Linear(2, 2, bias=False)
            layer.weight = torch.nn.Parameter(torch.tensor(network))
            return layer

        def state_dict_from_original(self, state: Any) -> dict[str, Any]:
            return dict(state)

        def state_dict_to_original(self, state: Any = None) -> dict[str, Any]:
            return dict(state)

    matrix, x = [[1.0, 2.0], [3.0, 4.0]], torch.randn(5, 2)
    right: Any = conversion(MatrixConversion, model=matrix, changes=(), refused=())
    v = verify(matrix, right, x)
    assert v.equivalent, str(v)
    assert v.weights is not None
    assert v.weights.compared == 1
    wrong: Any = conversion(MatrixConversion, model=[[1.0, 2.0], [3.0, 5.0]], changes=(), refused=())
    assert not verify(matrix, wrong, x).equivalent
