"""Scans on several processes with Dask: the same file, also where a worker is killed."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx.parser
import pytest
import torch
from torch import nn

import onebyone
from onebyone.dense import ScoreMap, scan
from onebyone.errors import BadInput, Unfinished
from onebyone.laws.geometry import Sliding
from onebyone.loading import onnx_model
from onebyone.stores.regions import Region
from onebyone.stores.source import ArraySource

from .networks import Net, exact_net, geometry_of, integer_image, integers

distributed = pytest.importorskip("distributed")


class SlowSource(ArraySource):
    """An image whose regions take a while."""

    def read(self, region: Region) -> np.ndarray:
        time.sleep(0.02)
        return super().read(region)


class BrokenSource(ArraySource):
    """An image of which one pixel cannot be read."""

    def read(self, region: Region) -> np.ndarray:
        if all(s.start <= 50 < s.stop for s in region):
            raise OSError("Input/output error")
        return super().read(region)


class WatchedSource(ArraySource):
    """An image that counts how often it is opened, and how many threads read it at the same time."""

    opened: ClassVar[list[str]] = []
    reading: ClassVar[list[int]] = []
    most: ClassVar[list[int]] = []

    def __init__(self, values: np.ndarray, process: str = "") -> None:
        super().__init__(values)
        if process:
            self.opened.append(process)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.values, "worker")

    def read(self, region: Region) -> np.ndarray:
        self.reading.append(1)
        time.sleep(0.005)
        self.most.append(len(self.reading))
        self.reading.pop()
        return super().read(region)


class Watched(nn.Module):
    """A network that notes how many threads run it at the same time."""

    running: ClassVar[list[int]] = []
    most: ClassVar[list[int]] = []

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.running.append(1)
        time.sleep(0.005)
        self.most.append(len(self.running))
        self.running.pop()
        result: torch.Tensor = self.body(x)
        return result


@pytest.fixture(scope="module")
def client() -> Any:
    from onebyone.dense.cluster import cluster_client

    with cluster_client(None, 2) as client:
        yield client


def test_two_workers_write_the_bytes_of_one_process(client: Any, tmp_path: Path) -> None:
    image = integer_image(83, 71)
    seen: list[tuple[int, int]] = []
    scan(exact_net(), image, out=tmp_path / "a.npz", tile=3, batch=2)
    scan(
        exact_net(),
        image,
        out=tmp_path / "b.npz",
        tile=3,
        batch=2,
        dask=client,
        progress=lambda *a: seen.append(a),
    )
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_workers_complete_a_pyramid_with_the_bytes_of_one_process(client: Any, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    image = integer_image(1130, 1060)
    scan(exact_net(), image, out=tmp_path / "a.zarr", tile=61)
    scan(exact_net(), image, out=tmp_path / "b.zarr", tile=61, dask=client)
    names, others = (
        sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*") if p.is_file())
        for name in ("a.zarr", "b.zarr")
    )
    assert names == others
    assert {name.parts[0] for name in names} > {"0", "1"}
    for name in names:
        assert (tmp_path / "a.zarr" / name).read_bytes() == (tmp_path / "b.zarr" / name).read_bytes()


def test_a_worker_of_several_threads_runs_one_network_on_one_image(tmp_path: Path) -> None:
    """Neither engines nor readers of images need to stand two threads; the network uses all threads itself."""
    net, image = exact_net(), integer_image(83, 71)
    scan(net, image, out=tmp_path / "a.npz", tile=3, batch=2)
    watched = Net(Watched(net.model), net.geometry)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=3, processes=False, dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        distributed.Client(cluster) as threads,
    ):  # fmt: skip
        scan(watched, WatchedSource(image[..., None]), out=tmp_path / "b.npz", tile=3, batch=2, dask=threads,
             compared=0)  # fmt: skip
    assert len(Watched.most) > 10
    assert (max(Watched.most), max(WatchedSource.most)) == (1, 1)
    assert len(WatchedSource.opened) == 1
    np.testing.assert_array_equal(
        ScoreMap.load(tmp_path / "a.npz").scores, ScoreMap.load(tmp_path / "b.npz").scores
    )


def _shown(messages: list[str]) -> list[str]:
    """Those of some future warnings that this process would print."""
    with warnings.catch_warnings(record=True) as shown:
        for line, message in enumerate(messages):
            warnings.warn_explicit(message, FutureWarning, "torch.py", line)
    return [str(warning.message) for warning in shown]


def test_workers_do_not_print_torch_s_warnings_of_its_own_graphs(client: Any) -> None:
    of_torch = "`isinstance(treespec, LeafSpec)` is deprecated, use something else"
    shown = client.run(_shown, [of_torch, "other"])
    assert list(shown.values()) == [["other"]] * 2


def test_results_of_workers_are_in_order(client: Any) -> None:
    from onebyone.dense.cluster import map_on_cluster

    assert map_on_cluster(client, math.sqrt, range(1, 24)) == [math.sqrt(n) for n in range(1, 24)]
    assert map_on_cluster(client, math.sqrt, []) == []
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        map_on_cluster(client, math.sqrt, [4, -1])


def test_workers_that_die_while_they_complete_a_file_are_reported(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebyone.dense.cluster import map_on_cluster

    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(Unfinished, match="the workers died while they completed the file"):
        map_on_cluster(client, os._exit, [1])
    client.wait_for_workers(2)


def test_the_tiles_of_a_killed_worker_are_done_again(client: Any, tmp_path: Path) -> None:
    image, out = integer_image(120, 110)[..., None], tmp_path / "s.npz"
    victim = next(iter(client.run(os.getpid).values()))
    first = threading.Event()

    def kill() -> None:
        first.wait()
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    scan(exact_net(), SlowSource(image), out=out, tile=2, dask=client,
         progress=lambda done, total: first.set() if done else None)  # fmt: skip
    killer.join()
    assert victim not in client.run(os.getpid).values()
    np.testing.assert_array_equal(ScoreMap.load(out).scores, scan(exact_net(), image).scores)


def test_a_network_of_a_file_reaches_the_workers(client: Any, tmp_path: Path) -> None:
    """What torch.export attaches to the network of a .pt2 cannot be pickled."""
    network = integers(nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)))
    onebyone.convolutionalize(network, 8, labels=onebyone.Labels(std=(1.0,))).save(tmp_path / "net.pt2")
    image = integer_image(83, 71)
    for name, options in (("a.npz", {}), ("b.npz", {"dask": client})):
        onebyone.scan(tmp_path / "net.pt2", image, out=tmp_path / name, tile=6, batch=2, **options)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_onnx_model_reaches_the_workers(client: Any, tmp_path: Path) -> None:
    graph = "g (float[N,1,H,W] x) => (float[N,2,A,B] y) <float[2,1,3,3] w = {%s}> { y = Conv(x, w) }"
    text = '<ir_version: 9, opset_import: ["" : 17]> ' + graph % ", ".join(str(k - 8) for k in range(18))
    geometry = geometry_of([Sliding(3)], 3)
    net = Net(onnx_model(onnx.parser.parse_model(text)), geometry)
    image = integer_image(40, 33)
    for name, options in (("a.npz", {}), ("b.npz", {"dask": client})):
        scan(net, image, out=tmp_path / name, tile=6, batch=2, **options)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    expected = nn.functional.conv2d(
        torch.from_numpy(image).float().reshape(1, 1, 40, 33), torch.arange(-8.0, 10.0).reshape(2, 1, 3, 3)
    )
    np.testing.assert_array_equal(ScoreMap.load(tmp_path / "b.npz").scores, expected[0].numpy())


def test_what_a_worker_cannot_read_is_reported_with_its_place(client: Any, tmp_path: Path) -> None:
    source = BrokenSource(integer_image(83, 71)[..., None])
    with pytest.raises(Unfinished, match=r"rows \d+ to \d+, columns .*Input/output error"):
        scan(exact_net(), source, out=tmp_path / "s.npz", tile=3, dask=client)


def test_a_cluster_needs_a_file_and_a_scheduler(tmp_path: Path) -> None:
    image = integer_image(83, 71)
    with pytest.raises(BadInput, match="out: is missing"):
        scan(exact_net(), image, workers=2)
    with pytest.raises(BadInput, match="workers=0: expected a positive number"):
        scan(exact_net(), image, out=tmp_path / "s.npz", workers=0)
