"""Sinks: every format, read back by an independent reader; interrupted, resumed, refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import rasterio
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader

from onebyone.errors import BadInput, Refused
from onebyone.stores import array_files, ome_zarr_writer
from onebyone.stores.map_description import MapDescription
from onebyone.stores.map_reader import open_map
from onebyone.stores.ome_zarr_writer import halved
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span
from onebyone.stores.sinks import open_sink

SHAPE = (3, 70, 91)
PLACEMENT = Placement((3.0, 5.0), (4.0, 8.0), (0.25, 0.5), (10.0, 0.0, 500.0, 0.0, -10.0, 900.0))
FORMATS = [("a.zarr", "0.5"), ("a.zarr", "0.4"), ("a.tif", "0.5"), ("a.npy", "0.5")]


def described(**key: Any) -> MapDescription:
    return MapDescription(("cat", "dog", "tree"), PLACEMENT, {"input": "x.tif", **key}, {"note": "ü"})


def scores() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def regions(step: tuple[int, int] = (13, 17)) -> list[tuple[Span, Span]]:
    _, h, w = SHAPE
    return [
        (Span(y, min(h, y + step[0])), Span(x, min(w, x + step[1])))
        for y in range(0, h, step[0])
        for x in range(0, w, step[1])
    ]


def part(values: NDArray[np.float32], region: tuple[Span, Span]) -> NDArray[np.float32]:
    return values[:, region[0].slice, region[1].slice]


def read_back(path: Path) -> NDArray[np.float32]:
    """The map by a reader that the sink does not use."""
    if path.suffix == ".zarr":
        return np.asarray(next(iter(Reader(parse_url(path))())).data[0])
    if path.suffix == ".tif":
        return tifffile.imread(path)
    return np.load(path)


def digest(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    content = b"".join(str(p.relative_to(path)).encode() + p.read_bytes() for p in files)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("name", "version"), FORMATS)
def test_a_map_is_read_back_by_an_independent_reader(tmp_path: Path, name: str, version: str) -> None:
    values, path = scores(), tmp_path / name
    sink = open_sink(path, SHAPE, described(), chunk=(32, 32), ome_version=version)
    order = np.random.default_rng(1).permutation(len(regions()))
    for number in order:
        region = regions()[number]
        assert not path.exists(), "the output's own name holds no part of a map"
        sink.write(region, part(values, region))
        if region[0].start == 0 == region[1].start:
            assert not sink.durable(region), "its block is not complete"
    assert all(sink.durable(region) for region in regions())
    sink.finish()
    sink.close()
    np.testing.assert_array_equal(read_back(path), values)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(("name", "version"), FORMATS)
def test_a_resumed_map_is_byte_for_byte_the_same(tmp_path: Path, name: str, version: str) -> None:
    values = scores()
    values[:, 64:] = np.nan  # whole blocks of the fill value
    for folder, interrupted in (("once", False), ("twice", True)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / name
        sink = open_sink(path, SHAPE, described(), chunk=(32, 32), ome_version=version)
        if interrupted:
            for region in regions()[:20]:
                sink.write(region, part(values, region))
            done = [region for region in regions() if sink.durable(region)]
            del sink  # no finish and no close, as when the process is killed
            for chunk in list((tmp_path / folder).rglob("map.zarr/0/**/0")):  # a chunk was being written
                chunk.with_name("0.abc.partial").write_bytes(b"half")
            sink = open_sink(path, SHAPE, described(), chunk=(32, 32), ome_version=version)
            assert done, "some region was durable"
            assert [region for region in regions() if sink.durable(region)] == done
            with pytest.raises(ValueError, match="incomplete"):
                sink.finish()
        for region in reversed(regions()):
            if not sink.durable(region):
                sink.write(region, part(values, region))
        sink.finish()
    assert digest(tmp_path / "once" / name) == digest(tmp_path / "twice" / name)
    again = open_sink(tmp_path / "once" / name, SHAPE, described(), chunk=(32, 32), ome_version=version)
    assert not again.complete, "a finished map is replaced by a new scan"
    assert not any(again.durable(region) for region in regions())
    again.close()


@pytest.mark.parametrize("stage", ["before", "after"])
@pytest.mark.parametrize(("name", "version"), FORMATS)
def test_a_crash_while_publishing_loses_nothing(
    tmp_path: Path, name: str, version: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, path = scores(), tmp_path / name
    for key in ("old", "new"):  # the second replaces a finished map of another scan
        sink = open_sink(path, SHAPE, described(weights=key), chunk=(32, 32), ome_version=version)
        sink.write((Span(0, 70), Span(0, 91)), values if key == "new" else -values)
        if key == "old":
            sink.finish()
    publish = type(sink._writer).publish

    def crash(writer: Any, *arguments: Any) -> None:
        if stage == "after":
            publish(writer, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(sink._writer), "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        sink.finish()
    monkeypatch.undo()
    sink.close()
    sink = open_sink(path, SHAPE, described(weights="new"), chunk=(32, 32), ome_version=version)
    # the blocks of one file are kept until the end, so that it is only put together again
    assert sink.complete == (stage == "after" and path.suffix == ".zarr")
    assert all(sink.durable(region) for region in regions()) or sink.complete
    sink.finish()
    np.testing.assert_array_equal(read_back(path), values)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_another_scan_does_not_go_on_with_it(tmp_path: Path) -> None:
    open_sink(tmp_path / "a.npy", SHAPE, described(weights="1")).close()
    with pytest.raises(BadInput, match=r"unfinished results of another scan \(weights was 1 and is 2\)"):
        open_sink(tmp_path / "a.npy", SHAPE, described(weights="2"))


@pytest.mark.parametrize(("name", "version"), FORMATS)
@pytest.mark.parametrize("foreign", ["text", "same kind", "folder"])
def test_what_is_not_ours_is_never_overwritten(tmp_path: Path, name: str, version: str, foreign: str) -> None:
    path = tmp_path / name
    if foreign == "text":
        path.write_text("precious")
    elif foreign == "folder":
        path.mkdir()
        (path / "precious").write_text("x")
    elif path.suffix == ".zarr":
        zarr.create_array(path, shape=(2,), dtype="u1", zarr_format=3 if version == "0.5" else 2)[:] = 7
    elif path.suffix == ".tif":
        tifffile.imwrite(path, np.zeros((4, 4), np.uint8))
    else:
        np.save(path, np.zeros(3))
    before = digest(path)
    with pytest.raises(Refused, match=r"it exists and .*not overwritten"):
        open_sink(path, SHAPE, described(), ome_version=version)
    assert digest(path) == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_ome_zarr_states_axes_scales_and_channels(tmp_path: Path, version: str) -> None:
    path, shape = tmp_path / "a.zarr", (2, 700, 531)
    values = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    description = MapDescription(("cat", "dog"), PLACEMENT)
    sink = open_sink(path, shape, description, ome_version=version)
    sink.write((Span(0, 700), Span(0, 531)), values)
    sink.finish()
    group = zarr.open_group(path, mode="r")
    model = ome_zarr_models.open_ome_zarr(group)
    assert type(model).__module__ == f"ome_zarr_models.v{version.replace('.', '')}.image"
    node = next(iter(Reader(parse_url(path))()))
    assert node.metadata["channel_names"] == ["cat", "dog"]
    assert [a["name"] for a in node.metadata["axes"]] == ["c", "y", "x"]
    assert [level.shape for level in node.data] == [(2, 700, 531), (2, 350, 266), (2, 175, 133)]
    for level, transforms in enumerate(node.metadata["coordinateTransformations"]):
        scale, translation = (np.array(t[t["type"]][1:]) for t in transforms)
        for index in ((0, 0), (3, 5)):  # the centre of each position, as a viewer computes it
            centre = PLACEMENT.to_level_0([2**level * (i + 0.5) for i in index])
            expected = [m * (x - 0.5) for m, x in zip((0.25, 0.5), centre, strict=True)]
            np.testing.assert_allclose(translation + scale * index, expected, rtol=1e-12)
    # values / 2 of float32 sums of 4 numbers: exact in float64, rounded once
    blocks = values.astype(np.float64).reshape(2, 350, 2, 531)
    pairs = np.concatenate([blocks, np.full((2, 350, 2, 1), np.nan)], axis=3).reshape(2, 350, 2, 266, 2)
    np.testing.assert_array_equal(np.asarray(node.data[1]), np.nanmean(pairs, axis=(2, 4)).astype(np.float32))


@pytest.mark.parametrize(
    ("channels", "most_files", "chunks", "shards", "files"),
    [
        (
            600,
            1024,
            (200, 16, 16),
            None,
            27,
        ),  # 256 channels of 16×16 positions fit a chunk; three parts are equal
        (601, 26, (201, 16, 16), (603, 16, 16), 9),  # the last chunk of a shard holds fewer channels
        (3, 8, (3, 16, 16), None, 9),  # a shard of one chunk would only add its index
    ],
)
def test_chunks_hold_many_channels_and_are_sharded_where_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, most_files: int, chunks: tuple[int, ...],
    shards: tuple[int, ...] | None, files: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(ome_zarr_writer, "_MAX_FILES", most_files)
    shape = (channels, 40, 40)
    names = tuple(f"class {i}" for i in range(channels))
    sink = open_sink(tmp_path / "a.zarr", shape, MapDescription(names, PLACEMENT), chunk=(16, 16))
    values = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    sink.write((Span(0, 40), Span(0, 40)), values)
    np.testing.assert_array_equal(sink.get((2, 1)), values[:, 32:40, 16:32])
    sink.finish()
    array = zarr.open_group(tmp_path / "a.zarr", mode="r")["0"]
    assert (array.chunks, array.shards) == (chunks, shards)
    assert len([p for p in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if p.is_file()]) == files
    np.testing.assert_array_equal(np.asarray(array[:]), values)
    np.testing.assert_array_equal(open_map(tmp_path / "a.zarr")[0][channels - 1], values[-1])


def test_small_blocks_do_not_make_small_chunks_of_the_pyramid(tmp_path: Path) -> None:
    shape = (2, 700, 531)
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    sink = open_sink(tmp_path / "a.zarr", shape, MapDescription(("a", "b"), PLACEMENT), chunk=(35, 33))
    sink.write((Span(0, 700), Span(0, 531)), values)
    sink.finish()
    levels = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert [levels[str(i)].chunks for i in range(3)] == [(2, 35, 33), (1, 245, 231), (1, 245, 231)]
    expected = [halved(channel) for channel in values]
    np.testing.assert_array_equal(np.asarray(levels["1"][:]), expected)
    np.testing.assert_array_equal(np.asarray(levels["2"][:]), [halved(channel) for channel in expected])


@pytest.mark.parametrize("block", [(1, 1), (256, 256), (257, 300), (1011, 40), (1024, 4099), (1021, 1021)])
def test_chunks_divide_blocks_and_are_not_tiny(block: tuple[int, int]) -> None:
    for channels in (1, 3, 1000):
        of_channels, *inner = ome_zarr_writer.chunk_shape(channels, block)
        assert all(b % n == 0 and n >= min(b, 64) for b, n in zip(block, inner, strict=True))
        assert 1 <= of_channels <= channels
        assert of_channels == 1 or of_channels * inner[0] * inner[1] <= 256**2


def test_geotiff_has_the_transform_of_the_positions(tmp_path: Path) -> None:
    wkt = rasterio.crs.CRS.from_epsg(32632).to_wkt()
    placement = Placement((3.0, 5.0), (4.0, 8.0), transform=(10.0, 0.0, 500.0, 0.0, -10.0, 900.0), crs=wkt)
    sink = open_sink(tmp_path / "a.tif", SHAPE, MapDescription(("a", "b", "c"), placement))
    sink.write((Span(0, 70), Span(0, 91)), scores())
    sink.finish()
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.crs.to_epsg() == 32632
        assert dataset.descriptions == ("a", "b", "c")
        assert np.isnan(dataset.nodata)
        x, y = dataset.xy(6, 2)  # the centre of position (6, 2)
        assert (x, y) == (500 + 10 * (5 + 8 * 2.5), 900 - 10 * (3 + 4 * 6.5))
        np.testing.assert_array_equal(dataset.read(), scores())


def test_strided_regions_and_skipped_ones(tmp_path: Path) -> None:
    values, path = scores(), tmp_path / "a.npy"
    sink = open_sink(path, SHAPE, described(), chunk=(16, 20), fill=-1.0)
    for y in range(3):
        for x in range(2):
            region = (Span(y, 70, 3), Span(x, 91, 2))
            if (y, x) == (1, 1):
                sink.skip(region)
                values[:, 1::3, 1::2] = -1
            else:
                sink.write(region, part(values, region))
    sink.finish()
    np.testing.assert_array_equal(np.load(path), values)
    assert json.loads((tmp_path / "a.npy.json").read_text())["channels"] == ["cat", "dog", "tree"]


def test_bad_outputs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"ends in one of \.npz, \.zarr, \.tif, \.tiff, \.npy"):
        open_sink(tmp_path / "a.jpg", SHAPE, described())
    with pytest.raises(BadInput, match="does not exist"):
        open_sink(tmp_path / "no" / "a.npy", SHAPE, described())
    with pytest.raises(BadInput, match=r"0\.6"):
        open_sink(tmp_path / "a.zarr", SHAPE, described(), ome_version="0.6")
    with pytest.raises(BadInput, match="one per axis"):
        open_sink(tmp_path / "a.npy", SHAPE, described(), chunk=(3,))
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import sys
import numpy as np
from onebyone.errors import BadInput
from onebyone.stores.map_description import MapDescription
from onebyone.stores.placement import Placement
from onebyone.stores.regions import Span
from onebyone.stores.sinks import open_sink

for name in ("a.npy", "a.npz", "a.tif"):
    sink = open_sink(sys.argv[1] + "/" + name, (1, 500, 500), MapDescription(("a",), Placement.identity(2)))
    sink.write((Span(0, 500), Span(0, 500)), np.random.default_rng(0).random((1, 500, 500), np.float32))
    try:
        sink.finish()
    except BadInput as error:
        print(error)
    sink.close()
    sink._folder.remove()
"""


