"""Programs in files: what is loaded, and what an attacker could add, which is refused and not run."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from onebyone.errors import BadInput
from onebyone.pytorch.files.program_checks import why_unsafe_expression
from onebyone.pytorch.files.program_file import load_program
from onebyone.pytorch.files.sources import load_source
from tests.interpreter import run_python
from tests.pytorch.source_files import Evil, Small, fresh, recompress, rewrite, saved, sentence


def test_a_program_opens_and_computes_the_same(program: Path) -> None:
    opened = load_program(program)
    assert isinstance(opened.program, ExportedProgram)
    assert json.loads(opened.extra["onebyone.json"]) == {"a": "ä"}
    torch.manual_seed(0)
    expected, image = Small().eval(), torch.randn(1, 3, 31, 20)
    assert torch.equal(opened.program.module()(image)["flat"], expected(image)["flat"])
    assert isinstance(load_source(str(program)), ExportedProgram)


def test_a_rewritten_archive_still_opens(program: Path, tmp_path: Path) -> None:
    """So that the attacks below fail for what they change, and not for how they are written."""
    load_program(rewrite(program, tmp_path / "again.pt2"))


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "zip", "checkpoint"])
def test_files_that_are_no_program(kind: str, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt2"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    elif kind == "checkpoint":
        saved(fresh().state_dict(), path)
    else:
        whole = program.read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[kind])
    said = {
        "truncated": "truncated",
        "empty": "empty",
        "text": "not a .pt2 archive",
        "zip": "not a program saved by torch.export.save",
        "checkpoint": "not a program saved by torch.export.save",
    }
    assert said[kind] in sentence(lambda: load_program(path))


def test_every_truncation_and_many_flips_give_one_sentence(program: Path, tmp_path: Path) -> None:
    """Damage anywhere is BadInput, or harmless; never another exception."""
    whole, path = program.read_bytes(), tmp_path / "bad.pt2"
    random = np.random.default_rng(0)
    for cut in random.integers(0, len(whole) - 1, 40):
        path.write_bytes(whole[:cut])
        sentence(lambda: load_program(path))
    for place in random.integers(0, len(whole), 40):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(flipped))
        with suppress(BadInput):
            load_program(path)


def evil_pickle(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"x": Evil(marker)}, stream)
    return stream.getvalue()


def edited(record: str, edit: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        content = json.loads(records[record])
        edit(content)
        records[record] = json.dumps(content).encode()

    return change


MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
Edit = Callable[[dict[str, bytes]], None]


def _image(content: Any) -> Any:
    return content["graph_module"]["graph"]["tensor_values"]["image"]


def _first_weight(content: Any) -> Any:
    return next(iter(content["config"].values()))


def _signature(content: Any) -> Any:
    return content["graph_module"]["module_call_graph"][0]["signature"]


def _size(marker: Path) -> Edit:
    code = f"__import__('os').mkdir({str(marker)!r}) or 3"
    return edited(MODEL, lambda c: _image(c)["sizes"][0]["as_expr"].update(expr_str=code))


def _guard(marker: Path) -> Edit:
    return edited(MODEL, lambda c: c.update(guards_code=[f"__import__('os').mkdir({str(marker)!r}) is None"]))


def _operator(marker: Path) -> Edit:
    return edited(MODEL, lambda c: c["graph_module"]["graph"]["nodes"][0].update(target="torch.os.mkdir"))


def _file_operator(marker: Path) -> Edit:
    target = "torch.ops.aten.from_file.default"
    return edited(MODEL, lambda c: c["graph_module"]["graph"]["nodes"][0].update(target=target))


def _foreign_operator(marker: Path) -> Edit:
    target = "torch.ops.someone.thing.default"
    return edited(MODEL, lambda c: c["graph_module"]["graph"]["nodes"][0].update(target=target))


def _placeholder(marker: Path) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        evil = f"image=__import__('os').mkdir({str(marker)!r})"
        records[MODEL] = records[MODEL].replace(b'"image"', json.dumps(evil).encode())

    return edit


def _parameter(marker: Path) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        evil = f'conv.weight") or __import__("os").mkdir({str(marker)!r}) or ("'
        for record in (MODEL, WEIGHTS):
            records[record] = records[record].replace(b'"conv.weight"', json.dumps(evil).encode())

    return edit


def _pickled_weight(marker: Path) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        edited(WEIGHTS, lambda c: _first_weight(c).update(use_pickle=True))(records)
        records["data/weights/weight_0"] = evil_pickle(marker)

    return edit


def _legacy(marker: Path) -> Edit:
    return lambda records: records.update({"data/weights/model.pt": evil_pickle(marker)})


def _inputs(marker: Path) -> Edit:
    return lambda records: records.update({"data/sample_inputs/model.pt": evil_pickle(marker)})


def _object(marker: Path) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        edited(CONSTANTS, lambda c: c["config"].update(thing=entry))(records)
        records["data/constants/opaque_obj_0"] = pickle.dumps(Evil(marker))

    return edit


def _compiled(marker: Path) -> Edit:
    return lambda records: records.update({"data/aotinductor/model/model.so": b"\x7fELF"})


def _second(marker: Path) -> Edit:
    return lambda records: records.update({"models/other.json": records[MODEL]})


def _container(marker: Path) -> Edit:
    spec = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}
    tree = [1, {"type": "collections.defaultdict", "context": spec, "children_spec": []}]
    return edited(MODEL, lambda c: _signature(c).update(out_spec=json.dumps(tree)))


def _enumeration(marker: Path) -> Edit:
    context = json.dumps([{"__enum__": True, "fqn": "antigravity:X", "name": "Y"}])
    tree = [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
    return edited(MODEL, lambda c: _signature(c).update(out_spec=json.dumps(tree)))


def _giant(marker: Path) -> Edit:
    def edit(records: dict[str, bytes]) -> None:
        records["data/weights/weight_0"] = b""
        sizes = [{"as_int": 1 << 20}, {"as_int": 1 << 20}]
        edited(WEIGHTS, lambda c: _first_weight(c)["tensor_meta"].update(sizes=sizes))(records)

    return edit


def _stack(marker: Path) -> Edit:
    metadata = {"nn_module_stack": 'a,\n"x",torch.nn.Module'}
    return edited(MODEL, lambda c: c["graph_module"]["graph"]["nodes"][0]["metadata"].update(metadata))


ATTACKS: dict[str, tuple[Callable[[Path], Edit], str]] = {
    "size": (_size, "a size that is not arithmetic"),
    "guard": (_guard, "a size that is not arithmetic"),
    "operator": (_operator, "calls 'torch.os.mkdir', which is not a tensor operator"),
    "file operator": (_file_operator, "which reads or writes files"),
    "foreign operator": (_foreign_operator, "an operator of a library that onebyone does not load"),
    "placeholder": (_placeholder, "an unsafe name"),
    "parameter": (_parameter, "has a tensor with an unsafe name"),
    "pickled weight": (_pickled_weight, "as a pickle, which could hold code and was not run"),
    "legacy weights": (_legacy, "keeps its weights as a pickle"),
    "example inputs": (_inputs, "its example inputs are a pickle that holds more than tensors"),
    "object": (_object, "an object that is not a tensor"),
    "compiled code": (_compiled, "holds compiled code"),
    "second program": (_second, "holds 2 programs"),
    "container": (_container, "nests its inputs or outputs in 'collections.defaultdict'"),
    "enumeration": (_enumeration, "has unsafe names of inputs or outputs"),
    "giant": (_giant, "has no values for"),
    "module stack": (_stack, "an unsafe module path"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_an_author_could_plant_is_refused_and_not_run(
    attack: str, program: Path, tmp_path: Path
) -> None:
    build, said = ATTACKS[attack]
    marker = tmp_path / "ran"
    path = rewrite(program, tmp_path / "evil.pt2", edit=build(marker))
    assert said in sentence(lambda: load_program(path))
    assert not marker.exists()
    assert "antigravity" not in sys.modules


def test_most_of_these_attacks_do_work_on_torch_itself(program: Path, tmp_path: Path) -> None:
    """Or else the test above would pass for nothing. In a process of its own: the damage is real, if small."""
    attacks = ["size", "guard", "placeholder", "pickled weight", "example inputs", "object"]
    for attack in attacks:
        edit = ATTACKS[attack][0](tmp_path / f"{attack} ran")
        rewrite(program, tmp_path / f"{attack}.pt2", edit=edit)
    (tmp_path / "run.py").write_text(
        "import sys, torch\n"
        "for path in sys.argv[1:]:\n"
        "    try: torch.export.load(path).module()(torch.zeros(2, 3, 9, 12))\n"
        "    except Exception: pass\n"
    )
    done = run_python("-W", "ignore", "run.py", *(f"{attack}.pt2" for attack in attacks), folder=tmp_path)
    assert done.returncode == 0
    assert [a for a in attacks if (tmp_path / f"{a} ran").exists()] == attacks


def test_a_compressed_archive_is_refused_before_it_unpacks(program: Path, tmp_path: Path) -> None:
    recompress(program, tmp_path / "bomb.pt2")
    assert "more than the file holds" in sentence(lambda: load_program(tmp_path / "bomb.pt2"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(program: Path, tmp_path: Path) -> None:
    path = rewrite(program, tmp_path / "two.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0].upper(), b"x")
    assert "two records of the same name" in sentence(lambda: load_program(path))


@pytest.mark.parametrize(
    "expression",
    [
        "Add(Mul(Integer(2), Symbol('s1', positive=True, integer=True)), Integer(-3))",
        "s77 - 2",
        "Max(Integer(1), FloorDiv(Symbol('s0', integer=True), Integer(2)))",
        "L['x'].size()[0] >= 8",
    ],
)
def test_arithmetic_passes(expression: str) -> None:
    assert why_unsafe_expression(expression, methods=True) is None


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol.__init__",
        "Symbol('s').free_symbols",
        "[x for x in (1, 2)]",
        "(lambda: 1)()",
        "Integer('__import__(1)')",
        "f'{1}'",
        "open('x')",
        "Symbol('s', **{'a': 1})",
        "Integer(1).__class__",
        "L['x'].size.__globals__",
        "1 if True else 2; import os",
        "(" * 500,
        "1+" * 20_000 + "1",
    ],
)
def test_all_else_does_not(expression: str) -> None:
    assert why_unsafe_expression(expression, methods=True) is not None
