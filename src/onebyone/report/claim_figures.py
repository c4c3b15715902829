"""A picture for each row of a comparison that one says more for, drawn from the row's plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from onebyone.records import by
from onebyone.report import charts
from onebyone.report.charts import Series
from onebyone.report.images import svg_text
from onebyone.report.number_format import counted, number, percent, plain

Data = Mapping[str, Any]
NAMES = {"pointwise": "1×1 convolution", "connected": "fully connected", "pooled": "global pool + FC"}
ROLES = ("pointwise", "kernel", "connected", "pooled")
BOUND = "the rounding bound"


class ClaimFigure(NamedTuple):
    """HTML of a drawing, and the caption under it."""

    html: str
    caption: str


def picture(row: Data) -> ClaimFigure | None:
    """The row's picture; None where the row has none, or was not measured."""
    draw = _BY_ROW.get(row["id"])
    return draw(row["figures"], row["pictures"]) if draw and row["figures"] else None


def role_name(role: str, figures: Data) -> str:
    """A role in words: a k×k convolution by its size."""
    return NAMES.get(role) or str(figures.get("name", role))


def _roles(figures: Data) -> list[tuple[str, Data]]:
    return [(role, figures[role]) for role in ROLES if isinstance(figures.get(role), Mapping)]


def _ratios(rows: Sequence[tuple[str, Sequence[float], str]], what: str) -> str:
    told = "; ".join(f"{name}: {', '.join(number(v) for v in values[:4])}" for name, values, _ in rows)
    return charts.dots(rows, f"{what}, over {BOUND}, on a logarithmic scale. {told}", 1.0, BOUND)


def _s1(figures: Data, _: Data) -> ClaimFigure:
    rows = []
    for name, css in (("fully connected", "c-connected"), ("pointwise", "c-pointwise")):
        found = figures[name]
        rows.append((f"{name}: bias taken off", [plain(found["superposition_ratio"])], css))
        rows.append((f"{name}: as it is, with its bias", [plain(found["with_bias_ratio"])], css))
    html = _ratios(rows, "Error of superposition")
    return ClaimFigure(
        html, "Left of the rule: superposition holds but for rounding. Right of it: it does not."
    )


def _s3(figures: Data, _: Data) -> ClaimFigure:
    measured = (("collapse_ratio", "without"), ("activation_ratio", f"with {figures['activation']}"))
    rows = [
        (f"{words}: {form}", [plain(figures[key][form])], css)
        for key, words in measured
        for form, css in (("fully connected", "c-connected"), ("pointwise", "c-pointwise"))
    ]  # fmt: skip
    return ClaimFigure(
        _ratios(rows, "Distance of two layers from one matrix"),
        "How far two layers in a row are from the one matrix that is their product.",
    )


def _s5(figures: Data, _: Data) -> ClaimFigure:
    series = [
        Series(
            f"{name} head",
            [(p["parameters"], p["accuracy"]) for p in figures["curves"][name]],
            css,
        )
        for name, css in (("pooled", "c-pointwise"), ("flattened", "c-connected"))
    ]
    told = "; ".join(
        f"{s.name}: " + ", ".join(f"{percent(a)} at {p:,.0f}" for p, a in s.points) for s in series
    )
    label = f"Held-out accuracy over parameters. {told}"
    html = charts.line_chart(
        series, "parameters of the head", "accuracy", label, (True, False), y_range=(0, 1)
    )
    return ClaimFigure(
        html, f"Mean of {len(figures['curves']['pooled'][0]['accuracies'])} starts, on real digits."
    )


