"""The notebooks of the gallery run, their values equal independent computations, and their outputs are up to date."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"/(?:work|root|home|tmp|Users|opt|usr|var)/|site-packages|\.pyenv|\b[A-Z]:\\\\", re.I)


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onebyone_notebooks", ROOT / "tools" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()

LAST = {
    "the_two_layers_are_one": """
assert sorted(row.id for row in r.rows) == sorted(rows)
assert [layer.bitwise for layer in v.layers] == [True, True]
assert seen["3×3 convolution"].nonzero().tolist() == [[y, x] for y in (3, 4, 5) for x in (4, 5, 6)]
names = ("right", "bound", "bias dropped")
assert all(right < bound < fault for right, bound, fault in zip(*(found[name] for name in names)))
w, b, m = integers(2, 24), integers(2), integers(2, 4, 2, 3)
by_hand = [
    [sum(int(w[o, f]) * int(m[n].flatten()[f]) for f in range(24)) + int(b[o]) for o in range(2)] for n in range(2)
]
assert F.conv2d(m, w.view(2, 4, 2, 3), b).flatten(1).tolist() == by_hand
""",
    "from_classifier_to_detector": """
assert detector.geometry.window == (24, 24)
assert proof.equivalent and proof.integer_probe and proof.windows == 13 * 17
for i, j in ((0, 0), (17, 40), (42, 78)):
    crop = image[4 * i : 4 * i + 24, 4 * j : 4 * j + 24]
    torch.testing.assert_close(dense[:, i, j], net(crop[None, None])[0], rtol=1e-4, atol=1e-4)
head = 512 * 64 + 64 * 11
of_a_window = 16 * 20 * 20 * 25 + 32 * 8 * 8 * 16 * 9 + head
of_the_page = 16 * 188 * 332 * 25 + 32 * 92 * 164 * 16 * 9 + 43 * 79 * head
assert (each, one_pass) == (43 * 79 * of_a_window, of_the_page)
assert not set(known.tolist()) & set(unseen.tolist())
""",
    "a_slide_in_an_afternoon": """
