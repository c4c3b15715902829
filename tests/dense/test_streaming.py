"""Sources, sinks, pixel checks and executors: what a scan reads and writes by region."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from onebyone.dense import ArraySource, ScoreMap, Span, choose_tile, scan
from onebyone.dense.checks import PixelCheck, check_whole
from onebyone.dense.executor import LocalExecutor, TileJob, prefetch_pays, tile_batches
from onebyone.dense.plan import Tile, plan_scan
from onebyone.dense.runner import TorchSettings
from onebyone.errors import BadInput
from onebyone.records import Labels
from onebyone.stores import source
from onebyone.stores.regions import Region
from onebyone.stores.sink import ArraySink
from onebyone.stores.source import row_blocks

from .networks import coordinate_image, corner_net, exact_net, integer_image, padded_net

BYTES = Labels(scale=1 / 255)


class RecordingSource:
    """An image that is made when it is read, and records the regions."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.regions: list[tuple[tuple[int, int], ...]] = []

    size = property(lambda self: self._pixels.shape[:-1])
    channels = property(lambda self: self._pixels.shape[-1])
    dtype = property(lambda self: self._pixels.dtype)

    def read(self, region: Region) -> np.ndarray:
        self.regions.append(tuple((s.start, s.stop) for s in region))
        return self._pixels[tuple(s.slice for s in region)].copy()


@pytest.mark.parametrize("net", [exact_net(), padded_net()], ids=["exact", "padded"])
def test_a_scan_reads_a_source_tile_by_tile(net: Any) -> None:
    pixels = integer_image(83, 71)[..., None]
    recording = RecordingSource(pixels)
    scores = scan(net, recording, tile=3, batch=2, compared=0)
    np.testing.assert_array_equal(scores.scores, scan(net, pixels, compared=0).scores)
    plan = plan_scan(net.geometry, (83, 71), tile=3)
    assert recording.regions == [tuple((s.start, s.stop) for s in t.read) for t in plan]


@pytest.mark.parametrize("memory", ["C", "F"])
def test_an_array_is_not_copied_whole(memory: str) -> None:
    """Also where its rows are not contiguous, as in a tensor (C, H, W): its regions are views."""
    values = np.asarray(coordinate_image(20, 30), order=memory)  # type: ignore[call-overload]
    part = ArraySource(values).read((Span(2, 9), Span(5, 7)))
    assert np.shares_memory(part, values)
    np.testing.assert_array_equal(part, values[2:9, 5:7])


