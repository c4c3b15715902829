"""`predict`: the same boxes as the three steps, the files it writes, the images it reads, and bad input."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import nn
from typer.testing import CliRunner

import onebyone
from onebyone.cli.main import app
from onebyone.dense import ScoreMap
from onebyone.errors import BadInput, InexactWarning, Refused
from onebyone.prediction.inputs import image_files
from onebyone.viewing import ScanView
from onebyone.viewing.scan_folder import ScanParts, scan_parts
from tests.interpreter import run_python

RAW = onebyone.Labels(classes=("bright",), std=(1.0,))


def bright() -> nn.Module:
    """One class, whose logit is (mean of an 8×8 window − 127.5) / 16: 0.9997 on white, 0.0003 on black."""
    network = nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten(), nn.Sigmoid()).eval()
    with torch.no_grad():
        network[0].weight.fill_(1 / (3 * 64 * 16))
        network[0].bias.fill_(-127.5 / 16)
    return network


def squares(*corners: tuple[int, int]) -> np.ndarray:
    """A black picture of 40×56 pixels with white 8×8 squares at (row, column)."""
    image = np.zeros((40, 56, 3), np.uint8)
    for row, column in corners:
        image[row : row + 8, column : column + 8] = 255
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, corners in {"b.png": [(3, 5)], "a.png": [(16, 40), (30, 2)], "none.png": []}.items():
        Image.fromarray(squares(*corners)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_the_boxes_are_where_the_squares_are(folder: Path) -> None:
    predictions = onebyone.predict(bright(), str(folder), window=8, labels=RAW, threshold=0.99)
    assert [Path(p.image).name for p in predictions] == ["a.png", "b.png", "none.png"]
    best = [p.detections.boxes[:2].tolist() for p in predictions]
    assert sorted(best[0]) == [[2, 30, 10, 38], [40, 16, 48, 24]]  # x1, y1, x2, y2
    assert best[1][0] == [5, 3, 13, 11]
    assert len(predictions[2].detections) == 0
    assert predictions[1].counts() == (("bright", len(predictions[1].detections)),)


def test_the_steps_alone_give_the_same(folder: Path) -> None:
    dense = onebyone.convolutionalize(bright(), 8, labels=RAW)
    scores = onebyone.scan(dense, folder / "a.png")
    expected = onebyone.detect(scores, threshold=0.6, iou=0.1)
    for model in (bright(), dense):
        window = None if model is dense else 8
        (one,) = onebyone.predict(model, folder / "a.png", window=window, labels=RAW, threshold=0.6, iou=0.1)
        assert np.array_equal(one.detections.boxes, expected.boxes)
        assert one.scores is not None
        assert np.array_equal(one.scores.scores, scores.scores)


def test_exclusive_classes_suppress_each_other() -> None:
    """Two classes with probabilities 0.48 and 0.52 on the square: one box, unless per_class asks for both."""
    network = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten(), nn.Softmax(1)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1 / (3 * 64 * 16))
        network[0].weight[2] = 0
        network[0].bias.copy_(torch.tensor([-127.5 / 16, -127.5 / 16 + 0.1, 0]))
    labels = onebyone.Labels(classes=("a", "b", "none"), std=(1.0,), background=("none",))
    counts = {}
    for per_class in (None, True, False):
        (one,) = onebyone.predict(
            network, squares((8, 8)), window=8, labels=labels, threshold=0.47, per_class=per_class
        )
        counts[per_class] = one.counts()
    assert counts == {None: (("b", 1),), False: (("b", 1),), True: (("b", 1), ("a", 1))}


def test_files_are_written_for_each_image(folder: Path, tmp_path: Path) -> None:
    save = tmp_path / "out"
    predictions = onebyone.predict(
        bright(), [folder / "a.png", squares((8, 8))], window=8, labels=RAW, save=save
    )
    assert sorted(p.name for p in save.iterdir()) == [
        *("a-detections.png", "a-heat.png", "a-image.png", "a-scores.npz", "a.json"),
        *("image-1-detections.png", "image-1-heat.png", "image-1-image.png", "image-1-scores.npz"),
        *("image-1.json", "predictions.json", "viewer.json"),
    ]
    assert {name for p in predictions for name in p.files} == {
        str(p) for p in save.iterdir() if p.name not in ("predictions.json", "viewer.json")
    }
    assert all(p.scores is None for p in predictions)
    coco = COCO(save / "predictions.json")
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == [str(folder / "a.png"), "image-1"]
    boxes = [a["bbox"] for a in coco.loadAnns(coco.getAnnIds(imgIds=[2]))]
    assert [8, 8, 8, 8] in boxes
    heat = np.asarray(Image.open(save / "image-1-heat.png").convert("RGB")).astype(int)
    # position (8, 8) covers [11.5, 12.5), so the centre of pixel 11; it has three quarters of the colour of 1 on white
    assert np.abs(heat[11, 11] - [252, 255, 187]).max() <= 1
    assert heat[30, 40].tolist() == [0, 0, 0]


def test_the_viewer_shows_the_same_boxes(folder: Path, tmp_path: Path) -> None:
    """The scan in the folder gives the boxes of the result, and crops of its image the scores of the map."""
    dense = onebyone.convolutionalize(bright(), 8, labels=RAW)
    save = tmp_path / "out"
    (item,) = onebyone.predict(dense, folder / "a.png", threshold=0.99, save=save)
    parts = scan_parts(save)
    assert parts.image is not None
    assert (np.asarray(Image.open(parts.image)) == squares((16, 40), (30, 2))).all()
    view = ScanView(ScoreMap.load(parts.scores), parts.scores, parts.image, dense)
    found = view.boxes(0.99, 0.3)
    assert sorted(box[:4] for box in found["boxes"]) == sorted(item.detections.boxes.tolist())
    window = view.window(41.0, 17.0, True)
    assert window["crop"]["scores"] == pytest.approx(
        window["scores"], abs=2**-20
    )  # sums of 192 terms of 1/3072


def test_classes_given_as_background_are_background_in_the_viewer(folder: Path, tmp_path: Path) -> None:
    onebyone.predict(
        bright(), folder / "a.png", window=8, labels=RAW, background=("bright",), save=tmp_path / "out"
    )
    parts = scan_parts(tmp_path / "out")
    assert ScoreMap.load(parts.scores).labels.background == ("bright",)


def test_the_viewer_shows_the_map_alone_where_pixels_have_more_than_eight_bits(tmp_path: Path) -> None:
    image = squares((8, 8)).astype(np.float32)
    (item,) = onebyone.predict(bright(), image, window=8, labels=RAW, save=tmp_path / "out")
    assert item.image_file is None
    assert scan_parts(tmp_path / "out") == ScanParts((tmp_path / "out" / "image-0-scores.npz").resolve())


def test_a_colour_order_alone_is_not_dropped(tmp_path: Path) -> None:
    """The network reads its first channel only, which is blue in the order BGR."""
    network = bright()
    with torch.no_grad():
        network[0].weight[:, 1:] = 0
        network[0].weight[:, 0] = 1 / (64 * 16)
    dense = onebyone.convolutionalize(network, 8, labels=RAW)
    blue = squares((8, 8)) * np.array([0, 0, 1], np.uint8)
    counts = {
        order: len(
            onebyone.predict(dense, blue, labels=onebyone.Labels(colour_order=order), threshold=0.99)[
                0
            ].detections
        )
        for order in ("RGB", "BGR")
    }
    assert counts == {"RGB": 0, "BGR": 1}
    with pytest.raises(BadInput, match="colour_order='XYZ': expected RGB, BGR or L"):
        onebyone.predict(dense, blue, labels=onebyone.Labels(colour_order="XYZ"))


def test_names_of_images(folder: Path, tmp_path: Path) -> None:
    names = [Path(p).name for p in image_files([str(folder / "*.png"), folder / "notes.txt"])]
    assert names == ["a.png", "b.png", "none.png", "notes.txt"]
    brackets = tmp_path / "x[1].png"
    brackets.touch()
    assert image_files([str(brackets)]) == (brackets,)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing-*.png"):
        with pytest.raises(BadInput, match="no image is there"):
            image_files([str(tmp_path / name)])


def test_bad_input_is_one_sentence(folder: Path) -> None:
    with pytest.raises(BadInput, match="its window size is not known"):
        onebyone.predict(bright(), folder / "a.png")
    with pytest.raises(BadInput, match=r"save='.*a\.png': is a file; expected a folder"):
        onebyone.predict(bright(), folder / "a.png", window=8, save=folder / "a.png")
    with pytest.raises(BadInput, match="images: is empty"):
        onebyone.predict(bright(), [], window=8)
    with pytest.raises(BadInput, match="No such file"):
        onebyone.predict(bright(), folder / "missing.png", window=8, labels=RAW)


NETWORK = """
import torch
from torch import nn

