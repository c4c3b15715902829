"""The whole comparison, the choice of layers, and its renderings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import onebyone
from onebyone.comparison import Comparison, experiments
from onebyone.comparison.claim_result import HOLDS, NOT_AS_SAID, NOT_AVAILABLE, WHEN
from onebyone.comparison.claims import CLAIMS
from onebyone.comparison.layer_calls import record_layer_calls
from onebyone.comparison.layer_pair import MAX_WEIGHTS, choose_layers
from onebyone.comparison.operation import FROM_NETWORK
from onebyone.errors import BadInput
from tests.comparison.conftest import network

IMAGE = torch.randn(1, 3, 8, 7, generator=torch.Generator().manual_seed(1))
QUICK = [i for i in CLAIMS if i not in ("S5", "R4", "R3")]


@pytest.fixture(scope="module")
def result() -> Comparison:
    return onebyone.compare(network(), IMAGE, budget=5, rows=QUICK)


def test_verdicts_of_a_plain_network(result: Comparison) -> None:
    kinds = {row.id: row.kind for row in result.rows}
    expected = dict.fromkeys(["S1", "S2", "S3", "S4", "D1", "D3", "D8", "R1", "R2"], HOLDS)
    expected |= dict.fromkeys(["D2", "D5", "D7"], WHEN) | dict.fromkeys(["D4", "D6"], NOT_AS_SAID)
    assert kinds == expected
    assert list(kinds) == QUICK


def test_renderings_say_the_same(result: Comparison, tmp_path: Path) -> None:
    data = json.loads(result.to_json())
    assert [row["id"] for row in data["rows"]] == QUICK
    assert set(data["rows"][0]) >= {"id", "statement", "verdict", "figures", "because"}
    text, markdown, page = str(result), result.to_markdown(), result._repr_html_()
    for row in result.rows:
        assert row.verdict in markdown
        assert row.verdict.upper() in text
        assert row.id in page
    assert "2, a layer of the network; 8×6×5 → 6" in text
    assert json.loads(result.save(tmp_path / "c.json").read_text()) == data
    assert result.save(tmp_path / "c.md").read_text() == markdown
    with pytest.raises(BadInput, match="expected a name that ends in"):
        result.save(tmp_path / "c.txt")


def test_pictures_are_plain_arrays(result: Comparison) -> None:
    support = result["D1"].pictures["support"]["connected"]
    assert len(support) == 6
    assert len(support[0]) == 5
    assert "pictures" not in result["D1"].figures


def test_the_same_seed_gives_the_same_figures(result: Comparison) -> None:
    untimed = [i for i in QUICK if i != "D5"]
    again = onebyone.compare(network(), IMAGE, budget=5, rows=untimed)
    for name in untimed:
        assert again[name].figures == result[name].figures


def test_the_network_is_left_as_it_was() -> None:
    model = network().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    random = torch.get_rng_state()
    onebyone.compare(model, IMAGE, budget=1, rows=["S1", "S2", "R1", "R3"])
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="rows=X1: expected some of S1"):
        onebyone.compare(network(), IMAGE, rows=["X1"])
    with pytest.raises(BadInput, match="the network does not run on it"):
        onebyone.compare(network(), torch.zeros(1, 3, 9, 9))
    with pytest.raises(BadInput, match="nothing to compare"):
        onebyone.compare(nn.Conv2d(3, 4, 3), IMAGE)
    with pytest.raises(BadInput, match="example: is missing"):
        onebyone.compare(network())
    with pytest.raises(BadInput, match="positive number of seconds"):
        onebyone.compare(network(), IMAGE, budget=0)
    broken = network()
    with torch.no_grad():
        broken[5].weight[0, 0] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(BadInput, match="holds NaN"):
        onebyone.compare(broken, IMAGE, rows=["S1"])


def test_a_spent_budget_and_a_network_without_windows_are_reasons() -> None:
    late = onebyone.compare(network(), IMAGE, budget=1e-9, rows=["R4"])["R4"]
    assert late.verdict == NOT_AVAILABLE
    assert "budget" in late.because
    assert late.figures["own"]["windows"] > 1, "the dense pass of the network is measured first"
    assert "this network scans " in late.because
    flat = onebyone.compare(nn.Linear(4, 3), torch.randn(1, 4), rows=["R3"])["R3"]
    assert flat.verdict == NOT_AVAILABLE
    assert "windows require images" in flat.because


def test_a_small_budget_leaves_out_what_matters_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which every row takes a minute: verification and the network's dense pass are not skipped."""
    now = [0.0]
    monkeypatch.setattr(experiments, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    plain = experiments._row

    def row(*args: Any) -> Any:
        now[0] += 60
        return plain(*args)

    monkeypatch.setattr(experiments, "_row", row)
    r = onebyone.compare(network(), IMAGE, budget=60, rows=["S1", "S5", "D4", "R1", "R3", "R4"])
    assert r.verification is not None
    assert r.verification["equivalent"] is True
    assert {row.id for row in r.rows if row.verdict == NOT_AVAILABLE} == {"S5", "R3", "R4"}
    assert r["R4"].figures["own"]["same_class"] == 1
    assert set(r["S5"].figures) == set(r["R3"].figures) == set()
    assert "Times as fast as cropping every window" in r.to_html()
    order = [e.id for e in experiments.EXPERIMENTS if e.long]
    assert order.index("R4") < order.index("S5")


def test_a_network_of_one_output() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    rows = onebyone.compare(model, torch.randn(1, 3, 2, 2), budget=1, rows=["S3", "D3", "D7"]).rows
    assert [row.kind for row in rows] == [HOLDS, HOLDS, WHEN]


def test_progress_is_reported() -> None:
    reported: list[tuple[int, int]] = []
    onebyone.compare(network(), IMAGE, rows=["S1", "D4"], progress=lambda *at: reported.append(at))
    assert reported == [(1, 2), (2, 2)]


# the choice of layers


def pair_of(model: nn.Module, *shape: int) -> dict[str, tuple[str, tuple[int, int, int], str]]:
    pair = choose_layers(record_layer_calls(model, torch.randn(*shape)))
    picked = {"connected": pair.connected, "pointwise": pair.pointwise}
    return {k: (op.path, op.map_shape, op.origin) for k, op in picked.items()}


def test_the_network_s_own_layers_are_chosen() -> None:
    assert pair_of(network(), 1, 3, 8, 7) == {
        "connected": ("5", (6, 6, 5), FROM_NETWORK),
        "pointwise": ("2", (8, 6, 5), FROM_NETWORK),
    }


def test_a_missing_layer_is_converted_from_the_other() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 6), nn.ReLU(), nn.Linear(6, 5))
    assert pair_of(linear, 1, 3, 4, 4)["pointwise"] == (
        "3",
        (6, 1, 1),
        "converted from a linear layer",
    )
    conv = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert pair_of(conv, 1, 3, 4, 4)["connected"] == (
        "0",
        (3, 1, 1),
        "converted from a 1×1 convolution",
    )
    tokens = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 6))
    assert pair_of(tokens, 1, 9, 6)["pointwise"][1] == (6, 9, 1)


