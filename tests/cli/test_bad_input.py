"""Wrong input gives one sentence, the right exit code, and leaves no files behind."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli import networks
from tests.cli.conftest import Run


def complain(run: Run, *words: object, code: int = 2) -> str:
    """Run a command that must fail and return its one line on stderr; --json must report the same."""
    done = run(*words)
    assert done.code == code, done.err
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if not line.endswith(" …")]
    assert "Traceback" not in done.err
    if code == 2:
        assert len(lines) == 1, done.err
        assert lines[0].startswith("error: ")
    said = lines[0].removeprefix("error: ").removeprefix("refused: ")
    machine = run(*words, "--json")
    assert machine.code == code
    assert set(machine.json) == {"error", "refusals"}
    assert machine.json["error"] == said
    return said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (":no_network", "is not a network but a list"),
        (":crashes", "the factory raised RuntimeError: no luck"),
        (":missing", "has no 'missing'"),
        ("nowhere.at_all:net", "there is no module named 'nowhere'"),
        ("torchvision:", "does not name a network; expected file.pt2, torchvision:NAME"),
        ("resnet18", "does not name a network"),
        ("net.pt2", "there is no such file"),
        ("net.pth", "holds weights, not a network"),
    ],
)
@pytest.mark.parametrize("verb", [("convert",), ("verify",), ("convolutionalize", "--window", "16")])
def test_a_source_that_is_no_network(
    run: Run, folder: Path, verb: tuple[str, ...], source: str, said: str
) -> None:
    assert said in complain(run, *verb, source)
    assert list(folder.iterdir()) == []


def test_an_onnx_file_where_it_is_read_and_where_it_is_not(run: Run, folder: Path) -> None:
    for words in (["convert"], ["verify"], ["convolutionalize", "--window", "16"], ["info"], ["tune"]):
        assert "cannot read net.onnx: No such file" in complain(run, *words, "net.onnx")
    for words in (["compare"], ["draw"]):
        assert "is an ONNX model, which is not read here" in complain(run, *words, "net.onnx")
    assert list(folder.iterdir()) == []


@pytest.mark.zoo
def test_a_name_the_zoo_does_not_have(run: Run) -> None:
    assert "did you mean vgg11" in complain(run, "convert", "torchvision:vgg_11")


@pytest.mark.parametrize("window", [4, 20, 64])
def test_a_window_the_network_was_not_built_for(run: Run, folder: Path, window: int) -> None:
    said = complain(run, "convolutionalize", ":plain", "--window", window, "-o", "d.pt2")
    assert "window" in said
    assert f"{window}" in said
    assert list(folder.iterdir()) == []


def test_an_image_smaller_than_the_window(run: Run, shelf: Path, folder: Path) -> None:
    np.save(folder / "small.npy", np.zeros((10, 40, 3), np.float32))
    said = complain(run, "scan", shelf / "d.pt2", "small.npy", "-o", "s.npz")
    assert "10" in said
    assert "window" in said
    assert not (folder / "s.npz").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite(run: Run, shelf: Path, folder: Path, value: float) -> None:
    image = np.load(shelf / "image.npy")
    image[3, 4, 1] = value
    np.save(folder / "bad.npy", image)
    assert "finite" in complain(run, "scan", shelf / "d.pt2", "bad.npy", "-o", "s.npz")
    assert not (folder / "s.npz").exists()


@pytest.mark.parametrize("name", ["page.png", "page.npy", "page.txt"])
@pytest.mark.parametrize("content", [None, b"", b"not an image at all"])
def test_an_image_that_cannot_be_read(
    run: Run, shelf: Path, folder: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    assert name in complain(run, "scan", shelf / "d.pt2", name)


class Evil:
    """A pickle with code in it."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("raw", [True, False])
