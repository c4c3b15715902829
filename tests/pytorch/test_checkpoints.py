"""Checkpoints: prefixes and wrappers, what does not fit, damage, and planted code that is not run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from onebyone.pytorch.files.checkpoints import load_weights, nonfinite_weights, read_checkpoint
from onebyone.pytorch.files.program_file import load_program
from onebyone.pytorch.files.sources import load_source
from tests.pytorch.source_files import Evil, fresh, recompress, same, saved, sentence


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
    assert "1 missing (0.bias); 5 unexpected (extra0, extra1, extra2, …)" in message
    assert "1 of another shape (1.weight is 7, expected 2)" in message
    assert same(network, before)


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in fresh().state_dict().items() if "num_batches" not in k}
    assert load_weights(fresh(), saved(state, tmp_path / "w.pth")).tensors == len(state)


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
    for suffix in (".pth", ".pt2"):
        longer = tmp_path / ("x" * 300 + suffix)  # than a name may be
        read = load_program if suffix == ".pt2" else read_checkpoint
        assert "there is no such file" in sentence(lambda read=read, longer=longer: read(longer))
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
