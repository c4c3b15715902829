"""The any-size network that is kept beside a program's file: the same numbers, never a stale one, and data only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils import _pytree as pytree

import onebyone
from onebyone.errors import BadInput, InexactWarning
from onebyone.pytorch.lift import any_size_cache, graph_text
from onebyone.pytorch.lift.any_size_cache import cache_path, fingerprint_of, kept_or_made
from onebyone.pytorch.lift.convolutionalize import convolutionalize
from onebyone.pytorch.lift.dense_file import ConvolutionalizedModule, load_dense
from onebyone.pytorch.lift.graph_text import NotStorable, graph_module
from tests.pytorch.anysize import Apply, randomise
from tests.pytorch.exact_networks import EXACT

ARGUMENTS: dict[str, Any] = {"window": 8}


def tensors_of(d: ConvolutionalizedModule) -> dict[str, torch.Tensor]:
    named = [
        *d.model.named_parameters(remove_duplicate=False),
        *d.model.named_buffers(remove_duplicate=False),
    ]
    return {name: t.detach() for name, t in named}


def outputs(d: Any, network: nn.Module) -> list[Any]:
    size = [w + 2 * s + 1 for w, s in zip(d.nominal, d.geometry.stride, strict=True)]
    with torch.inference_mode():
        return pytree.tree_leaves(
            network(torch.randn(2, d.channels, *size, generator=torch.Generator().manual_seed(3)))
        )


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", EXACT)
def test_a_graph_as_text_computes_the_same(name: str) -> None:
    build, window, channels = EXACT[name]
    d = convolutionalize(randomise(build()).eval(), window, channels)
    read = graph_module(graph_text.graph_text(d.model), tensors_of(d))  # type: ignore[arg-type]
    assert_same(outputs(d, d.model), outputs(d, read))


class Tied(nn.Module):
    """A batch norm, a dropout, one weight under two names, and outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout())
        self.first, self.second = nn.Linear(3 * 36, 4), nn.Linear(3 * 36, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x).flatten(1)
        return {"a": self.first(features), "b": self.second(features)}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of one window of 8 × 8 pixels."""
    path = tmp_path / "classifier.pt2"
    torch.export.save(torch.export.export(randomise(Tied()).eval(), (torch.randn(2, 2, 8, 8),)), path)
    return path


def maker(path: Path, made: list[str]) -> Callable[[], ConvolutionalizedModule]:
    """Makes the any-size network of a program, and notes that it did."""

    def make() -> ConvolutionalizedModule:
        made.append(path.name)
        return convolutionalize(torch.export.load(path), 8)

    return make


def test_it_is_made_once_and_gives_the_same_numbers(program: Path) -> None:
    made: list[str] = []
    first = kept_or_made(program, ARGUMENTS, maker(program, made))
    second = kept_or_made(program, ARGUMENTS, maker(program, made))
    assert made == ["classifier.pt2"]
    assert_same(outputs(first, first.model), outputs(second, second.model))
    assert second.geometry == first.geometry
    assert second.outputs == first.outputs
    assert second.nominal == (8, 8)
    assert not second.model.training
    assert sorted(p.name for p in program.parent.iterdir()) == [
        "classifier.pt2",
        "classifier.pt2.any-size.safetensors",
    ]


def test_whatever_it_depends_on_makes_it_anew(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    kept_or_made(program, ARGUMENTS, maker(program, made))
    kept_or_made(program, {"window": 8, "context": "image"}, maker(program, made))
    assert len(made) == 2
    kept_or_made(program, ARGUMENTS, maker(program, made))  # replaced by the other one
    assert len(made) == 3
    before = fingerprint_of(program, ARGUMENTS)
    torch.export.save(torch.export.export(randomise(Tied(), 1).eval(), (torch.randn(2, 2, 8, 8),)), program)
    assert fingerprint_of(program, ARGUMENTS) != before
    changed = kept_or_made(program, ARGUMENTS, maker(program, made))
    assert len(made) == 4
    assert_same(outputs(changed, changed.model), outputs(changed, maker(program, [])().model))
    monkeypatch.setattr(any_size_cache, "_maker", lambda: "another version")
    kept_or_made(program, ARGUMENTS, maker(program, made))
    assert len(made) == 5


def test_the_sources_are_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        p.name
        for room in any_size_cache._ROOMS
        for p in (Path(onebyone.__file__).parent / room).rglob("*.py")
    ]
    assert {"window_linear.py", "emitter.py", "lifter.py", "geometry.py", "note.py"} <= set(names)
    before = any_size_cache._maker.__wrapped__()
    monkeypatch.setattr(any_size_cache.metadata, "version", lambda name: "0.0")
    assert any_size_cache._maker.__wrapped__() != before


def test_saved_any_size_networks_are_kept_too(tmp_path: Path) -> None:
    d = convolutionalize(randomise(Tied()).eval(), 8)
    d.save(tmp_path / "dense.pt2")
    first = kept_or_made(tmp_path / "dense.pt2", {}, lambda: load_dense(tmp_path / "dense.pt2"))
    second = kept_or_made(tmp_path / "dense.pt2", {}, lambda: pytest.fail("it is kept"))
    assert_same(outputs(first, first.model), outputs(second, second.model))
    assert_same(outputs(d, d.model), outputs(second, second.model))


def test_advice_is_given_again(program: Path) -> None:
    def make() -> ConvolutionalizedModule:
        return replace(maker(program, [])(), advice=("the window is off by one",))

    kept_or_made(program, ARGUMENTS, make)
    with pytest.warns(InexactWarning, match="the window is off by one"):
        kept = kept_or_made(program, ARGUMENTS, lambda: pytest.fail("it is kept"))
    assert kept.advice == ("the window is off by one",)


def test_one_tensor_under_two_names_is_stored_once() -> None:
    weight, other = torch.ones(2, 3), torch.ones(2, 3)
    tensors, same = any_size_cache._distinct({"a": weight, "b": other, "c": weight, "part": weight[:1]})
    assert list(tensors) == ["a", "b", "part"]
    assert same == {"c": "a"}
    names = [("c", "a", True), ("b", "b", False), ("a", "a", True), ("part", "part", False)]
    kept = any_size_cache._all(tensors, names)
    assert list(kept) == ["c", "b", "a", "part"]
    assert kept["c"] is kept["a"]
    assert isinstance(kept["a"], nn.Parameter)
    assert not isinstance(kept["b"], nn.Parameter)
    assert tensors["part"].data_ptr() != tensors["a"].data_ptr()


# ---------------------------------------------------------------- what is not kept


def test_a_network_with_an_operator_of_another_library_is_not_kept(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_text, "_NAMES", {})
    d = kept_or_made(program, ARGUMENTS, maker(program, []))
    assert outputs(d, d.model)
    assert not cache_path(program).exists()


def test_a_network_that_reads_back_differently_is_not_kept(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: what is read computes with one other weight."""
    read = any_size_cache.graph_module

    def planted(text: str, tensors: dict[str, torch.Tensor]) -> Any:
        tensors["first.bias"] = torch.nextafter(tensors["first.bias"], torch.full((4,), 9.0))
        return read(text, tensors)

    monkeypatch.setattr(any_size_cache, "graph_module", planted)
    kept_or_made(program, ARGUMENTS, maker(program, []))
    assert not cache_path(program).exists()


