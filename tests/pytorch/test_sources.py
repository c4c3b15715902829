"""Networks from files, zoos and factories: what is loaded, what is refused in one sentence, and what is never run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onebyone.errors import BadInput, MissingExtra
from onebyone.pytorch.files import sources
from onebyone.pytorch.files.sources import load_source
from tests.pytorch.source_files import sentence

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
    assert "which is not read here" in sentence(lambda: load_source("net.onnx"))


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
    code = "from onebyone.pytorch.files.sources import import_timm, import_torchvision as t; t().models; import_timm()"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# Python files


def test_a_factory_in_a_python_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts.py").write_text("WIDTH = 3\n")
    file = tmp_path / "my net.py"
    file.write_text(
        "from torch import nn\nfrom parts import WIDTH\n\ndef build():\n    return nn.Linear(2, WIDTH)\n"
    )
    assert load_source(f"{file}:build").out_features == 3
    monkeypatch.chdir(tmp_path)
    file.write_text("from torch import nn\n\ndef build():\n    return nn.Linear(2, 4)\n")
    assert load_source("my net.py:build").out_features == 4  # the file is read again
    assert str(tmp_path) not in sys.path


def test_a_python_file_does_not_replace_a_module_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "json.py"
    file.write_text("from torch import nn\nready = nn.Linear(2, 3)\n")
    before = sys.modules["json"]
    assert load_source(f"{file}:ready").in_features == 2
    assert sys.modules["json"] is before


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (None, "build", "No such file or directory"),
        ("x = ", "build", "raised SyntaxError"),
        ("1 / 0", "build", "raised ZeroDivisionError: division by zero"),
        ("def build(): return 3", "build", "is not a network but an int"),
        ("def build(): return 3", "bild", "did you mean build?"),
    ],
)
def test_python_files_that_give_no_network(tmp_path: Path, text: str | None, name: str, said: str) -> None:
    file = tmp_path / "net.py"
    if text is not None:
        file.write_text(text)
    assert said in sentence(lambda: load_source(f"{file}:{name}"))


# Pretrained weights


@pytest.mark.zoo
def test_pretrained_weights_come_from_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own download function is called; here it returns weights that are known."""
    torchvision = sources.import_torchvision()
    known = {k: torch.full_like(v, 0.5) for k, v in torchvision.models.squeezenet1_1().state_dict().items()}
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: known)
    network = load_source("torchvision:squeezenet1_1", pretrained=True)
    assert all((p == 0.5).all() for p in network.parameters())


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:test_resnet"])
def test_a_failed_download_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sources.import_torchvision().models._api, "load_state_dict_from_url", fail)
    monkeypatch.setattr(sources.import_timm().models._builder, "load_pretrained", fail)
    with pytest.raises(BadInput) as caught:
        load_source(name, pretrained=True)
    expected = f"pretrained=True: the weights of {name} cannot be loaded: OSError: no route to host"
    assert str(caught.value) == expected


def test_sources_without_pretrained_weights() -> None:
    with pytest.raises(
        BadInput, match=r"torch\.nn:Identity has no pretrained weights; expected torchvision:NAME"
    ):
        load_source("torch.nn:Identity", pretrained=True)
    with pytest.raises(BadInput, match=r"pretrained=True and weights='a\.pth' were both given"):
        load_source("timm:resnet18", "a.pth", pretrained=True)


@pytest.mark.zoo
def test_a_bare_name_of_a_zoo_model_is_a_hint() -> None:
    assert sentence(lambda: load_source("resnet18")).endswith(
        "did you mean torchvision:resnet18 or timm:resnet18?"
    )
    assert sentence(lambda: load_source("vit_small_patch16_224")).endswith(
        "did you mean timm:vit_small_patch16_224?"
    )
    assert "did you mean" not in sentence(lambda: load_source("resnet_18_of_nobody"))
