"""Scanning: positions and their pixels, tiles and shifts against independent passes, and errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onebyone.dense import ScoreMap, finer_geometry, scan, scan_windows
from onebyone.errors import BadInput
from onebyone.records import Labels

from .networks import Net, coordinate_image, corner_net, exact_net, integer_image, integers, padded_net

WHOLE = 10**9


def misplaced(scores: ScoreMap) -> int:
    """How many positions are of another window than `window_at` says, by the coordinates that the network saw."""
    wrong = 0
    for index in np.ndindex(scores.positions):
        (y, _), (x, _) = scores.window_at(index)
        wrong += tuple(scores.scores[:, *index]) != (y, x)
    return wrong


@settings(max_examples=25)
@given(
    window=st.integers(1, 7),
    stride=st.sampled_from([1, 2, 4, 6]),
    size=st.tuples(st.integers(7, 30), st.integers(7, 30)),
    tile=st.sampled_from([1, 2, 5, None]),
    batch=st.integers(1, 4),
    fine=st.booleans(),
)
def test_every_position_is_the_prediction_for_its_window(
    window: int, stride: int, size: tuple[int, int], tile: int | None, batch: int, fine: bool
) -> None:
    shifts = (stride, 2 if stride % 2 == 0 else 1) if fine else 1
    scores = scan(corner_net(window, stride), coordinate_image(*size), tile=tile, batch=batch, shifts=shifts)
    assert misplaced(scores) == 0


@pytest.mark.parametrize("offset", [1, -1])
def test_an_offset_off_by_one_is_caught(offset: int) -> None:
    net = corner_net(5, 2)
    wrong = replace(net.geometry, window_offset=(offset, offset))
    scores = scan(Net(net.model, wrong, 2), coordinate_image(20, 20), tile=WHOLE)
    assert misplaced(scores) == scores.windows


def test_a_bright_pixel_changes_the_windows_that_contain_it() -> None:
    conv = nn.Conv2d(1, 1, 6, 3, bias=False)
    nn.init.ones_(conv.weight)
    net = Net(conv, replace(corner_net(6, 3).geometry), 1)
    image = np.zeros((40, 50), dtype=np.uint8)
    image[17, 23] = 1
    scores = scan(net, image, shifts=3, tile=4)
    for index in np.ndindex(scores.positions):
        (y1, y2), (x1, x2) = scores.window_at(index)
        assert scores.scores[0, *index] == (y1 <= 17 < y2 and x1 <= 23 < x2)


@settings(max_examples=30)
@given(
    padded=st.booleans(),
    size=st.tuples(st.integers(20, 75), st.integers(20, 75)),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([1, 3]),
    shifts=st.sampled_from([1, 2, (4, 1)]),
)
def test_tiled_equals_whole_bit_for_bit(
    padded: bool, size: tuple[int, int], tile: tuple[int, int], batch: int, shifts: object
) -> None:
    """Integer weights and pixels: every sum is exact, whatever the order of the additions and the kernel."""
    net, image = padded_net() if padded else exact_net(), integer_image(*size)
    whole = scan(net, image, tile=WHOLE, shifts=shifts)
    tiled = scan(net, image, tile=tile, batch=batch, shifts=shifts)
    np.testing.assert_array_equal(tiled.scores, whole.scores)


def test_one_tile_is_the_network_itself() -> None:
    for net in (exact_net(), padded_net()):
        image = integer_image(61, 47)
        with torch.inference_mode():
            expected = net.model(torch.from_numpy(image)[None, None].float())[0].numpy()
        np.testing.assert_array_equal(scan(net, image, tile=WHOLE).scores, expected)
        np.testing.assert_array_equal(scan(net, image, tile=WHOLE, channels_last=True).scores, expected)


def test_a_missing_halo_gives_a_difference() -> None:
    """An injected fault: the padded network declared exact gives other numbers in tiles."""
    net, image = padded_net(), integer_image(70, 70)
    g = net.geometry
    blind = replace(g, receptive_field=g.window, receptive_field_offset=(0, 0), exact=True)
    tiled = scan(Net(net.model, blind), image, tile=3).scores
    assert (tiled != scan(net, image, tile=WHOLE).scores).any()


@pytest.mark.parametrize("short", [(1, 0), (0, 1)])
def test_a_halo_short_by_one_stride_gives_a_difference(short: tuple[int, int]) -> None:
    """The halo is not larger than necessary: with one stride less on either side, some tile differs."""
    net, image = padded_net(), integer_image(70, 70)
    g = net.geometry
    before, after = (n * g.stride[0] for n in short)
    less = replace(
        g,
        receptive_field=tuple(n - before - after for n in g.receptive_field),
        receptive_field_offset=tuple(n - before for n in g.receptive_field_offset),
    )
    tiled = scan(Net(net.model, less), image, tile=2).scores
    assert (tiled != scan(net, image, tile=WHOLE).scores).any()


@pytest.mark.parametrize("shifts", [1, 2, 4, (1, 4)])
def test_dense_equals_every_window(shifts: object) -> None:
    """Shifted passes give the same numbers as crops at the finer stride."""
    net, image = exact_net(), integer_image(52, 45)
    dense = scan(net, image, shifts=shifts, tile=5)
    windows = scan_windows(net.model, image, finer_geometry(net.geometry, shifts), labels=net.labels)
    np.testing.assert_array_equal(dense.scores, windows.scores)
    assert dense.geometry == windows.geometry


def test_sliding_windows_equal_a_plain_loop() -> None:
    """A classifier that ends in a linear layer, with every batch size."""
    model = integers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)), 3)
    geometry = replace(corner_net(8, 3).geometry)
    image = np.random.default_rng(0).integers(0, 8, (31, 26, 3), dtype=np.uint8)
    expected = np.empty((5, *geometry.positions((31, 26))), dtype=np.float32)
    for index in np.ndindex(expected.shape[1:]):
        (y1, y2), (x1, x2) = geometry.window_at(index)
        crop = torch.from_numpy(image[y1:y2, x1:x2]).permute(2, 0, 1)[None].float()
        expected[:, *index] = model(crop)[0].detach().numpy()
    for batch in (None, 1, 7, 1000):
        np.testing.assert_array_equal(
            scan_windows(model, image, geometry, labels=Labels(std=(1.0,)), batch=batch).scores, expected
        )


def test_preprocessing_reaches_the_network() -> None:
    labels = Labels(classes=("y", "x"), scale=2.0, mean=(1.0, 3.0), std=(0.5, 4.0))
    image = coordinate_image(9, 9)
    scores = scan(corner_net(3, 3), image, labels=labels)
    np.testing.assert_array_equal(scores.scores[0, 2, 1], (6 * 2 - 1) / 0.5)
    np.testing.assert_array_equal(scores.scores[1, 2, 1], (3 * 2 - 3) / 4)
    assert scores.classes == ("y", "x")


class Two(nn.Module):
    """A network with two outputs and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(2, 2, 3), nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.drop(self.conv(x))
        return y, 2 * y