def bright():
    network = nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten(), nn.Sigmoid())
    with torch.no_grad():
        network[0].weight.fill_(1 / (3 * 64 * 16))
        network[0].bias.fill_(-127.5 / 16)
    return network
"""


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "net.py").write_text(NETWORK)
    options = ["--window", "8", "--classes", "bright", "--std", "1"]
    done = CliRunner().invoke(app, ["predict", "net.py:bright", "a.png", "b.png", *options])
    assert done.exit_code == 0, done.output
    assert (folder / "predictions" / "a-heat.png").exists()
    data = json.loads(
        CliRunner().invoke(app, ["predict", "net.py:bright", "*.png", *options, "--no-save", "--json"]).stdout
    )
    assert [Path(image["image"]).name for image in data["images"]] == ["a.png", "b.png", "none.png"]
    assert data["images"][0]["files"] == []


def test_a_picture_from_the_standard_input(folder: Path) -> None:
    (folder / "net.py").write_text(NETWORK)
    options = ("--window", "8", "--std", "1", "--no-save", "--json")
    done = run_python(
        "-m", "onebyone", "predict", "net.py:bright", "-", *options, folder=folder, stdin=folder / "b.png"
    )
    assert done.returncode == 0, done.stderr
    (image,) = json.loads(done.stdout)["images"]
    assert (image["image"], image["image_size"]) == ("stdin", [40, 56])
    assert image["objects"][0]["x1"] == 5


def test_an_image_is_read_once_and_the_page_that_was_scanned_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second page has a square where the first is black; a grey picture is drawn for a network of RGB."""
    from onebyone.dense import images

    pages = [Image.fromarray(squares(*corners)[..., 0]) for corners in ([], [(8, 8)])]
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    opened: list[object] = []
    open_file = images.open_file

    def counting(path: object, **options: object) -> object:
        opened.append(options["page"])
        return open_file(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "open_file", counting)
    save = tmp_path / "out"
    options = {"window": 8, "labels": RAW, "threshold": 0.99, "page": 1}
    (item,) = onebyone.predict(bright(), tmp_path / "two.tif", save=save, **options)
    assert opened == [1]
    (kept,) = onebyone.predict(bright(), tmp_path / "two.tif", **options)
    assert (item.detections.boxes == kept.detections.boxes).all()
    assert [8, 8, 16, 16] in item.detections.boxes.tolist()
    heat = np.asarray(Image.open(save / "two-heat.png").convert("RGB")).astype(int)
    assert np.abs(heat[11, 11] - [252, 255, 187]).max() <= 1


