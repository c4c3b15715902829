"""Batches of tiles: equal to the formula bit for bit, in the requested memory order, in buffers that are reused."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onebyone.dense import ArraySource, batch_reader, scan
from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.executor import prefetched
from onebyone.dense.plan import Tile, plan_scan
from onebyone.laws.geometry import Geometry
from onebyone.records import Labels

from .networks import coordinate_image, corner_net, exact_net, integer_image, padded_net

TYPES = ["uint8", "uint16", "float16", "float32", "float64", ">f4"]


def by_formula(values: np.ndarray, labels: Labels) -> np.ndarray:
    """The formula of preprocessing on values (H, W, C), in float32 with every operation rounded, channels first."""
    planes = []
    for c in range(values.shape[-1]):
        source = values.shape[-1] - 1 - c if labels.colour_order == "BGR" and values.shape[-1] == 3 else c
        plane = values[..., source].astype(np.float32)
        factor = np.float32(labels.scale / 257 if values.dtype == np.uint16 else labels.scale)
        plane = plane * factor
        for constants, operation in ((labels.mean, np.subtract), (labels.std, np.divide)):
            if constants:
                plane = operation(plane, np.float32(constants[c if len(constants) > 1 else 0]))
        planes.append(plane)
    return np.stack(planes)


def geometry(axes: int) -> Geometry:
    return Geometry((4,) * axes, (3,) * axes, (0,) * axes, (4,) * axes, (0,) * axes, True)


def image(axes: int, channels: int, kind: str) -> np.ndarray:
    size = (29, 17, 11)[:axes]
    generator = np.random.default_rng(axes * 10 + channels)
    if "f" in kind:
        return generator.normal(0, 100, (*size, channels)).astype(kind)
    return generator.integers(0, np.iinfo(kind).max, (*size, channels), dtype=kind, endpoint=True)


def preprocessing(count: int, scale: float, mean: bool, std: bool, order: str) -> Labels:
    """A scale, and `count` different means and standard deviations where they are wanted."""
    return Labels(
        scale=scale,
        mean=tuple(0.1 + 0.3 * c for c in range(count)) if mean else (),
        std=tuple(0.7 + 0.1 * c for c in range(count)) if std else (),
        colour_order=order,
    )


@given(
    axes=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 5]),
    kind=st.sampled_from(TYPES),
    channels_last=st.booleans(),
    order=st.sampled_from(["RGB", "BGR"]),
    scale=st.sampled_from([1.0, 1 / 255, 0.37]),
    each=st.booleans(),
    mean=st.booleans(),
    std=st.booleans(),
    frozen=st.booleans(),
    chunk=st.sampled_from([1, 40, 2**18]),
)
def test_a_batch_is_the_formula_bit_for_bit(
    axes: int,
    channels: int,
    kind: str,
    channels_last: bool,
    order: str,
    scale: float,
    each: bool,
    mean: bool,
    std: bool,
    frozen: bool,
    chunk: int,
) -> None:
    labels = preprocessing(channels if each else 1, scale, mean, std, order)
    values = image(axes, channels, kind)
    values.flags.writeable = not frozen  # as in a memory-mapped file
    plan = plan_scan(geometry(axes), values.shape[:-1], tile=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_reader, "_CHUNK", chunk)
        reader = BatchReader(ArraySource(values), labels, channels_last)
        for tile in plan:
            batch = reader([tile, tile])
            expected = by_formula(values[tuple(s.slice for s in tile.read)], labels)
            np.testing.assert_array_equal(batch[0], expected)
            np.testing.assert_array_equal(batch[1], expected)
            assert batch.dtype == np.float32
            assert (batch.strides[1] == batch.itemsize) == channels_last or channels == 1


def test_buffers_are_used_in_turn() -> None:
    values = image(2, 3, "uint8")
    tiles = [[t] for t in plan_scan(geometry(2), (29, 17), tile=3)]
    for buffers in (1, 2):
        reader = BatchReader(ArraySource(values), Labels(), True, buffers)
        addresses = [reader(t).ctypes.data for t in tiles]
        assert len(set(addresses)) == buffers
        assert addresses[:-buffers] == addresses[buffers:]


def test_a_prefetched_batch_is_not_overwritten_while_it_is_used() -> None:
    tiles = [[t] for t in plan_scan(geometry(2), (29, 17), tile=2)]
    values = image(2, 3, "uint8")
    labels = Labels(scale=1 / 255, mean=(0.5,), std=(0.25,))
    expected = [by_formula(values[tuple(s.slice for s in t[0].read)], labels) for t in tiles]
    reader = BatchReader(ArraySource(values), labels, True, buffers=2)
    batches = prefetched(reader, tiles)
    for (tile, batch), expected_tile, pixels in zip(batches, tiles, expected, strict=True):
        torch.zeros(200_000).add_(1)  # time for the reading thread to continue
        np.testing.assert_array_equal(batch[0], pixels)
        assert tile == expected_tile


def test_at_most_one_item_is_read_ahead() -> None:
    started: list[int] = []

    def read(item: int) -> int:
        started.append(item)
        return 10 * item

    for item, result in prefetched(read, range(6)):
        assert len(started) <= item + 2
        assert result == 10 * item
    assert started == list(range(6))


def test_an_error_of_the_reading_thread_reaches_the_caller() -> None:
    def read(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match=r"^item 0$"):
        list(prefetched(read, range(3)))


@pytest.mark.parametrize("net", [exact_net(), padded_net()], ids=["exact", "padded"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_scan_with_prefetching_gives_the_same_map(
    net: Any, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = []
    for enabled in (True, False):
        module = sys.modules["onebyone.dense.memory_scan"]
        monkeypatch.setattr(module, "prefetch_pays", lambda *_, enabled=enabled: enabled)
        maps.append(scan(net, integer_image(83, 71), tile=3, batch=batch).scores)
    np.testing.assert_array_equal(*maps)


def test_the_network_reads_the_buffer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels are in the requested memory order already, so they are not copied or converted again."""
    net, inputs = corner_net(3, 1), []
    original = BatchReader.__call__
    buffers: list[int] = []

    def recording(self: BatchReader, tiles: list[Tile]) -> np.ndarray:
        batch = original(self, tiles)
        buffers.append(batch.ctypes.data)
        return batch

    monkeypatch.setattr(BatchReader, "__call__", recording)
    handle = net.model.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].data_ptr()))
    for channels_last in (True, False):
        scan(net, coordinate_image(30, 40), tile=9, batch=2, channels_last=channels_last)
    handle.remove()
    assert inputs == buffers
