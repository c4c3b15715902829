"""`predict` with a program's any-size network that is kept beside it: the same results, labels and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.laws.scores import ScoreKind
from tests.prediction.test_predict import RAW, bright, squares


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the picture `a.png`, with two bright squares."""
    Image.fromarray(squares((16, 40), (30, 2))).save(tmp_path / "a.png")
    return tmp_path


def test_the_network_of_a_program_is_kept_beside_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "bright.pt2", tmp_path / "bright.pt2.any-size.safetensors"
    torch.export.save(torch.export.export(bright(), (torch.zeros(1, 3, 8, 8),)), path)
    options = {"window": 8, "labels": RAW, "threshold": 0.9}
    without = onebyone.predict(path, folder / "a.png", cache=False, **options)
    assert not kept.exists()
    first = onebyone.predict(path, folder / "a.png", **options)
    assert kept.exists()
    monkeypatch.setattr("onebyone.api.prediction._dense", lambda *_: pytest.fail("it is kept"))
    second = onebyone.predict(str(path), folder / "a.png", **options)
    expected = [p.detections.boxes.tolist() for p in without]
    assert (
        expected
        == [p.detections.boxes.tolist() for p in first]
        == [p.detections.boxes.tolist() for p in second]
    )
    assert len(expected[0]) == 2


def test_the_command_keeps_it_unless_told_otherwise(folder: Path, tmp_path: Path) -> None:
    path, kept = tmp_path / "bright.pt2", tmp_path / "bright.pt2.any-size.safetensors"
    torch.export.save(torch.export.export(bright(), (torch.zeros(1, 3, 8, 8),)), path)
    words = [
        "predict",
        str(path),
        str(folder / "a.png"),
        "--window",
        "8",
        "--std",
        "1",
        "--no-save",
        "--json",
    ]
    without = CliRunner().invoke(app, [*words, "--no-cache"])
    assert without.exit_code == 0, without.output
    assert not kept.exists()
    first, second = CliRunner().invoke(app, words), CliRunner().invoke(app, words)
    assert kept.exists()
    found = [json.loads(r.stdout)["images"][0]["objects"] for r in (without, first, second)]
    assert found[0]
    assert found[0] == found[1] == found[2]


def test_weights_that_are_not_finite_are_named_whether_kept_or_not(folder: Path, tmp_path: Path) -> None:
    network = bright()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = float("nan")
    path = tmp_path / "bright.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), path)
    for cache in (False, True, True):
        with (
            pytest.warns(OnebyoneWarning, match=r"1 weight tensor holds NaN or infinity \(0.weight\)"),
            pytest.raises(BadInput, match="not finite"),
        ):
            onebyone.predict(path, folder / "a.png", window=8, labels=RAW, cache=cache)


def test_labels_of_another_source_are_not_kept(folder: Path, tmp_path: Path) -> None:
    """`name` decides the preprocessing: what is kept for one name would be wrong for another one."""
    path, other = tmp_path / "bright.pt2", tmp_path / "other.pt2"
    torch.export.save(torch.export.export(bright(), (torch.zeros(1, 3, 8, 8),)), path)
    onebyone.convolutionalize(bright(), 8, labels=onebyone.Labels(mean=(200.0,), std=(3.0,))).save(other)
    with pytest.warns(OnebyoneWarning):
        expected = onebyone.predict(path, folder / "a.png", window=8, cache=False)[0]
    named = onebyone.predict(path, folder / "a.png", window=8, name=str(other))[0]
    with pytest.warns(OnebyoneWarning):
        given = onebyone.predict(path, folder / "a.png", window=8, name=str(path))[0]
    np.testing.assert_array_equal(given.scores.scores, expected.scores.scores)
    assert not np.array_equal(named.scores.scores, expected.scores.scores)


def test_arguments_of_any_type_are_told_apart_or_refused_as_without(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bright.pt2"
    torch.export.save(torch.export.export(bright(), (torch.zeros(1, 3, 8, 8),)), path)
    kind = ScoreKind("logits", "exclusive")
    given = onebyone.predict(path, folder / "a.png", window=8, labels=RAW, score_kind=kind)  # type: ignore[arg-type]
    assert given[0].scores.kind == kind
    for cache in (True, False):
        with pytest.raises(BadInput, match="window is 'abc'"):
            onebyone.predict(path, folder / "a.png", window="abc", cache=cache)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match=r"channels is np.int64\(3\)"):
            onebyone.predict(path, folder / "a.png", window=8, channels=np.int64(3), cache=cache)
