"""The viewer's server: what it sends for a scan, what it refuses, and what a browser shows of it."""

from __future__ import annotations

import io
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from torch import nn

import onebyone
from bench import sparse_scan
from onebyone.dense import ScoreMap
from onebyone.errors import BadInput
from onebyone.viewing import ScanView
from onebyone.viewing.scan_folder import ScanParts, scan_parts, write_scan_parts
from onebyone.viewing.tile_grid import TILE, TileGrid
from onebyone.web.server import application, serve

TOKEN = "a-token"


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A picture with white squares, its score map on disk, and the network."""
    folder = tmp_path_factory.mktemp("scan")
    network = nn.Sequential(
        nn.Conv2d(3, 1, 8, stride=4), nn.ReLU(), nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Sigmoid()
    )
    with torch.no_grad():
        for layer, weight, bias in ((network[0], 1 / (3 * 64), 0.0), (network[2], 1 / 16, -127.5 / 16)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
        network[2].bias[1] = -100.0
    labels = onebyone.Labels(classes=("bright", "never"), std=(1.0,))
    dense = onebyone.convolutionalize(network.eval(), 8, labels=labels)
    image = np.zeros((300, 520, 3), np.uint8)
    image[40:48, 100:108] = image[200:208, 400:408] = 255
    Image.fromarray(image).save(folder / "page.png")
    onebyone.scan(dense, folder / "page.png", out=folder / "scores.zarr")
    return folder / "scores.zarr", folder / "page.png", dense


@pytest.fixture(scope="module")
def address(scanned: tuple[Path, Path, Any]) -> Iterator[str]:
    path, image, dense = scanned
    view = ScanView(ScoreMap.load(path), path, image, dense)
    server = uvicorn.Server(uvicorn.Config(application(view, TOKEN), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/{TOKEN}/"
    server.should_exit = True
    thread.join()


def fetch(address: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask(address: str) -> Any:
    return json.loads(fetch(address)[1])


def test_the_tiles_of_the_full_resolution_are_the_image(
    address: str, scanned: tuple[Path, Path, Any]
) -> None:
    pixels = np.asarray(Image.open(scanned[1]))
    view = ScanView(ScoreMap.load(scanned[0]), scanned[0], scanned[1])
    assert view.image is not None
    for column, row in ((0, 0), (2, 1)):
        tile = view.image.tile(view.grid.max_level, column, row)
        expected = pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        assert np.array_equal(tile, expected)
    status, content = fetch(f"{address}image/{view.grid.max_level}/0/0.jpg")
    assert status == 200
    assert Image.open(io.BytesIO(content)).size == (256, 256)


def test_a_coarse_tile_has_the_mean_of_its_pixels(scanned: tuple[Path, Path, Any]) -> None:
    view = ScanView(ScoreMap.load(scanned[0]), scanned[0], scanned[1])
    assert view.image is not None
    level = view.grid.max_level - 3  # eight pixels each, as the square at (40, 100), which covers half of two
    tile = view.image.tile(level, 0, 0)
    assert tile.shape == (38, 65, 3)
    assert tile[5, 12:14, 0].tolist() in ([128, 128], [127, 127], [127, 128], [128, 127])


def test_a_map_tile_colours_the_pixels_around_each_window_s_centre(scanned: tuple[Path, Path, Any]) -> None:
    view = ScanView(ScoreMap.load(scanned[0]), scanned[0])
    tile = view.map_tile(0, view.grid.max_level, 0, 0, "viridis")
    probabilities = view.scores.probabilities()[0]
    # by hand: the stride is 1; the window of position (40, 100) is the square, whose centre is (44, 104), so the
    # position covers [43.5, 44.5), which holds the centre of pixel 43 alone
    assert probabilities[40, 100] == probabilities.max() > 0.999
    assert tile[43, 103].tolist() == [253, 231, 37, round(255 * float(probabilities[40, 100]))]
    assert tile[0, 0].tolist() == [0, 0, 0, 0]  # the centre of no window
    assert (view.map_tile(1, view.grid.max_level, 0, 0, "viridis")[..., 3] == 0).all()
    with pytest.raises(BadInput, match="class=2: the map has 2 classes"):
        view.map_tile(2, 0, 0, 0, "viridis")
    with pytest.raises(BadInput, match="colours='x': expected one of inferno, viridis"):
        view.map_tile(0, view.grid.max_level, 0, 0, "x")


def test_a_tile_of_many_positions_shows_the_highest_mean_of_the_file_s_pyramid(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4, 1030, 1030)).astype(np.float32)
    sparse_scan.write_map(
        tmp_path / "s.zarr", 33_000, lambda rows, columns: logits[:, rows.slice, columns.slice]
    )
    view = ScanView(ScoreMap.load(tmp_path / "s.zarr"), tmp_path / "s.zarr")
    assert (view.grid.min_level, view.grid.step(8)) == (8, 256)
    shown = view.map_tile(1, 8, 0, 0, "viridis")[..., 3]
    # by hand: 1030² positions are more than 2^18, and so are those of 2×2, so the means of 4×4 are read. Position i is
    # centred at 32·i + 32, so pixel k of 256 image pixels holds those from 8·k to 8·k + 7: the means 2·k and 2·k + 1.
    means = logits[:, :1024, :1024].reshape(4, 256, 4, 256, 4).mean(axis=(2, 4), dtype=np.float64)
    probabilities = (np.exp(means) / np.exp(means).sum(axis=0))[1]
    expected = probabilities.reshape(128, 2, 128, 2).max(axis=(1, 3))
    assert np.abs(shown[:128, :128] / 255 - expected).max() <= 0.5 / 255 + 1e-6  # rounded to eight bits


def test_boxes_are_those_of_detect(address: str, scanned: tuple[Path, Path, Any]) -> None:
    expected = onebyone.detect(scanned[0], threshold=0.9, iou=0.2)
    found = ask(f"{address}boxes.json?threshold=0.9&iou=0.2")
    assert found["total"] == len(expected) == 2
    assert [box[:4] for box in found["boxes"]] == expected.boxes.tolist()
    assert found["counts"] == {"bright": 2}


def test_the_window_under_the_pointer_and_its_crop(address: str) -> None:
    found = ask(f"{address}window.json?x=103.6&y=43.7&compare=1")
    assert (found["position"], found["box"]) == ([40, 100], [100, 40, 108, 48])
    assert found["crop"]["scores"] == pytest.approx(found["scores"], abs=2**-20)
    assert found["crop"]["max_difference"] <= 2**-20  # two sigmoids of sums of a few terms
    assert ask(f"{address}window.json?x=0&y=0")["position"] == [0, 0]


def test_a_review_is_written_beside_the_scan(address: str, scanned: tuple[Path, Path, Any]) -> None:
    query = "threshold=0.9&iou=0.2"
    first, second = (box[:5] for box in ask(f"{address}boxes.json?{query}")["boxes"])
    body = json.dumps({"states": [[*first, "rejected"], [*second, "accepted"]]}).encode()
    status, content = fetch(f"{address}review?{query}&suffix=.geojson", body)
    assert (status, json.loads(content)) == (
        200,
        {"file": "scores-reviewed.geojson", "kept": 1, "rejected": 1},
    )
    (feature,) = json.loads((scanned[0].parent / "scores-reviewed.geojson").read_text())["features"]
    assert feature["type"] == "Feature"
    for bad in (b'{"states": [[0, 0, 1, 1, 0, "accepted"]]}', b'{"states": [[1, "x"]]}', b"[]", b"{"):
        assert fetch(f"{address}review?{query}", bad)[0] == 400
    assert fetch(f"{address}review?{query}&suffix=.exe", body)[0] == 400


@pytest.mark.parametrize(
    "path",
    [
        *("static/../server.py", "static/%2e%2e%2fserver.py", "static/viewer.py", "static/nothing.js"),
        *("map/0/99/0/0.png", "image/9/99/0.jpg", "map/7/9/0/0.png", "map/0/0/0/0.png?colours=x"),
        *(
            "window.json?x=nan&y=1",
            "window.json?x=1",
            "boxes.json?threshold=2&iou=0.1",
            "../",
            "../facts.json",
        ),
    ],
)
def test_what_is_not_served(address: str, path: str) -> None:
    status, content = fetch(address + path)
    assert status in (400, 404, 422)
    assert b"Traceback" not in content


def test_only_this_machine_with_the_token(address: str) -> None:
    root = address.removesuffix(f"{TOKEN}/")
    assert fetch(f"{root}facts.json")[0] == 404
    assert fetch(f"{root}other-token/facts.json")[0] == 404
    assert fetch(f"{address}facts.json", Host="evil.example")[0] == 400
    assert fetch(f"{address}facts.json")[0] == 200


def test_tile_grids_cover_the_image_once() -> None:
    for size in ((1, 1), (255, 257), (600, 1000), (1, 5000)):
        grid = TileGrid(size)
        for level in range(grid.max_level + 1):
            height, width = grid.shape(level)
            tiles = [
                grid.region(level, column, row)
                for row in range(-(-height // TILE))
                for column in range(-(-width // TILE))
            ]
            area = sum((r.stop - r.start) * (c.stop - c.start) for r, c in tiles)
            assert area == size[0] * size[1]
        assert grid.shape(grid.max_level) == size
        with pytest.raises(BadInput):
            grid.region(grid.max_level, 10**6, 0)


def test_folders_name_their_parts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is a folder without viewer\.json"):
        scan_parts(tmp_path)
    (tmp_path / "viewer.json").write_text('[{"scores": "s.npz", "image": "../secret.png"}]')
    with pytest.raises(BadInput, match="outside its folder"):
        scan_parts(tmp_path)
    for damaged in ('[{"image": 3}]', '[{"image": "a.png"}]', '{"scores": "s.npz"}', "[3]", "[", "\xff"):
        (tmp_path / "viewer.json").write_text(damaged)
        with pytest.raises(BadInput, match="is damaged"):
            scan_parts(tmp_path)
    (tmp_path / "viewer.json").write_text('[{"scores": "s.npz"}]')
    assert scan_parts(tmp_path) == ScanParts((tmp_path / "s.npz").resolve())


def test_a_scan_of_a_folder_with_several_is_named_by_its_map(tmp_path: Path) -> None:
    scans = [ScanParts(tmp_path / f"{name}.npz", tmp_path / f"{name}.png") for name in "abcd"]
    write_scan_parts(tmp_path, scans)
    with pytest.raises(
        BadInput, match=r"has 4 scans; give the path of one: a\.npz, b\.npz, c\.npz and 1 more"
    ):
        scan_parts(tmp_path)
    assert scan_parts(tmp_path / "c.npz") == scans[2]
    assert scan_parts(tmp_path / "other.npz") == ScanParts(tmp_path / "other.npz")


def test_a_port_and_an_address_that_cannot_be_used_are_refused(scanned: tuple[Path, Path, Any]) -> None:
    view = ScanView(ScoreMap.load(scanned[0]), scanned[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            BadInput, match=f"host=127.0.0.1, port={port}: cannot be used: Address already in use"
        ):
            serve(view, port)
    with pytest.raises(
        BadInput, match=r"host=192\.0\.2\.1, port=0: cannot be used"
    ):  # of RFC 5737, for examples
        serve(view, host="192.0.2.1")


def test_an_image_of_another_size_is_refused(scanned: tuple[Path, Path, Any]) -> None:
    with pytest.raises(BadInput, match="the image has 4×5 pixels; the scan is of 300×520"):
        ScanView(ScoreMap.load(scanned[0]), scanned[0], np.zeros((4, 5, 3), np.uint8))
