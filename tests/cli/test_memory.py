"""Inputs that do not fit into memory or on a device give one sentence and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onebyone import memory
from tests.cli.conftest import Run
from tests.cli.test_bad_input import complain


@pytest.mark.parametrize("side", [10**6, 10**10])  # beyond any memory, and beyond a 64-bit size
@pytest.mark.parametrize(
    "verb", [("convolutionalize", "--window"), ("verify", "--shape"), ("draw", "--shape")]
)
def test_an_input_larger_than_the_memory(run: Run, folder: Path, verb: tuple[str, str], side: int) -> None:
    size = f"{side},{side}" if verb[1] == "--window" else f"1,3,{side},{side}"
    said = complain(run, verb[0], ":plain", verb[1], size)
    assert f"{verb[1]} {size}: an input of " in said
    assert "does not fit into the memory of this machine" in said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 240000 bytes. Error code 12"
        ),
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"
        ),
    ],
)
def test_exhausted_memory_is_one_sentence(
    run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("onebyone.dense.scan", exhausted)
    said = complain(run, "scan", shelf / "d.pt2", shelf / "image.npy")
    assert said.startswith("the memory of this machine is exhausted")


def test_another_error_is_not_taken_for_exhaustion() -> None:
    assert memory.exhaustion(RuntimeError("a memory of shape (3, 4) was expected")) is None


def test_a_device_that_holds_no_numbers(run: Run, shelf: Path) -> None:
    said = complain(run, "scan", shelf / "d.pt2", shelf / "image.npy", "--device", "meta")
    assert "--device meta: cannot be used here" in said
