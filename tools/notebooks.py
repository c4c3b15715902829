"""The notebook gallery: run it, store what came out, or say whether what is stored is stale.

    python tools/notebooks.py --check            # exit 1 and say which cells' text has changed
    python tools/notebooks.py --write [NAME ...] # run, and store those that are stale (--all: every one)

Each notebook runs in a fresh kernel of one thread, in an empty folder. Staleness is judged by the text of the
outputs with its numbers left out, and by errors: pictures and last digits differ from machine to machine, and
a notebook that is not stale is left as it is, so that a diff shows only what has a reason. Beside each lies the
picture that docs/gallery.md shows: that of the cell tagged "gallery".
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
"""Seconds a cell may take."""
COLOURS = 96
"""Of a stored picture."""
LONG_PLAIN = 4000
"""A plain text longer than this is left out where the output has an HTML form too."""
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
    """The gallery's files, or those of these names."""
    found = sorted(FOLDER.glob("*.ipynb"))
    return [path for path in found if not names or path.stem in {Path(name).stem for name in names}]


def read(path: Path) -> NotebookNode:
    """A stored notebook."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    return notebook


def run(stored: NotebookNode, *, strict: bool = False, last: str = "") -> NotebookNode:
    """A copy of a notebook, executed in a fresh kernel in an empty folder; nothing in the file is trusted to be
    there. `last` is code for a cell after its last.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        where a cell does.
    """
    notebook: NotebookNode = nbformat.from_dict(stored)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    first = [nbformat.v4.new_code_cell(STRICT)] if strict else []
    more = [nbformat.v4.new_code_cell(last)] if last else []
    notebook.cells = [*first, *notebook.cells, *more]
    os.environ["OMP_NUM_THREADS"] = "1"  # the kernel inherits it; sums of one thread have one order
    with tempfile.TemporaryDirectory() as folder:
        # files, not ports: nothing of a run can be listened to
        kernel = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        where = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources=where, config=kernel
        )
        client.execute()
    notebook.cells = notebook.cells[len(first) :]
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Without what changes from run to run or names the machine: times, versions, long plain texts."""
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
    """The picture that stands for a notebook: that of its cell with the tag "gallery", as a PNG file."""
    tagged = next(c for c in notebook.cells if "gallery" in c.metadata.get("tags", ()))
    return base64.b64decode(
        next(o.data["image/png"] for o in tagged.outputs if "image/png" in o.get("data", {}))
    )


def shortened(picture: str) -> str:
    """A PNG in base64 with a palette of its own: drawings lose nothing to see, and a third is left of the size."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, 4, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def texts(cell: NotebookNode) -> list[str]:
    """The words of a cell's outputs, without numbers; of an output with an HTML form, the words of that."""
    found = []
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            found.append(output.text)
        elif output.output_type == "error":
            found.append(f"{output.ename}: {output.evalue}")
        elif "text/html" in output.data:
            found.append(unescape(_TAG.sub(" ", output.data["text/html"])))
        elif not any(kind.startswith("image/") for kind in output.data):
            found.append(output.data.get("text/plain", ""))
        else:
            found.append("a picture")
    return [" ".join(_NUMBER.sub("#", text).split()) for text in found]


def stale(stored: NotebookNode, fresh: NotebookNode) -> list[str]:
    """A line for each cell whose stored text is not what a run gives now."""
    told = []
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        before, after = (" | ".join(texts(cell)) for cell in (old, new))
        if before != after:
            same = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
            start = max(0, same - 20)
            told.append(f"cell {number}: stored {_short(before, start)}, now {_short(after, start)}")
    return told


def _short(text: str, start: int) -> str:
    """The text from shortly before it differs."""
    shown = text[start : start + 80]
    return repr(("…" if start else "") + shown + ("…" if start + 80 < len(text) else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 where something is stale and was not written, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="say what is stale; write nothing")
    mode.add_argument("--write", action="store_true", help="store the outputs of those that are stale")
    parser.add_argument("--all", action="store_true", help="with --write: of every one")
    parser.add_argument("names", nargs="*", help="notebooks; all where there is none")
    options = parser.parse_args(arguments)
    worst = 0
    for path in notebooks(options.names):
        stored = read(path)
        fresh = tidy(run(stored))
        told = stale(stored, fresh)
        if options.write and (told or options.all):
            nbformat.write(fresh, path)
            path.with_suffix(".png").write_bytes(gallery_picture(fresh))
        elif told:
            worst = 1
        state = "stale" if told else "up to date"
        say(f"{path.name}: {state}{', written' if options.write and (told or options.all) else ''}", *told)
    return worst


def say(*lines: Any) -> None:
    """On stderr."""
    sys.stderr.write("\n  ".join(str(line) for line in lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
