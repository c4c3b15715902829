"""The kernels on random networks, under sanitizers and beside busy processes; injected faults are found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.native import stress

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or os.environ.get("CI") == "true"), reason="there is no g++"
)
OVERFLOWING = 19  # the first network for which the scratch of the injected fault is too small


def run(sanitizer: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.native.stress", "--sanitizer", sanitizer, *options]
    return subprocess.run(
        command,
        env=stress.environment(sanitizer),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=3600,
        check=False,
    )


def assert_clean(done: subprocess.CompletedProcess[str], networks: int) -> None:
    assert (done.returncode, done.stdout.strip()) == (0, f"{networks} networks, 0 wrong"), done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["none", "address", "undefined", "thread"])
def test_200_random_networks(sanitizer: str) -> None:
    assert_clean(run(sanitizer, "--networks", "200"), 200)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["none", "address"])
def test_kernels_for_any_processor(sanitizer: str) -> None:
    """Vectors of four floats, and the ends of rows number by number."""
    assert_clean(run(sanitizer, "--narrow", "--networks", "40", "--seed", "1000"), 40)


@pytest.mark.slow
def test_beside_busy_processes_with_delays_between_the_threads() -> None:
    spinning = str(2 * (os.cpu_count() or 1))
    options = ("--delays", "--spinning", spinning, "--seed", "2000", "--calls", "5", "--plain")
    assert_clean(run("none", *options, "--networks", "60"), 60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "says"), [("none", "after the scratch"), ("address", "use-after-poison")]
)
def test_scratch_that_is_too_small_is_found(sanitizer: str, says: str) -> None:
    done = run(sanitizer, "--fault", "scratch", "--networks", "1", "--seed", str(OVERFLOWING))
    assert done.returncode != 0
    assert says in done.stdout + done.stderr


@pytest.mark.slow
def test_a_missing_barrier_is_found() -> None:
    """Threads that do not wait for each other read memory that is not yet written."""
    done = run("thread", "--fault", "race", "--networks", "20")
    assert done.returncode != 0
    assert "data race" in done.stderr


@pytest.mark.slow
def test_memory_that_is_read_before_it_is_written_is_found() -> None:
    done = run("none", "--fault", "unwritten", "--networks", "60")
    assert done.returncode == 1
    assert "differs from PyTorch by inf" in done.stdout
