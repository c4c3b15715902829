"""A missing, broken or hanging compiler, and unusable folders: a reason that is remembered, and no crash."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import onebyone
from onebyone.errors import BadInput
from onebyone.native import compiled_network
from onebyone.native.kernels import compiler, program, winograd
from onebyone.tuning.time_budget import Budget

needs_a_compiler = pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or os.environ.get("CI") == "true"), reason="no g++"
)


@pytest.fixture(autouse=True)
def _own_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests neither see nor change what was compiled before."""
    monkeypatch.setattr(compiler, "_generic", {})
    monkeypatch.setattr(compiler, "_outcome", cache(compiler._outcome.__wrapped__))


def script(folder: Path, *lines: str) -> str:
    path = folder / "a-compiler"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("cxx", "reason"),
    [
        ("no-such-compiler", "no-such-compiler is not installed"),
        ("false", r"false does not compile winograd\.cpp: exit code 1"),
        ("true", "true reports success but wrote no library"),
        ("g++ 'unclosed", "expected the name of a C[+][+] compiler"),
    ],
)
def test_a_broken_compiler_is_the_reason(cxx: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        compiler.compile_source("winograd.cpp", cxx)


def test_a_file_that_is_not_a_library(tmp_path: Path) -> None:
    cxx = script(tmp_path, "while [ $# -gt 1 ]; do shift; done; echo garbage > $1")
    with pytest.raises(BadInput, match="no temporary folder can be used to compile"):
        compiler.compile_source("winograd.cpp", cxx)


@needs_a_compiler
def test_a_library_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "other.cpp").write_text('extern "C" int other() { return 1; }', encoding="utf-8")
    cxx = script(tmp_path, f"g++ -shared -fPIC {tmp_path / 'other.cpp'} -o kernel.so")
    with pytest.raises(BadInput, match="without the functions of the source"):
        compiler.compile_source("winograd.cpp", cxx)


def test_a_compiler_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child processes, which keep its error stream open, are killed with it."""
    monkeypatch.setenv("CXX", script(tmp_path, f"echo $$ >> {tmp_path / 'calls'}", "sleep 600 &", "wait"))
    monkeypatch.setattr(compiler, "_MIN_SECONDS", 0.5)
    start = time.monotonic()
    with compiler.time_limit(0.0):
        for _ in range(3):
            with pytest.raises(BadInput, match="did not end within"):
                compiler.library("winograd.cpp")
    assert time.monotonic() - start < 300  # it would sleep for 600
    (leader,) = (tmp_path / "calls").read_text().split()
    assert not Path(f"/proc/{leader}").exists()


@needs_a_compiler
def test_another_folder_is_used_if_the_first_is_not_executable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, refused = ctypes.CDLL, []

    def without_tmpdir(path: str) -> ctypes.CDLL:
        if path.startswith(str(tmp_path)):
            refused.append(path)
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(ctypes, "CDLL", without_tmpdir)
    assert hasattr(compiler.compile_source("winograd.cpp"), "onebyone_winograd")
    assert refused
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(compiler, "_folders", lambda: [str(tmp_path)])
    with pytest.raises(BadInput, match="failed to map segment"):
        compiler.compile_source("winograd.cpp")


@needs_a_compiler
def test_a_compiler_that_does_not_know_the_cpu_is_reported(tmp_path: Path) -> None:
    refuse = "echo \"g++: error: bad value ('native') for '-march=' switch\" >&2; exit 1"
    cxx = script(tmp_path, f'case "$*" in *=native*) {refuse};; esac', 'exec g++ "$@"')
    compiler.compile_source("winograd.cpp", cxx)
    assert "bad value ('native')" in (compiler.why_generic("winograd.cpp") or "")


def test_tune_goes_on_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ 'unclosed")
    monkeypatch.setattr(compiled_network, "kernel", program.kernel.__wrapped__)  # without what it remembers
    monkeypatch.setattr(winograd, "_kernel", winograd._kernel.__wrapped__)
    monkeypatch.setattr(Budget, "allows", lambda self, kind: True)  # however slow the machine is
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1)).eval()
    tuned = onebyone.tune(net, torch.randn(1, 16, 8, 8), engines=["eager", "onebyone"], budget=3)
    refused = {c["name"]: c["refused"] for c in tuned.plan.candidates}
    assert "expected the name of a C++ compiler" in refused["onebyone:original"]
