"""Each command prints and writes the results of the Python functions, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import onebyone
from onebyone.dense import ScoreMap
from onebyone.pytorch.files.program_file import load_program
from onebyone.pytorch.files.sources import load_source
from tests.cli import networks
from tests.cli.conftest import NETWORKS, Run


def test_convert_prints_a_table_and_writes_nothing(run: Run, folder: Path) -> None:
    done = run("convert", ":plain")
    assert done.code == 0
    assert "2 layers converted, 0 refused, nothing copied" in done.out
    assert "linear = pointwise convolution" in done.out
    assert list(folder.iterdir()) == []


def test_convert_as_json_is_what_the_library_says(run: Run) -> None:
    done = run("convert", ":plain", "--json", "--only", "5")
    expected = onebyone.convert(networks.plain(), only="5").to_dict()
    assert done.json == {"source": f"{NETWORKS}:plain", **expected, "notes": []}
    assert [c["path"] for c in done.json["changes"]] == ["5"]


@pytest.mark.parametrize("level", ["layers", "native"])
def test_converted_weights_are_saved(run: Run, folder: Path, level: str) -> None:
    done = run(
        "convert",
        ":plain",
        "--level",
        level,
        "-o",
        "w.safetensors",
        "--report",
        "r.json",
        "--seed",
        4,
        "--json",
    )
    assert done.code == 0
    saved, original = load_file("w.safetensors"), load_source(f"{NETWORKS}:plain", seed=4)
    assert isinstance(original, torch.nn.Module)
    assert sorted(v.numel() for v in saved.values()) == sorted(
        v.numel() for v in original.state_dict().values()
    )
    assert done.json["output"] == "w.safetensors"
    assert json.loads((folder / "r.json").read_text()) == done.json


def test_converted_program_computes_the_same(run: Run) -> None:
    assert run("convert", ":plain", "-o", "p.pt2", "--shape", "2,3,16,16", "--seed", 1).code == 0
    x, original = torch.randn(2, 3, 16, 16), load_source(f"{NETWORKS}:plain", seed=1)
    assert isinstance(original, torch.nn.Module)
    torch.testing.assert_close(load_program("p.pt2").program.module()(x), original(x))


def test_the_whole_graph_there_and_back(run: Run) -> None:
    done = run("convert", ":plain", "--level", "graph", "--shape", "2,3,16,16", "-o", "g.pt2", "--seed", 2)
    assert done.code == 0
    assert "2 layers converted, 0 refused, nothing copied, layout operators" in done.out
    back = run("convert", "g.pt2", "--to", "linear", "-o", "back.pt2", "--json")
    assert back.code == 0
    assert back.json["level"] == "graph"
    assert len(back.json["changes"]) == 2
    x, original = torch.randn(2, 3, 16, 16), load_source(f"{NETWORKS}:plain", seed=2)
    assert isinstance(original, torch.nn.Module)
    for name in ("g.pt2", "back.pt2"):
        torch.testing.assert_close(load_program(name).program.module()(x), original(x))


def test_weights_go_into_the_network(run: Run, folder: Path) -> None:
    state = {f"module.{k}": v for k, v in networks.plain().state_dict().items()}
    save_file(state, folder / "in.safetensors")
    assert run("convert", ":plain", "--weights", "in.safetensors", "-o", "out.safetensors").code == 0
    assert all(torch.equal(v, state[f"module.{k}"]) for k, v in load_file("out.safetensors").items())


def test_verify(run: Run) -> None:
    done = run("verify", ":plain", "--shape", "2,3,16,16", "--json")
    assert done.code == 0
    assert done.json["equivalent"] is True
    assert done.json["integer_probe"] is True
    assert [layer["path"] for layer in done.json["layers"]] == ["4", "5"]
    table = run("verify", ":plain", "--shape", "2,3,16,16")
    assert table.out.rstrip().endswith("equivalent")
    assert "NOT" not in table.out


def test_verify_without_an_input_says_what_it_did_not_look_at(run: Run) -> None:
    done = run("verify", ":plain")
    assert done.code == 0
    assert "not verified:" in done.out


def test_verify_without_a_converted_layer_verifies_nothing_and_exits_with_three(run: Run) -> None:
    done = run("verify", ":refused")
    assert done.code == 3
    assert "nothing was verified: no layer was converted (1 refused)" in done.out
    assert "a subclass of nn.Linear with a forward of its own" in done.out.replace("\n", " ")
    assert done.out.rstrip().endswith("nothing verified")
    data = run("verify", ":refused", "--json").json
    assert (data["equivalent"], data["nothing_verified"], len(data["refused"])) == (False, True, 1)
    # with an input both networks run, and are the same
    assert run("verify", ":refused", "--shape", "2,3,16,16").code == 0


def test_nan_is_reported_and_never_equivalent(run: Run) -> None:
    done = run("verify", ":not_finite", "--shape", "2,3,16,16", "--json")
    assert done.code == 1
    assert done.json["equivalent"] is False
    assert done.json["notes"] == ["1 weight tensor holds NaN or infinity (4.bias)"]
    assert "note: 1 weight tensor holds NaN or infinity (4.bias)" in done.err
    assert run("convert", ":not_finite").code == 0


def test_convolutionalize_tells_the_geometry(run: Run) -> None:
    done = run("convolutionalize", ":plain", "--window", 16, "--verify", "--json")
    assert done.code == 0
    assert done.json["geometry"]["window"] == [16, 16]
    assert done.json["geometry"]["stride"] == [2, 2]
    assert done.json["geometry"]["exact"] is True
    assert done.json["channels"] == 3
    assert done.json["verification"]["equivalent"] is True
    assert done.json["verification"]["max_abs_difference"] <= done.json["verification"]["bound"]
    table = run("convolutionalize", ":plain", "--window", "16,16")
    assert "equals cropping every window  yes" in table.out


def test_padding_is_said(run: Run) -> None:
    done = run("convolutionalize", ":padded", "--window", 16)
    assert done.code == 0
    assert "equals cropping every window  no: padding" in done.out
    assert "conv2d" in done.out


def test_a_dense_network_that_fails_its_proof_is_not_written(run: Run, folder: Path) -> None:
    done = run("convolutionalize", ":not_finite", "--window", 16, "--verify", "-o", "d.pt2")
    assert done.code == 1
    assert "NOT equivalent" in done.out
    assert list(folder.iterdir()) == []


def test_the_saved_dense_network_takes_other_sizes(shelf: Path) -> None:
    network, image = load_source(f"{NETWORKS}:plain"), torch.randn(2, 3, 23, 40)
    assert isinstance(network, torch.nn.Module)
    found = load_program(shelf / "d.pt2").program.module()(image)
    assert found.shape == (2, 5, 4, 13)
    torch.testing.assert_close(found[:, :, 2, 7], network(image[:, :, 4:20, 14:30]))


def test_scan_gives_the_scores_of_the_library(run: Run, shelf: Path) -> None:
    expected = onebyone.scan(shelf / "d.pt2", np.load(shelf / "image.npy")).scores
    assert np.array_equal(ScoreMap.load(shelf / "s.npz").scores, expected)
    done = run("scan", shelf / "d.pt2", shelf / "image.npy", "--json")
    assert done.json["places"] == [8, 13]
    assert done.json["windows"] == 8 * 13 == sum(done.json["classes"].values())
    assert list(done.json["classes"]) == ["a", "b", "c", "d", "e"]


def test_scan_makes_a_network_dense_itself(run: Run, shelf: Path) -> None:
    done = run("scan", ":plain", shelf / "image.npy", "--window", 16, "--shifts", 2, "-o", "s.npz", "--json")
    assert done.code == 0
    assert done.json["places"] == [15, 26]
    finer, coarse = ScoreMap.load("s.npz").scores, ScoreMap.load(shelf / "s.npz").scores
    np.testing.assert_allclose(finer[:, ::2, ::2], coarse, atol=1e-5)


def test_preprocessing_is_applied(run: Run, shelf: Path) -> None:
    words = ("--scale", 2, "--mean", "0.5,0.25,1", "--std", "1,2,4", "--classes", "v,w,x,y,z")
    assert run("scan", shelf / "d.pt2", shelf / "image.npy", *words, "-o", "s.npz").code == 0
    prepared = (np.load(shelf / "image.npy") * 2 - (0.5, 0.25, 1)) / (1, 2, 4)
    expected = onebyone.scan(shelf / "d.pt2", prepared.astype(np.float32)).scores
    found = ScoreMap.load("s.npz")
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert found.classes == ("v", "w", "x", "y", "z")


def test_names_from_a_file(run: Run, shelf: Path, folder: Path) -> None:
    (folder / "names.txt").write_text("eins\nzwei\ndrei\nvier\nfünf\n", encoding="utf-8")
    done = run("scan", shelf / "d.pt2", shelf / "image.npy", "--classes", "@names.txt", "--json")
    assert list(done.json["classes"]) == ["eins", "zwei", "drei", "vier", "fünf"]


def test_detect_gives_the_objects_of_the_library(run: Run, shelf: Path) -> None:
    done = run("detect", shelf / "s.npz", "--threshold", 0.2, "--iou", 0.1, "--background", "a,b", "--json")
    options = {"threshold": 0.2, "iou": 0.1, "background": ("a", "b")}
    expected = onebyone.detect(shelf / "s.npz", **options).to_dicts()  # type: ignore[arg-type]
    assert done.code == 0
    assert done.json["objects"] == json.loads(json.dumps(expected))
    assert expected
    assert not {o["class"] for o in expected} & {"a", "b"}


@pytest.mark.parametrize("name", ["boxes.json", "boxes.geojson", "boxes.csv", "boxes.png"])
def test_detections_are_saved(run: Run, shelf: Path, folder: Path, name: str) -> None:
    from PIL import Image

    Image.fromarray((np.load(shelf / "image.npy") * 255).astype(np.uint8)).save(folder / "page.png")
    done = run("detect", shelf / "s.npz", "--threshold", 0.2, "-o", name, "--image", "page.png")
    assert done.code == 0
    assert f"wrote {name}" in done.out
    assert {p.name for p in folder.iterdir()} == {"page.png", name}
    if name == "boxes.geojson":
        assert json.loads((folder / name).read_text())["type"] == "FeatureCollection"


def test_nothing_found_is_an_answer(run: Run, shelf: Path) -> None:
    done = run("detect", shelf / "s.npz", "--threshold", 1)
    assert done.code == 0
    assert "0 objects" in done.out


def test_demo_passes_its_options_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone import demo

    calls = []

    def stand_in(out: Path, seed: int, progress: object) -> dict[str, object]:
        calls.append((out, seed))
        with progress("training") as tell:  # type: ignore[operator]
            tell(1, 2)
        return {"accuracy": 0.98, "integer_probe_bitwise": True, "windows": 1234, "per_class": [1, 2]}

    monkeypatch.setattr(demo, "run", stand_in)
    done = run("demo", "--output", "there", "--seed", 3)
    assert done.code == 0
    assert calls == [(Path("there"), 3)]
    assert "accuracy               0.98" in done.out
    assert "open there/index.html" in done.out
    assert run("demo", "--json").json["per_class"] == [1, 2]


@pytest.mark.zoo
@pytest.mark.slow
def test_vgg11_takes_other_sizes(run: Run, folder: Path) -> None:
    """The issue's own example: half a gigabyte of weights, written, read and run at two sizes."""
    assert run("convolutionalize", "torchvision:vgg11", "--window", "224", "-o", "vgg11.pt2").code == 0
    network, original = load_program("vgg11.pt2").program.module(), load_source("torchvision:vgg11")
    assert isinstance(original, torch.nn.Module)
    with torch.inference_mode():
        crop, wide = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 320, 416)
        torch.testing.assert_close(network(crop)[:, :, 0, 0], original(crop))
        assert network(wide).shape == (1, 1000, 4, 7)


