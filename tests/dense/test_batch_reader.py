"""Batches made in one pass: bit for bit what the formula gives step by step, in the layout asked for, in one buffer."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onebyone.dense import batch_reader as feeding
from onebyone.dense import scan
from onebyone.dense.batch_reader import Feed, made_ahead
from onebyone.dense.images import Pixels
from onebyone.dense.plan import Tile, plan_scan
from onebyone.laws.geometry import Geometry
from onebyone.records import Labels

from .networks import corner_net, exact_net, integer_image, padded_net, positions_image

TYPES = ["uint8", "uint16", "float16", "float32", "float64", ">f4"]


def one_by_one(values: np.ndarray, labels: Labels) -> np.ndarray:
    """The formula on (H, W, C) values as it is written: float32, each operation rounded, channels first."""
    planes = []
    for c in range(values.shape[-1]):
        source = values.shape[-1] - 1 - c if labels.colour_order == "BGR" and values.shape[-1] == 3 else c
        plane = values[..., source].astype(np.float32)
        factor = np.float32(labels.scale / 257 if values.dtype == np.uint16 else labels.scale)
        plane = plane * factor
        for given_, act in ((labels.mean, np.subtract), (labels.std, np.divide)):
            if given_:
                plane = act(plane, np.float32(given_[c if len(given_) > 1 else 0]))
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
    count = channels if each else 1
    labels = Labels(
        scale=scale,
        mean=tuple(0.1 + 0.3 * c for c in range(count)) if mean else (),
        std=tuple(0.7 + 0.1 * c for c in range(count)) if std else (),
        colour_order=order,
    )
    values = image(axes, channels, kind)
    values.flags.writeable = not frozen  # as a memory-mapped file is
    plan = plan_scan(geometry(axes), values.shape[:-1], tile=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeding, "_CHUNK", chunk)
        feed = Feed(Pixels(values), labels, channels_last)
        for tile in plan:
            batch = feed([tile, tile])
            expected = one_by_one(values[tuple(s.slice for s in tile.read)], labels)
            np.testing.assert_array_equal(batch[0].numpy(), expected)
            np.testing.assert_array_equal(batch[1].numpy(), expected)
            assert batch.dtype == torch.float32
            assert (batch.stride(1) == 1) == channels_last or channels == 1


def test_buffers_are_used_in_turn_and_no_more_are_made() -> None:
    values = image(2, 3, "uint8")
    tiles = [[t] for t in plan_scan(geometry(2), (29, 17), tile=3)]
    for buffers in (1, 2):
        feed = Feed(Pixels(values), Labels(), True, buffers)
        places = [feed(t).data_ptr() for t in tiles]
        assert len(set(places)) == buffers
        assert places[:-buffers] == places[buffers:]


def test_a_batch_made_ahead_is_not_overwritten_while_it_is_used() -> None:
    tiles = [[t] for t in plan_scan(geometry(2), (29, 17), tile=2)]
    values = image(2, 3, "uint8")
    labels = Labels(scale=1 / 255, mean=(0.5,), std=(0.25,))
    expected = [one_by_one(values[tuple(s.slice for s in t[0].read)], labels) for t in tiles]
    feed = Feed(Pixels(values), labels, True, buffers=2)
    made = made_ahead(feed, tiles, ahead=True)
    for (tile, batch), mine, wanted in zip(made, tiles, expected, strict=True):
        torch.zeros(200_000).add_(1)  # time for the reader to go on
        np.testing.assert_array_equal(batch[0].numpy(), wanted)
        assert tile == mine


def test_at_most_one_batch_is_made_ahead() -> None:
    made: list[int] = []

    def make(item: int) -> torch.Tensor:
        made.append(item)
        return torch.tensor(item)

    for item, _ in made_ahead(make, range(6), ahead=True):
        assert len(made) <= item + 2
    assert made == list(range(6))


def test_an_error_of_the_reader_reaches_the_caller() -> None:
    def make(item: int) -> torch.Tensor:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match=r"^item 0$"):
        list(made_ahead(make, range(3), ahead=True))


@pytest.mark.parametrize("net", [exact_net(), padded_net()], ids=["exact", "padded"])
@pytest.mark.parametrize("batch", [1, 3])
def test_scanning_ahead_gives_the_same_map(net: Any, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = []
    for ahead in (True, False):
        module = sys.modules["onebyone.dense.scan"]  # the package's `scan` is the function
        monkeypatch.setattr(module, "reads_ahead", lambda _device, ahead=ahead: ahead)
        maps.append(scan(net, integer_image(83, 71), tile=3, batch=batch).scores)
    np.testing.assert_array_equal(*maps)


def test_a_scan_makes_no_copy_of_the_pixels_beside_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network reads is the buffer itself, in the order asked for: no joining, moving or converting."""
    net, seen = corner_net(3, 1), []
    made = Feed.__call__
    given_: list[int] = []

    def watched(self: Feed, tiles: list[Tile]) -> torch.Tensor:
        batch = made(self, tiles)
        given_.append(batch.data_ptr())
        return batch

    monkeypatch.setattr(Feed, "__call__", watched)
    handle = net.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].data_ptr()))
    for channels_last in (True, False):
        scan(net, positions_image(30, 40), tile=9, batch=2, channels_last=channels_last)
    handle.remove()
    assert seen == given_
