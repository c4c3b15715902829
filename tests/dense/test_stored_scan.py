"""Scans into a file: the same map as in memory, kept over crashes, with what failed reported."""

from __future__ import annotations

import errno
import hashlib
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onebyone
from onebyone.dense import ScoreMap, WindowClassifier, plan_scan, scan, scan_windows
from onebyone.dense.fingerprint import of_image, of_network
from onebyone.dense.images import open_image
from onebyone.dense.memory_budget import peak_bytes, read_bytes
from onebyone.errors import BadInput, Refused, Unfinished
from onebyone.laws.geometry import Geometry
from onebyone.stores.regions import Region
from onebyone.stores.source import ArraySource
from tests.interpreter import ROOT, run_python

from .networks import coordinate_image, corner_net, exact_net, integer_image, padded_net
from .test_killed_scans import SCRIPT, digest

NETS = {"exact": exact_net(), "padded": padded_net()}


class FaultySource:
    """An image of which some regions cannot be read, the first `times` times."""

    def __init__(self, values: np.ndarray, at: tuple[int, int], times: int) -> None:
        self._source, self.at, self.times = ArraySource(values), at, times
        self.size, self.channels, self.dtype = self._source.size, self._source.channels, self._source.dtype

    def read(self, region: Region) -> np.ndarray:
        if all(s.start <= a < s.stop for s, a in zip(region, self.at, strict=True)) and self.times > 0:
            self.times -= 1
            raise OSError(errno.EIO, "Input/output error")
        return self._source.read(region)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize(("tile", "shifts", "batch"), [(3, 1, 1), (3, 1, 4), (4, 2, 3), (10**6, 1, 1)])
