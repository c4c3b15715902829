"""Malformed and hostile files: one clear sentence each, in bounded memory, with nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stores.hostile_files import all_files

#: Pillow's limit of 89 million pixels in RGB, 256 MiB, and the buffers of one decoder.
_MEMORY_MIB = 640


def run(folder: Path, count: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.stores.hostile_files", str(folder), str(count), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def check(result: dict[str, Any]) -> None:
    refused = result["refused"]
    print(
        f"{result['files']} files: {len(refused)} refused, {result['read']} read, {result['memory_mib']} MiB more"
    )
    assert result["wrong"] == {}
    for name, sentence in refused.items():
        assert "\n" not in sentence, (name, sentence)
        assert 10 < len(sentence) < 700, (name, sentence)
        assert "Traceback" not in sentence
    assert result["memory_mib"] < _MEMORY_MIB


def test_a_sample_of_hostile_files_is_refused(tmp_path: Path) -> None:
    check(run(tmp_path, 60, 0))


@pytest.mark.slow
def test_every_hostile_file_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, 0, 0)
    check(result)
    assert len(all_files()) == result["files"] >= 200
    assert len(result["refused"]) >= 200
    outside = ("path '..", "path '/", "path '0/")
    escapes = [n for n, _ in all_files() if n.startswith(outside) or (n.startswith("link") and "secret" in n)]
    bombs = [name for name, _ in all_files() if "bomb" in name]
    assert len(escapes) >= 7
    assert len(bombs) >= 4
    assert {*escapes, *bombs} <= {*result["refused"]}