def test_a_file_system_that_fills_while_the_file_is_put_together(tmp_path: Path) -> None:
    """A map is written through memory, where a write beyond the space of the disk would end the process."""
    mount = f"mount -t tmpfs -o size=1500k tmpfs {tmp_path}"  # the blocks of 1 MB, and half of the whole map
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("this system lets no user mount a file system")
    program = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *program]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "default"}
    )
    assert ended.returncode == 0, ended.stderr
    names = ("a.npy", "a.npz", "a.tif")
    assert ended.stdout.splitlines() == [
        f"cannot write {tmp_path / n}: No space left on device" for n in names
    ]


def test_an_archive_is_written_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it writes the archive leaves nothing else beside the output."""
    seen: list[list[str]] = []
    original = array_files.write_archive

    def write(*arguments: Any) -> None:
        seen.append([p.name for p in tmp_path.iterdir()])
        original(*arguments)

    monkeypatch.setattr(array_files, "write_archive", write)
    sink = open_sink(tmp_path / "a.npz", SHAPE, described(), chunk=(32, 32))
    sink.write((Span(0, 70), Span(0, 91)), scores())
    sink.finish()
    assert seen == [["a.npz.partial"]]
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_what_gdal_cannot_write_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise rasterio.errors.RasterioIOError("Write failed.") from ValueError("Write error at scanline 256")

    sink = open_sink(tmp_path / "a.tif", SHAPE, described(), chunk=(32, 32))
    sink.write((Span(0, 70), Span(0, 91)), scores())
    monkeypatch.setattr(rasterio, "open", fail)
    with pytest.raises(
        BadInput, match=r"cannot write .*a\.tif: GDAL .*Write error at scanline 256.*disk full"
    ):
        sink.finish()
    sink.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif.partial"]
