"""Freed memory is used again while a network runs on large tiles."""

from __future__ import annotations

import subprocess
import sys

import pytest

_COUNT = """
import ctypes, resource, sys
import numpy as np
from onebyone.memory import reused_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.empty(2**24, np.float32).fill(1)  # 64 MiB: more than glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with reused_memory():
    faults()
    kept = faults()
print(kept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library has no mallopt")
def test_large_blocks_are_not_returned_to_the_system_between_layers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True, timeout=1800
    )
    kept, returned = map(int, done.stdout.split())
    assert kept < returned / 4
