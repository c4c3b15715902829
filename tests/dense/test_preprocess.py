"""What images are taken, what they become, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onebyone.dense.preprocess import load_image, normalise
from onebyone.errors import BadInput, MissingExtra
from onebyone.records import Labels

RGB = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def test_the_formula_channel_by_channel() -> None:
    labels = Labels(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = (RGB.astype(np.float64) / 255 - labels.mean) / labels.std
    # three roundings in float32, on values below 3: 3 · 3 · 2^-24, and one more bit for the constants
    np.testing.assert_allclose(normalise(RGB, labels), np.moveaxis(expected, 2, 0), rtol=0, atol=2**-19)
    assert normalise(RGB, labels).flags["C_CONTIGUOUS"]


def test_colour_order_is_turned_before_the_constants_apply() -> None:
    labels = Labels(mean=(1.0, 2.0, 3.0), colour_order="BGR")
    expected = np.stack([RGB[:, :, 2 - k] - (k + 1.0) for k in range(3)])
    np.testing.assert_array_equal(normalise(RGB, labels), expected)


def test_sixteen_bits_span_the_range_of_eight() -> None:
    labels = Labels(scale=1 / 255)
    values = np.array([[[0], [65535], [257]]], dtype=np.uint16)
    np.testing.assert_allclose(normalise(values, labels)[0, 0], [0, 1, 1 / 255], rtol=2**-22)


def test_normalising_leaves_the_image_alone() -> None:
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
    np.testing.assert_array_equal(load_image(image, channels=3).values, RGB)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "npy"])
def test_files_hold_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    np.save(path, RGB) if suffix == "npy" else Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(load_image(path, channels=3).values, RGB)
    np.testing.assert_array_equal(load_image(str(path)).values, RGB)


def test_picture_files_become_grey_or_rgb_as_the_network_asks(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png", channels=3).values[:, :, 2], GREY)
    grey = load_image(tmp_path / "rgb.png", labels=Labels(colour_order="L")).values[:, :, 0]
    # Pillow rounds the same weights in fixed point: they may part by one
    assert np.abs(grey.astype(int) - np.asarray(Image.fromarray(RGB).convert("L"))).max() <= 1


def test_sixteen_bit_palette_and_bilevel_files_are_read(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) * 200)[:, :]
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png", channels=1).values[:, :, 0], deep)
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(load_image(tmp_path / "palette.png", channels=3).values[:, :, 1], GREY)
    Image.fromarray(GREY > 99).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(load_image(tmp_path / "bilevel.png").values[:, :, 0], (GREY > 99) * 255)


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn a quarter clockwise
    Image.fromarray(RGB).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "phone.png").values, np.rot90(RGB, -1))


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path) -> None:
    alpha = np.full((6, 7, 1), 255, dtype=np.uint8)
    Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(load_image(tmp_path / "opaque.png", channels=3).values, RGB)
    alpha[2, 2] = 254
    Image.fromarray(np.concatenate([RGB, alpha], 2)).save(tmp_path / "clear.png")
    with pytest.raises(BadInput, match="partly transparent"):
        load_image(tmp_path / "clear.png", channels=3)


def test_non_finite_pixels_are_counted_and_the_first_is_named() -> None:
    image = np.zeros((5, 6, 3))
    image[2, 4, 1], image[3, 0, 0] = np.inf, np.nan
    with pytest.raises(
        BadInput,
        match=r"^image has 2 value\(s\) that are not finite, the first inf at row 2, column 4, channel 1$",
    ):
        load_image(image, channels=3)


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
        (3, None, r"image is a int; expected a path"),
        (RGB, Labels(mean=(1.0, 2.0)), r"labels.mean has 2 numbers and the image 3 channel"),
        (RGB, Labels(std=(0.0,)), r"std not zero"),
        (RGB, Labels(scale=float("nan")), r"must be finite"),
        (RGB, Labels(colour_order="YUV"), r"colour_order is 'YUV'; expected RGB, BGR or L"),
        (RGB / 255.0, Labels(scale=1 / 255), r"multiply the image by 255, or give labels with scale=1"),
    ],
)
def test_unusable_images_and_labels_are_said(image: object, labels: Labels | None, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_image(image, channels=3, labels=labels)


def test_unreadable_files_are_said(tmp_path: Path) -> None:
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
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [30, 10])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """42 pixels, over the limit and over twice the limit: Pillow itself would only warn of the first."""
    Image.fromarray(RGB).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadInput, match=f"a picture of more than {limit} pixels"):
        load_image(tmp_path / "bomb.png")


def test_without_pillow_arrays_still_work_and_files_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    np.save(tmp_path / "array.npy", RGB)
    assert load_image(tmp_path / "array.npy").size == (6, 7)
    with pytest.raises(MissingExtra, match=r"pip install 'onebyone\[images\]'"):
        load_image(tmp_path / "picture.png")
