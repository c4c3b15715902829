"""Run the notebooks of the gallery, store their outputs, or check whether the stored outputs are up to date.

    python tools/notebooks.py --check            # exit code 1, with the cells whose text has changed
    python tools/notebooks.py --write [NAME ...] # run, and store those that are out of date (--all: every one)

Each notebook runs in a new kernel with one thread, in an empty folder. Outputs are compared by their text without
numbers, and by errors, because pictures and last digits differ between machines. A notebook that is up to date is not
written, so that diffs show only intended changes. The picture of the cell tagged "gallery" is stored beside each
notebook and shown in docs/gallery.md.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
TIMEOUT = 600
"""Time limit of a cell in seconds."""
COLOURS = 96
"""Number of colours of a stored picture."""
LONG_PLAIN = 4000
"""Plain text longer than this is removed if the output also has an HTML form."""
STRICT = """\
import socket, warnings
warnings.simplefilter("error")
warnings.simplefilter("ignore", PendingDeprecationWarning)  # the kernel's own
for category in (DeprecationWarning, FutureWarning):  # what libraries say of each other
    warnings.filterwarnings("ignore", category=category, module="torch|IPython|traitlets|zmq|jupyter|matplotlib")
def _connect(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"a notebook may not reach out, and this one wants {address}")
    return _plain(self, address)
_plain, socket.socket.connect = socket.socket.connect, _connect
"""
"""Run first where asked for: warnings are errors, and nothing outside this machine can be reached."""
_NUMBER = re.compile(r"[-+−]?\d[\d.,]*(?:e[-+]?\d+)?%?")
_TAG = re.compile(r"<[^>]*>")


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of the gallery, or those with the given names."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    return [path for path in paths if not names or path.stem in {Path(name).stem for name in names}]


def read(path: Path) -> NotebookNode:
    """Read a stored notebook."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    return notebook


def run(stored: NotebookNode, *, strict: bool = False, last: str = "") -> NotebookNode:
    """A copy of the notebook, executed in a new kernel in an empty folder, with all stored outputs removed first.

    `strict` turns warnings into errors and blocks network access; `last` is code for an additional last cell.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        if a cell raises.
    """
    notebook: NotebookNode = nbformat.from_dict(stored)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    first = [nbformat.v4.new_code_cell(STRICT)] if strict else []
    more = [nbformat.v4.new_code_cell(last)] if last else []
    notebook.cells = [*first, *notebook.cells, *more]
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the kernel: with one thread, sums have a fixed order
    with tempfile.TemporaryDirectory() as folder:
        # files instead of ports, which other users could connect to
        kernel = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        where = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources=where, config=kernel
        )
        client.execute()
    notebook.cells = notebook.cells[len(first) :]
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Remove what differs between runs or machines: times, versions, long plain texts."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = shortened(data["image/png"])
            if "text/html" in data and len(data.get("text/plain", "")) > LONG_PLAIN:
                del data["text/plain"]
    return notebook


def gallery_picture(notebook: NotebookNode) -> bytes:
    """The picture of the cell tagged "gallery", as a PNG file."""
    tagged = next(c for c in notebook.cells if "gallery" in c.metadata.get("tags", ()))
    return base64.b64decode(
        next(o.data["image/png"] for o in tagged.outputs if "image/png" in o.get("data", {}))
    )


def shortened(picture: str) -> str:
    """A PNG in base64 with a palette, a third of the size; drawings show no visible difference."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        quantized = image.convert("RGB").quantize(
            COLOURS, Image.Quantize.MAXCOVERAGE, 4, dither=Image.Dither.NONE
        )
    quantized.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def texts(cell: NotebookNode) -> list[str]:
    """The text of a cell's outputs without numbers, from the HTML form if an output has one."""
    parts = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append(f"{output.ename}: {output.evalue}")
        elif "text/html" in output.data:
            parts.append(unescape(_TAG.sub(" ", output.data["text/html"])))
        elif not any(kind.startswith("image/") for kind in output.data):
            parts.append(output.data.get("text/plain", ""))
        else:
            parts.append("a picture")
    return [" ".join(_NUMBER.sub("#", text).split()) for text in parts]


def stale(stored: NotebookNode, fresh: NotebookNode) -> list[str]:
    """A line for each cell whose stored text differs from that of a new run."""
    differences = []
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        before, after = (" | ".join(texts(cell)) for cell in (old, new))
        if before != after:
            same = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
            start = max(0, same - 20)
            differences.append(f"cell {number}: stored {_short(before, start)}, now {_short(after, start)}")
    return differences


def _short(text: str, start: int) -> str:
    """The text from shortly before the difference."""
    shown = text[start : start + 80]
    return repr(("…" if start else "") + shown + ("…" if start + 80 < len(text) else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a notebook is out of date and was not written, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="report what is out of date; write nothing")
    mode.add_argument(
        "--write", action="store_true", help="store the outputs of notebooks that are out of date"
    )
    parser.add_argument("--all", action="store_true", help="with --write: store all outputs")
    parser.add_argument("names", nargs="*", help="notebooks; all by default")
    options = parser.parse_args(arguments)
    worst = 0
    for path in notebooks(options.names):
        stored = read(path)
        fresh = tidy(run(stored))
        differences = stale(stored, fresh)
        if options.write and (differences or options.all):
            nbformat.write(fresh, path)
            path.with_suffix(".png").write_bytes(gallery_picture(fresh))
        elif differences:
            worst = 1
        state = "out of date" if differences else "up to date"
        say(
            f"{path.name}: {state}{', written' if options.write and (differences or options.all) else ''}",
            *differences,
        )
    return worst


def say(*lines: Any) -> None:
    """Write lines to stderr."""
    sys.stderr.write("\n  ".join(str(line) for line in lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
