"""Build the source distribution and the wheel, install the wheel as a user would, and run the commands of a user.

    python tools/wheel.py            # without extras, with the newest and the oldest dependencies that are allowed
    python tools/wheel.py --extras   # also with every extra, and the commands of the README and the tutorial (minutes)

Every command runs in an empty folder outside the repository, in an environment with only the wheel and its declared
dependencies. PyTorch has the version of the lock file, because another one is a download of several GB. The exit code
is 1 if a command does not give the expected result.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "tutorial"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 4)).eval()
"""
# The environment has no library for pictures, so the PNG file is written by hand: 20x30 grey pixels.
IMAGES = """
import numpy, struct, zlib
pixels = numpy.random.default_rng(0).random((20, 30, 3), numpy.float32)
numpy.save("image.npy", pixels)
rows = b"".join(b"\\0" + row.tobytes() for row in (255 * pixels[..., 0]).astype(numpy.uint8))
chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
header = struct.pack(">2I5B", 30, 20, 8, 0, 0, 0, 0)
png = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
open("photograph.png", "wb").write(b"\\x89PNG\\r\\n\\x1a\\n" + png)
"""


@dataclass(frozen=True)
class Case:
    """A command line, its expected exit code, and a text, or a regular expression, that its output must contain.

    A command that `serves` a page prints its address and runs until it is stopped; the page counts as its output.
    """

    words: str
    code: int = 0
    says: str = ""
    program: str = "onebyone"
    serves: bool = False
    pattern: str = ""


VERBS = (
    *("convert", "verify", "check", "targets", "info", "convolutionalize", "scan", "detect", "predict"),
    *("evaluate", "view", "tune", "compare", "draw", "demo"),
)
PLAIN = (
    Case("--version", says=PROJECT["version"]),
    Case("--help", says="Exit codes"),
    *(Case(f"{verb} --help", says="--json") for verb in VERBS),
    Case("convert net:net -o converted.safetensors", says="1 layer converted"),
    Case("convert net:net --output", code=2, says="--output"),
    Case("verify net:net --shape 1,3,8,8", says="equivalent"),
    Case("convolutionalize net:net --window 8 -o dense.pt2", says="wrote dense.pt2"),
    Case("scan dense.pt2 image.npy -o scores.npz", says="wrote scores.npz"),
    Case("detect scores.npz -o boxes.json", says="wrote boxes.json"),
    Case("info net:net --shape 1,3,8,8", says="Linear"),
    Case("targets", says="conv-only"),
    Case("tune net:net --shape 1,3,8,8 --engines eager --budget 2"),
    Case("compare net:net --shape 1,3,8,8 --rows R1,R2 --budget 10"),
)
WITHOUT_EXTRAS = (
    Case("scan dense.pt2 photograph.png -o s.npz", code=2, says="onebyone[images]"),
    Case("draw net:net --shape 1,3,8,8 -o pictures", code=2, says="onebyone[report]"),
    Case("compare net:net --shape 1,3,8,8 --rows S5 --budget 5", says="onebyone[demo]"),
    Case("tune net:net --shape 1,3,8,8 --engines onnxruntime --budget 30", says="onebyone[engines]"),
    Case("verify torchvision:resnet18", code=2, says="onebyone[zoo]"),
    Case("verify timm:resnet18", code=2, says="onebyone[zoo]"),
    Case("predict net:net photograph.png --window 8", code=2, says="onebyone[images]"),
    Case("evaluate boxes.json boxes.json", code=2, says="images"),
    Case("view .", code=2, says="onebyone[view]"),
    Case("demo", code=2, says="onebyone[demo]"),
)
WITH_EXTRAS = (
    Case("convolutionalize torchvision:vgg11 --window 224 -o vgg11.pt2", says="wrote vgg11.pt2"),
    Case("compare torchvision:resnet18 --html report.html --budget 30"),
    Case("draw net:net --shape 1,3,8,8 --format svg,png,pdf -o png"),
    Case("tune net:net --shape 1,3,8,8 --engines onnxruntime,openvino --budget 10"),
    Case("check net:net --shape 1,3,8,8 --target conv-only", code=3, says="aten.linear"),
    Case(
        "predict net:net photograph.png --window 8 --channels 3 --scale 1/255 -o predictions",
        says="photograph.png",
    ),
    Case("evaluate boxes.json boxes.json", code=2, says="images"),
    Case("view scores.npz --image nothing.png", code=2, says="nothing.png"),
    Case("demo --output demo", says="demo"),
    Case("view demo --no-browser", says="openseadragon", serves=True),
)
# Pixels, windows, and 30 to 39 detections of the page's 35 digits: training rounds differently on other processors, and
# the classifiers that result found 35 and 34.
TUTORIAL_SAYS = r"280×392 │ 5,733 │ 3\d │"
# scikit-learn contains a photograph, so the trained classifier also scans a JPEG file that it has not made.
PHOTOGRAPH = """
import importlib.resources, pathlib
photograph = importlib.resources.files("sklearn.datasets.images") / "china.jpg"
pathlib.Path("china.jpg").write_bytes(photograph.read_bytes())
"""
ON_A_PHOTOGRAPH = (
    Case("photograph.py", program="python"),
    Case("predict digits.pt2 china.jpg --threshold 0.9 -o photograph", says="427×640 │ 15,147 │"),
    Case("view photograph --model digits.pt2 --no-browser", says="openseadragon", serves=True),
    Case("scan digits.pt2 china.jpg -o china.zarr", says="wrote china.zarr"),
    Case(
        "view china.zarr --image china.jpg --model digits.pt2 --no-browser", says="openseadragon", serves=True
    ),
)


