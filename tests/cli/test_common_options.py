"""Options that several commands share: before and after the verb, former names, and pretrained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onebyone
from tests.cli.conftest import Run

WITH_A_SOURCE = {
    "convert": (),
    "verify": (),
    "convolutionalize": ("--window", 16),
    "check": ("--target", "conv-only"),
    "info": (),
    "compare": (),
    "tune": (),
    "draw": (),
    "scan": ("image.npy", "--window", 16),
    "predict": ("image.npy", "--window", 16),
}


@pytest.mark.parametrize("words", [("--json", "convert", ":plain"), ("convert", ":plain", "--json")])
def test_json_before_and_after_the_verb(run: Run, words: tuple[str, ...]) -> None:
    assert run(*words).json["to"] == "conv"


@pytest.mark.parametrize("words", [("-q", "convert", ":not_finite"), ("convert", ":not_finite", "-q")])
def test_quiet_before_and_after_the_verb(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.parametrize("words", [("-v", "convert", ":plain"), ("convert", ":plain", "--verbose")])
def test_verbose_prints_versions_and_the_time_of_each_step_on_stderr(
    run: Run, words: tuple[str, ...]
) -> None:
    done = run(*words)
    assert done.out == run("convert", ":plain").out
    versions, *steps = done.err.splitlines()
    assert versions.startswith(f"onebyone {onebyone.__version__}, Python 3.")
    assert ", torch 2." in versions
    assert [step.partition(":")[0] for step in steps] == ["Opening tests.cli.networks", "Converting"]
    assert all(step.endswith(" s") for step in steps)
    assert run("convert", ":plain").err == ""


def test_quiet_wins_over_verbose(run: Run) -> None:
    assert run("-v", "convert", ":plain", "-q").err == ""


@pytest.mark.parametrize("verb", WITH_A_SOURCE)
def test_pretrained_is_refused_where_there_are_no_such_weights(run: Run, folder: Path, verb: str) -> None:
    done = run(verb, ":plain", *WITH_A_SOURCE[verb], "--pretrained")
    assert done.code == 2
    expected = "--pretrained: tests.cli.networks:plain has no pretrained weights; expected torchvision:NAME"
    assert expected in done.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("option", [("--pretrained",), ("--weights", "w.safetensors")])
def test_a_dense_file_keeps_its_own_weights(run: Run, shelf: Path, option: tuple[str, ...]) -> None:
    for verb in ("scan", "predict"):
        done = run(verb, shelf / "d.pt2", shelf / "image.npy", *option)
        assert done.code == 2
        assert f"error: {' '.join(option)}: {shelf}/d.pt2 already contains weights" in done.err


def test_former_names_of_output(run: Run, shelf: Path, folder: Path) -> None:
    assert run("scan", shelf / "d.pt2", shelf / "image.npy", "--out", "former.npz").code == 0
    assert (folder / "former.npz").is_file()
    assert run("predict", shelf / "d.pt2", shelf / "image.npy", "--save", "former").code == 0
    assert (folder / "former" / "predictions.json").is_file()
    assert "--out " not in run("scan", "--help").out


def test_a_former_command_line_that_chose_an_output_is_not_misread(
    run: Run, shelf: Path, folder: Path
) -> None:
    """`--output 1 --out FILE` wrote output 1; read as two names of the file, it would write output 0."""
    done = run("scan", shelf / "d.pt2", shelf / "image.npy", "--output", "1", "--out", "s.npz")
    assert done.code == 2
    said = " ".join(done.err.replace("│", " ").split())
    assert "--out is the former name of --output, and both were given" in said
    assert "an output of the network is chosen by --network-output" in said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", ":plain", "--level", "graph"), "--level graph: a module is exported with an example"),
        (("convert", ":plain", "-o", "w.txt"), "--output w.txt: expected a name that ends in .safetensors"),
        (("verify", ":plain", ":plain"), "--shape: is missing; two callables can only be compared"),
        (("check", ":plain", "--target", "none", "--shape", "1,3,16,16"), "--target none: is not known"),
        (("info", ":plain"), "give --window or --shape"),
        (("predict", ":plain", "i.npy", "--window", 16, "-o", "w"), "--output w: is a file; expected a folder"),
    ],
)  # fmt: skip
def test_messages_name_options(run: Run, folder: Path, words: tuple[str, ...], said: str) -> None:
    """The names of Python arguments that a command makes from an option of another name."""
    (folder / "w").touch()
    np.save("i.npy", np.zeros((20, 20, 3), np.float32))
    assert said in " ".join(run(*words).err.split())