def test_scan_of_a_folder_and_of_a_pattern(run: Run, shelf: Path, folder: Path) -> None:
    (folder / "images").mkdir()
    image = np.load(shelf / "image.npy")
    np.save(folder / "images" / "a.npy", image)
    np.save(folder / "images" / "b.npy", image[::-1])
    (folder / "images" / "notes.txt").touch()
    done = run("scan", shelf / "d.pt2", "images", "-o", "maps", "--json")
    assert (done.code, [i["output"] for i in done.json["images"]]) == (0, ["maps/a.npz", "maps/b.npz"])
    expected = [onebyone.scan(shelf / "d.pt2", v).scores for v in (image, image[::-1])]
    for name, scores in zip("ab", expected, strict=True):
        assert np.allclose(onebyone.dense.ScoreMap.load(f"maps/{name}.npz").scores, scores, atol=1e-6)
    assert run("scan", shelf / "d.pt2", "images/*.npy", "-o", "maps/*.npy").code == 0
    assert {p.name for p in (folder / "maps").glob("*.npy")} == {"a.npy", "b.npy"}


def test_one_image_of_several_fails_and_the_others_are_scanned(run: Run, shelf: Path, folder: Path) -> None:
    (folder / "images").mkdir()
    np.save(folder / "images" / "a.npy", np.zeros((3, 3, 3), np.float32))
    np.save(folder / "images" / "b.npy", np.load(shelf / "image.npy"))
    done = run("scan", shelf / "d.pt2", "images", "-o", "maps")
    assert done.code == 2
    assert "1 of 2 images were not scanned; the first: images/a.npy: " in done.err
    assert [p.name for p in (folder / "maps").iterdir()] == ["b.npz"]
    missing = run("scan", shelf / "d.pt2", "images")
    assert (missing.code, "score maps of several images" in missing.err) == (2, True)
    assert "no image is there" in run("scan", shelf / "d.pt2", "images/*.png", "-o", "maps").err
    assert run("scan", shelf / "d.pt2", "images", "-o", "images/b.npy").code == 2