@pytest.mark.parametrize("size", [(10,), (10, 7), (5, 4, 3)])
@pytest.mark.parametrize("pixels", [1, 7, 20, 1000])
def test_row_blocks_cover_a_source_once(
    size: tuple[int, ...], pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onebyone.stores.source._BLOCK_PIXELS", pixels)
    counts = np.zeros((*size, 1), int)
    array = ArraySource(counts)
    for region in row_blocks(array):
        block = array.read(region)
        block += 1
        assert block.size <= max(pixels, int(np.prod(size[1:])))
    assert (counts == 1).all()


def test_a_sink_is_written_by_region() -> None:
    sink = ArraySink((2, 3, 4))
    assert (sink.shape, sink.dtype, sink.fill, sink.chunk) == ((2, 3, 4), np.float32, 0.0, (1, 1))
    sink.write((Span(1, 3), Span(0, 4, 2)), np.full((2, 2, 2), 7, np.float32))
    expected = np.zeros((2, 3, 4))
    expected[:, 1:3, ::2] = 7
    np.testing.assert_array_equal(sink.values, expected)
    for shape in ((1, 2, 2), (2, 1, 2), (2, 2)):
        with pytest.raises(ValueError, match="values have the shape"):
            sink.write((Span(1, 3), Span(0, 4, 2)), np.zeros(shape, np.float32))


class Backwards:
    """An executor that finishes the last tile first."""

    buffers = 1

    def __init__(self, **_: object) -> None:
        pass

    def execute(self, job: TileJob, batches: Iterable[list[Tile]]) -> Iterator[list[Tile]]:
        for tiles in reversed(list(batches)):
            job.write(tiles, job.predict(tiles, job.read(tiles)))
            yield tiles


@pytest.mark.parametrize("shifts", [1, 2])
def test_tiles_can_be_finished_in_any_order(shifts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = exact_net(), integer_image(83, 71)
    expected = scan(net, image, tile=3, batch=2, shifts=shifts).scores
    monkeypatch.setattr(sys.modules["onebyone.dense.memory_scan"], "LocalExecutor", Backwards)
    progress: list[tuple[int, int]] = []
    scores = scan(net, image, tile=3, batch=2, shifts=shifts, progress=lambda *a: progress.append(a))
    np.testing.assert_array_equal(scores.scores, expected)
    assert progress[-1][0] == progress[-1][1] == scores.passes


def test_a_job_hears_when_only_writing_is_left() -> None:
    net, pixels = exact_net(), np.zeros((1, 1, 83, 71), np.float32)
    plan = plan_scan(net.geometry, (83, 71), tile=3)
    events: list[str] = []
    last = threading.Event()

    def read(tiles: Sequence[Tile]) -> np.ndarray:
        return pixels[:, :, *(span.slice for span in tiles[0].read)]

    def run(batch: np.ndarray) -> np.ndarray:
        events.append("run")
        with torch.inference_mode():
            return net.model(torch.from_numpy(batch)).numpy()

    def take(tile: Tile, _: np.ndarray) -> None:
        if tile == tiles[-1]:
            assert last.wait(60)  # so the network was done before the last tile was written
        events.append("written")

    def computed() -> None:
        events.append("computed")
        last.set()

    tiles = list(plan)
    job = TileJob(plan, read, run, take, computed)
    assert list(LocalExecutor(write_behind=True).execute(job, tile_batches(tiles, 1))) == [[t] for t in tiles]
    assert events.count("computed") == 1
    assert events[-1] == "written"
    assert events.index("computed") > max(i for i, event in enumerate(events) if event == "run")
    assert (events.count("run"), events.count("written")) == (len(tiles), len(tiles))


def test_each_position_is_written_once_and_from_the_network_s_own_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No scores are copied between the network's output and the map."""
    outputs: list[torch.Tensor] = []
    written = np.zeros(0)
    original = ArraySink.write

    def write(self: ArraySink, region: Region, values: np.ndarray) -> None:
        nonlocal written
        if not written.size:
            written = np.zeros(self.shape[1:], int)
        written[tuple(s.slice for s in region)] += 1
        assert any(np.shares_memory(values, output.numpy()) for output in outputs[-1:])
        original(self, region, values)

    monkeypatch.setattr(ArraySink, "write", write)
    net = corner_net(5, 2)
    handle = net.model.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    scan(net, coordinate_image(40, 31), tile=4, batch=3, shifts=2)
    handle.remove()
    assert (written == 1).all()


def test_the_settings_of_a_runner_can_be_pickled() -> None:
    settings = TorchSettings(torch.device("cuda", 1), True, "boxes")
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_batches_have_one_tile_shape_and_at_most_the_given_size() -> None:
    plan = plan_scan(padded_net().geometry, (83, 71), shifts=4, tile=8)
    shapes = {tile.read_shape for tile in plan}
    assert len(shapes) > 1
    for size in (1, 2, 5):
        batches = list(tile_batches(plan, size))
        assert [tile for batch in batches for tile in batch] == list(plan)
        assert all(len(batch) <= size and len({t.read_shape for t in batch}) == 1 for batch in batches)
        for batch, following in pairwise(batches):
            assert len(batch) == size or following[0].read_shape != batch[0].read_shape


def test_a_reader_thread_is_used_where_a_core_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert [prefetch_pays(True, threads) for threads in (1, 2, 3)] == [True, False, False]
    assert prefetch_pays(False, 8)


def test_values_that_are_not_finite_are_found_in_the_tile_that_reads_them() -> None:
    """Whatever the tile, the message counts all of them and gives the first in the order of the rows."""
    image = coordinate_image(40, 30)
    image[31, 2, 1], image[30, 9, 0] = np.nan, -np.inf
    message = r"^image has 2 value\(s\) that are not finite, the first -inf at row 30, column 9, channel 0$"
    for tile in (2, 10**6):
        with pytest.raises(BadInput, match=message):
            scan(corner_net(5, 2), image, tile=tile)


def test_the_location_is_right_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_BLOCK_PIXELS", 30)
    image = np.zeros((20, 10, 2), np.float32)
    image[7, 3, 1] = image[19, 9, 0] = np.inf
    with pytest.raises(BadInput, match=r"has 2 value\(s\).* the first inf at row 7, column 3, channel 1"):
        check_whole(ArraySource(image), Labels())


@pytest.mark.parametrize(
    ("peaks", "scale", "refused"),
    [
        ((0.5, 1.0), 1 / 255, True),
        ((-1.0, 0.5), 1 / 255, True),
        ((0.5, 1.001), 1 / 255, False),
        ((0.5, -1.001), 1 / 255, False),
        ((200.0, 0.5), 1 / 255, False),
        ((0.5, 200.0), 1 / 255, False),
        ((-200.0, 0.5), 1 / 255, False),
        ((0.0, 0.0), 1 / 255, False),
        ((0.5, 1.0), 1 / 128, True),
        ((0.5, 1.0), 1 / 127, False),
        ((0.5, 1.0), -1 / 255, False),
    ],
)
def test_the_range_of_all_tiles_decides(peaks: tuple[float, float], scale: float, refused: bool) -> None:
    """Values up to 1 do not fit a scale for values up to 255; one tile alone cannot tell."""
    array = ArraySource(np.array(peaks).reshape(1, 2, 1))
    check = PixelCheck(array, Labels(scale=scale))
    for column in (0, 1):
        check.add(array.read((Span(0, 1), Span(column, column + 1))))
    assert check.peak == max(abs(p) for p in peaks)
    if refused:
        with pytest.raises(BadInput, match="multiply the image by 255, or give labels with scale=1"):
            check.finish()
    else:
        check.finish()


def test_a_scan_checks_the_range_over_all_tiles() -> None:
    image = np.full((40, 30, 2), 0.5)
    net = replace(corner_net(5, 2), labels=BYTES)
    for tile in (2, 10**6):
        with pytest.raises(BadInput, match=r"floating point with values up to 0\.5, and scale=0\.00392"):
            scan(net, image, tile=tile)
    image[20, 7, 0] = 200
    assert isinstance(scan(net, image, tile=2), ScoreMap)


def test_integer_pixels_need_no_check() -> None:
    array = ArraySource(np.ones((4, 4, 1), np.uint8))
    check = PixelCheck(array, BYTES)
    check.add(array.values)
    check.finish()
    assert check.peak == 0


def test_a_chosen_tile_is_the_default() -> None:
    net, image = exact_net(), integer_image(83, 71)
    assert scan(net, image).passes == len(
        plan_scan(net.geometry, (83, 71), tile=choose_tile(net.geometry, (83, 71)))
    )
