"""Scans that are killed at random moments: the finished file is byte for byte the same."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.interpreter import ROOT, start_python

SCRIPT = """
import sys, time
import numpy as np
from onebyone.dense import scan, ArraySource
from tests.dense.networks import exact_net, integer_image

class Slow(ArraySource):
    def read(self, region):
        time.sleep(0.01)
        return super().read(region)

print("ready", flush=True)
scan(exact_net(), Slow(integer_image(120, 110)[..., None]), out=sys.argv[1], tile=3, batch=2)
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _marked(out: Path) -> int:
    """The number of blocks that the working folder states to be durable."""
    marks = Path(f"{out}.partial") / "done"
    try:
        return marks.read_bytes()[8:].count(1)
    except FileNotFoundError:
        return 0


def _ready(outputs: Path) -> bool:
    """Whether the script has imported what it needs and is about to scan."""
    out = outputs / "out"
    return out.exists() and out.stat().st_size > 0


def _killed_until_done(out: Path, kills: int, seed: int) -> int:
    """Run the script, kill it at random moments, and let it end at last. Returns how often it went on."""
    moments = random.Random(seed)
    resumed = 0
    for k in range(kills + 1):
        with tempfile.TemporaryDirectory() as outputs:
            process = start_python("-c", SCRIPT, str(out), folder=ROOT, outputs=Path(outputs))
            code = None
            if k < kills:
                blocks = moments.randint(0, 70)  # of 81, counted, so that the moment is no matter of speed
                while code is None and not (_ready(Path(outputs)) and _marked(out) >= blocks):
                    time.sleep(0.001)
                    code = process.poll()
                if code is None:
                    os.kill(process.pid, signal.SIGKILL)
            code = process.wait() if code is None else code
        assert k < kills or code == 0
        resumed += _marked(out) > 0
    return resumed


def digests(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return " ".join(f"{p.relative_to(path)} {digest(p)}" for p in files)


@pytest.mark.parametrize(
    ("kills", "suffix"),
    [
        (3, "zarr"),
        pytest.param(20, "npz", marks=pytest.mark.slow),
        pytest.param(20, "zarr", marks=pytest.mark.slow),
        pytest.param(20, "tif", marks=pytest.mark.slow),
        pytest.param(20, "npy", marks=pytest.mark.slow),
    ],
)
def test_a_scan_that_was_killed_gives_the_same_bytes(kills: int, suffix: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    assert _killed_until_done(whole, 0, 0) == 0
    assert (
        _killed_until_done(killed, kills, kills) > 0
    )  # at least one of the runs had something to go on with
    assert digests(whole) == digests(killed)
    names = [whole.name, killed.name]
    described = [f"{name}.json" for name in names] if suffix == "npy" else []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names + described)
