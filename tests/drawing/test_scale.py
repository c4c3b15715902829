"""Lengths and counts in the files agree with the data."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from onebyone.drawing import describe, render
from onebyone.drawing.figures import before_after, feature_maps, neurons, pointwise
from onebyone.errors import BadInput
from tests.drawing import svgs
from tests.drawing.networks import MADE, drawing, zoo

BANK = [*(n for n in MADE if n != "neither"), *zoo()]


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("name", BANK)
def test_f1_lengths_are_to_scale_in_channels(name: str, width: str) -> None:
    data = drawing(name)
    layer = pointwise.choose(data)
    parts = svgs.groups(render(data, "F1", width=width))
    unit = svgs.extent(parts["input"])[0] / layer.inputs
    rounding = 0.01 * (1 + max(layer.outputs / layer.inputs, 1))  # files hold hundredths: two corners, twice
    assert svgs.extent(parts["output"])[0] == pytest.approx(unit * layer.outputs, abs=rounding)
    drawn = [v for k, v in parts.items() if re.fullmatch(r"filter-\d+", k)]
    assert len(drawn) == len(layer.drawn) == min(8, layer.outputs)
    for one in drawn:
        assert svgs.extent(one)[0] == pytest.approx(unit * layer.per_filter, abs=rounding)


def test_f1_shows_a_group_s_channels_alone() -> None:
    svg = render(drawing("residual"), "F1", layer="groups")
    parts = svgs.groups(svg)
    assert svgs.extent(parts["filter-0"])[0] == pytest.approx(svgs.extent(parts["input"])[0] / 4, abs=0.02)
    assert "4 groups" in " ".join(line.text for line in svgs.texts(svg))


def test_f1_weights_are_coloured_by_sign_and_strength() -> None:
    data = drawing("demo")
    layer = pointwise.choose(data)
    cells = list(svgs.groups(render(data, "F1"))["weights"].iter(f"{svgs.SVG}polygon"))
    values = np.array(layer.filters[0][: len(cells)])
    assert len(cells) == 64
    colours = [c.attrib["fill"] for c in cells]
    assert len(set(colours)) == 2
    assert all(
        (a == b) == (x * y > 0)
        for a, x in zip(colours, values, strict=True)
        for b, y in [(colours[0], values[0])]
    )
    strengths = [float(c.get("opacity", 1)) for c in cells]
    np.testing.assert_allclose(strengths, np.abs(values) / np.abs(values).max(), atol=0.006)


@pytest.mark.parametrize("name", BANK)
def test_f2_draws_what_it_says(name: str) -> None:
    data = drawing(name)
    svg = render(data, "F2", width="page")
    parts = svgs.groups(svg)
    edges = [v for k, v in parts.items() if k.startswith("edges-")]
    shown = [c for c in data.connected if any((e[0].text or "").startswith(f"{c.path}: ") for e in edges)]
    assert len(edges) >= 1
    said = " ".join(line.text for line in svgs.texts(svg))
    for number, edge in enumerate(edges):
        layer = next(c for c in shown if (edge[0].text or "").startswith(f"{c.path}: "))
        lines = sum(len(re.findall("M", e.attrib["d"])) for e in edge.iter(f"{svgs.SVG}path"))
        assert lines == sum(w != 0 for row in layer.weights for w in row)
        for column, count in ((number, layer.inputs), (number + 1, layer.outputs)):
            dots = list(parts[f"neurons-{column}"].iter(f"{svgs.SVG}circle"))
            drawn = sum(
                float(d.attrib["r"]) != 0.7 for d in dots
            )  # the gap's three dots stand for the others
            assert drawn == min(16, count)
            assert (len(dots) - drawn == 3) == (count > 16)
            assert f"{count:,}" in said
            assert ("all drawn" if drawn == count else f"{drawn} drawn") in said


def test_f2_colours_are_the_signs() -> None:
    data = drawing("one layer")
    (edge,) = (v for k, v in svgs.groups(render(data, "F2")).items() if k.startswith("edges-"))
    by_colour: dict[str, int] = {}
    for path in edge.iter(f"{svgs.SVG}path"):
        colour = path.attrib["stroke"]
        by_colour[colour] = by_colour.get(colour, 0) + path.attrib["d"].count("M")
    weights = np.array(data.connected[0].weights)
    assert sorted(by_colour.values()) == sorted([int((weights > 0).sum()), int((weights < 0).sum())])


def test_f2_says_which_map_was_flattened() -> None:
    said = {n: " ".join(t.text for t in svgs.texts(render(drawing(n), "F2"))) for n in ("demo", "one layer")}
    assert "The inputs are a flattened map of 32×5×5." in said["demo"]
    assert "flattened" not in said["one layer"]


def test_f2_can_be_asked_for_a_layer() -> None:
    data = drawing("tokens")
    assert [c.path for c in neurons.choose(data)] == ["head"]
    assert [c.path for c in neurons.choose(data, "blocks.1.3")] == ["blocks.1.1", "blocks.1.3"]
    assert pointwise.choose(data, "blocks.1.3").path == "blocks.1.3"
    for figure in ("F1", "F2"):
        with pytest.raises(BadInput, match="layer='nowhere'"):
            render(data, figure, layer="nowhere")
    deep = svgs.groups(render(drawing("deep"), "F2"))
    assert sum(k.startswith("edges-") for k in deep) < 21
    assert "of 21 successive layers are drawn" in " ".join(
        line.text for line in svgs.texts(render(drawing("deep"), "F2"))
    )


@pytest.mark.parametrize("name", [n for n in BANK if n not in ("pointwise",)])
def test_f3_accounts_for_every_layer(name: str) -> None:
    data = drawing(name)
    layers = before_after.layers(data)
    said = " ".join(line.text for line in svgs.texts(render(data, "F3")))
    desc = ElementTree.fromstring(render(data, "F3"))[1].text or ""
    told = sum(int(n) for n in re.findall(r"\((\d+) identical layers\)", desc))
    once = (
        desc.count(" becomes a ")
        - len(re.findall(r"identical layers\)", desc))
        - len(re.findall(r"becomes a \S+ pool", desc))
    )
    assert told + once == len(layers)
    assert ("×" in said and f"{len(layers)} layers; identical" in said) == (told > 0)


def test_f3_merges_identical_layers() -> None:
    runs = before_after.runs(before_after.layers(drawing("tokens")), before_after._key)
    assert [(run.times, [r.path for r in run.first]) for run in runs] == [
        (3, ["blocks.0.1", "blocks.0.3"]),
        (1, ["head"]),
    ]


@pytest.mark.parametrize("name", BANK)
def test_the_strip_begins_with_the_input_and_ends_with_the_output(name: str) -> None:
    data = drawing(name)
    values = feature_maps.values(data)
    assert values[0].sizes == data.input
    assert sorted(values[-1].sizes) == sorted(data.steps[-1].output)
    drawn = sum(len(run.first) for run in feature_maps.runs(values, feature_maps.StripValue.key))
    assert sum(k.startswith("value-") for k in svgs.groups(render(data, "strip"))) == drawn


def test_the_strip_counts_repeated_blocks() -> None:
    runs = feature_maps.runs(feature_maps.values(drawing("tokens")), feature_maps.StripValue.key)
    assert [run.times for run in runs if run.times > 1] == [3]


def _rectangle(element: ElementTree.Element) -> tuple[float, float, float, float]:
    shape = next(e for e in element if e.tag in (f"{svgs.SVG}polygon", f"{svgs.SVG}path"))
    if shape.tag.endswith("path"):
        numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", shape.attrib["d"])]
        corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    else:
        corners = svgs.points(shape)
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


@pytest.mark.parametrize("name", ["demo", "residual"])
def test_the_window_is_in_exact_pixels(name: str) -> None:
    data = drawing(name)
    g = data.geometry
    assert g is not None
    image = np.zeros((96, 72, 3), np.uint8)
    svg = render(data, "window", image=image)
    parts = svgs.groups(svg)
    (ground,) = ElementTree.fromstring(svg).iter(f"{svgs.SVG}image")
    left, top, wide = (float(ground.attrib[k]) for k in ("x", "y", "width"))
    unit = wide / 72
    index = tuple((n - 1) // 2 for n in g.positions((96, 72)))
    after = (index[0], index[1] + 1)
    spans = {
        "window": g.window_at(index),
        "next-window": g.window_at(after),
        "field": g.receptive_field_at(index),
    }
    for name_, ((y1, y2), (x1, x2)) in spans.items():
        pixels = [
            (v - o) / unit for v, o in zip(_rectangle(parts[name_]), (left, top, left, top), strict=True)
        ]
        assert pixels == pytest.approx([x1, y1, x2, y2], abs=0.02 / unit)
    predictions = len(list(parts["predictions"].iter(f"{svgs.SVG}circle")))
    assert predictions == np.prod(g.positions((96, 72)))


def test_an_image_that_does_not_fit() -> None:
    data = drawing("demo")
    with pytest.raises(BadInput, match="smaller than the window"):
        render(data, "window", image=np.zeros((20, 90, 3), np.uint8))
    with pytest.raises(BadInput, match="image has two"):
        render(drawing("signal"), "window", image=np.zeros((20, 90, 3), np.uint8))
    with pytest.raises(BadInput, match="cannot read"):
        render(data, "window", image="nowhere.png")


def test_a_network_of_one_size_says_why() -> None:
    said = " ".join(line.text for line in svgs.texts(render(drawing("tokens"), "window")))
    assert "input 16×16: one window" in said
    assert "class token" in said


def test_a_long_strip_draws_blocks_as_one() -> None:
    """All blocks have different channels, so none are merged: too many values for a column."""
    sizes = range(8, 68, 2)
    blocks = (nn.Sequential(nn.Conv2d(a, 3, 1), nn.Conv2d(3, a + 2, 1)) for a in sizes)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Sequential(*blocks))
    data = describe(model, torch.zeros(1, 1, 4, 4))
    values = feature_maps.values(data)
    assert len(values) == 2 + 2 * len(sizes)
    whole, joined = feature_maps.strip_runs(values, 1000)
    assert not joined
    assert sum(len(run.first) for run in whole) == len(values)
    short, joined = feature_maps.strip_runs(values, 40)
    assert joined
    drawn = [v for run in short for v in run.first]
    assert [v.channels for v in drawn] == [1, 8, *(a + 2 for a in sizes)]
    assert sum(len(v.steps) for v in drawn) == len(data.steps)  # no step is lost
    least, _ = feature_maps.strip_runs(values, 1)
    assert [v.channels for run in least for v in run.first] == [1, 8, 68]
    svg = render(data, "strip")
    assert "For each block, its last value is drawn." in " ".join(line.text for line in svgs.texts(svg))
    assert svgs.size(svg)[1] < 9 * 72