def test_a_file_holds_the_map_of_a_scan_in_memory(
    net: Any, tile: int, shifts: int, batch: int, tmp_path: Path
) -> None:
    image, out = integer_image(83, 71), tmp_path / "scores.npz"
    expected = scan(net, image, shifts=shifts, compared=0).scores
    result = scan(net, image, out=out, tile=tile, shifts=shifts, batch=batch, compared=0)
    np.testing.assert_array_equal(result.scores, expected)
    np.testing.assert_array_equal(ScoreMap.load(out).scores, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.npz"]


@pytest.mark.parametrize("name", ["s.zarr", "s.npy", "s.tif"])
def test_every_format_holds_the_same_map_and_the_same_bytes_after_a_crash(name: str, tmp_path: Path) -> None:
    net, image = padded_net(), integer_image(83, 71)[..., None]
    expected = scan(net, image, compared=5)
    for out in (tmp_path / "a" / name, tmp_path / "b" / name):
        out.parent.mkdir()
        broken = FaultySource(image, (50, 40), times=10**9 if "b" in out.parts else 0)
        if broken.times:
            with pytest.raises(Unfinished):
                scan(net, broken, out=out, tile=5, compared=5)
            broken.times = 0
        result = scan(net, broken, out=out, tile=5, compared=5)
        np.testing.assert_array_equal(np.asarray(result.scores), expected.scores)
        assert result.agreement == expected.agreement
        loaded = ScoreMap.load(out)
        assert loaded.geometry == expected.geometry
        for region, part in loaded.regions():
            np.testing.assert_array_equal(part, expected.scores[:, *(s.slice for s in region)])
        np.testing.assert_array_equal(loaded.scores[:, 3, 2], expected.scores[:, 3, 2])
    a, b = (
        {p.relative_to(tmp_path / x): digest(p) for p in (tmp_path / x).rglob("*") if p.is_file()}
        for x in "ab"
    )
    assert a == b


def test_a_file_of_others_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    out.mkdir()
    (out / "data").write_text("mine")
    net, runs = exact_net(), []
    net.model[0].register_forward_hook(lambda *_: runs.append(1))
    with pytest.raises(Refused, match="not overwritten"):
        scan(net, integer_image(83, 71), out=out, tile=3)
    assert len(runs) <= 1  # the run that finds the number of channels
    assert (out / "data").read_text() == "mine"
    with pytest.raises(BadInput, match=r"expected a name that ends in one of npz, zarr"):
        scan(net, integer_image(83, 71), out=tmp_path / "s.h5")


def test_aligned_blocks_tile_every_small_size_exactly() -> None:
    """Exhaustive over sizes, blocks and shifts: every position once, in chunks, and reads as in one pass."""
    for net in NETS.values():
        geometry = net.geometry
        axis = Geometry(*(v[:1] for v in (geometry.window, geometry.stride, geometry.window_offset)),
                        geometry.receptive_field[:1], geometry.receptive_field_offset[:1], True)  # fmt: skip
        for more, tile, shifts in product(range(40), range(1, 9), (1, 2, 4)):
            size = geometry.window[0] + more
            plan = plan_scan(axis, (size,), tile=tile, shifts=shifts, aligned=True)
            covered = sorted(
                i for t in plan for i in range(t.write[0].start, t.write[0].stop, t.write[0].step)
            )
            assert covered == list(range(plan.positions[0]))
            for part in plan:
                region = plan.block_region(part.block)[0]
                assert region.start == part.block[0] * plan.tile[0]
                assert region.stop == min(region.start + plan.tile[0], plan.positions[0])
            assert len({t.read_shape for t in plan}) <= 1 + 2 * (shifts > 1) + 2 * any(axis.halo[0])


@pytest.mark.parametrize("size", [(20, 23), (27, 31), (41, 36)])
def test_aligned_tiles_equal_one_pass_in_float64(size: tuple[int, int]) -> None:
    """Real weights: the network runs on each tile in float64, and the difference is rounding."""
    for name, net in NETS.items():
        torch.manual_seed(1)
        model = net.model.double()
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        x = torch.randn(1, 1, *size, dtype=torch.float64)
        with torch.no_grad():
            whole = model(x)
        bound = 1e-12 * whole.abs().max().item()  # 2^-53 times the few hundred terms of a sum
        for tile in range(1, 5):
            for t in plan_scan(net.geometry, size, tile=tile, aligned=True):
                with torch.no_grad():
                    part = model(x[:, :, t.read[0].slice, t.read[1].slice])
                kept = part[:, :, t.keep[0].slice, t.keep[1].slice]
                difference = (kept - whole[:, :, t.write[0].slice, t.write[1].slice]).abs().max().item()
                assert difference <= bound, (name, tile, t, difference, bound)
        NETS.update(exact=exact_net(), padded=padded_net())


def test_finished_blocks_are_not_computed_again(tmp_path: Path) -> None:
    net, out, image = exact_net(), tmp_path / "s.npz", integer_image(83, 71)
    stop = FaultySource(image[..., None], (70, 60), times=10**9)
    with pytest.raises(
        Unfinished, match=r"^\d+ tile\(s\) could not be computed \(rows .* columns .*: .*error"
    ):
        scan(net, stop, out=out, tile=3)
    runs: list[int] = []
    handle = net.model.register_forward_hook(lambda *_: runs.append(1))
    stop.times = 0
    scan(net, stop, out=out, tile=3)
    handle.remove()
    assert 0 < len(runs) < len(plan_scan(net.geometry, (83, 71), tile=3, aligned=True)) / 2
    np.testing.assert_array_equal(ScoreMap.load(out).scores, scan(net, image).scores)


def test_an_unreadable_region_is_reported_with_its_place_and_the_rest_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "s.npz"
    broken = FaultySource(integer_image(83, 71)[..., None], (50, 40), times=10**9)
    with pytest.raises(Unfinished) as error:
        scan(exact_net(), broken, out=out, tile=3, shifts=2, batch=4)
    assert error.value.exit_code == 2
    assert not out.exists()
    plan = plan_scan(exact_net().geometry, (83, 71), tile=3, shifts=2, aligned=True)
    blocks = {t.block for t in plan}
    lost = {
        t.block for t in plan if all(s.start <= a < s.stop for s, a in zip(t.read, (50, 40), strict=True))
    }
    starts = [
        tuple(map(int, p.stem.split("_"))) for p in (tmp_path / "s.npz.partial" / "blocks").rglob("*.npy")
    ]
    kept = {tuple(s // t for s, t in zip(start, plan.tile, strict=True)) for start in starts}
    assert kept < blocks
    # shifted passes of a block are read together, so a block is lost where any of its passes is
    assert lost == blocks - kept or lost < blocks - kept
    assert len(error.value.failures) == len(blocks - kept)


@pytest.mark.filterwarnings("ignore:bfloat16. on a tile:onebyone.errors.InexactWarning")
@pytest.mark.parametrize("option", [{"half": "bfloat16"}, {"nodata": 9}])
def test_what_reads_the_image_beforehand_leaves_an_unreadable_region_to_the_scan(
    option: dict[str, Any], tmp_path: Path
) -> None:
    """The error of 16 bits is measured on another tile, and the pixels in the region are taken to have data."""
    plan = plan_scan(exact_net().geometry, (83, 71), tile=3, aligned=True)
    rows, columns = list(plan)[len(plan) // 2].read
    broken = FaultySource(integer_image(83, 71)[..., None], (rows.start + 3, columns.start + 3), times=10**9)
    with pytest.raises(Unfinished, match="All others are kept") as error:
        scan(exact_net(), broken, out=tmp_path / "s.npz", tile=3, **option)
    kept = list((tmp_path / "s.npz.partial" / "blocks").rglob("*.npy"))
    assert len(kept) + len(error.value.failures) == len({t.block for t in plan})


def test_a_region_that_can_be_read_at_the_third_attempt_is_no_failure(tmp_path: Path) -> None:
    image = integer_image(83, 71)
    flaky = FaultySource(image[..., None], (50, 40), times=0)
    key = of_image(None, flaky)
    flaky.times = 2
    assert key["content"] == of_image(None, ArraySource(image[..., None]))["content"]
    result = scan(exact_net(), flaky, out=tmp_path / "s.npz", tile=8)
    np.testing.assert_array_equal(result.scores, scan(exact_net(), image).scores)


def test_values_that_are_not_finite_are_reported_with_their_tile(tmp_path: Path) -> None:
    image = coordinate_image(40, 30)
    image[31, 2, 1] = np.nan
    with pytest.raises(Unfinished, match="values that are not finite"):
        scan(corner_net(5, 2), image, out=tmp_path / "s.npz", tile=4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shifts": 2}, "plan differ"),
        ({"tile": 4}, "plan differ"),
        ({"batch": 2}, "batch was 1 and is 2"),
        ({"mode": "windows"}, "windows was None and is"),
        ({"score_kind": "logits"}, "kind was None and is logits"),
    ],
)
def test_other_settings_do_not_go_on(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    out = tmp_path / "s.npz"
    broken = FaultySource(integer_image(83, 71)[..., None], (80, 68), times=10**9)
    with pytest.raises(Unfinished):
        scan(exact_net(), broken, out=out, tile=3)
    with pytest.raises(BadInput, match=f"unfinished results of another scan .*{named}"):
        scan(exact_net(), broken, out=out, **{"tile": 3, **change})


def stop_at_the_first_tile(done: int, total: int) -> None:
    """Progress of a scan that is interrupted."""
    if done:
        raise Unfinished("interrupted", [])


def test_another_image_or_network_does_not_go_on(tmp_path: Path) -> None:
    out, image = tmp_path / "s.npz", integer_image(83, 71)[..., None]
    with pytest.raises(Unfinished):
        scan(exact_net(), FaultySource(image, (80, 68), 10**9), out=out, tile=3)
    other = image.copy()
    other[0, 0] += 1
    with pytest.raises(BadInput, match="image differ"):
        scan(exact_net(), FaultySource(other, (80, 68), 10**9), out=out, tile=3)
    between = image.copy()
    between[40, 50] += 1  # at none of the places whose pixels identify a file
    with pytest.raises(Unfinished):
        scan(exact_net(), image, out=tmp_path / "a.npz", tile=3, progress=stop_at_the_first_tile)
    with pytest.raises(BadInput, match="image differ"):
        scan(exact_net(), between, out=tmp_path / "a.npz", tile=3)
    net = exact_net()
    with torch.no_grad():
        net.model[0].bias[0] += 1
    with pytest.raises(BadInput, match="weights differ"):
        scan(net, FaultySource(image, (80, 68), 10**9), out=out, tile=3)


def test_only_the_samples_of_an_array_in_a_file_are_read_before_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4000, 4000, 1), np.uint8))
    source = open_image(tmp_path / "a.npy")
    sizes: list[int] = []
    update = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *data: (sizes.extend(map(len, data)), update(*data))[1])
    found = of_image(tmp_path / "a.npy", source)
    assert (sum(sizes), "modified" in found, "values" in found) == (25 * 32 * 32, True, False)