def _scope(figures: Data, pictures: Data) -> ClaimFigure:
    support = pictures["support"]
    roles = [r for r in _roles(figures) if r[0] in support]
    parts: list[str] = []
    told, top = [], 0.0
    for pair in (roles[:2], roles[2:]):
        sides = [_side(support[role]) for role, _ in pair]
        for place, (role, found) in enumerate(pair):
            x = charts.WIDTH / 2 * place
            name, words = role_name(role, found), f"{found['places_reached']} of {found['places']} places"
            parts.append(svg_text(x, top + 14, name, "name", "start"))
            parts.append(svg_text(x, top + 31, words, "tick", "start"))
            parts.append(charts.cells(support[role], x, top + 40, sides[place], f"c-{role}"))
            told.append(f"{name}: {words}")
        if pair:
            top += 56 + max(side * len(support[role]) for side, (role, _) in zip(sides, pair, strict=True))
    html = charts.drawing("".join(parts), top - 14, f"Which input places one output reads. {'; '.join(told)}")
    return ClaimFigure(
        html, "The support of the Jacobian: what the outputs at the middle place (or of the vector) read."
    )


def _side(grid: Sequence[Sequence[float]]) -> float:
    """Of a square, so that the grid is no larger than half the picture."""
    return min(14.0, 132 / max(len(grid), len(grid[0])))


def _share(figures: Data, _: Data) -> ClaimFigure:
    rows = [
        (role_name(role, f), f["share_of_inputs"], percent(f["share_of_inputs"]), f"c-{role}")
        for role, f in _roles(figures)
    ]
    told = "; ".join(f"{name}: {words}" for name, _, words, _ in rows)
    html = charts.bars(rows, f"Share of the inputs that reach one output. {told}", 1.0)
    return ClaimFigure(html, "The share of the input numbers that reach one output.")


def _d3(figures: Data, _: Data) -> ClaimFigure:
    rows = []
    for role, found in _roles(figures):
        name = role_name(role, found)
        for key, words in (
            ("along_ratio", "against permuted answers"),
            ("change_ratio", "against the old answers"),
            ("undone_ratio", "weights permuted too"),
        ):
            if key in found:
                rows.append((f"{name}: {words}", [plain(found[key])], f"c-{role}"))
    return ClaimFigure(
        _ratios(rows, "What permuting the pixels changes"),
        "Left of the rule nothing has changed but for rounding.",
    )


def _d4(figures: Data, _: Data) -> ClaimFigure:
    sizes = figures["sizes"]
    most = max(max(s["inputs"], s["outputs"]) for s in sizes)
    least = min(min(s["inputs"], s["outputs"]) for s in sizes)
    ends = (max(1.0, least / 1.5), most * 1.5)
    x, y = charts.frame(ends, ends, (True, True), 300)
    ticks = [t for t in (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536) if ends[0] <= t <= ends[1]]
    parts = [charts.axes(x, y, "channels in", "channels out", ticks)]
    parts.append(charts.line(x.at(ends[0]), y.at(ends[0]), x.at(ends[1]), y.at(ends[1]), "mark"))
    css = {"linear": "c-connected", "pointwise": "c-pointwise"}
    parts += [charts.dot(x.at(s["inputs"]), y.at(s["outputs"]), f"{css[s['kind']]} part", 4.5) for s in sizes]
    kinds = (("linear", "linear layers"), ("pointwise", "1×1 convolutions"))
    told = "; ".join(
        f"{words}: {f['reduce']} reduce, {f['expand']} expand, {f['keep']} keep"
        for kind, words in kinds
        for f in (figures[kind],)
    )
    html = charts.drawing("".join(parts), 300, f"Channels out over channels in, each layer a dot. {told}")
    html += charts.legend([(words, css[kind]) for kind, words in kinds])
    return ClaimFigure(
        html, "Each layer of the network. On the rule: as many out as in; above it more, below it fewer."
    )


