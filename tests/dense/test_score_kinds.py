"""Score kinds: read from a network's last operator, kept with the scores, and never assumed without a warning."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import onebyone
from onebyone.dense import ScoreMap, scan
from onebyone.detection import detect
from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.laws.geometry import Geometry
from onebyone.laws.scores import ScoreKind
from onebyone.pytorch.lift.dense_file import load_dense
from onebyone.records import Labels

Tail = Callable[[torch.Tensor], object]


class Network(nn.Module):
    """Three scores for windows of 8, and a last operator after them."""

    def __init__(self, tail: Tail, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.head, self.tail = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, classes), tail

    def forward(self, x: torch.Tensor) -> object:
        return self.tail(self.head(torch.relu(self.conv(x)).flatten(1)))


def network(tail: Tail, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(tail, classes).eval()


TAILS: dict[str, tuple[Tail, str | None]] = {
    "linear": (lambda z: z, "logits"),
    "temperature": (lambda z: z / 2.5 + 1, "logits"),
    "softmax": (lambda z: z.softmax(1), "probabilities:exclusive"),
    "log_softmax": (lambda z: z.log_softmax(-1), "log-probabilities:exclusive"),
    "sigmoid": (lambda z: z.sigmoid(), "probabilities:multi-label"),
    "logsigmoid": (nn.functional.logsigmoid, "log-probabilities:multi-label"),
    "sigmoid in place": (lambda z: (z.sigmoid_(), z)[1], "probabilities:multi-label"),
    "sigmoid and views": (lambda z: z.sigmoid().view(-1, 3, 1).squeeze(2).contiguous(), "probabilities:multi-label"),
    "sigmoid, clamped": (lambda z: z.sigmoid().clamp(1e-4, 1 - 1e-4), "probabilities:multi-label"),
    "dropout after": (lambda z: nn.functional.dropout(z.sigmoid(), training=False), "probabilities:multi-label"),
    "exponential of log_softmax": (lambda z: z.log_softmax(1).exp(), "probabilities:exclusive"),
    "softmax, background cut off": (lambda z: z.softmax(1)[:, 1:], "probabilities"),
    "two heads joined": (lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], 1), "probabilities:multi-label"),
    "two softmaxes joined": (lambda z: torch.cat([z.softmax(1), z[:, :2].softmax(1)], 1), "probabilities"),
    "unlike heads joined": (lambda z: torch.cat([z[:, :1].sigmoid(), z[:, 1:]], 1), None),
    "tanh": (lambda z: z.tanh(), None),
    "relu": (lambda z: z.relu(), None),
    "complement": (lambda z: 1 - z.sigmoid(), None),
    "gated": (lambda z: z.sigmoid() * z.tanh(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", TAILS)
def test_the_last_operator_determines_the_kind(name: str) -> None:
    tail, kind = TAILS[name]
    (output,) = onebyone.convolutionalize(network(tail), window=8).outputs
    assert (None if output.kind is None else str(output.kind)) == kind


#: For each kind, the probabilities by the textbook in float64, from the logits alone.
RIGHT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda z: z.softmax(1),
    "softmax": lambda z: z.softmax(1),
    "log_softmax": lambda z: z.softmax(1),
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "logsigmoid": lambda z: 1 / (1 + torch.exp(-z)),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("classes", [3, 1])
def test_every_head_is_detected_with_its_probabilities(name: str, classes: int, tmp_path: Path) -> None:
    """Scan, saved map, detections and each file format, against crops and the textbook formula in float64."""
    if classes == 1 and "softmax" in name:
        pytest.skip("softmax over one class is 1 everywhere")
    net = network(TAILS[name][0], classes)
    image = np.random.default_rng(1).normal(size=(11, 12, 1)).astype(np.float32)
    onebyone.convolutionalize(net, window=8).save(tmp_path / "d.pt2")
    onebyone.scan(tmp_path / "d.pt2", image, out=tmp_path / "s.npz")
    detections = onebyone.detect(tmp_path / "s.npz", threshold=0.3, iou=1)

    logits = network(lambda z: z, classes).double()
    crops = torch.from_numpy(image[..., 0]).double().unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 1, 8, 8)
    rule = RIGHT["logsigmoid"] if classes == 1 else RIGHT[name]
    with torch.no_grad():
        right = rule(logits(crops)).reshape(4, 5, classes)
    assert (right.min(), right.max()) != (0.3, 0.3)
    expected = {
        (k, j, i): right[i, j, k].item()
        for i in range(4) for j in range(5) for k in range(classes) if right[i, j, k] >= 0.3
    }  # fmt: skip
    rows = {(r["label"], int(r["x1"]), int(r["y1"])): r["score"] for r in detections.to_dicts()}
    assert rows.keys() == expected.keys()
    # a float32 network of 144 products, and one exponential: 2^-24 · 200 on values of order 1
    assert max(abs(rows[key] - expected[key]) for key in rows) < 2**-16
    for ending in ("json", "geojson", "csv"):
        detections.save(tmp_path / f"f.{ending}")
    best = detections.scores[0].item()
    assert json.loads((tmp_path / "f.json").read_text())[0]["score"] == best
    assert json.loads((tmp_path / "f.geojson").read_text())["features"][0]["properties"]["score"] == best
    assert float(next(csv.DictReader((tmp_path / "f.csv").read_text().splitlines()))["score"]) == best


GEOMETRY = Geometry((4, 4), (2, 2), (0, 0), (4, 4), (0, 0), True)


def one_position(values: list[float], kind: str | None, labels: Labels | None = None) -> ScoreMap:
    scores = np.array(values, np.float32).reshape(-1, 1, 1)
    values_, _, classes = (kind or "").partition(":")
    score_kind = ScoreKind(values_, classes or None) if kind else None
    return ScoreMap(scores, GEOMETRY, labels or Labels(), (4, 4), kind=score_kind)


@pytest.mark.parametrize(
    ("values", "kind", "right"),
    [
        ([0.001], "probabilities", [0.001]),
        ([0.95, 0.9, 0.02], "probabilities:multi-label", [0.95, 0.9, 0.02]),
        ([math.log(0.95), math.log(0.9), math.log(0.02)], "log-probabilities:multi-label", [0.95, 0.9, 0.02]),
        ([math.log(19), math.log(9), -math.log(49)], "logits:multi-label", [0.95, 0.9, 0.02]),
        ([math.log(0.7), math.log(0.2), math.log(0.1)], "logits", [0.7, 0.2, 0.1]),
        ([math.log(0.7), math.log(0.2), math.log(0.1)], "logits:exclusive", [0.7, 0.2, 0.1]),
        ([math.log(0.7), math.log(0.2)], "log-probabilities", [0.7, 0.2]),
        ([0.0], "logits", [0.5]),
    ],
)
def test_each_kind_has_its_formula(values: list[float], kind: str, right: list[float]) -> None:
    np.testing.assert_allclose(one_position(values, kind).probabilities().ravel(), right, rtol=2**-20)


@pytest.mark.parametrize(
    ("values", "taken", "right"),
    [
        ([0.001], "probabilities", [0.001]),
        ([0.95, 0.9, 0.02], "probabilities", [0.95, 0.9, 0.02]),
        ([-math.log(999)], "logits", [0.001]),
        ([math.log(0.95), math.log(0.9)], "logits", [0.95 / 1.85, 0.9 / 1.85]),
        ([3.0], "logits", [1 / (1 + math.exp(-3))]),
        ([0.0, 30.0], "logits", [math.exp(-30) / (1 + math.exp(-30)), 1 / (1 + math.exp(-30))]),
    ],
)
def test_an_unknown_kind_is_assumed_with_a_warning(
    values: list[float], taken: str, right: list[float]
) -> None:
    scores = one_position(values, None)
    with pytest.warns(OnebyoneWarning, match=f"so they are taken as {taken}.*score_kind='{taken}'"):
        np.testing.assert_allclose(scores.probabilities().ravel(), right, rtol=2**-20)
    with pytest.warns(OnebyoneWarning):
        before = detect(scores, threshold=0, iou=1).scores
    assert np.array_equal(before, detect(scores, threshold=0, iou=1, score_kind=taken).scores)


@pytest.mark.parametrize("values", [[-1.0, 0.5], [-1.0, 3.0], [0.25, 0.75], [math.log(0.25), math.log(0.75)]])
def test_values_that_determine_their_kind_give_no_warning(values: list[float]) -> None:
    one_position(values, None).probabilities()  # warnings are errors in tests


def test_a_sigmoid_near_zero_detects_nothing() -> None:
    geometry = Geometry((64, 64), (16, 16), (0, 0), (64, 64), (0, 0), True)
    scores = ScoreMap(
        np.full((1, 10, 10), 1e-3, np.float32), geometry, Labels(classes=("tumour",)), (208, 208)
    )
    with pytest.warns(OnebyoneWarning, match="every score is from 0 to 1"):
        assert len(detect(scores, threshold=0.5, iou=1)) == 0


def test_background_of_a_multi_label_head_leaves_the_others_alone() -> None:
    labels = Labels(("a", "b", "none"), background=("none",))
    detections = detect(one_position([0.95, 0.9, 0.9], "probabilities:multi-label", labels), iou=1)
    assert list(zip(detections.names, detections.scores.tolist(), strict=True)) == [
        ("a", np.float32(0.95)),
        ("b", np.float32(0.9)),
    ]


def test_a_stated_kind_overrides_the_one_that_was_read() -> None:
    net = network(lambda z: z)
    image = np.random.default_rng(1).normal(size=(8, 8, 1)).astype(np.float32)
    d = onebyone.convolutionalize(net, window=8)
    z = scan(d, image).scores[:, 0, 0].astype(np.float64)
    exclusive, each = np.exp(z) / np.exp(z).sum(), 1 / (1 + np.exp(-z))
    stated = onebyone.convolutionalize(net, window=8, score_kind="logits:multi-label")
    for right, scores in (
        (exclusive, scan(d, image)),
        (exclusive, scan(stated, image, score_kind="logits:exclusive")),
        (exclusive, scan(stated, image, softmax=True)),
        (each, scan(d, image, score_kind="logits:multi-label")),
        (each, scan(stated, image)),
    ):
        np.testing.assert_allclose(scores.probabilities()[:, 0, 0], right, rtol=2**-20)
    assert scan(d, image, softmax=False).kind == ScoreKind("probabilities")
    with pytest.raises(BadInput, match="score_kind='logits' and softmax=True were both given"):
        scan(d, image, softmax=True, score_kind="logits")


@pytest.mark.parametrize("text", ["sigmoid", "logits:some", "probabilities:", ":exclusive", ""])
def test_an_unknown_kind_name_is_refused(text: str) -> None:
    message = (
        "expected logits, probabilities or log-probabilities, alone or followed by :exclusive or :multi-label"
    )
    with pytest.raises(BadInput, match=message):
        detect(one_position([0.0], "logits"), score_kind=text)


def test_scores_that_contradict_their_kind_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"score_kind='probabilities:multi-label': the scores range from -3 to 0.5"
    ):
        one_position([-3.0, 0.5], "probabilities:multi-label").probabilities()
    with pytest.raises(BadInput, match=r"the largest score is 2; expected at most 0"):
        one_position([-3.0, 2.0], "log-probabilities").probabilities()


def test_files_of_earlier_versions_load_as_unknown(tmp_path: Path) -> None:
    """A map without `kind` but with `softmax`, and a dense file without `outputs`."""
    scores = one_position([0.25, 0.75], None)
    meta = {
        "format": "onebyone.ScoreMap/1", "geometry": GEOMETRY.to_dict(), "labels": Labels(scale=1.0).to_dict(),
        "image_size": [4, 4], "seconds": 0.0, "device": "cpu", "passes": 1,
    }  # fmt: skip
    for softmax, kind in ((None, None), (True, ScoreKind("logits")), (False, ScoreKind("probabilities"))):
        np.savez(
            tmp_path / "s.npz", scores=scores.scores, meta=np.array(json.dumps({**meta, "softmax": softmax}))
        )
        assert ScoreMap.load(tmp_path / "s.npz").kind == kind

    d = onebyone.convolutionalize(network(lambda z: z.sigmoid()), window=8)
    note = d.to_dict()
    d.save(tmp_path / "d.pt2")
    assert load_dense(tmp_path / "d.pt2").outputs == d.outputs
    assert note.pop("outputs") == [{"name": "0", "channels": 3, "scores": "probabilities:multi-label"}]
    from onebyone.pytorch.lift import dense_file

    extra = {"onebyone.json": json.dumps({"version": 1, **note})}
    torch.export.save(dense_file.export_dense(d), tmp_path / "old.pt2", extra_files=extra)
    old = load_dense(tmp_path / "old.pt2")
    assert old.outputs == ()
    assert scan(old, np.zeros((8, 8, 1), np.float32)).kind is None


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ([nn.ReLU(inplace=True)], None),
        ([nn.ReLU(inplace=True), nn.Sigmoid()], ScoreKind("probabilities", "multi-label")),
        ([nn.Identity(), nn.Hardtanh(inplace=True)], None),
        ([], ScoreKind("logits")),
    ],
)
def test_operators_in_place(last: list[nn.Module], kind: ScoreKind | None) -> None:
    trunk = [nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 4)]
    (output,) = onebyone.convolutionalize(nn.Sequential(*trunk, *last).eval(), 8).outputs
    assert output.kind == kind


@pytest.mark.parametrize("stated", ["logits:multi-label", None])
def test_a_saved_network_keeps_its_stated_kind_when_it_is_convolutionalized_again(
    stated: str | None, tmp_path: Path
) -> None:
    network_ = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    onebyone.convolutionalize(network_, window=8, score_kind=stated).save(tmp_path / "d.pt2")
    again = onebyone.convolutionalize(tmp_path / "d.pt2", window=8)
    assert [str(o.kind) for o in again.outputs] == [stated or "logits"]
    other = onebyone.convolutionalize(tmp_path / "d.pt2", window=8, score_kind="log-probabilities")
    assert [str(o.kind) for o in other.outputs] == ["log-probabilities"]