def test_several_scales_are_merged(folder: Path, tmp_path: Path) -> None:
    """A square of 16 pixels fills a window at half the size; a picture too small for a scale is left out there."""
    image = squares((3, 5))
    image[16:32, 24:40] = 255
    options = {"window": 8, "labels": RAW, "threshold": 0.999}
    (one,) = onebyone.predict(bright(), image, scales=(0.5,), **options)
    assert [24, 16, 40, 32] in one.detections.boxes.tolist()
    (both,) = onebyone.predict(bright(), image, scales=(1, 0.5), iou=1, **options)
    boxes = both.detections.boxes.tolist()
    assert [24, 16, 40, 32] in boxes
    assert [5, 3, 13, 11] in boxes
    assert both.windows == sum(m.windows for m in both.maps)
    (small,) = onebyone.predict(bright(), image, scales=(1, 0.1), save=tmp_path / "s", **options)
    assert small.notes == ("image-0: is smaller than the window at scale 0.1, which was left out",)
    with pytest.raises(
        BadInput, match=r"scales=0.1, 0.05: an image of 40×56 pixels is smaller than the window"
    ):
        onebyone.predict(bright(), image, scales=(0.1, 0.05), **options)
    for bad in ((), (1, 1), (0.0,), (float("nan"),)):
        with pytest.raises(BadInput, match="expected one or several different positive numbers"):
            onebyone.predict(bright(), image, scales=bad, **options)


