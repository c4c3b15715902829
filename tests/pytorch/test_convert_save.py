"""The report, and the files that a conversion is saved to."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from onebyone.errors import BadInput
from onebyone.pytorch.modules.convert import convert_module
from tests.pytorch.integer_networks import X, network


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


def test_report_prints_and_serialises():
    c = convert_module(nn.Sequential(nn.Linear(3, 2), Twice(2, 2)), to="conv")
    text = str(c)
    assert "1 converted, 1 refused, 0 bytes copied" in text
    assert "Linear 2×3" in text
    report = json.loads(json.dumps(c.to_dict()))
    assert report["changes"][0]["path"] == "0"
    assert report["refused"][0]["kind"] == "Twice"
    assert (report["to"], report["level"]) == ("conv", "layers")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def test_saves_weights_with_their_report_also_when_tied(tmp_path):
    model = Tied()
    c = convert_module(model, to="conv")
    path = c.save(tmp_path / "tied.safetensors")
    with safe_open(path, "pt") as stored:
        report = json.loads(stored.metadata()["onebyone.json"])
        state = {k: stored.get_tensor(k) for k in stored.keys()}  # noqa: SIM118
    assert report["changes"] == c.to_dict()["changes"]
    assert json.loads((tmp_path / "tied.json").read_text()) == report
    other = Tied()
    other.load_state_dict(state)
    assert torch.equal(other.head.weight, model.head.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tied.json", "tied.safetensors"]


def test_saves_a_program_and_leaves_the_mode(tmp_path):
    c = convert_module(network().train(), to="conv")
    c.model[6].eval()
    path = c.save(tmp_path / "net.pt2", example=X)
    assert c.model.training
    assert not c.model[6].training
    extra = {"onebyone.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert torch.equal(program.module()(X), c.model(X))
    assert json.loads(extra["onebyone.json"])["to"] == "conv"


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    c = convert_module(nn.Linear(3, 2), to="conv")
    target = tmp_path / "net.safetensors"
    target.write_bytes(b"before")

    def half(tensors, path, metadata):
        with open(path, "wb") as stream:
            stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onebyone.pytorch.modules.conversion.save_file", half)
    with pytest.raises(BadInput, match="cannot write"):
        c.save(target)
    assert target.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_what_cannot_be_saved_is_said(tmp_path):
    c = convert_module(nn.Linear(3, 2), to="conv")
    for path, message in [
        (tmp_path / "net.bin", "expected a name that ends in"),
        (tmp_path / "missing" / "net.safetensors", "cannot write"),
        (tmp_path / "net.pt2", "needs an example input"),
    ]:
        with pytest.raises(BadInput, match=message):
            c.save(path)
    meta = convert_module(nn.Linear(3, 2, device="meta"), to="conv")
    with pytest.raises(BadInput, match="meta device"):
        meta.save(tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