def test_a_checkpoint_with_code_in_it(run: Run, folder: Path, raw: bool) -> None:
    content = {"4.bias": Evil(folder / "ran")}
    if raw:
        (folder / "w.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / "w.pth")
    said = complain(run, "convert", ":plain", "--weights", "w.pth")
    assert "is a pickle that holds code" in said
    assert "was not run" in said
    assert not (folder / "ran").exists()


def test_weights_that_do_not_fit(run: Run, folder: Path) -> None:
    torch.save({"0.weight": torch.zeros(2), "other": torch.zeros(1)}, folder / "w.pth")
    said = complain(run, "convert", ":plain", "--weights", "w.pth")
    assert (
        "5 missing (0.bias, 4.weight, 4.bias, …); 1 unexpected (other); 1 of another shape (0.weight is 2"
        in said
    )


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"hello"])
def test_damaged_weights(run: Run, folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert name in complain(run, "convert", ":plain", "--weights", name)


def test_a_truncated_program_and_one_of_another_format(run: Run, shelf: Path, folder: Path) -> None:
    whole = (shelf / "d.pt2").read_bytes()
    (folder / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt2").write_bytes(b"hello")
    with zipfile.ZipFile(folder / "zip.pt2", "w") as archive:
        archive.writestr("a/b", "c")
    for name, said in (
        ("cut", "truncated"),
        ("text", "not a .pt2 archive"),
        ("zip", "not a program saved by"),
    ):
        assert said in complain(run, "scan", f"{name}.pt2", shelf / "image.npy")
        assert said in complain(run, "convert", f"{name}.pt2")


def test_a_program_has_no_modules_to_replace(run: Run, shelf: Path) -> None:
    assert "expected --level graph" in complain(run, "convert", shelf / "d.pt2", "--level", "layers")


def test_a_graph_needs_an_example(run: Run) -> None:
    assert "example" in complain(run, "convert", ":plain", "--level", "graph")


def test_a_program_that_is_not_dense_needs_a_window(run: Run, shelf: Path, folder: Path) -> None:
    torch.export.save(
        torch.export.export(networks.plain().eval(), (torch.zeros(2, 3, 16, 16),)), folder / "p.pt2"
    )
    assert "p.pt2" in complain(run, "scan", "p.pt2", shelf / "image.npy")
    assert "--window" in complain(run, "scan", ":plain", shelf / "image.npy")


@pytest.mark.parametrize("scores", ["image.npy", "d.pt2", "missing.npz"])
def test_scores_that_are_none(run: Run, shelf: Path, scores: str) -> None:
    assert scores in complain(run, "detect", shelf / scores)


def test_a_class_that_does_not_exist(run: Run, shelf: Path) -> None:
    assert "walrus" in complain(run, "detect", shelf / "s.npz", "--background", "walrus")


OUTPUTS = [
    ("convert", ":plain", "-o", "{}.safetensors"),
    ("convert", ":plain", "--shape", "1,3,16,16", "-o", "{}.pt2"),
    ("convert", ":plain", "--report", "{}.json"),
    ("convolutionalize", ":plain", "--window", "16", "-o", "{}.pt2"),
    ("scan", "d.pt2", "image.npy", "-o", "{}.npz"),
    ("detect", "s.npz", "-o", "{}.geojson"),
    ("detect", "s.npz", "-o", "{}.csv"),
]


@pytest.mark.parametrize("words", OUTPUTS, ids=[f"{w[0]} {w[-1][2:]}" for w in OUTPUTS])
@pytest.mark.parametrize("place", ["no/such/folder/out", "file.txt/out", "taken"])
def test_an_output_that_cannot_be_written(
    run: Run, shelf: Path, folder: Path, words: tuple[str, ...], place: str
) -> None:
    (folder / "file.txt").write_text("a file, not a folder")
    target = words[-1].format(place)
    if place == "taken":
        (folder / target).mkdir()
    before = sorted(p.name for p in folder.rglob("*"))
    known = [str(shelf / w) if (shelf / w).is_file() else w for w in words[:-1]]
    assert "cannot" in complain(run, *known, target)
    assert sorted(p.name for p in folder.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("convert", ":plain", "-o", "w.txt"),
        ("convolutionalize", ":plain", "--window", "16", "-o", "w.txt"),
        ("scan", "d.pt2", "image.npy", "-o", "w.txt"),
        ("detect", "s.npz", "-o", "w.txt"),
        ("detect", "s.npz", "-o", "w.png"),
    ],
)
def test_an_output_of_a_kind_that_is_not_written(
    run: Run, shelf: Path, folder: Path, words: tuple[str, ...]
) -> None:
    known = [str(shelf / w) if (shelf / w).is_file() else w for w in words]
    complain(run, *known)
    assert list(folder.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_and_says_so(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    done = run("convolutionalize", ":plain", "--window", "16", "-o", "d.pt2")
    assert done.code == 130
    assert "interrupted" in done.err
    assert list(folder.iterdir()) == []


def test_what_cannot_be_done_is_refused_with_every_reason(run: Run, folder: Path) -> None:
    words = ("convolutionalize", ":attention", "--window", "16", "--channels", "3", "-o", "d.pt2")
    complain(run, *words, code=3)
    done = run(*words, "--json")
    assert len(done.json["refusals"]) >= 1
    assert all(r["reason"] and r["kind"] for r in done.json["refusals"])
    for refusal in done.json["refusals"]:
        assert refusal["reason"] in run(*words).err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert",), "error: SRC is missing; expected the network: file.onnx, file.pt2"),
        (("predict", ":plain"), "error: IMAGE... is missing; expected pictures, folders or patterns"),
        (("convert", ":plain", "--to", "sideways"), "error: --to: 'sideways' is not one of conv, linear"),
        (("convert", ":plain", "--output"), "error: --output needs a value (Write the result"),
        (("convert", ":plain", "--json=3"), "error: --json takes no value"),
        (
            ("convert", ":plain", "--owtput", "a"),
            "error: --owtput is not an option of onebyone convert: did you",
        ),
        (("scan", ":plain", "a.npy", "b.npy"), "error: 'b.npy' is one argument too many; expected SRC IMAGE"),
        (
            ("scan", ":plain", "a.npy", "--batch", "many"),
            "error: --batch: 'many' is not an integer of 1 or more",
        ),
        (("scan", ":plain", "a.npy", "--batch", "0"), "error: --batch: '0' is not an integer of 1 or more"),
        (("detect", "s.npz", "--iou", "3"), "error: --iou: '3' is not a number from 0 to 1"),
        (("compare", ":plain", "--budget", "0.5"), "error: --budget: '0.5' is not a number of 1 or more"),
        (("convert", ":plain", "--shape", "1,3,x,16"), "is not a shape"),
        (("convert", ":plain", "--shape", "1,3,0,16"), "must be 1 or more"),
        (("convert", ":plain", "-o", "p.pt2"), "--shape is required"),
        (("convolutionalize", ":plain"), "--window: is missing"),
        (("convolutionalize", ":plain", "--window", "big"), "is not a window"),
        (("scan", "d.pt2", "image.npy", "--mean", "a,b"), "is not a list of numbers"),
        (("scan", "d.pt2", "image.npy", "--classes", "@nowhere.txt"), "cannot read the names"),
        (("detect", "s.npz", "--threshold", "1.5"), "error: --threshold: 1.5: expected a number from 0 to 1"),
        (("nonsense",), "error: 'nonsense' is not a command: expected demo, info"),
        (("scn",), "error: 'scn' is not a command: did you mean scan?"),
    ],
)
def test_wrong_usage(run: Run, folder: Path, words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.code == 2
    assert done.out == ""
    assert said in " ".join(done.err.split())
    assert done.err.count("\n") == 1  # one sentence, without a box around it
    assert list(folder.iterdir()) == []


def test_wrong_usage_is_also_json(run: Run) -> None:
    done = run("convert", ":plain", "--to", "sideways", "--json")
    assert (done.code, done.json["error"]) == (2, "--to: 'sideways' is not one of conv, linear")


@pytest.fixture
def broken_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the public function that `convert` calls."""
    from onebyone import api

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(api, "convert", broken)


@pytest.mark.usefixtures("broken_convert")
def test_an_unexpected_error_is_one_line_and_its_traceback_with_verbose(run: Run) -> None:
    done = run("convert", ":plain", "--json")
    assert done.code == 70
    assert "Traceback" not in done.err
    assert "internal error: ZeroDivisionError at test_bad_input.py:" in done.err
    assert ": a bug. This is a bug in onebyone; --verbose prints the traceback" in done.err
    assert done.json["error"].startswith("internal error: ZeroDivisionError at ")
    done = run("convert", ":plain", "-v")
    assert done.code == 70
    assert "Traceback" in done.err
    assert 'raise ZeroDivisionError("a bug")' in done.err


def test_the_answer_is_all_there_is_on_stdout(run: Run) -> None:
    done = run("convert", ":chatty", "--json")
    assert done.json["source"].endswith(":chatty")
    assert "hello from the factory" in done.err


def test_warnings_and_logs_are_as_before_afterwards(run: Run) -> None:
    import logging
    import warnings

    before = (logging.root.manager.disable, list(warnings.filters), sys.stdout)
    run("convolutionalize", ":plain", "--window", "9")
    assert (logging.root.manager.disable, list(warnings.filters), sys.stdout) == before