def test_strides_subsample_before() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    found = choose_layers(record_layer_calls(model, torch.randn(1, 3, 9, 6)))
    assert found.pointwise.map_shape == (3, 5, 3)
    assert "stride (2, 2)" in found.pointwise.origin
    assert found.spatial["pooled"].map_shape == (4, 5, 3)
    assert found.spatial["connected"].map_shape == (4, 5, 3)
    assert found.spatial["connected"].origin.startswith("created for the comparison")


def test_a_channels_last_flatten_is_put_in_order() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 1), nn.Linear(3 * 4 * 5, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).permute(0, 2, 3, 1).flatten(1))

    model, x = Last().double(), torch.randn(1, 2, 4, 5, dtype=torch.float64)
    found = choose_layers(record_layer_calls(model, x)).connected
    assert found.map_shape == (3, 4, 5)
    torch.testing.assert_close(found(model.conv(x)), model(x))


def test_functions_between_the_layers_are_followed() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 3 * 2, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.head(torch.relu(self.fc(torch.flatten(x, 1))))

    class Pooled(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x)).mean((2, 3)).repeat(1, 2)[:, :5])

    assert pair_of(Plain(), 1, 3, 8, 6)["connected"][1] == (4, 3, 2)
    seen = {s.path: s for s in record_layer_calls(Pooled(), torch.randn(1, 3, 8, 6))}
    assert seen["head"].pooled is None
    mean = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)
    )
    assert record_layer_calls(mean, torch.randn(1, 3, 8, 6))[-1].pooled == (5, 6, 4)


