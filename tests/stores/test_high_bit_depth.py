"""Pictures of more than eight bits per channel are read without loss or refused; pages of a file are selected."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from onebyone.errors import BadInput, MissingExtra, OnebyoneWarning
from onebyone.stores.high_bit_depth import upright
from tests.dense.networks import pixels_of

RGB16 = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype(np.uint16)
OPAQUE = np.full((6, 7, 1), 65535, np.uint16)


def png16(values: np.ndarray, *before: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits per channel, assembled by the specification: Pillow cannot write one in colour."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    more = b"".join(chunk(kind, data) for kind, data in before)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + more
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


TIFFS = {
    "rgb": (RGB16, {"photometric": "rgb"}),
    "big endian": (RGB16, {"photometric": "rgb", "byteorder": ">"}),
    "deflated": (RGB16, {"photometric": "rgb", "compression": "zlib"}),
    "planes": (RGB16, {"photometric": "rgb", "planarconfig": "separate"}),
    "opaque": (np.concatenate([RGB16, OPAQUE], 2), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "grey and alpha": (
        np.concatenate([RGB16[..., :1], OPAQUE], 2),
        {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
    ),
    "white is zero": (65535 - RGB16[..., :1], {"photometric": "miniswhite"}),
    "float32": ((RGB16 / 65535).astype(np.float32), {"photometric": "rgb"}),
    "float64 grey": (RGB16[..., 0] / 65535, {}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_a_tiff_keeps_every_bit(tmp_path: Path, name: str) -> None:
    values, how = TIFFS[name]
    planes = np.moveaxis(values, -1, 0) if how.get("planarconfig") == "separate" else values
    tifffile.imwrite(tmp_path / "x.tif", planes, **how)
    right = {"opaque": RGB16, "grey and alpha": RGB16[..., :1], "white is zero": RGB16[..., :1]}.get(
        name, values
    )
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif"), right.reshape(6, 7, -1))


@pytest.mark.parametrize(
    ("values", "how", "message"),
    [
        (np.zeros((6, 7, 4), np.uint16), {"photometric": "separated"}, "its colour space is SEPARATED; convert it"),
        (np.zeros((6, 7), np.int8), {}, "its values are of type int8; expected unsigned integers of 8 or 16 bits"),
        (np.zeros((6, 7, 3), np.uint32), {"photometric": "rgb"}, "its values are of type uint32"),
        (np.full((6, 7), 2**20, np.uint32), {}, "integers below 0 or above 65,535"),
        (np.zeros((6, 7, 4), np.uint16), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, "partly transparent"),
    ],
)  # fmt: skip
def test_a_tiff_that_cannot_be_read_whole_is_refused(
    tmp_path: Path, values: np.ndarray, how: dict, message: str
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", values, **how)
    with pytest.raises(BadInput, match=message):
        pixels_of(tmp_path / "x.tif")


def test_a_colour_png_of_16_bits_is_read_or_the_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_bytes(png16(RGB16))
    (tmp_path / "alpha.png").write_bytes(png16(np.concatenate([RGB16, OPAQUE], 2)))
    (tmp_path / "grey alpha.png").write_bytes(png16(np.concatenate([RGB16[..., :1], OPAQUE], 2)))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imagecodecs", None)
        for name in ("x", "alpha", "grey alpha"):
            with pytest.raises(
                MissingExtra, match=r"16 bits per channel needs imagecodecs.*onebyone\[images\]"
            ):
                pixels_of(tmp_path / f"{name}.png")
    pytest.importorskip("imagecodecs")
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png"), RGB16)
    np.testing.assert_array_equal(pixels_of(tmp_path / "alpha.png"), RGB16)
    np.testing.assert_array_equal(pixels_of(tmp_path / "grey alpha.png"), RGB16[..., :1])
    for name, values, before in (
        ("half", np.concatenate([RGB16, OPAQUE - 1], 2), ()),
        ("keyed", RGB16, ((b"tRNS", RGB16[0, 0].astype(">u2").tobytes()),)),
    ):
        (tmp_path / f"{name}.png").write_bytes(png16(values, *before))
        with pytest.raises(BadInput, match="partly transparent"):
            pixels_of(tmp_path / f"{name}.png")


def test_grey_of_16_bits_needs_no_other_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("imagecodecs", "tifffile"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("x.png", "x.tif"):
        Image.fromarray(RGB16[..., 0]).save(tmp_path / name)
        np.testing.assert_array_equal(pixels_of(tmp_path / name)[..., 0], RGB16[..., 0])


def test_other_formats_of_deep_colour_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(b"P6\n7 6\n4095\n" + (RGB16 % 4096).astype(">u2").tobytes())
    with pytest.raises(BadInput, match="is a PPM picture in colour of more than 8 bits per channel"):
        pixels_of(tmp_path / "x.ppm")
    Image.fromarray((RGB16 >> 8).astype(np.uint8)).save(tmp_path / "eight.ppm")
    np.testing.assert_array_equal(pixels_of(tmp_path / "eight.ppm"), RGB16 >> 8)
    held = io.BytesIO()
    Image.fromarray((RGB16 >> 8).astype(np.uint8)).save(held, "JPEG2000", irreversible=False)
    (tmp_path / "eight.jp2").write_bytes(held.getvalue())
    np.testing.assert_array_equal(pixels_of(tmp_path / "eight.jp2"), RGB16 >> 8)
    # the same file with a header that says 16 bits: it is refused by its header
    at = held.getvalue().index(b"\xff\x4f\xff\x51") + 42
    deep = bytearray(held.getvalue())
    deep[at : at + 9 : 3] = bytes([15, 15, 15])
    (tmp_path / "deep.jp2").write_bytes(deep)
    with pytest.raises(BadInput, match="is a JPEG2000 picture in colour of more than 8 bits"):
        pixels_of(tmp_path / "deep.jp2")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does_for_8_bits(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shallow = (RGB16 >> 8).astype(np.uint8)
    Image.fromarray(shallow).save(tmp_path / "s.png", exif=exif)
    right = pixels_of(tmp_path / "s.png")
    np.testing.assert_array_equal(upright(shallow, orientation), right)
    tifffile.imwrite(tmp_path / "x.tif", RGB16, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif") >> 8, right)


PAGES = [np.full((6, 7, 3), 40 * k, np.uint8) for k in range(1, 4)]


@pytest.mark.parametrize("suffix", ["tif", "png", "gif", "webp"])
def test_a_page_is_selected_or_the_first_is_read_with_a_warning(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pages.{suffix}"
    first, *others = [Image.fromarray(p) for p in PAGES]
    how = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=others, **how)
    with pytest.warns(
        OnebyoneWarning, match="has 3 pages or frames, and the first is read; page= selects another"
    ):
        np.testing.assert_array_equal(pixels_of(path, channels=3), PAGES[0])
    for page, right in enumerate(PAGES):
        np.testing.assert_array_equal(pixels_of(path, channels=3, page=page), right)
    for page in (3, -1):
        with pytest.raises(BadInput, match=rf"page={page}: .* has 3 pages, counted from 0"):
            pixels_of(path, page=page)


def test_pages_of_16_bit_tiffs_and_images_without_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.stack([RGB16, 65535 - RGB16]), photometric="rgb")
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif", page=1), 65535 - RGB16)
    tifffile.imwrite(tmp_path / "f.tif", np.stack([RGB16, 65535 - RGB16]) / 65535, photometric="rgb")
    np.testing.assert_array_equal(pixels_of(tmp_path / "f.tif", page=1), (65535 - RGB16) / 65535)
    with pytest.warns(OnebyoneWarning, match="has 2 pages or frames"):
        pixels_of(tmp_path / "f.tif")
    Image.fromarray(PAGES[0]).save(tmp_path / "one.png")
    pixels_of(tmp_path / "one.png", page=0)
    with pytest.raises(BadInput, match=r"page=1: .*one.png has one page"):
        pixels_of(tmp_path / "one.png", page=1)
    np.save(tmp_path / "x.npy", PAGES[0])
    for image in (tmp_path / "x.npy", PAGES[0]):
        with pytest.raises(BadInput, match="page=0: only picture files have pages; image is"):
            pixels_of(image, page=0)
