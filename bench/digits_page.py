"""`python -m bench.digits_page`: scan, detect and evaluate a page of digits of three sizes, on the command line.

A classifier of windows of 40 pixels is trained on scikit-learn's digits, saved as `.pt2`, and run over a page of
20,000 × 20,000 pixels with held-out digits at known places: `onebyone convolutionalize`, `onebyone scan` at three
scales, `onebyone detect`, `onebyone evaluate`, each in a process of its own whose seconds and peak memory (largest
resident set) are recorded. `--size` and `--steps` make a small run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.zoo.work import ROOT
from onebyone.records import table

RESULTS = ROOT / "bench" / "results" / "digits_page.json"
#: Those of `bench.digit_pages`, which loads heavy libraries.
SCALES = ("1", "0.5", "0.25")
LABELS = (
    *("--classes", "0,1,2,3,4,5,6,7,8,9,background", "--scores", "logits"),
    *("--scale", "1/255", "--mean", "0.88", "--std", "0.25"),
)


def command(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run `onebyone` in a process of its own; its seconds, peak memory and JSON output.

    Raises
    ------
    RuntimeError
        with the error output where the exit code is not 0.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "onebyone", *arguments, "--json"], stdout=out, stderr=err, cwd=folder
        )
        _, status, usage = os.wait4(process.pid, 0)  # the resources of this process alone
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        for stream in (out, err):
            stream.seek(0)
        if process.returncode:
            message = err.read().decode(errors="replace")
            raise RuntimeError(f"onebyone {' '.join(arguments)}: exit code {process.returncode}\n{message}")
        data = json.load(out)
    return {"seconds": round(seconds, 1), "peak_bytes": usage.ru_maxrss * 1024, "data": data}


def run(size: int, steps: int, memory: str, folder: Path, console: Console) -> dict[str, Any]:
    """Run every command on a page of `size` pixels; what `prepare` wrote into `folder` before is used again."""
    # in a process of its own, because the system counts the memory of this one for those that it starts
    subprocess.run(
        [sys.executable, "-m", "bench.digit_pages", folder, str(size), str(steps)], check=True, cwd=ROOT
    )
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    maps = [f"scores-{scale}.zarr" for scale in SCALES]
    scans = {
        f"scan {scale}": ["scan", "dense.pt2", "page.tif", "--resize", scale, "--memory", memory, "-o", name]
        for scale, name in zip(SCALES, maps, strict=True)
    }
    commands = {
        "convolutionalize": [
            *("convolutionalize", "digits.pt2", "--window", "40", "-o", "dense.pt2"),
            *LABELS,
        ],
        **scans,
        "detect": ["detect", *maps, "--threshold", "0.05", "--background", "background", "-o", "boxes.json"],
        "evaluate": ["evaluate", "boxes.json", "truth.json", "--max-detections", "1000000"],
    }
    done = {}
    for name, arguments in commands.items():
        done[name] = command(arguments, folder)
        console.print(f"{name}: {done[name]['seconds']} s, {done[name]['peak_bytes'] / 2**20:,.0f} MiB")
    evaluation = done["evaluate"]["data"]
    return {
        **facts,
        "detections": len(done["detect"]["data"]["objects"]),
        "mAP50": round(evaluation["mAP50"], 4),
        "mAP": round(evaluation["mAP"], 4),
        "best_f1": round(evaluation["best"]["f1"], 4),
        "peak_bytes": max(d["peak_bytes"] for d in done.values()),
        "seconds": round(sum(d["seconds"] for d in done.values()), 1),
        "commands": {k: {n: v[n] for n in ("seconds", "peak_bytes")} for k, v in done.items()},
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load": round(os.getloadavg()[0], 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=20_000, help="side of the page in pixels")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--memory", default="1.5GB", help="memory of a scan")
    parser.add_argument("--folder", type=Path, help="folder for the files, which are kept and used again")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the figures")
    options = parser.parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = run(options.size, options.steps, options.memory, folder.resolve(), console)
    options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    console.print(table(("figure", "value"), [(k, str(v)) for k, v in figures.items() if k != "commands"]))


if __name__ == "__main__":
    main()
