"""`python -m bench.models`: tune ten networks, and compare each with other engines in a new interleaved run.

Each network has its own process, so that the threads and the memory of its engines do not affect the next network.
Results are stored in the ignored folder `work` as they arrive; `--keep` reuses those of an earlier run. The summary is
written when all networks were measured; for a GPU, when some were.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.models.networks import NETWORKS
from bench.models.summary import HEAD, means, rows
from bench.zoo.totals import machine
from bench.zoo.work import ROOT
from onebyone.records import table

RESULTS, WORK = ROOT / "bench" / "results", ROOT / "bench" / "work" / "models"
BUDGET = 100.0


def main(arguments: list[str] | None = None) -> int:
    """Measure the selected networks, print the table, and write the results."""
    options = _options().parse_args(arguments)
    if options.one:
        return _one(options)
    results = []
    console = Console(stderr=True)
    for network in NETWORKS:
        path = WORK / f"{_tag(options)}-{network.name.translate(_FILE_NAME)}.json"
        selected = fnmatch.fnmatch(network.name, options.only)
        if selected and not (options.keep and path.exists()):
            console.print(f"[bold]{network.name}[/bold]")
            path.unlink(missing_ok=True)
            _in_a_process(network.name, path, options)
        if path.exists() and (selected or options.keep):
            results.append(json.loads(path.read_text(encoding="utf-8")))
        elif selected:
            console.print(f"{network.name}: no result")
    if not results:
        return 1
    summary = {
        "machine": machine() | results[0]["processor"],
        "versions": results[0]["versions"],
        "threads": results[0]["threads"],
        "device": options.device,
        "dtype": options.dtype,
        "tf32": options.tf32,
        "budget_s": options.budget,
        "geomean": means(results),
        "models": results,
    }
    name = "models" if options.device == "cpu" and options.dtype == "float32" else _tag(options)
    if len(results) == len(NETWORKS) or options.device != "cpu":
        (RESULTS / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(table(HEAD, rows(results)))
    print("geometric means, the peer's time ÷ ours:")
    for key, value in summary["geomean"].items():
        print(f"  {key:24s} {'–' if value is None else f'{value:.3f}'}")
    return 0 if len(results) == len(NETWORKS) or options.only != "*" else 1


_FILE_NAME = str.maketrans(dict.fromkeys("/ ,×", "-"))


def _tag(options: argparse.Namespace) -> str:
    tf32 = "-tf32" if options.tf32 else ""
    return f"models-{options.device}-{options.dtype}{tf32}"


def _in_a_process(name: str, path: Path, options: argparse.Namespace) -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    words = ["--one", name, "--out", str(path), "--budget", str(options.budget)]
    words += ["--device", options.device, "--dtype", options.dtype, *(["--tf32"] if options.tf32 else [])]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "TORCH_LOGS": "-all"}
    subprocess.run([sys.executable, "-m", "bench.models", *words], check=False, env=environment)


def _one(options: argparse.Namespace) -> int:
    import torch

    from bench.models.measure import measure
    from onebyone.tuning.machine import describe_machine, describe_versions

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    network = next(n for n in NETWORKS if n.name == options.one)
    console = Console(stderr=True)
    result: dict[str, Any] = measure(
        network,
        budget=options.budget,
        device=options.device,
        dtype=getattr(torch, options.dtype),
        report=lambda text: console.print(f"  {text}"),
    )
    result |= {
        "processor": describe_machine(torch.device(options.device)),
        "versions": describe_versions(),
        "threads": torch.get_num_threads(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--only", default="*", metavar="GLOB", help="names of the networks to measure")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help="tuning budget for each network"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 on a GPU")
    parser.add_argument("--keep", action="store_true", help="reuse the results of an earlier run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