from pathlib import Path
from onebyone.dense.unfinished import open_scores
from onebyone.loading import open_dense
from onebyone.viewing import ScanView
level = tifffile.imread("new.ome.tif", level=1)
assert (*level.shape[:2], *scores.positions) == (1280, 1792, 313, 441)
scored = ~np.isnan(scores.scores[0])
covered = np.array([mask[2 * i : 2 * i + 16, 2 * j : 2 * j + 16].any() for i, j in np.ndindex(scored.shape)])
assert (scored.ravel() == covered).all() and 0.5 < covered.mean() < 0.95
for i, j in np.argwhere(scored)[:: scored.sum() // 20].tolist():
    crop = torch.from_numpy(level[4 * i : 4 * i + 32, 4 * j : 4 * j + 32]).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(torch.from_numpy(scores.scores[:, i, j]), net(crop)[0], rtol=1e-4, atol=1e-4)
middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
hits = [(np.abs(middles - place[::-1]).max(1) < 6) & (found.labels == kind) for place, kind in zip(truth, truth_kinds)]
assert np.mean([hit.any() for hit in hits]) > 0.9 and np.any(hits, axis=0).mean() > 0.9
assert sum(c.objects for c in result.classes) == len(truth)
view = ScanView(*open_scores(Path("scores.zarr")), "new.ome.tif", open_dense("nuclei.pt2")[0])
seen = view.window(*map(float, (found.boxes[0, :2] + found.boxes[0, 2:]) / 2), True)
assert seen["crop"]["max_difference"] < 1e-4, seen
assert int(np.argmax(seen["scores"])) == found.labels[0]
""",
    "a_transformer_as_convolutions": """
called = [str(n.target) for n in loaded.graph.nodes if n.op == "call_function"]
assert not any("linear" in name or "mm" in name for name in called)
assert len(c.changes) == len(graph.changes) == sum(isinstance(m, nn.Linear) for m in vit.modules()) == 13
torch.testing.assert_close(c.model(images[:3]), vit(images[:3]), rtol=1e-4, atol=1e-4)
assert more[-1] < losses[0] / 3
""",
}
"""Assertions at the end of each notebook, in addition to its own."""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels write their files into a temporary folder instead of the user's."""
    importlib.import_module("matplotlib.font_manager")  # the first import of all says that it makes a cache
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_there_is_a_check_for_each() -> None:
    assert {path.stem for path in PATHS} == set(LAST)


@pytest.mark.parametrize(
    "name",
    [
        "the_two_layers_are_one",
        pytest.param("from_classifier_to_detector", marks=pytest.mark.slow),  # it trains
        pytest.param("a_slide_in_an_afternoon", marks=pytest.mark.slow),  # it trains
        pytest.param("a_transformer_as_convolutions", marks=[pytest.mark.zoo, pytest.mark.slow]),
    ],
)
def test_it_runs(name: str) -> None:
    """In a new kernel, with warnings as errors and without network access."""
    done = tool.run(tool.read(FOLDER / f"{name}.ipynb"), strict=True, last=LAST[name])
    assert done.cells[-1].source == LAST[name]
    streams = [o for cell in done.cells for o in cell.get("outputs", ()) if o.output_type == "stream"]
    assert not [o.text for o in streams if o.name == "stderr"]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_its_imports_exist(path: Path) -> None:
    """Without running the notebook: its cells are valid Python, and every name that they import exists."""
    imported = 0
    for cell in tool.read(path).cells:
        source = re.sub(r"^%.*$", "", cell.source, flags=re.M)  # commands of IPython
        for node in ast.walk(ast.parse(source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})
                imported += 1
    assert imported > 2


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_it_is_stored_with_its_outputs(path: Path) -> None:
    notebook = tool.read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.outputs for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_it_names_no_machine(path: Path) -> None:
    notebook = tool.read(path)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/png", None)
    assert not MACHINE.findall(nbformat.writes(notebook))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert not any("execution" in cell.metadata for cell in notebook.cells)


def test_each_is_in_the_gallery_with_its_picture() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    for path in PATHS:
        assert page.count(f"(notebooks/{path.name})") == 2
        assert f"](notebooks/{path.stem}.png)" in page
        assert path.with_suffix(".png").read_bytes() == tool.gallery_picture(tool.read(path))
    assert "](gallery.md)" in (ROOT / "docs" / "guide.md").read_text("utf-8")


# the tool


def made(*sources: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


OFFLINE = """
import urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:9/")
except OSError as error:
    assert "may not reach out" in str(error)
"""


def test_what_is_stale() -> None:
    def with_output(text: str, html: str = "") -> Any:
        notebook = made("1")
        data = {"text/plain": text, **({"text/html": html} if html else {})}
        notebook.cells[0].outputs = [nbformat.v4.new_output("execute_result", data, execution_count=1)]
        return notebook

    assert tool.stale(with_output("0.5 of 3e-7"), with_output("0.25 of 1.5e-12")) == []
    told = tool.stale(with_output("2 right"), with_output("3 wrong"))
    assert told == ["cell 0: stored '# right', now '# wrong'"]
    assert tool.stale(with_output("at 0x1", "<p>a 1</p>"), with_output("at 0xf", "<p>a 2</p>")) == []
    assert tool.stale(with_output("x", "<p>a</p>"), with_output("x", "<p>b</p>"))
    assert tool.stale(with_output("x"), made("1"))


def test_a_run_is_strict_and_leaves_what_it_was_given() -> None:
    from nbclient.exceptions import CellExecutionError

    given = made("x = 2\nx + 1")
    done = tool.run(given, strict=True, last="assert x == 2")
    assert tool.texts(done.cells[0]) == ["#"]
    assert given.cells[0].outputs == []
    with pytest.raises(CellExecutionError, match="UserWarning"):
        tool.run(made(OFFLINE, "import warnings; warnings.warn('deprecated')"), strict=True)


def test_what_is_noise_is_not_stored() -> None:
    notebook = tool.run(made("print('a')", "from IPython.display import HTML\nHTML('<b>b</b>')"))
    notebook.cells[1].outputs[0].data["text/plain"] = "x" * 5000
    tidied = tool.tidy(notebook)
    assert "text/plain" not in tidied.cells[1].outputs[0].data
    assert [cell.id for cell in tidied.cells] == ["cell-00", "cell-01"]
    assert "execution" not in tidied.cells[0].metadata
    assert tidied.metadata.language_info == {"name": "python"}
