"""The command line reads what it wrote: each verb on a converted program, at each level, gives the network's numbers
or the one true reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import onebyone
import onebyone.pytorch.lift.dense_file
from onebyone.pytorch.files.program_file import load_program
from tests.cli.conftest import NETWORKS, run_command

LEVELS = ("layers", "native", "graph")
PLAIN = f"{NETWORKS}:plain"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`LEVEL.pt2` at each level, and `image.npy`, made by the commands."""
    folder = tmp_path_factory.mktemp("converted")
    np.save(folder / "image.npy", np.random.default_rng(0).random((30, 41, 3)).astype(np.float32))
    for level in LEVELS:
        written = folder / f"{level}.pt2"
        made = run_command("convert", ":plain", "--level", level, "--shape", "1,3,16,16", "-o", written)
        assert made.code == 0, made.err
    made = run_command(
        "convert", ":plain", "--level", "graph", "--shape", "2,3,16,16", "-o", folder / "graph2.pt2"
    )
    assert made.code == 0, made.err
    return folder


@pytest.mark.parametrize("level", LEVELS)
def test_converted_back_and_verified(converted, tmp_path, level):
    program = converted / f"{level}.pt2"
    made = run_command("convert", program, "--to", "linear", "-o", tmp_path / "back.pt2")
    assert made.code == 0, made.err
    for file, to in ((program, "linear"), (tmp_path / "back.pt2", "conv")):
        proof = run_command("verify", file, "--to", to, "--json")
        assert proof.code == 0, proof.err
        assert proof.json["equivalent"]
    net, x = (
        onebyone.loading.require_network(PLAIN),
        torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
    )
    back = load_program(tmp_path / "back.pt2").program.module()(x)
    assert (back - net(x)).abs().max() <= 1e-5 * net(x).abs().max()


def scores_equal_those_of_the_crops(scores, image):
    """Compare three windows of a score map with the network on the cropped windows."""
    net = onebyone.loading.require_network(PLAIN)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    for i, j in ((0, 0), (3, 5), (scores.shape[1] - 1, scores.shape[2] - 1)):
        crop = pixels[None, :, 2 * i : 2 * i + 16, 2 * j : 2 * j + 16]
        expected = net(crop)[0].detach().numpy()
        assert np.abs(scores[:, i, j] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("level", ["layers", "native", "graph2"])
def test_scanned_with_a_window(converted, tmp_path, level):
    """The scores are those of the network on each window."""
    program, out = converted / f"{level}.pt2", tmp_path / "scores.npz"
    made = run_command("convolutionalize", program, "--window", 16, "--json")
    assert made.code == 0, made.err
    assert made.json["geometry"]["window"] == [16, 16]
    scan = run_command("scan", program, converted / "image.npy", "--window", 16, "-o", out)
    assert scan.code == 0, scan.err
    scores_equal_those_of_the_crops(np.load(out)["scores"], np.load(converted / "image.npy"))


@pytest.mark.parametrize("level", ["layers", "native", "graph2"])
def test_made_dense_and_scanned(converted, tmp_path, level):
    """The dense program that was saved gives the scores of the network on each window."""
    dense, out = tmp_path / "dense.pt2", tmp_path / "scores.npz"
    made = run_command("convolutionalize", converted / f"{level}.pt2", "--window", 16, "-o", dense)
    assert made.code == 0, made.err
    scan = run_command("scan", dense, converted / "image.npy", "-o", out)
    assert scan.code == 0, scan.err
    scores_equal_those_of_the_crops(np.load(out)["scores"], np.load(converted / "image.npy"))


@pytest.mark.parametrize("level", LEVELS)
def test_compared_tuned_and_drawn(converted, tmp_path, level):
    program = converted / f"{level}.pt2"
    for words in (
        ("compare", program, "--budget", 1, "--rows", "S1"),
        ("tune", program, "--budget", 0.5, "--engines", "eager"),
        ("draw", program, "-o", tmp_path / "pictures", "--figures", "F1,strip"),
    ):
        answer = run_command(*words, "--json")
        assert answer.code == 0, (words, answer.err)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("verb", ["scan", "detect"])
def test_what_takes_something_else_gives_the_one_true_reason(converted, level, verb):
    program = converted / f"{level}.pt2"
    words = ("scan", program, converted / "image.npy") if verb == "scan" else ("detect", program)
    answer = run_command(*words)
    assert answer.code == 2
    said = " ".join(answer.err.split())
    if verb == "scan":
        assert (
            "is a converted network that takes inputs of one size, not a dense one; give its window" in said
        )
    else:
        assert "is not a score map: it has no 'meta'; expected the .npz that `scan` writes" in said


def test_a_graph_of_one_sample_is_refused_for_its_batch(converted):
    """Its reshapes name the example's sizes, the batch among them."""
    for words in (
        ("convolutionalize", converted / "graph.pt2"),
        ("scan", converted / "graph.pt2", converted / "image.npy"),
    ):
        answer = run_command(*words, "--window", 16)
        assert answer.code == 2
        said = " ".join(answer.err.split())
        assert "its graph does not run on a batch of 2; export it with a free batch dimension" in said


def test_a_saved_conversion_takes_any_batch_where_the_network_does(converted):
    net = onebyone.loading.require_network(PLAIN)
    for level in ("layers", "native"):
        module = load_program(converted / f"{level}.pt2").program.module()
        for n in (1, 2, 5):
            x = torch.randn(n, 3, 16, 16)
            assert (module(x) - net(x)).abs().max() <= 1e-5 * net(x).abs().max()


def test_dense_file_keeps_its_preprocessing_where_a_window_is_given(tmp_path):
    """The file's scale, classes and kind of scores are used, whether its window is repeated or not."""
    dense, image = tmp_path / "dense.pt2", tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).integers(0, 256, (30, 41, 3)).astype(np.uint8))
    made = run_command(
        "convolutionalize", ":plain", "--window", 16, "--scale", "1/255", "--scores", "logits:multi-label",
        "-o", dense, "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    maps = []
    for number, window in enumerate(((), ("--window", 16), ("--window", "16,16"))):
        found = run_command("scan", dense, image, *window, "-o", tmp_path / f"{number}.npz")
        assert found.code == 0, found.err
        maps.append(onebyone.dense.ScoreMap.load(tmp_path / f"{number}.npz"))
    for other in maps[1:]:
        assert (other.scores == maps[0].scores).all()
        assert (other.labels, str(other.kind)) == (maps[0].labels, "logits:multi-label")
    refused = run_command("scan", dense, image, "--window", 20)
    assert refused.code == 2
    assert "is a dense network with a window of 16×16" in " ".join(refused.err.split())
    again = run_command("convolutionalize", dense, "--window", 16, "-o", tmp_path / "again.pt2")
    assert again.code == 0, again.err
    assert onebyone.pytorch.lift.dense_file.load_dense(tmp_path / "again.pt2").labels.scale == pytest.approx(
        1 / 255
    )
