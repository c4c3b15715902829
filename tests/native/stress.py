"""Run compiled random networks in test builds of the kernels: sanitizers, delays between threads, a busy machine.

    python -m tests.native.stress --networks 200 --sanitizer address
    python -m tests.native.stress --minutes 10 --delays --spinning 4

Each network is compared with PyTorch in float64, and each further call with the first one bit by bit. The exit code is
1 if one differs; a sanitizer ends the process with its report. The runtime of AddressSanitizer and ThreadSanitizer must
be loaded first (LD_PRELOAD): see `environment`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from onebyone.native.kernels import compiler, fusion, strassen
from onebyone.native.kernels.program import kernel
from tests.native.build import build
from tests.native.guarded_program import GuardError, guarded
from tests.native.random_networks import network

RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:abort_on_error=0",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}
FAULTS = {
    # scratch for a whole chunk of rows, although a smaller chunk can need more
    "scratch": (
        "strassen.h",
        "max_block = std::min(part_rows, longest) + 1;",
        "max_block = ceil_div(part_rows, blocks) + 1;",
    ),
    # a missing barrier
    "race": ("threads.h", "pthread_barrier_wait(barrier);", ""),
    # a max pool that does not write its last row
    "unwritten": (
        "convolution.h",
        "team.share(units, [&](int64_t u) {",
        "team.share(units - 1, [&](int64_t u) {",
    ),
}
# how far a result may be off, compared with eager mode's own error: sums in another order, Winograd's tiles, and two
# levels of Strassen's algorithm, each of which multiplies the error bound by 18
GROWTH = 2 * 18**2


def environment(sanitizer: str) -> dict[str, str]:
    """The environment in which a process runs kernels compiled with that sanitizer."""
    variables = {**os.environ, **OPTIONS, "CXX": "g++"}  # whose runtime it is
    if sanitizer in RUNTIMES:
        command = ["g++", f"-print-file-name={RUNTIMES[sanitizer]}"]
        variables["LD_PRELOAD"] = subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.strip()
    return variables


@contextmanager
def injected(fault: str) -> Iterator[None]:
    """The kernels are compiled from sources with a fault."""
    name, right, wrong = FAULTS[fault]
    with tempfile.TemporaryDirectory() as folder:
        for part in compiler.SOURCES.iterdir():
            if part.name.endswith((".cpp", ".h")):
                text = part.read_text(encoding="utf-8")
                assert part.name != name or right in text
                Path(folder, part.name).write_text(text.replace(right, wrong), encoding="utf-8")
        with mock.patch.object(compiler, "SOURCES", Path(folder)):
            kernel()
            yield


@contextmanager
def all_algorithms(seed: int) -> Iterator[None]:
    """Strassen's algorithm is used with a random number of levels, and Winograd's wherever it applies."""
    pick, best_levels = random.Random(seed), strassen.best_levels

    def random_levels(rows: int, inputs: int, outputs: int, *rest: int) -> int:
        possible = [n for n in (1, 2) if inputs % 2**n == 0 == outputs % 2**n and rows >= 8 * 2**n]
        return pick.choice([*possible, best_levels(rows, inputs, outputs, *rest)])

    with (
        mock.patch.object(strassen, "best_levels", random_levels),
        mock.patch.object(fusion, "_MACS_PER_BYTE", 0),
    ):
        yield


def errors(got: Tensor, model: torch.nn.Module, x: Tensor) -> tuple[float, float]:
    """The largest error of a result, and its limit."""
    with torch.no_grad():
        plain, exact = model(x).double(), model.double()(x.double())
    model.float()
    rounding = torch.finfo(torch.float32).eps * exact.abs().max()
    wrong = (got.double() - exact).abs().max()
    return float(wrong.nan_to_num(nan=torch.inf)), GROWTH * float(max((plain - exact).abs().max(), rounding))


def run(seed: int, calls: int, threads: int) -> str | None:
    """What is wrong with a network's results; None if they are right."""
    model, x = network(seed, threads)
    if seed % 2:  # rows of very different sizes, which must be scaled before they are added
        x = x * 10.0 ** torch.randint(-2, 3, (*x.shape[:-1], 1))
    with all_algorithms(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = build(model, x, threads)
        try:
            first = call(x)
            again = all(torch.equal(call(x), first) for _ in range(calls - 1))
        except GuardError as error:
            return f"seed {seed}, {threads} threads: {error}"
    wrong, allowed = errors(first, model, x)
    if not wrong <= allowed:
        return f"seed {seed}, {threads} threads: differs from PyTorch by {wrong:.3g}, allowed {allowed:.3g}"
    return None if again else f"seed {seed}, {threads} threads: another call returned another result"


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes keep the CPU busy."""
    spin = [sys.executable, "-c", "while True: pass"]
    running = [
        subprocess.Popen(spin, env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"})
        for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> int:
    """Run as the options say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", type=int, default=None, help="how many networks; default: as many as time allows"
    )
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first network")
    parser.add_argument("--calls", type=int, default=3, help="calls of each network")
    parser.add_argument("--sanitizer", choices=("none", "address", "undefined", "thread"), default="none")
    parser.add_argument("--plain", action="store_true", help="no guards: memory is shared as in use")
    parser.add_argument("--narrow", action="store_true", help="compile for any CPU of this architecture")
    parser.add_argument("--delays", action="store_true", help="random delays before and after barriers")
    parser.add_argument("--fault", choices=FAULTS, help="inject this fault into the kernels")
    parser.add_argument(
        "--spinning", type=int, default=0, help="number of other processes that keep the CPU busy"
    )
    asked = parser.parse_args()
    flags = ["-DONEBYONE_DELAYS"] if asked.delays else []
    if asked.sanitizer != "none":
        flags += [f"-fsanitize={asked.sanitizer}", "-fno-sanitize-recover=all", "-g", "-O1"]
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * asked.minutes if asked.minutes else float("inf")
    done, wrong = 0, []
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(compiler, "EXTRA_FLAGS", tuple(flags)))
        if asked.narrow:
            stack.enter_context(mock.patch.object(compiler, "_TARGETS", ((),)))
        if asked.fault:
            stack.enter_context(injected(asked.fault))
        if not asked.plain:
            stack.enter_context(guarded(poisons=asked.sanitizer == "address"))
        stack.enter_context(busy(asked.spinning))
        for seed in itertools.count(asked.seed):
            if time.monotonic() > end or seed - asked.seed == asked.networks:
                break
            said = run(seed, asked.calls, 1 + seed % 4)
            done += 1
            if said:
                wrong.append(said)
                print(said, flush=True)
    print(f"{done} networks, {len(wrong)} wrong")
    return 1 if wrong or not done else 0


if __name__ == "__main__":
    raise SystemExit(main())