def _d5(figures: Data, _: Data) -> ClaimFigure | None:
    table = figures.get("times", {}).get("table", [])
    if len(table) < 2:
        return None
    forms = {
        "pointwise": ("1×1 convolution", "c-pointwise"),
        "pointwise as linear": ("the same, as a linear layer", "c-pointwise dashed"),
        "connected": ("flatten + FC", "c-connected"),
        "connected as convolution": ("the same, as an h×w convolution", "c-connected dashed"),
    }
    series = [
        Series(name, [(math.prod(r["size"]), 1e3 * r["seconds"][form]["median"]) for r in table], css)
        for form, (name, css) in forms.items()
        if form in table[0]["seconds"]
    ]
    told = "; ".join(
        f"{s.name}: " + ", ".join(f"{number(v)} ms at {p:g} places" for p, v in s.points) for s in series
    )
    values = [v for s in series for _, v in s.points]
    label, ends = f"Measured time. {told}", (min(values) / 1.5, max(values) * 1.5)
    html = charts.line_chart(series, "places of the map", "ms", label, (True, True), y_range=ends)
    times = figures["times"]
    timed = f"{figures['channels']} channels in, {times['outputs_timed']} out"
    return ClaimFigure(
        html,
        f"Medians of {times['repeats']} runs, {timed}, {times['dtype']}, {counted(times['threads'], 'thread')}.",
    )


_PLACES = {
    "k×k convolution": "c-kernel",
    "1×1 convolution": "c-pointwise",
    "grouped 1×1 convolution": "c-pointwise faint",
    "linear layer on every token or place": "c-connected faint",
    "linear layer on a flattened map": "c-connected",
    "linear layer on a pooled map": "c-pooled",
    "linear layer on a vector": "c-other",
}
"""Colours of the places that compare's census tells apart."""


def _d6(figures: Data, _: Data) -> ClaimFigure:
    own, zoo = figures["network"]["places"], figures.get("zoo") or {}
    stacks = [("parameters", own, "of this network"), ("macs", own, "of this network")]
    if zoo.get("places"):
        stacks += [(of, zoo["places"], "of the zoo, the mean") for of in ("parameters", "macs")]
    html = _stacked(stacks)
    shown = [place for place in _PLACES if place in own or place in zoo.get("places", {})]
    names = [(f"{p} ({own[p]['layers']})" if p in own else p, _PLACES[p]) for p in shown]
    html += charts.legend(names)
    if zoo:
        rows = [
            (words, zoo[key], f"{zoo[key]}", colour)
            for key, words, colour in (
                ("with_both", "networks with both", "c-other"),
                ("linear_only", "linear layers only", "c-connected"),
                ("pointwise_only", "1×1 convolutions only", "c-pointwise"),
            )
        ]
        told = [f"{name}: {words} of {zoo['networks']}" for name, _, words, _ in rows]
        html += f'<p class="over">and of the {zoo["networks"]} networks of the zoo:</p>'
        html += charts.bars(rows, f"The model zoo. {'; '.join(told)}", zoo["networks"])
    return ClaimFigure(
        html, "Linear layers and convolutions by place, with how many of each this network has."
    )


def _stacked(stacks: Sequence[tuple[str, Data, str]]) -> str:
    """Shares of the parameters or MACs by place, a bar of the whole width for each (what, places, of what)."""
    parts, told = [], []
    for row, (of, places, whose) in enumerate(stacks):
        top, left, key = 46.0 * row, 0.0, f"share_of_{of}"
        what = of.replace("macs", "MACs")
        parts.append(svg_text(0, top + 14, f"share of the {what} {whose}", "name", "start"))
        parts.append(charts.rect(0, top + 20, charts.WIDTH, 16, "rail"))
        for place in [p for p in _PLACES if p in places]:
            share = places[place][key]
            width = charts.WIDTH * min(1.0, share)
            parts.append(charts.rect(left, top + 20, max(0.0, width - 1), 16, _PLACES[place]))
            left += width
            told.append(f"{place}: {percent(share)} of the {what} {whose}")
    return charts.drawing("".join(parts), 46.0 * len(stacks), f"Where layers stand. {'; '.join(told)}")