class Environment:
    """A virtual environment outside the repository, with a folder in which commands run."""

    def __init__(self, folder: Path) -> None:
        self._bin, self._work = folder / "env" / "bin", folder / "work"
        # With PYTHONPATH, pip would take the sources for an installed distribution, and not install the wheel.
        self._variables = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        self._work.mkdir(parents=True)
        (self._work / "net.py").write_text(NETWORK, encoding="utf-8")
        (self._work / "photograph.py").write_text(PHOTOGRAPH, encoding="utf-8")
        shutil.copy(TUTORIAL / "digits.py", self._work)
        subprocess.run([sys.executable, "-m", "venv", self._bin.parent], check=True)

    def install(self, *words: str) -> None:
        """Run `pip install`, and stop if dependencies are in conflict."""
        pip = [self._bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *words], check=True, env=self._variables)
        subprocess.run([*pip, "check"], check=True, env=self._variables)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, in which nothing of the repository can be imported."""
        return subprocess.run(
            [self._bin / words[0], *words[1:]],
            cwd=self._work,
            env=self._variables,
            text=True,
            capture_output=True,
            check=False,
        )

    def serve(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Start a program that serves a page, read the page at the address that it prints, and stop it."""
        command = [self._bin / words[0], *words[1:]]
        with subprocess.Popen(
            command,
            cwd=self._work,
            env=self._variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as server:
            assert server.stdout is not None
            printed = ""
            try:
                for line in server.stdout:
                    printed += line
                    if address := re.search(r"http://127\.0\.0\.1:\S+", line):
                        with urlopen(address[0], timeout=60) as page:
                            printed += page.read().decode()
                        return subprocess.CompletedProcess(command, 0, printed, "")
            finally:
                server.terminate()  # if the page cannot be read either: leaving the block waits for the program
        return subprocess.CompletedProcess(command, server.returncode, printed, "")

    def version(self, name: str) -> str:
        """The installed version of a distribution."""
        return self.run(
            "python", "-c", f"from importlib.metadata import version as v; print(v({name!r}))"
        ).stdout.strip()

    def try_all(self, cases: Iterable[Case]) -> list[str]:
        """Run every command, and write each unexpected result where it occurs; returns them too."""
        self.run("python", "-c", IMAGES)
        faults = []
        for case in cases:
            if fault := self._fault(case):
                say(fault)
                faults.append(fault)
        return faults

    def _fault(self, case: Case) -> str:
        run = self.serve if case.serves else self.run
        done = run(case.program, *case.words.split())
        output = " ".join((done.stdout + done.stderr).split())
        command = f"{case.program} {case.words}"
        say(f"  {done.returncode}  {command}")
        if done.returncode == case.code and re.search(case.pattern or re.escape(case.says), output):
            return ""
        expected = f"expected {case.code} and {case.pattern or case.says!r} in"
        return f"{command}: exit code {done.returncode}, {expected}:\n{output}"


def say(line: str) -> None:
    """Write a line and flush it, so that a log shows what is running."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def oldest(requirements: Iterable[str]) -> list[str]:
    """The lowest version of each requirement.

    >>> oldest(["numpy>=1.26", "onebyone[report]"])
    ['numpy==1.26']
    """
    return [r.replace(">=", "==") for r in requirements if ">=" in r]


def tutorial() -> list[Case]:
    """The commands of the tutorial, exactly as its page shows them; the last one prints the detections."""
    page = (TUTORIAL / "index.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    programs = [line.partition(" ") for line in block.splitlines()]
    return [
        Case(words, pattern=TUTORIAL_SAYS if program == "onebyone" else "", program=program)
        for program, _, words in programs
    ]


def build(folder: Path) -> Path:
    """Build the wheel from the sdist, and check the metadata of both.

    Raises SystemExit if the sdist lacks a file that git tracks, and CalledProcessError if a package index would refuse
    the metadata or not render the description.
    """
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL
    )
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    if missing := sorted(set(tracked.split()) - packed):
        raise SystemExit(f"the sdist lacks {len(missing)} files that git tracks: {', '.join(missing)}")
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(folder.iterdir()))], check=True
    )
    return next(folder.glob("*.whl"))


def main(words: Sequence[str] | None = None) -> int:
    """Build, install and run the commands; 1 if a result is unexpected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--extras",
        action="store_true",
        help="Also install every extra and run the commands of the README and the tutorial.",
    )
    extras = parser.parse_args(words).extras
    torch = next(
        iter(re.findall(r"^torch==\S+$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M))
    )
    faults = []
    with tempfile.TemporaryDirectory(prefix="onebyone-wheel-") as name:
        wheel = build(Path(name) / "dist")
        environment = Environment(Path(name))
        environment.install(torch, str(wheel))
        cases = (*PLAIN, *WITHOUT_EXTRAS)
        for which, versions in (("newest", []), ("oldest", oldest(PROJECT["dependencies"]))):
            if versions:
                environment.install(*versions)
            names = [re.split(r"[>=]", r)[0] for r in PROJECT["dependencies"]]
            say(f"{which}: " + ", ".join(f"{n} {environment.version(n)}" for n in names))
            faults += environment.try_all(cases)
        if extras:
            lists = PROJECT["optional-dependencies"]
            newest = Path(name) / "keep.txt"
            newest.write_text(f"torch=={environment.version('torch')}\n", encoding="utf-8")
            environment.install("-c", str(newest), f"{wheel}[all]")
            for which in ("newest", "oldest"):
                if which == "oldest":
                    environment.install(
                        *oldest(r for key, rs in lists.items() if key not in {"docs", "dev"} for r in rs)
                    )
                say(f"{which}, with all extras: torch {environment.version('torch')}")
                faults += environment.try_all((*PLAIN, *WITH_EXTRAS, *tutorial(), *ON_A_PHOTOGRAPH))
    say(f"{len(faults)} unexpected results" if faults else "every command gave the expected result")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
