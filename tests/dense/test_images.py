"""Images: what is accepted, the pixels that are read, and the errors."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import onebyone
from onebyone.dense import ScoreMap, normalise
from onebyone.errors import BadInput, MissingExtra, OnebyoneWarning
from onebyone.pytorch.files.preprocessing import zoo_labels
from onebyone.pytorch.files.sources import import_torchvision, load_source
from onebyone.records import Labels

from .networks import pixels_of

RGB = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def test_the_formula_channel_by_channel() -> None:
    labels = Labels(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = (RGB.astype(np.float64) / 255 - labels.mean) / labels.std
    # three roundings in float32, on values below 3: 3 · 3 · 2^-24, and one more bit for the constants
    np.testing.assert_allclose(normalise(RGB, labels), np.moveaxis(expected, 2, 0), rtol=0, atol=2**-19)
    assert normalise(RGB, labels).flags["C_CONTIGUOUS"]


def test_colour_order_is_applied_before_mean_and_std() -> None:
    labels = Labels(mean=(1.0, 2.0, 3.0), colour_order="BGR")
    expected = np.stack([RGB[:, :, 2 - k] - (k + 1.0) for k in range(3)])
    np.testing.assert_array_equal(normalise(RGB, labels), expected)


def test_16_bits_span_the_range_of_8() -> None:
    labels = Labels(scale=1 / 255)
    values = np.array([[[0], [65535], [257]]], dtype=np.uint16)
    np.testing.assert_allclose(normalise(values, labels)[0, 0], [0, 1, 1 / 255], rtol=2**-22)


def test_normalising_does_not_modify_the_image() -> None:
    image = np.ones((4, 4, 1), dtype=np.float32)
    normalise(image, Labels(scale=3.0, mean=(1.0,)))
    assert (image == 1).all()


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        Image.fromarray(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1)[None],
    ],
    ids=["array", "pillow", "tensor", "batch of one"],
)
def test_every_kind_of_image_gives_the_same_pixels(image: object) -> None:
    np.testing.assert_array_equal(pixels_of(image, channels=3), RGB)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "npy"])
def test_files_hold_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    np.save(path, RGB) if suffix == "npy" else Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(pixels_of(path, channels=3), RGB)
    np.testing.assert_array_equal(pixels_of(str(path)), RGB)


def test_picture_files_become_grey_or_rgb_as_the_network_asks(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "grey.png", channels=3)[:, :, 2], GREY)
    grey = pixels_of(tmp_path / "rgb.png", labels=Labels(colour_order="L"))[:, :, 0]
    # Pillow rounds the same weights in fixed point, so the results may differ by one
    assert np.abs(grey.astype(int) - np.asarray(Image.fromarray(RGB).convert("L"))).max() <= 1


def test_sixteen_bit_palette_and_bilevel_files_are_read(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) * 200)[:, :]
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "deep.png", channels=1)[:, :, 0], deep)
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "palette.png", channels=3)[:, :, 1], GREY)
    Image.fromarray(GREY > 99).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "bilevel.png")[:, :, 0], (GREY > 99) * 255)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: turn a quarter clockwise
    Image.fromarray(RGB).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(pixels_of(tmp_path / "phone.png"), np.rot90(RGB, -1))


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path) -> None:
    alpha = np.full((6, 7, 1), 255, dtype=np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "opaque.png", channels=3), RGB)
    alpha[2, 2] = 254
    Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "clear.png")
    with pytest.raises(BadInput, match="partly transparent"):
        pixels_of(tmp_path / "clear.png", channels=3)


def test_non_finite_pixels_are_counted_and_the_first_is_located() -> None:
    image = np.zeros((5, 6, 3))
    image[2, 4, 1], image[3, 0, 0] = np.inf, np.nan
    with pytest.raises(
        BadInput,
        match=r"^image has 2 value\(s\) that are not finite, the first inf at row 2, column 4, channel 1$",
    ):
        pixels_of(image, channels=3)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (
            np.zeros((3, 40, 50), np.uint8),
            None,
            r"50 channel\(s\) and the network takes 3 \(is it channels-first\?",
        ),
        (np.zeros((4, 5, 4), np.uint8), None, r"has 4 channel\(s\) and the network takes 3$"),
        (np.zeros((4, 5, 3), np.int64), None, r"type int64; expected uint8, uint16 or floating point"),
        (np.zeros((4, 5, 3), bool), None, r"type bool"),
        (np.zeros((0, 5, 3), np.uint8), None, r"image is empty"),
        (np.zeros((2, 4, 5, 3), np.uint8), None, r"shape \(2, 4, 5, 3\); expected \(H, W\) or \(H, W, C\)"),
        (torch.zeros(2, 3, 4, 5), None, r"tensor of shape \(2, 3, 4, 5\)"),
        (3, None, r"image is of type int; expected a path"),
        (RGB, Labels(mean=(1.0, 2.0)), r"mean=1.0,2.0: expected 1 or 3 numbers"),
        (RGB, Labels(std=(0.0,)), r"std=0.0: expected positive finite numbers"),
        (RGB, Labels(scale=float("nan")), r"scale=nan: expected a finite number other than 0"),
        (RGB, Labels(scale=0), r"scale=0: expected a finite number other than 0"),
        (RGB, Labels(std=(1.0, -1.0, 1.0)), r"std=1.0,-1.0,1.0: expected positive finite numbers"),
        (RGB, Labels(std=(float("inf"),)), r"std=inf: expected positive finite numbers"),
        (RGB, Labels(mean=(float("nan"),)), r"mean=nan: expected finite numbers"),
        (RGB, Labels(classes=("a", "b", "a")), r"classes: 'a' is given twice; expected distinct names"),
        (RGB, Labels(("a",), background=("b",)), r"background: 'b' is not one of the classes"),
        (RGB, Labels(colour_order="YUV"), r"colour_order='YUV': expected RGB, BGR or L"),
        (RGB / 255.0, Labels(scale=1 / 255), r"multiply the image by 255, or give labels with scale=1"),
    ],
)
def test_unusable_images_and_labels_are_refused(image: object, labels: Labels | None, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        pixels_of(image, channels=3, labels=labels)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "code.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name, message in {
        "cut.png": "cannot be read as a picture",
        "text.png": "is not a picture that Pillow can read",
        "text.npy": "cannot be read as an array",
        "code.npy": "cannot be read as an array",
        "missing.png": "cannot read .*missing.png: No such file or directory",
        ".": "it is a folder",
    }.items():
        with pytest.raises(BadInput, match=message) as caught:
            pixels_of(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [30, 10])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """42 pixels, above the limit and above twice the limit: Pillow itself would only warn of the first."""
    Image.fromarray(RGB).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadInput, match=f"a picture of more than {limit} pixels"):
        pixels_of(tmp_path / "bomb.png")


def test_without_pillow_arrays_still_work_and_files_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    np.save(tmp_path / "array.npy", RGB)
    assert pixels_of(tmp_path / "array.npy").shape == (6, 7, 3)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(MissingExtra, match=r"pip install 'onebyone\[images\]'"):
        pixels_of(tmp_path / "picture.png")


def test_raw_pixels_without_stated_preprocessing_give_a_warning() -> None:
    """Only integer pixels without stated preprocessing give the warning."""
    dense = onebyone.convolutionalize(nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten()).eval(), window=4)
    for image in (RGB, RGB.astype(np.uint16)):
        with pytest.warns(
            OnebyoneWarning, match=r"preprocessing is not stated.*\(scale=, mean=, std=\), or std=1"
        ):
            onebyone.scan(dense, image)
        with pytest.warns(OnebyoneWarning, match="preprocessing is not stated"):
            onebyone.scan(dense, image, labels=Labels(("a", "b")))
        for stated in (Labels(std=(1.0,)), Labels(scale=1 / 255), Labels(mean=(0.0,))):
            onebyone.scan(dense, image, labels=stated)
    onebyone.scan(dense, RGB.astype(np.float32))  # floating-point values were scaled by the user


def test_labels_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten()).eval()
    dense = onebyone.convolutionalize(net, window=4, labels=Labels(("a", "b"), std=(1.0,)))
    for labels, message in (
        (Labels(("a", "b", "c")), "classes: labels name 3 classes and the network gives 2"),
        (Labels(("a", "a")), "classes: 'a' is given twice"),
        (Labels(std=(1.0, 2.0)), r"std=1.0,2.0: expected 1 or 3 numbers"),
        (Labels(scale=0), "scale=0: expected"),
    ):
        with pytest.raises(BadInput, match=message):
            dense.with_labels(labels)
        with pytest.raises(BadInput, match=message):
            onebyone.convolutionalize(net, window=4, labels=labels)
        with pytest.raises(BadInput, match=message):
            onebyone.scan(dense, RGB, labels=labels, out=tmp_path / "s.npz")
    assert list(tmp_path.iterdir()) == []
    dense.save(tmp_path / "d.pt2")
    scores = onebyone.scan(tmp_path / "d.pt2", RGB, out=tmp_path / "s.npz")
    assert ScoreMap.load(tmp_path / "s.npz").labels == scores.labels == dense.labels


def test_labels_without_preprocessing_take_that_of_the_zoo() -> None:
    zoo = Labels(scale=1 / 255, mean=(0.5,), std=(0.25,))
    assert Labels(("a",)).with_preprocessing(zoo) == Labels(("a",), 1 / 255, (0.5,), (0.25,))
    assert Labels(("a",), mean=(1.0,)).with_preprocessing(zoo) == Labels(("a",), mean=(1.0,))
    assert Labels().with_preprocessing(None) == Labels()


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("torchvision:resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("torchvision:efficientnet_v2_l", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("timm:resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("timm:mixer_b16_224", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_the_preprocessing_of_zoo_networks(name: str, mean: tuple, std: tuple) -> None:
    """The constants as the papers' repositories and the zoos' pages give them."""
    labels = zoo_labels(name, nn.Identity() if "torch" in name else load_source(name))
    assert labels is not None
    assert replace(labels, classes=()) == Labels(scale=1 / 255, mean=mean, std=std)


@pytest.mark.zoo
def test_a_transform_inside_the_network_is_counted_once() -> None:
    """GoogLeNet with pretrained weights converts ImageNet's normalisation to (v − 0.5) / 0.5 itself."""
    carried = zoo_labels("torchvision:googlenet", load_source("torchvision:googlenet"))
    inside = import_torchvision().models.googlenet(weights=None, transform_input=True, init_weights=False)
    x = torch.rand(1, 3, 8, 8)
    imagenet = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    ours = torch.from_numpy(normalise((x * 255)[0].permute(1, 2, 0).numpy(), carried))
    assert torch.allclose(inside._transform_input(imagenet)[0], ours, atol=2**-19)


@pytest.mark.zoo
def test_a_zoo_name_carries_its_preprocessing() -> None:
    expected = Labels(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    labels = onebyone.convolutionalize("torchvision:alexnet", 224).labels
    assert replace(labels, classes=()) == expected
    assert (len(labels.classes), labels.classes[0], labels.classes[999]) == (1000, "tench", "toilet tissue")
    mine = Labels(mean=(1.0,))
    assert onebyone.convolutionalize("torchvision:alexnet", 224, labels=mine).labels == mine