def _d7(figures: Data, pictures: Data) -> ClaimFigure:
    rows = [
        (role_name(role, found), [plain(e["relative"]) for e in pictures["shift_error"][role]], f"c-{role}")
        for role, found in _roles(figures)
        if pictures["shift_error"].get(role)
    ]
    if not rows:
        return ClaimFigure("", "There is nothing to shift on a map of one place.")
    told = "; ".join(f"{name}: at most {number(max(values))}" for name, values, _ in rows)
    html = charts.dots(
        rows, f"Change of the answers over their spread, a dot a shift. {told}", 1.0, "their spread"
    )
    return ClaimFigure(
        html,
        "How far the answers differ from shifted answers (vectors: from the old), over their spread; a dot a shift.",
    )


def _r2(figures: Data, _: Data) -> ClaimFigure:
    images, kernels = figures["images"], figures["convolution_weights"]
    layers = [{"made": "a made layer"}.get(name, name) or "layer" for name in figures["layers"]]
    rows = [("image", images[0], "c-other")]
    for name, kernel, image in zip(layers, kernels, images[1:], strict=True):
        rows += [(f"{name}, as kernels", kernel, "c-connected"), ("image", image, "c-other")]
    parts, told = [], []
    for place, (name, shape, css) in enumerate(rows):
        top = 46.0 * place
        parts.append(charts.rect(0, top, charts.WIDTH, 32, f"{css} box", ' rx="6"'))
        parts.append(svg_text(12, top + 21, _cut(name), "name", "start"))
        parts.append(svg_text(charts.WIDTH - 12, top + 21, by(shape), "value", "end"))
        if place + 1 < len(rows):
            parts.append(svg_text(charts.WIDTH / 2, top + 44, "↓", "tick"))
        told.append(f"{name} {by(shape)}")
    html = charts.drawing(
        "".join(parts), 46.0 * len(rows), f"The two layers as kernels: {', then '.join(told)}"
    )
    return ClaimFigure(
        html, "Images (channels × height × width) and kernels (out × in × height × width) of this network."
    )


def _cut(name: str, most: int = 24) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _r4(figures: Data, _: Data) -> ClaimFigure | None:
    quality, speed = [], []
    for name in ("unpadded", "padded"):
        found = figures.get(name)
        if not found:
            continue
        precision = found["average_precision"]
        quality.append(
            (
                f"{name}: every window cropped",
                precision["windows"],
                f"{precision['windows']:.3f}",
                "c-connected",
            )
        )
        quality.append(
            (f"{name}: one dense pass", precision["dense"], f"{precision['dense']:.3f}", "c-pointwise")
        )
        speed.append((f"digits, {name}", found["speedup"], f"{found['speedup']:.1f}×", "c-pointwise"))
    own = figures.get("own")
    if own:
        speed.append(
            (
                f"this network, {own['windows']} windows",
                own["speedup"],
                f"{own['speedup']:.1f}×",
                "c-pointwise",
            )
        )
    if not speed:
        return None
    told = "; ".join(f"{name}: {words}" for name, _, words, _ in speed)
    html = charts.bars(speed, f"Times as fast as cropping every window. {told}")
    if not quality:  # left out by the budget
        return ClaimFigure(html, "How many times as fast the dense pass is.")
    told = "; ".join(f"{name}: {words}" for name, _, words, _ in quality)
    above = charts.bars(quality, f"Average precision at IoU 0.5. {told}", 1.0)
    above += '<p class="over">and how many times as fast the dense pass is:</p>'
    return ClaimFigure(above + html, "Above: average precision of detecting digits, at IoU 0.5.")


_BY_ROW: dict[str, Callable[[Data, Data], ClaimFigure | None]] = {
    "S1": _s1, "S3": _s3, "S5": _s5, "D1": _scope, "D3": _d3, "D4": _d4, "D5": _d5, "D6": _d6, "D7": _d7,
    "D8": _share, "R2": _r2, "R4": _r4,
}  # fmt: skip
