"""Networks from files, zoos and factories: what opens, what is refused in a sentence, what is never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim, ExportedProgram, export

from onebyone.errors import BadInput, MissingExtra
from onebyone.pytorch import sources
from onebyone.pytorch.program_checks import why_unsafe_expression
from onebyone.pytorch.program_file import load_program
from onebyone.pytorch.sources import load_source
from onebyone.pytorch.weights import load_weights, nonfinite_weights, read_checkpoint

FACTORIES = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 5)).train()

ready = nn.Linear(2, 3)
number = 7

def a_list():
    return [1, 2]

def needs_an_argument(size):
    return nn.Linear(size, size)

def breaks():
    raise RuntimeError("first line\\nsecond line")

class Holder:
    make = staticmethod(lambda: nn.Linear(1, 1))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module of factories, a name no other test uses."""
    monkeypatch.chdir(tmp_path)
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    return tmp_path


@pytest.fixture
def module(here: Path) -> str:
    return next(here.glob("factories_*.py")).stem


def sentence(call: Callable[[], object]) -> str:
    """The message of the BadInput that `call` raises, which must be one line."""
    with pytest.raises(BadInput) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# Factories


def test_factory_in_the_current_directory(module: str) -> None:
    before = list(sys.path)
    network = load_source(f"{module}:network")
    assert isinstance(network, nn.Sequential)
    assert not any(m.training for m in network.modules())
    assert sys.path == before


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator(module: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (load_source(f"{module}:network", seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_a_network_itself_a_class_and_a_nested_name(module: str) -> None:
    assert isinstance(load_source(f"{module}:ready"), nn.Linear)
    assert isinstance(load_source("torch.nn:Identity"), nn.Identity)
    assert isinstance(load_source(f"{module}:Holder.make"), nn.Linear)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("netwrk", "has no 'netwrk'; did you mean network?"),
        ("number", "is not a network but an int"),
        ("a_list", "is not a network but a list"),
        ("needs_an_argument", "the factory raised TypeError: needs_an_argument() missing 1 required"),
        ("breaks", "the factory raised RuntimeError: first line"),
    ],
)
def test_factories_that_give_no_network(module: str, attribute: str, said: str) -> None:
    assert said in sentence(lambda: load_source(f"{module}:{attribute}"))


def test_modules_that_cannot_be_imported(here: Path) -> None:
    (here / "needs_another_onebyone_test.py").write_text("import surely_not_installed")
    (here / "broken_onebyone_test.py").write_text("1 / 0")
    assert "no module named 'nowhere_at_all'" in sentence(lambda: load_source("nowhere_at_all:net"))
    assert "no module named 'nowhere_at_all'" in sentence(lambda: load_source("nowhere_at_all.inner:net"))
    assert "needs 'surely_not_installed'" in sentence(lambda: load_source("needs_another_onebyone_test:net"))
    assert "raised ZeroDivisionError" in sentence(lambda: load_source("broken_onebyone_test:net"))


@pytest.mark.parametrize("spec", ["", "resnet18", ":net", "torchvision:", "some/path"])
def test_specs_that_name_nothing(spec: str) -> None:
    assert "does not name a network; expected file.pt2" in sentence(lambda: load_source(spec))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".bin"])
def test_weights_alone_are_no_network(suffix: str) -> None:
    assert "holds weights, not a network" in sentence(lambda: load_source(f"some{suffix}"))


def test_onnx_is_refused_by_name() -> None:
    assert "does not read ONNX files yet" in sentence(lambda: load_source("net.onnx"))


# Zoos


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "lraspp_mobilenet_v3_large"])
def test_torchvision_without_a_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    network = load_source(f"torchvision:{name}", seed=3)
    assert isinstance(network, nn.Module)
    again = load_source(f"torchvision:{name}", seed=3).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in network.state_dict().items())