def test_one_position_stored_channels_last_is_not_a_row_of_positions() -> None:
    """As in the head of ConvNeXt: pooled, normalised channels-last, flattened."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x.mean((2, 3), keepdim=True).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.fc(x.flatten(1))

    assert pair_of(Head(), 1, 6, 5, 5)["connected"] == ("fc", (6, 1, 1), FROM_NETWORK)


def test_an_exported_program_is_compared() -> None:
    model, x = network(), torch.randn(2, 3, 8, 7)
    program = torch.export.export(model, (x,))
    ours, theirs = (
        onebyone.compare(m, e, budget=5, rows=["S1", "D1", "R1", "R2", "R3"])
        for m, e in ((program, None), (model, x))
    )
    assert ours.layers == theirs.layers
    assert [r.verdict for r in ours.rows] == [r.verdict for r in theirs.rows]
    assert ours["S1"].figures == theirs["S1"].figures


def test_chosen_layers_compute_what_the_network_s_do() -> None:
    model = network().double()
    x = IMAGE.double()
    found = choose_layers(record_layer_calls(model, x))
    maps = model[:2](x)
    assert torch.equal(found.pointwise(maps), model[2](maps))
    maps = model[:4](x)
    assert torch.equal(found.connected(maps), model[5](maps.flatten(1)))


def test_a_head_of_zeros_gets_random_weights() -> None:
    model = network()
    with torch.no_grad():
        model[5].weight.zero_()  # type: ignore[operator]
    op = choose_layers(record_layer_calls(model, IMAGE)).connected
    assert op.path == "5"
    assert "all zero" in op.origin
    assert bool((op.weight != 0).all())


def test_large_layers_are_sampled() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64 * 8 * 8, 1024), nn.ReLU(), nn.Linear(1024, 3))
    op = choose_layers(record_layer_calls(model, torch.randn(1, 64, 8, 8))).connected
    assert len(op.weight) == MAX_WEIGHTS // 4096
    assert op.sampling == "512 of 1024 outputs"


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:resnet18", "timm:mixer_s32_224"])
def test_rows_on_real_networks(name: str) -> None:
    result = onebyone.compare(
        name, torch.randn(1, 3, 224, 224), budget=5, rows=["S1", "S4", "D1", "D3", "D7", "R2"]
    )
    assert all(row.kind in (HOLDS, WHEN) for row in result.rows)


@pytest.mark.parametrize("verb", ["compare", "draw"])
def test_weights_without_real_numbers_are_named(verb: str) -> None:
    call = getattr(onebyone, verb)
    with pytest.raises(BadInput, match=r"0\.weight is on the meta device and has no values"):
        call(nn.Sequential(nn.Linear(4, 3)).to("meta"), torch.zeros(2, 4, device="meta"))
    with pytest.raises(BadInput, match=r"0\.weight is of type torch\.complex64; expected real numbers"):
        call(nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64)), torch.zeros(2, 4, dtype=torch.complex64))
