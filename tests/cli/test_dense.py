"""`scan` and `detect`: kinds of scores, the selection of an output, and the messages about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

import onebyone
from onebyone.cli import render
from onebyone.dense import ScoreMap
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.records import Labels
from tests.cli.conftest import Run


@pytest.fixture
def image(folder: Path) -> str:
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(12, 12, 3)).astype(np.float32))
    return "x.npy"


def test_a_sigmoid_head_from_scan_to_objects(run: Run, image: str) -> None:
    done = run("scan", ":sigmoid", image, "--window", 8, "-o", "s.npz", "--json")
    assert done.json["scores"] == "probabilities:multi-label"
    assert (done.json["counted"], done.json["classes"]) == ("probability at least 0.5", {"0": 0})
    assert run("detect", "s.npz", "--json").json["objects"] == []
    low = run("detect", "s.npz", "--threshold", 0.0005, "--iou", 1, "--json").json["objects"]
    assert len(low) == 25
    assert low[0]["score"] == pytest.approx(0.001, rel=1e-5)
    # what is said on the command line counts: the same numbers as logits are 1 / (1 + exp(-0.001))
    wrong = run("detect", "s.npz", "--scores", "logits", "--iou", 1, "--json").json["objects"]
    assert wrong[0]["score"] == pytest.approx(0.50025, rel=1e-5)


def test_scores_are_stated_when_a_network_is_made_or_scanned(run: Run, image: str) -> None:
    made = run("convolutionalize", ":plain", "--window", 16, "--scores", "logits:multi-label", "--json")
    assert made.json["outputs"] == [{"name": "0", "channels": 5, "scores": "logits:multi-label"}]
    run("scan", ":sigmoid", image, "--window", 8, "--scores", "log-probabilities", "-o", "s.npz")
    assert ScoreMap.load("s.npz").kind == ScoreKind("log-probabilities")
    refused = run("detect", "s.npz")
    assert refused.code == 2
    assert "score_kind" not in refused.err
    assert "the largest score is 0.001; expected at most 0" in refused.err


def test_a_map_of_unknown_scores_says_what_was_assumed(run: Run, image: str) -> None:
    run("scan", ":sigmoid", image, "--window", 8, "-o", "s.npz")
    held = ScoreMap.load("s.npz")
    ScoreMap(held.scores, held.geometry, held.labels, held.image_size).save("u.npz")
    done = run("detect", "u.npz", "--json")
    assert done.json["objects"] == []
    (note,) = done.json["notes"]
    assert "every score is from 0 to 1, so they are taken as probabilities" in note
    assert "--scores probabilities to confirm it" in note
    assert "note:" in run("detect", "u.npz").err


@pytest.mark.parametrize(
    ("output", "channels", "kind"), [("scores", 2, "probabilities:exclusive"), ("1", 4, "logits")]
)
def test_an_output_is_chosen_by_name_or_number(
    run: Run, image: str, output: str, channels: int, kind: str
) -> None:
    words = (
        "scan",
        ":named",
        image,
        "--window",
        8,
        "--classes",
        "face,none",
        "--network-output",
        output,
        "-o",
        "s.npz",
    )
    assert run(*words, "--json").json["scores"] == kind
    held = ScoreMap.load("s.npz")
    assert held.scores.shape == (channels, 5, 5)
    assert held.labels.classes == (("face", "none") if channels == 2 else ())


def test_an_output_that_does_not_exist(run: Run, image: str) -> None:
    done = run("scan", ":named", image, "--window", 8, "--network-output", "logits")
    assert done.code == 2
    assert "--network-output logits, but the network gives 2 outputs: scores, boxes" in done.err


def test_predict_takes_the_output_that_is_named(run: Run, image: str) -> None:
    words = ("predict", ":named", image, "--window", 8, "--threshold", 0)
    assert run(*words, "--network-output", "boxes", "-o", "p", "--json").code == 0
    (file,) = Path("p").glob("*-scores.npz")
    predicted = ScoreMap.load(file).scores
    assert predicted.shape == (4, 5, 5)
    assert run("scan", ":named", image, "--window", 8, "--network-output", "boxes", "-o", "s.npz").code == 0
    np.testing.assert_array_equal(predicted, ScoreMap.load("s.npz").scores)
    done = run(*words, "--network-output", "logits", "--no-save")
    assert done.code == 2
    assert "--network-output logits, but the network gives 2 outputs: scores, boxes" in done.err


def test_boxes_are_regressed_from_two_scans(run: Run, image: str) -> None:
    for name in ("scores", "boxes"):
        words = ("scan", ":named", image, "--window", 8, "--network-output", name, "-o", f"{name}.npz")
        assert run(*words).code == 0
    plain = run("detect", "scores.npz", "--iou", 1, "--json").json["objects"]
    moved = run("detect", "scores.npz", "--boxes", "boxes.npz", "--iou", 1, "--json").json["objects"]
    assert plain
    held = ScoreMap.load("boxes.npz")
    offsets = held.scores.reshape(4, -1).T.astype(float)
    right = set()
    for o in plain:
        a, b, c, d = offsets[int(o["y1"]) * 5 + int(o["x1"])]
        box = (o["x1"] + 8 * a, o["y1"] + 8 * b, o["x2"] + 8 * c, o["y2"] + 8 * d)
        x1, y1, x2, y2 = (min(max(v, 0), 12) for v in box)
        if x1 < x2 and y1 < y2:
            right.add(tuple(round(v, 3) for v in (x1, y1, x2, y2)))
    assert {tuple(round(o[k], 3) for k in ("x1", "y1", "x2", "y2")) for o in moved} == right
    wrong = run("detect", "scores.npz", "--boxes", "boxes.npz", "--box-format", "xywh")
    assert wrong.code == 2
    assert "--box-format xywh: expected corners or center-size" in wrong.err


def test_a_picture_in_the_place_of_a_score_map(run: Run, folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (9, 9)).save(folder / "page.png")
    done = run("detect", "page.png")
    assert done.code == 2
    assert (
        "page.png is not a score map: it is a PNG picture; expected the .npz that `scan` writes" in done.err
    )
    assert "pickle" not in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scan", ":plain", "x.npy"), "its window size is not known; give --window in pixels"),
        (
            ("scan", ":sigmoid", "x.npy", "--window", 8, "--scale", 0),
            "--scale 0.0: expected a finite number other",
        ),
        (("scan", ":sigmoid", "x.npy", "--window", 8, "--std", "-1"), "--std -1.0: expected positive finite"),
        (
            ("convolutionalize", ":plain", "--window", 16, "--classes", "a,b"),
            "name 2 classes and the network gives 5",
        ),
        (("convolutionalize", ":plain", "--window", 16, "--classes", "a,b,c,d,a"), "'a' is given twice"),
    ],
)
def test_messages_name_options(run: Run, image: str, words: tuple[object, ...], said: str) -> None:
    done = run(*words)
    assert done.code == 2
    assert said in done.err


def test_raw_pixels_are_said(run: Run, folder: Path) -> None:
    np.save(folder / "p.npy", np.full((12, 12, 3), 200, np.uint8))
    words = ("scan", ":sigmoid", "p.npy", "--window", 8, "--json")
    (note,) = run(*words).json["notes"]
    assert "preprocessing is not stated" in note
    assert "--scale, --mean, --std" in note
    stated = run(*words, "--scale", 1).json
    assert "notes" not in stated or not stated["notes"]
    assert stated["preprocessing"] == "values are used unchanged"


@pytest.mark.parametrize("skipped", ["", "output 'boxes' is not taken for class scores"])
def test_an_agreement_that_was_not_measured_is_explained(skipped: str) -> None:
    geometry = Geometry((4, 4), (2, 2), (0, 0), (8, 8), (2, 2), False, ("padding",))
    scores = ScoreMap(np.zeros((4, 3, 3), np.float32), geometry, Labels(), (8, 8), agreement_skipped=skipped)
    data = render.scores_data(scores, "d.pt2", "x.npy", None)
    assert data["agreement_skipped"] == skipped
    lines = [str(part) for part in render.scores_tables(data)]
    assert (f"agreement with cropped windows: not measured; {skipped}" in lines) == bool(skipped)


def test_windows_at_any_stride_into_a_zarr_store(run: Run, image: str) -> None:
    """The original network at a stride that is not its own, and a map in a store."""
    arguments = ("--window", 8, "--mode", "windows", "--stride", 3, "--channels", 3, "-o", "w.npz")
    assert run("scan", ":sigmoid", image, *arguments).code == 0
    assert ScoreMap.load("w.npz").geometry.stride == (3, 3)
    assert ScoreMap.load("w.npz").positions == (2, 2)
    made = run("scan", ":sigmoid", image, "--window", 8, "--memory", "40GB", "-o", "s.zarr", "--json")
    assert made.code == 0
    run("scan", ":sigmoid", image, "--window", 8, "-o", "t.npz")
    np.testing.assert_array_equal(np.asarray(ScoreMap.load("s.zarr").scores), ScoreMap.load("t.npz").scores)
    small = run("scan", ":sigmoid", image, "--window", 8, "--memory", "1MB", "-o", "s2.zarr")
    assert small.code == 2
    assert "--memory 1MB: expected at least" in small.err


def test_a_plan_for_the_tiles_of_an_image_is_scanned_with(run: Run, folder: Path) -> None:
    np.save(folder / "y.npy", np.random.default_rng(0).normal(size=(40, 52, 3)).astype(np.float32))
    run("convolutionalize", ":plain", "--window", 16, "-o", "d.pt2")
    tuned = run(
        "tune", "d.pt2", "--tile", "y.npy", "--budget", 0.2, "--engines", "eager", "-o", "p.json", "--json"
    )
    assert tuned.json["inputs"][0]["shape"] == [1, 3, 40, 52]
    written = json.loads((folder / "p.json").read_text())
    written["choice"] = {
        "name": "eager:original",
        "engine": "eager",
        "form": "original",
        "dtype": None,
        "layers": {},
    }
    (folder / "p.json").write_text(json.dumps(written))
    assert run("scan", "d.pt2", "y.npy", "--plan", "p.json", "-o", "s.npz").code == 0
    expected = onebyone.scan("d.pt2", "y.npy", channels_last=False)
    np.testing.assert_array_equal(ScoreMap.load("s.npz").scores, expected.scores)
    wrong = run("tune", "d.pt2", "--tile", "y.npy", "--shape", "1,3,40,52")
    assert wrong.code == 2
    assert "without --shape" in wrong.err


def test_tiles_are_tuned_for_the_level_and_the_page_that_are_scanned(run: Run, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 104, 3), dtype=np.uint8)
    with tifffile.TiffWriter(folder / "y.tif") as file:
        settings = {"photometric": "rgb", "tile": (16, 16)}
        for _ in range(2):  # pages
            file.write(pixels, subifds=1, **settings)
            file.write(pixels[::2, ::2], subfiletype=1, **settings)
    run("convolutionalize", ":plain", "--window", 16, "-o", "d.pt2")
    options = ("--page", 1, "--level", 1, "--budget", 0.2, "--engines", "eager", "--json")
    tuned = run("tune", "d.pt2", "--tile", "y.tif", *options)
    assert tuned.json["inputs"][0]["shape"] == [1, 3, 40, 52]
    far = run("tune", "d.pt2", "--tile", "y.tif", "--page", 7)
    assert (far.code, "page" in far.err) == (2, True)
    alone = run("tune", "d.pt2", "--level", 1)
    assert (alone.code, "--tile IMAGE" in alone.err) == (2, True)


def test_verbose_names_the_engine(run: Run, image: str) -> None:
    words = ("scan", ":sigmoid", image, "--window", 8, "--mode")
    for mode in ("dense", "windows"):
        done = run(*words, mode, "-v")
        assert "Engine: PyTorch, eager" in done.err.splitlines()
        assert "Engine" not in run(*words, mode).err