def test_a_folder_that_cannot_be_written_keeps_nothing(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise BadInput(f"cannot write {path}")

    monkeypatch.setattr(any_size_cache, "atomic_path", refuse)
    d = kept_or_made(program, ARGUMENTS, maker(program, []))
    assert outputs(d, d.model)
    assert not cache_path(program).exists()


def test_a_missing_program_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read .*none.pt2: No such file"):
        fingerprint_of(tmp_path / "none.pt2", {})


# ---------------------------------------------------------------- what a file could contain


def rewritten(path: Path, change: Callable[[dict[str, str], dict[str, torch.Tensor]], None]) -> None:
    with safe_open(path, "pt") as file:
        notes = dict(file.metadata())
    tensors = load_file(path)
    change(notes, tensors)
    notes["crc32"] = any_size_cache._checksum(tensors, notes)  # as whoever plants a file would
    save_file(tensors, path, notes)


def graph_changed(**fields: Any) -> Callable[[dict[str, str], dict[str, torch.Tensor]], None]:
    """Change the first call of a function."""

    def change(notes: dict[str, str], _tensors: dict[str, torch.Tensor]) -> None:
        graph = json.loads(notes["graph.json"])
        next(n for n in graph["nodes"] if n["op"] == "call_function").update(fields)
        notes["graph.json"] = json.dumps(graph)

    return change


PLANTED: dict[str, dict[str, Any]] = {
    "another function": {"target": "os.system"},
    "a function of torch": {"target": "torch.load"},
    "an operator that reads a file": {"target": "torch.ops.aten.from_file.default"},
    "an operator of another library": {"target": "torch.ops.prims.add.default"},
    "a packet": {"target": "torch.ops.aten.add"},
    "an attribute": {"target": "getattr", "args": [{"node": 0}, "__class__"]},
    "a method": {"op": "call_method", "target": "numpy"},
    "a module of another class": {
        "op": "call_module",
        "target": {"path": "m", "module": {"class": "Linear"}},
    },
    "code as a name": {"name": "x = __import__('os')"},
    "code as a path": {"op": "get_attr", "target": 'a") or print("'},
    "code as an argument's name": {"kwargs": {"x=1) or print(": 1}},
    "a later node": {"args": [{"node": 10_000}]},
    "a negative node": {"args": [{"node": -1}]},
    "an unknown value": {"args": [{"pickle": "gASVAAA="}]},
    "two kinds of one value": {"args": [{"node": 0, "tuple": []}]},
    "a dtype that is none": {"args": [{"dtype": "torch.load"}]},
    "an unknown kind of node": {"op": "call_everything"},
    "an attribute that is no tensor": {"op": "get_attr", "target": "forward.__globals__"},
    "a module in place of a method": {
        "op": "call_module",
        "target": {"path": "forward", "module": {"class": "Dropout", "p": 0.5}},
    },
    "a second input": {"op": "placeholder", "target": "second", "args": []},
    "a second output": {"op": "output", "target": "output", "args": [None]},
    "deep nesting": {"args": json.loads("[" * 400 + "]" * 400)},
    "a shape of another size than 64 bits": {
        "op": "call_module",
        "target": {
            "path": "m",
            "module": {
                "class": "BatchNorm2d",
                "num_features": 2**70,
                "eps": 1e-5,
                "momentum": None,
                "affine": True,
                "track_running_stats": True,
            },
        },
    },
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_a_file_could_plant_is_not_read(name: str, program: Path) -> None:
    made: list[str] = []
    kept_or_made(program, ARGUMENTS, maker(program, made))
    rewritten(cache_path(program), graph_changed(**PLANTED[name]))
    d = kept_or_made(program, ARGUMENTS, maker(program, made))
    assert len(made) == 2
    assert_same(outputs(d, d.model), outputs(d, maker(program, [])().model))
    kept_or_made(program, ARGUMENTS, lambda: pytest.fail("the sound one has replaced it"))


@pytest.mark.parametrize("key", ["graph.json", "names.json", "advice.json", "onebyone.json", "fingerprint"])
@pytest.mark.parametrize("text", ["", "{}", "[", "null"])
def test_damaged_notes_are_not_read(key: str, text: str, program: Path) -> None:
    made: list[str] = []
    kept_or_made(program, ARGUMENTS, maker(program, made))
    rewritten(cache_path(program), lambda notes, _: notes.update({key: text}))
    kept_or_made(program, ARGUMENTS, maker(program, made))
    sound = text == "{}" and key == "advice.json"  # no advice
    assert len(made) == (1 if sound else 2)


@pytest.mark.parametrize("key", ["graph.json", "names.json", "advice.json", "onebyone.json"])
def test_notes_that_are_nested_too_deeply_are_not_read(key: str, program: Path) -> None:
    made: list[str] = []
    kept_or_made(program, ARGUMENTS, maker(program, made))
    rewritten(cache_path(program), lambda notes, _: notes.update({key: "[" * 100_000}))
    kept_or_made(program, ARGUMENTS, maker(program, made))
    assert len(made) == 2


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -1])
def test_truncated_files_are_not_read(cut: int, program: Path) -> None:
    made: list[str] = []
    kept_or_made(program, ARGUMENTS, maker(program, made))
    path = cache_path(program)
    path.write_bytes(path.read_bytes()[:cut])
    kept_or_made(program, ARGUMENTS, maker(program, made))
    assert len(made) == 2