def test_one_of_several_outputs_is_chosen_and_the_model_left_as_it_was() -> None:
    model = Two().train()
    model.drop.eval()
    net = Net(model, corner_net(3, 1).geometry, 2)
    first, second = (scan(net, coordinate_image(8, 8), output=k).scores for k in (0, 1))
    np.testing.assert_array_equal(second, 2 * first)
    assert (model.training, model.conv.training, model.drop.training) == (True, True, False)
    with pytest.raises(BadInput, match=r"^output=2, but the network gives 2 outputs$"):
        scan(net, coordinate_image(8, 8), output=2)
    with pytest.raises(BadInput, match=r"^output=1, but the network has one output$"):
        scan(corner_net(3, 1), coordinate_image(8, 8), output=1)


def test_training_mode_is_restored_after_an_error() -> None:
    net = corner_net(3, 1)
    net.model.train()
    with pytest.raises(BadInput):
        scan(net, coordinate_image(8, 8), output=1)
    assert net.model.training


def test_networks_of_other_precisions_get_inputs_of_their_type() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        net = corner_net(3, 1)
        net.model.to(dtype)
        scores = scan(net, coordinate_image(8, 8))
        assert scores.scores.dtype == np.float32
        assert misplaced(scores) == 0


def test_progress_counts_up_to_the_total() -> None:
    net, seen = corner_net(3, 1), []
    scan(net, coordinate_image(20, 20), tile=6, batch=2, progress=lambda *a: seen.append(a))
    assert seen == [
        (2, 9),
        (4, 9),
        (6, 9),
        (8, 9),
        (9, 9),
    ]  # one tile shape: batches of two, then the last tile
    seen.clear()
    scan_windows(net.model, coordinate_image(9, 9), net.geometry, progress=lambda *a: seen.append(a))
    assert seen[-1] == (49, 49)


def test_a_bar_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    scan(corner_net(3, 1), coordinate_image(9, 9), progress=True)
    out, err = capsys.readouterr()
    assert (out, "scanning" in err) == ("", True)


@pytest.mark.parametrize(("stride", "window"), [(1, 3), (2, 2), (2, 5)])
def test_a_geometry_that_does_not_fit_the_network_is_refused(stride: int, window: int) -> None:
    """A wrong stride, one position too many, one too few."""
    net = Net(corner_net(3, 2).model, corner_net(window, stride).geometry, 2)
    with pytest.raises(BadInput, match=r"pixels; expected \(\d+, \d+\) positions by its geometry"):
        scan(net, coordinate_image(21, 21), tile=WHOLE)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (np.zeros((4, 30, 2), np.uint8), {}, r"the image is 4×30 pixels, smaller than the window of 5×5"),
        (np.zeros((30, 30), np.uint8), {}, r"has 1 channel\(s\) and the network takes 2"),
        (
            np.full((30, 30, 2), np.nan),
            {},
            r"1800 value\(s\) that are not finite, the first nan at row 0, column 0",
        ),
        (coordinate_image(9, 9), {"device": "nowhere"}, r"device='nowhere': cannot be used here"),
        (coordinate_image(9, 9), {"batch": 0}, r"batch=0: expected a positive integer"),
        (
            coordinate_image(9, 9),
            {"labels": Labels(classes=("a",))},
            r"labels name 1 classes and the network gives 2",
        ),
        (coordinate_image(9, 9), {"shifts": 2}, r"shifts=2 does not divide the network's stride 3 on axis 0"),
    ],
)
def test_errors_are_one_sentence(image: np.ndarray, arguments: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        scan(corner_net(5, 3), image, **arguments)
    assert "\n" not in str(caught.value)


def test_sliding_windows_refuse_more_than_one_position() -> None:
    with pytest.raises(BadInput, match="expected one position each"):
        scan_windows(corner_net(3, 1).model, coordinate_image(9, 9), corner_net(5, 1).geometry)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_same_map_and_leaves_the_model_here() -> None:
    net, image = padded_net(), integer_image(70, 70)
    there = scan(net, image, device="cuda", tile=5)
    np.testing.assert_array_equal(there.scores, scan(net, image).scores)
    assert next(net.model.parameters()).device.type == "cpu"
