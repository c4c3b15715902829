"""Class maps, and the agreement of dense results with crops, on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.cli.conftest import Run


def test_a_class_map_is_verified_and_a_network_without_one_refused(run: Run) -> None:
    done = run("convolutionalize", ":padded", "--window", 12, "--head", "cam", "--verify")
    assert done.code == 0, done.err
    assert "means of the class map" in done.out
    assert "equal the outputs of cropped windows" in " ".join(done.out.split())
    refused = run("convolutionalize", ":plain", "--window", 16, "--head", "cam")
    assert refused.code == 3
    assert "no average pool" in refused.err


def test_a_scan_with_which_few_crops_agree_exits_with_one(run: Run, folder: Path) -> None:
    np.save(folder / "image.npy", np.random.default_rng(0).random((24, 24, 3), dtype=np.float32))
    made = run("convolutionalize", ":far_sighted", "--window", 8, "-o", "far.pt2")
    assert made.code == 0, made.err
    assert "4.75 times the window of 8×8 (more than 4)" in made.err
    few = run("scan", "far.pt2", "image.npy", "-o", "few.npz")
    assert few.code == 1
    assert "same best class as when cropped" in few.out, "the result is shown"
    assert "fewer than the share of --min-agreement 0.5: scan with --mode windows" in few.err
    found = run("detect", "few.npz")
    assert found.code == 1
    assert "--min-agreement" in found.err
    accepted = run("scan", "far.pt2", "image.npy", "--min-agreement", 0, "--json")
    assert accepted.code == 0, accepted.err
    assert accepted.json["agreement"]["windows"] == 8
    assert accepted.json["agreement"]["share"] < 0.5
    assert any("fewer than 95%" in note for note in accepted.json["notes"])
    assert run("detect", "few.npz", "--min-agreement", 0).code == 0
    cropped = run("scan", "far.pt2", "image.npy", "--mode", "windows", "--json", "-o", "all.npz")
    assert cropped.code == 0, cropped.err
    assert cropped.json["agreement"] is None
    assert cropped.json["geometry"]["exact"] is True
    assert run("detect", "all.npz").code == 0


def test_verifying_has_the_floor_too(run: Run) -> None:
    few = run("convolutionalize", ":far_sighted", "--window", 8, "--verify", "--json")
    assert few.code == 1
    assert few.json["verification"]["class_agreement"] < 0.5
    told = run("convolutionalize", ":far_sighted", "--window", 8, "--verify", "--min-agreement", 0)
    assert told.code == 0, told.err
    assert "warning: " in told.out


def test_a_better_window_is_a_note(run: Run) -> None:
    made = run("convolutionalize", ":partial", "--window", 24)
    assert made.code == 0
    assert "at a window of 25×25 it would be" in made.err