def test_a_missing_tensor_or_one_of_another_shape_is_not_read(program: Path) -> None:
    for change in (
        lambda notes, tensors: tensors.pop("body.1.running_mean"),
        lambda notes, tensors: tensors.update({"body.1.running_mean": torch.zeros(5)}),
        lambda notes, tensors: tensors.update({"a/b": torch.zeros(5)}),
    ):
        made: list[str] = []
        kept_or_made(program, ARGUMENTS, maker(program, []))
        rewritten(cache_path(program), change)
        kept_or_made(program, ARGUMENTS, maker(program, made))
        assert len(made) == 1


def test_another_version_of_the_text_is_refused() -> None:
    with pytest.raises(BadInput, match="damaged"):
        graph_module('{"version": 2, "nodes": []}', {})


def test_parts_without_a_name_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def text_of(model: nn.Module) -> str:
        return graph_text.graph_text(torch.fx.symbolic_trace(model))

    with pytest.raises(NotStorable, match="the method tolist"):
        text_of(Apply(lambda x: x.tolist()))
    with pytest.raises(NotStorable, match="the module Linear"):
        text_of(nn.Sequential(nn.Linear(2, 3)))
    with pytest.raises(NotStorable, match="softmax"):
        text_of(Apply(lambda x: torch.nn.functional.softmax(x, 1)))
    with pytest.raises(NotStorable, match="an argument of type complex"):
        text_of(Apply(lambda x: torch.full_like(x, 1j)))


def test_values_that_json_lacks_come_back() -> None:
    d = torch.fx.symbolic_trace(
        Apply(lambda x: torch.full_like(x[:, 1:], -float("inf"), dtype=torch.float64))
    )
    read = graph_module(graph_text.graph_text(d), {})
    y = read(torch.zeros(2, 3))
    assert y.dtype == torch.float64
    assert y.tolist() == [[-float("inf")] * 2] * 2
