"""Pixels that the device normalises become the same numbers as on the processor, which stands for the device here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onebyone.dense import plan_scan
from onebyone.dense.batch_reader import BatchReader
from onebyone.dense.checks import PixelCheck
from onebyone.dense.device_pixels import PixelRunner, StoredPixelReader, normalised, reader_and_runner
from onebyone.dense.preprocessing import scale_of
from onebyone.dense.runner import TorchSettings, torch_runner
from onebyone.dense.tile_buffers import TileBuffers
from onebyone.dense.window_runner import WindowRunner
from onebyone.errors import BadInput
from onebyone.records import Labels
from onebyone.stores.source import ArraySource
from tests.dense.networks import exact_net
from tests.dense.test_batch_reader import by_formula, geometry, image, preprocessing

CPU = TorchSettings(torch.device("cpu"), channels_last=False)
CUDA = TorchSettings(torch.device("cuda"), channels_last=False)


@given(
    axes=st.sampled_from([1, 2, 3]),
    channels=st.sampled_from([1, 2, 3, 4]),
    kind=st.sampled_from(["uint8", "float32"]),
    order=st.sampled_from(["RGB", "BGR"]),
    scale=st.sampled_from([1.0, 1 / 255, 0.3]),
    each=st.booleans(),
    mean=st.booleans(),
    std=st.booleans(),
)
def test_the_formula_bit_for_bit(
    axes: int, channels: int, kind: str, order: str, scale: float, each: bool, mean: bool, std: bool
) -> None:
    labels = preprocessing(channels if each else 1, scale, mean, std, order)
    values = image(axes, channels, kind)
    before = values.copy()
    reader = StoredPixelReader(ArraySource(values))
    for tile in plan_scan(geometry(axes), values.shape[:-1], tile=3):
        batch = reader([tile, tile])
        assert batch.dtype == values.dtype
        inputs = normalised(torch.from_numpy(batch), labels, scale_of(batch.dtype, labels)).numpy()
        expected = by_formula(values[tuple(s.slice for s in tile.read)], labels)
        for sample in inputs:
            np.testing.assert_array_equal(sample, expected)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("half", [None, "bfloat16"])
def test_the_network_gives_the_same_scores(channels_last: bool, half: str | None) -> None:
    net, labels = exact_net(3), Labels(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    source, settings = ArraySource(values), TorchSettings(torch.device("cpu"), channels_last, half=half)
    tiles = list(plan_scan(net.geometry, (40, 50), tile=3))[:1]
    with torch_runner(net.model, settings) as run:
        expected = run(BatchReader(source, labels, channels_last)(tiles))
        scores = PixelRunner(run, labels)(StoredPixelReader(source)(tiles))
    np.testing.assert_array_equal(scores, expected)
    assert scores.dtype == np.float32


LAYOUTS: dict[str, Any] = {
    "packed": lambda v: v,
    "read only": lambda v: np.broadcast_to(v, v.shape),
    "negative strides": lambda v: v[::-1, ::-1],
    "channels in reverse": lambda v: v[..., ::-1],
    "columns first": np.asfortranarray,
    "part of a larger image": lambda v: np.repeat(np.repeat(v, 2, 1), 2, 2)[:, ::2, ::2],
    "big-endian": lambda v: v.astype(v.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_in_any_memory_order(layout: str, kind: str) -> None:
    values, labels = LAYOUTS[layout](image(2, 3, kind)), Labels(scale=0.3, mean=(0.1, 0.2, 0.3))
    source = ArraySource(values)
    with torch_runner(exact_net(3).model, CPU) as run:
        reader, on_batch = reader_and_runner(run, source, labels, CUDA, 1)
    assert isinstance(reader, StoredPixelReader)
    assert isinstance(on_batch, PixelRunner)
    reader.buffers.pinned = False  # there is no GPU here
    tile = next(iter(plan_scan(geometry(2), values.shape[:-1], tile=3)))
    pixels = torch.from_numpy(reader([tile]))
    inputs = normalised(pixels, labels, scale_of(source.dtype, labels))
    expected = by_formula(values[tuple(s.slice for s in tile.read)], labels)
    np.testing.assert_array_equal(inputs[0].numpy(), expected)


def test_the_default_type_of_pytorch_does_not_matter() -> None:
    values, labels = image(2, 3, "uint8"), Labels(scale=1 / 255, mean=(0.485,), std=(0.229,))
    torch.set_default_dtype(torch.float64)
    try:
        inputs = normalised(torch.from_numpy(values[None]), labels, labels.scale)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(inputs[0].numpy(), by_formula(values, labels))


def test_values_of_another_type_than_stated_are_refused() -> None:
    """16-bit values that were cut to 8 bits would be wrong numbers."""

    class Misstated(ArraySource):
        dtype = np.dtype(np.uint8)

        def read(self, region: Any) -> Any:
            return self.values[tuple(span.slice for span in region)]

    source = Misstated(np.full((20, 20, 1), 300, np.uint16))
    with pytest.raises(BadInput, match="gives values of type uint16; it states uint8"):
        StoredPixelReader(source)(list(plan_scan(geometry(2), (20, 20), tile=20)))


def test_only_a_gpu_gets_pixels_as_they_are_stored() -> None:
    net, labels = exact_net(), Labels()

    def chosen(settings: TorchSettings, values: Any, **other: Any) -> Any:
        with torch_runner(net.model, CPU) as run:
            given = other.get("run", run)
            reader, on_batch = reader_and_runner(given, ArraySource(values), labels, settings, 2)
            assert (on_batch is given) == isinstance(reader, BatchReader)
            return reader

    image = np.zeros((20, 20, 1))
    there = chosen(CUDA, image.astype(np.uint8))
    assert isinstance(there, StoredPixelReader)
    assert there.buffers.count == 2
    assert there.buffers.pinned
    assert isinstance(chosen(CUDA, image.astype(np.float32)), StoredPixelReader)
    assert isinstance(chosen(CPU, image.astype(np.uint8)), BatchReader)
    other_type = chosen(CUDA, image.astype(np.uint16))
    assert isinstance(other_type, BatchReader)
    assert other_type.pinned
    with torch_runner(net.model, CPU) as run:
        windows = WindowRunner(run, net.geometry, 4)
        assert isinstance(chosen(CUDA, image.astype(np.uint8), run=windows), BatchReader)


def test_pixels_are_checked_as_they_are_read() -> None:
    values = np.zeros((20, 20, 1), np.float32)
    values[3, 4] = np.nan
    source = ArraySource(values)
    reader = StoredPixelReader(source, check=PixelCheck(source, Labels()))
    with pytest.raises(BadInput, match="nan"):
        reader(list(plan_scan(geometry(2), (20, 20), tile=20)))


def test_buffers_are_used_in_turn_and_freed() -> None:
    buffers = TileBuffers(2)
    first, second, third = (buffers.take((2, 3), (3, 1), torch.uint8) for _ in range(3))
    assert first.data_ptr() == third.data_ptr() != second.data_ptr()
    other = buffers.take((2, 3), (3, 1), torch.float32)
    assert other.dtype == torch.float32
    assert buffers.take((4, 3), (3, 1), torch.uint8).shape == (4, 3)
    source = ArraySource(image(2, 3, "uint8"))
    reader = StoredPixelReader(source, buffers)
    reader.release()
    assert not buffers._memory