def test_large_images_are_drawn_as_thumbnails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone.detection import detection_picture
    from onebyone.prediction import predict

    monkeypatch.setattr(detection_picture, "MAX_PIXELS", 1000)
    monkeypatch.setattr(detection_picture, "THUMBNAIL", 28)
    monkeypatch.setattr(predict, "MAX_PIXELS", 1000)
    Image.fromarray(squares((8, 8))).save(tmp_path / "a.png")
    save = tmp_path / "out"
    (item,) = onebyone.predict(bright(), tmp_path / "a.png", window=8, labels=RAW, threshold=0.99, save=save)
    assert item.notes == (
        f"{tmp_path / 'a.png'}: pictures are thumbnails of 20×28 pixels; the image has 40×56",
    )
    assert np.asarray(Image.open(save / "a-detections.png").convert("RGB")).shape == (20, 28, 3)
    heat = np.asarray(Image.open(save / "a-heat.png").convert("RGB"))
    assert heat[5, 5].max() > 200
    assert heat[15, 20].tolist() == [0, 0, 0]


class Gated(nn.Module):
    """A classifier with global pooling inside: the mean of each channel scales its map."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 6 * 6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.features(x)
        return self.head((maps * maps.mean((2, 3), keepdim=True)).flatten(1))


def test_global_pooling_of_an_onnx_file_pools_over_what_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Gated().eval()
    file = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(1, 1, 8, 8),), file, dynamo=False)
    image = np.random.default_rng(0).random((20, 24, 1), np.float32)
    given = {"threshold": 0.0, "iou": 1.0, "labels": onebyone.Labels(std=(1.0,))}
    with pytest.raises(Refused):
        onebyone.predict(file, image, window=8, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactWarning)  # a mean over the image is not that of a crop
        expected, found, over_image = (
            onebyone.predict(model, image, window=8, context=context, **given)[0].scores.scores
            for model, context in ((network, "window"), (file, "window"), (file, "image"))
        )
    # sums of 144 products below 1, each weight below 1/12
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-18)
    assert np.abs(over_image - expected).max() > 2**-10  # the two contexts differ by more than rounding
    onebyone.convolutionalize(file, 8, context="window").save(tmp_path / "dense.onnx")
    with pytest.raises(BadInput, match=r"context=image: .* was made with context=window"):
        onebyone.predict(tmp_path / "dense.onnx", image, context="image", **given)


def test_a_network_of_signals_is_refused_at_any_scales(folder: Path) -> None:
    signals = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 3))
    for scales in ((1,), (1, 0.5)):
        with pytest.raises(BadInput, match="axes"):
            onebyone.predict(
                signals, folder / "a.png", window=8, scales=scales, labels=onebyone.Labels(std=(1,))
            )
