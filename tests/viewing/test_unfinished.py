"""Scans that are still running: what is done is shown, the rest is neither invented nor disturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import onebyone
from onebyone.dense import ScoreMap
from onebyone.dense.unfinished import UnfinishedMap, open_scores, open_unfinished
from onebyone.errors import BadInput
from onebyone.stores.array_files import NpyWriter
from onebyone.stores.working_folder import working_path
from onebyone.viewing import ScanView

STOPPED_AFTER = 3
BLOCKS = 2 * 3


class StoppedError(Exception):
    """The scan was interrupted."""


@pytest.fixture(scope="module")
def dense() -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 8, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()
    return onebyone.convolutionalize(network, 12, labels=onebyone.Labels(std=(1.0,)), score_kind="logits")


@pytest.fixture(params=["scores.zarr", "scores.npy"])
def stopped(dense: Any, tmp_path: Path, request: Any) -> tuple[Path, np.ndarray]:
    """A scan in blocks of 16×16 positions that stopped after some, and its image."""
    image = np.random.default_rng(0).random((130, 200, 1), np.float32)

    def stop(done: int, total: int) -> None:
        if done >= STOPPED_AFTER:
            raise StoppedError

    with pytest.raises(StoppedError):
        onebyone.scan(dense, image, out=tmp_path / request.param, tile=16, progress=stop)
    return tmp_path / request.param, image


def test_finished_blocks_are_the_scores_and_others_are_not_a_number(
    dense: Any, stopped: tuple[Path, np.ndarray]
) -> None:
    out, image = stopped
    whole = onebyone.scan(dense, image, tile=16).scores
    map_, path = open_scores(out)
    assert isinstance(map_, UnfinishedMap)
    assert path == out
    assert (map_.scores.shape, map_.stored.total) == (whole.shape, BLOCKS)
    done = list(map_.stored.blocks())
    assert STOPPED_AFTER <= len(done) < map_.stored.total
    expected = np.full_like(whole, np.nan)
    for rows, columns in done:
        expected[:, rows.slice, columns.slice] = whole[:, rows.slice, columns.slice]
    np.testing.assert_array_equal(np.asarray(map_.scores), expected)
    assert np.isnan(expected).any()
    for index in (
        (slice(None), slice(3, 30, 5), slice(10, 48, 7)),
        (slice(1, 3), 17, slice(None)),
        (2, 4, 20),
        1,
    ):
        np.testing.assert_array_equal(map_.scores[index], expected[index])


def test_detections_are_those_of_the_finished_part(dense: Any, stopped: tuple[Path, np.ndarray]) -> None:
    map_, path = open_scores(stopped[0])
    view = ScanView(map_, path, stopped[1], dense)
    progress = view.refresh()
    assert (progress.finished, progress.total) == (False, BLOCKS)
    assert STOPPED_AFTER <= progress.done < BLOCKS
    # by hand: every finished window whose best class reaches the threshold, without suppression (IoU 1)
    scores = np.asarray(map_.scores)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=0)
    with np.errstate(invalid="ignore"):
        expected = int((probabilities >= 0.34).sum())
    assert view.boxes(0.34, 1.0)["total"] == expected > 0


def test_windows_and_tiles_of_what_is_missing(dense: Any, stopped: tuple[Path, np.ndarray]) -> None:
    map_, path = open_scores(stopped[0])
    view = ScanView(map_, path, stopped[1], dense)
    there, missing = view.window(4, 4, True), view.window(195, 120, True)
    assert there["crop"]["max_difference"] <= 2**-20  # sums of at most 64 products below 1
    assert missing["scores"] is missing["probabilities"] is None
    json.dumps([there, missing], allow_nan=False)
    tile = view.map_tile(0, view.grid.max_level, 0, 0, "viridis")
    assert tile[10, 10, 3] > 0
    assert tile[120, 190, 3] == 0


def test_the_finished_file_is_taken_up(dense: Any, stopped: tuple[Path, np.ndarray]) -> None:
    out, image = stopped
    map_, path = open_scores(working_path(out))
    view = ScanView(map_, path, image, dense)
    before = view.refresh().version
    assert view.boxes(0.4, 0.5)
    onebyone.scan(dense, image, out=out, tile=16)
    progress = view.refresh()
    assert progress.finished
    assert progress.version != before
    assert view.refresh() == progress
    assert view.boxes(0.4, 0.5)["total"] == len(onebyone.detect(ScoreMap.load(out), threshold=0.4, iou=0.5))


def test_looking_changes_nothing(stopped: tuple[Path, np.ndarray]) -> None:
    folder = working_path(stopped[0])

    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = content()
    view = ScanView(*open_scores(stopped[0]))
    view.boxes(0.4, 0.5)
    view.map_tile(1, view.grid.max_level, 0, 0, "viridis")
    assert content() == before


def test_damaged_blocks_count_as_missing(stopped: tuple[Path, np.ndarray]) -> None:
    map_, folder = open_unfinished(stopped[0]), working_path(stopped[0])
    high, wide = map_.stored.chunk
    assert not np.isnan(map_.scores[:, :high, : 2 * wide]).any()
    if stopped[0].suffix == ".zarr":
        chunks = [c for column in (0, 1) for c in (folder / "map.zarr" / "0" / "c").glob(f"*/0/{column}")]
        assert chunks
        for chunk in chunks:
            chunk.write_bytes(b"nothing")
    else:
        first, second = list(map_.stored.blocks())[:2]
        NpyWriter.file(folder / "blocks", first).write_bytes(b"nothing")
        np.save(NpyWriter.file(folder / "blocks", second), np.zeros((3, 2, 2), np.float32))
    assert np.isnan(map_.scores[:, :high, : 2 * wide]).all()
    assert not np.isnan(map_.scores[:, :high, 2 * wide :]).any()


def test_a_folder_that_moves_away_has_no_blocks(stopped: tuple[Path, np.ndarray]) -> None:
    map_, folder = open_unfinished(stopped[0]), working_path(stopped[0])
    folder.rename(folder.with_name("elsewhere"))
    assert list(map_.regions()) == []
    assert np.isnan(np.asarray(map_.scores)).all()


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("scan.json", {"chunk": [0, 4]}, "blocks are"),
        ("scan.json", {"chunk": [4]}, "blocks are"),
        ("scan.json", {"shape": [4, 30, 48]}, "3 channels"),
        ("scan.json", {"shape": [3, 5, 5]}, "expected \\(30, 48\\) by the geometry"),
        ("scan.json", {"chunk": "x"}, "invalid literal"),
        ("scan.json", {"format": "another"}, "its format is another"),
        ("map.json", {"format": "another"}, "is not a score map"),
        ("map.json", {"scan": {}}, "geometry"),
    ],
)
def test_damaged_descriptions_are_refused(
    stopped: tuple[Path, np.ndarray], name: str, changed: dict[str, Any], said: str
) -> None:
    file = working_path(stopped[0]) / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(BadInput, match=said) as raised:
        open_unfinished(stopped[0])
    assert "does not describe an unfinished scan" in str(raised.value)


def test_there_is_no_scan(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read|No such file"):
        open_scores(tmp_path / "scores.zarr")
    with pytest.raises(BadInput, match="No such file"):
        open_unfinished(tmp_path / "scores.zarr")


def test_crops_of_a_colour_file_are_grey_as_in_the_scan(dense: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    onebyone.scan(dense, tmp_path / "colour.png", out=tmp_path / "scores.npz")
    view = ScanView(*open_scores(tmp_path / "scores.npz"), tmp_path / "colour.png", dense)
    crop = view.window(20, 20, True)["crop"]
    assert crop["max_difference"] <= 2**-10  # sums of at most 64 products below 256 times weights below 1/8