@pytest.mark.zoo
def test_timm() -> None:
    network = load_source("timm:test_vit")
    assert isinstance(network, nn.Module)
    assert not network.training


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("torchvision:resnet19", "torchvision has no model named 'resnet19'; did you mean resnet18"),
        ("torchvision:zzzzzz", "torchvision has no model named 'zzzzzz' (it has "),
        ("timm:convnxt_tiny", "timm has no model named 'convnxt_tiny'; did you mean convnext_tiny"),
        ("timm:hf-hub:someone/something", "timm has no model named 'hf-hub:someone/something'"),
        ("timm:local-dir:/somewhere", "timm has no model named"),
    ],
)
def test_names_a_zoo_does_not_have(spec: str, said: str) -> None:
    assert said in sentence(lambda: load_source(spec))


def test_a_zoo_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'onebyone\[zoo\]'"):
        load_source("timm:test_vit")


@pytest.mark.parametrize(
    ("message", "declared"),
    [("operator torchvision::nms does not exist", True), ("operator torchvision::roi does not exist", False)],
)
def test_schemas_are_declared_for_one_failure_only(
    message: str, declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(name: str) -> Any:
        if not calls:
            raise RuntimeError(message)
        return sys

    monkeypatch.setattr(sources.importlib, "import_module", failing)
    monkeypatch.setattr(sources, "_declare_torchvision_operators", lambda: calls.append(1))
    if declared:
        assert sources.import_torchvision() is sys
    else:
        with pytest.raises(RuntimeError, match="roi"):
            sources.import_torchvision()
    assert bool(calls) is declared


@pytest.mark.zoo
def test_torchvision_imports_in_a_fresh_process_with_warnings_as_errors() -> None:
    code = (
        "from onebyone.pytorch.sources import import_timm, import_torchvision as t; t().models; import_timm()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# Weights


def fresh() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def same(network: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_prefixes_and_wrappers(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    state = fresh().state_dict()
    content: dict[str, Any] = {prefix + k: v for k, v in state.items()}
    if wrapper:
        content = {wrapper: content, "epoch": 3, "lr": 0.1}
    network = fresh()
    loaded = load_weights(network, saved(content, tmp_path / "w.pth"))
    assert (loaded.tensors, loaded.prefix) == (len(state), prefix)
    assert same(network, state)


def test_safetensors_and_a_name_that_begins_like_a_prefix(tmp_path: Path) -> None:
    network, other = (nn.ModuleDict({"model": nn.Linear(2, 2)}) for _ in range(2))
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(network, tmp_path / "w.safetensors").prefix == ""
    assert same(network, other.state_dict())


def test_what_does_not_fit_is_counted_and_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = dict(fresh().state_dict())
    del state["0.bias"]
    state["1.weight"] = torch.zeros(7)
    state |= {f"extra{i}": torch.zeros(1) for i in range(5)}
    network = fresh()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    message = sentence(lambda: load_weights(network, saved(state, tmp_path / "w.pth")))
    assert "1 missing (0.bias); 5 surplus (extra0, extra1, extra2, …)" in message
    assert "1 of another shape (1.weight is 7, expected 2)" in message
    assert same(network, before)


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in fresh().state_dict().items() if "num_batches" not in k}
    assert load_weights(fresh(), saved(state, tmp_path / "w.pth")).tensors == len(state)


class Evil:
    """Runs when it is unpickled: makes a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("writer", ["torch", "pickle2", "pickle4", "network"])
def test_a_pickle_with_code_is_not_run(writer: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "w.pth"
    if writer == "torch":
        torch.save({"w": torch.zeros(2), "x": Evil(marker)}, path)
    elif writer == "network":
        torch.save(fresh(), path)
    else:
        path.write_bytes(pickle.dumps({"x": Evil(marker)}, protocol=int(writer[-1])))
    message = sentence(lambda: read_checkpoint(path))
    assert "is a pickle that holds code or objects" in message
    assert "was not run" in message
    assert ("torch.nn.modules" if writer == "network" else "mkdir") in message
    assert not marker.exists()


def damaged(kind: str, path: Path) -> Path:
    whole = saved(fresh().state_dict(), path).read_bytes()
    contents = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello, this is no checkpoint",
        "html": b"<!DOCTYPE html><html></html>",
    }
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "html"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weights(kind: str, suffix: str, tmp_path: Path) -> None:
    message = sentence(lambda: read_checkpoint(damaged(kind, tmp_path / f"w{suffix}")))
    assert "not a" in message or "truncated" in message


def test_weights_that_are_not_there_or_hold_no_tensors(tmp_path: Path) -> None:
    assert "there is no such file" in sentence(lambda: read_checkpoint(tmp_path / "no.pth"))
    assert "is a directory" in sentence(lambda: read_checkpoint(tmp_path))
    assert "holds list" in sentence(lambda: read_checkpoint(saved([1], tmp_path / "l.pth")))
    assert "no tensors by name" in sentence(lambda: read_checkpoint(saved({"a": 1}, tmp_path / "n.pth")))


def test_a_compressed_checkpoint_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(1_000_000)}, tmp_path / "w.pth")
    recompress(path, path)
    assert "more than the file holds" in sentence(lambda: read_checkpoint(path))


def test_nonfinite_weights_are_named() -> None:
    network = fresh()
    assert nonfinite_weights(network) == ()
    with torch.no_grad():
        network[0].bias[1] = float("inf")  # type: ignore[index]
    network[1].running_var[0] = float("nan")  # type: ignore[index]
    assert nonfinite_weights(network) == ("0.bias", "1.running_var")


def test_weights_do_not_go_into_a_saved_program(program: Path, tmp_path: Path) -> None:
    weights = saved(fresh().state_dict(), tmp_path / "w.pth")
    assert "carries its own weights" in sentence(lambda: load_source(str(program), weights))


# Programs


class Small(nn.Module):
    """A network whose program has free sizes, arithmetic on them, guards and a named parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.register_buffer("scale", torch.ones(4, 1, 1))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(image) * self.scale
        return {"map": x, "flat": x.reshape(x.shape[0], -1, x.shape[2] * x.shape[3])}


@pytest.fixture(scope="session")
def program_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("program") / "good.pt2"
    sizes = {0: Dim.AUTO, 2: Dim("height", min=8, max=512), 3: Dim.AUTO}
    torch.manual_seed(0)
    torch.export.save(
        export(Small().eval(), (torch.randn(2, 3, 9, 12),), dynamic_shapes=(sizes,)),
        path,
        extra_files={"onebyone.json": '{"a": "ä"}'},
    )
    return path.read_bytes()


@pytest.fixture
def program(program_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "good.pt2"
    path.write_bytes(program_bytes)
    return path


def recompress(source: Path, target: Path) -> None:
    rewrite(source, target, zipfile.ZIP_DEFLATED)


def rewrite(
    source: Path,
    target: Path,
    compression: int = zipfile.ZIP_STORED,
    edit: Callable[[dict[str, bytes]], None] = lambda records: None,
) -> Path:
    """The archive again, with its records edited: names are given without the root folder."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].split("/")[0]
        records = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist()}
    edit(records)
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"{root}/{name}", content)
    return target


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
    "placeholder": (_placeholder, "a name that is not one"),
    "parameter": (_parameter, "has a tensor of an odd name"),
    "pickled weight": (_pickled_weight, "as a pickle, which could hold code and was not run"),
    "legacy weights": (_legacy, "keeps its weights as a pickle"),
    "example inputs": (_inputs, "its example inputs are a pickle that holds more than tensors"),
    "object": (_object, "an object that is not a tensor"),
    "compiled code": (_compiled, "holds compiled code"),
    "second program": (_second, "holds 2 programs"),
    "container": (_container, "nests its inputs or outputs in 'collections.defaultdict'"),
    "enumeration": (_enumeration, "names its inputs or outputs oddly"),
    "giant": (_giant, "has no values for"),
    "module stack": (_stack, "a module path that is not one"),
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
    command = [sys.executable, "-W", "ignore", "run.py", *(f"{attack}.pt2" for attack in attacks)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert [a for a in attacks if (tmp_path / f"{a} ran").exists()] == attacks


def test_a_compressed_archive_is_refused_before_it_unpacks(program: Path, tmp_path: Path) -> None:
    recompress(program, tmp_path / "bomb.pt2")
    assert "more than the file holds" in sentence(lambda: load_program(tmp_path / "bomb.pt2"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(program: Path, tmp_path: Path) -> None:
    path = rewrite(program, tmp_path / "two.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0].upper(), b"x")
    assert "two records of one name" in sentence(lambda: load_program(path))


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