def test_a_removal_that_was_interrupted_does_not_stop_the_next_scan(tmp_path: Path) -> None:
    net, image, out = exact_net(), integer_image(83, 71)[..., None], tmp_path / "s.npz"
    with pytest.raises(Unfinished):
        scan(net, FaultySource(image, (80, 68), 10**9), out=out, tile=3)
    shutil.rmtree(tmp_path / "s.npz.partial" / "blocks")
    scan(net, image, out=out, tile=3)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]
    (tmp_path / "s.npz.partial").mkdir()
    scan(net, image, out=out, tile=3)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "s.npz.partial"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="was not made by a scan"):
        scan(exact_net(), integer_image(83, 71), out=tmp_path / "s.npz")
    assert (folder / "letter.txt").read_text() == "dear"


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(tmp_path: Path) -> None:
    """The size of every file is limited, as a full file system limits it: the first blocks of the small scan fit."""
    script = SCRIPT.replace("print(", "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                            "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\nprint(")  # fmt: skip
    out = tmp_path / "s.npz"
    limited = run_python("-c", script, str(out), "3000", folder=ROOT)
    assert limited.returncode != 0
    assert "BadInput: cannot write" in limited.stderr
    assert not out.exists()
    left = [p.name for p in (tmp_path / "s.npz.partial").rglob("*") if p.is_file()]
    assert {"scan.json", "done"} <= set(left)
    assert not any(name.startswith(".") for name in left)
    assert run_python("-c", SCRIPT, str(out), folder=ROOT).returncode == 0
    np.testing.assert_array_equal(
        ScoreMap.load(out).scores, scan(exact_net(), integer_image(120, 110), compared=0).scores
    )


class Mixing(nn.Module):
    """A classifier of 8×8 windows that normalises over the instance, which no dense form computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.fc = nn.Linear(4 * 64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.norm(self.conv(x)).flatten(1))
        return result


def test_windows_of_a_network_that_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixing().eval()
    with pytest.raises(Refused, match="mode='windows'"):
        onebyone.convolutionalize(model, window=8)
    classifier = WindowClassifier.of(model, window=8, stride=(4, 2), channels=1)
    image = integer_image(33, 29).astype(np.float32)
    result = scan(classifier, image, out=tmp_path / "s.npz", mode="windows", tile=3)
    assert result.scores.shape == (3, 7, 11)
    with torch.no_grad():
        for i, j in np.ndindex(7, 11):
            crop = torch.from_numpy(image[4 * i : 4 * i + 8, 2 * j : 2 * j + 8].copy())[None, None]
            expected = model(crop)[0].numpy()
            # the sums have 256 terms: γ₂₅₆ of float32 times the magnitudes, which are below 100
            np.testing.assert_allclose(result.scores[:, i, j], expected, atol=256 * 2**-24 * 100)


def test_windows_in_a_file_equal_windows_in_memory(tmp_path: Path) -> None:
    net, image = padded_net(), integer_image(60, 50)
    expected = scan_windows(net.model, image, replace(net.geometry, exact=True), labels=net.labels)
    result = scan(net, image, out=tmp_path / "s.npz", mode="windows", tile=4, batch=3)
    np.testing.assert_array_equal(result.scores, expected.scores)


def test_a_stride_is_a_number_of_shifts(tmp_path: Path) -> None:
    net, image = exact_net(), integer_image(60, 50)
    np.testing.assert_array_equal(scan(net, image, stride=2).scores, scan(net, image, shifts=2).scores)
    with pytest.raises(BadInput, match="stride=3: expected a divisor of the network's stride 4: 1, 2, 4"):
        scan(net, image, stride=3)


@pytest.mark.parametrize("text", ["", "4 parsecs", "-1GB", "0", 0])
def test_other_memory_is_refused(text: str | int) -> None:
    with pytest.raises(BadInput, match="expected a number of bytes"):
        read_bytes(text)


def test_a_memory_that_is_too_small_says_how_much_is_needed() -> None:
    with pytest.raises(BadInput, match=r"memory=1MB: expected at least .*GB, of which the process occupies"):
        scan(exact_net(), integer_image(83, 71), memory="1MB")


def test_live_bytes_count_what_exists_at_the_same_time() -> None:
    chain = nn.Sequential(*(nn.Conv2d(2, 2, 1, bias=False) for _ in range(5)))
    assert peak_bytes(chain, (1, 2, 10, 10)) == 3 * 800  # the input, which the caller holds, and two maps

    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.exp(), x.sin()], 1)

    assert peak_bytes(Branches(), (1, 1, 10, 10)) == 400 * 5


def test_the_same_content_has_the_same_fingerprint() -> None:
    assert of_network(exact_net().model) == of_network(exact_net().model) != of_network(exact_net(2).model)
    image = integer_image(83, 71)[..., None]
    changed = image.copy()
    changed[-1, -1] += 1
    assert of_image(None, ArraySource(image)) == of_image(None, ArraySource(image.copy()))
    assert of_image(None, ArraySource(image)) != of_image(None, ArraySource(changed))
