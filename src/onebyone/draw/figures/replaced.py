"""F3: before and after the replacement, layer by layer, with shapes, weights, and the flatten that disappears."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod, sqrt

from onebyone.draw import fonts, words
from onebyone.draw.alike import Run, common_path, runs
from onebyone.draw.data import Drawing, Replaced
from onebyone.draw.scene import (
    BODY,
    HEAD,
    LEADING,
    RISE,
    SLANT,
    SMALL,
    THIN,
    Group,
    Polygon,
    Scene,
    Shape,
    Text,
    arrow,
    box,
    line,
    lines,
    moved,
    rect,
    shortened,
    wrapped,
)

MARGIN, GUTTER = 6.0, 10.0
VALUE_ROOM, LAYER_ROOM = 21.0, 40.0
BRACKET = 17.0
MOST = 16
"""Layers (alike ones once) that are drawn with their values; of more, a table."""


def figure(data: Drawing, width: float) -> Scene:
    """Two lanes: the fully connected layers to the left, what they became to the right."""
    items = [r for r in data.replaced if r.kernel or not r.law.startswith("global pool")]
    items = [r for r in items if r.kernel] or items
    groups = runs(items, _alike)
    drawn = sum(len(run.first) for run in groups)
    body = _Lanes(data, groups, width) if drawn <= MOST else _Table(groups, width)
    shapes, bottom = body.shapes()
    notes = wrapped(_note(data, items, drawn), width - 2 * MARGIN, SMALL)
    shapes += lines(MARGIN, bottom + 12, notes, SMALL, "quiet")
    height = bottom + 12 + (len(notes) - 1) * SMALL * LEADING + 5
    return Scene("F3", width, height, _title(items), _desc(data, groups), tuple(shapes))


def _alike(r: Replaced) -> Hashable:
    return r.kind, r.weight, r.kernel, r.map, r.tokens, r.flatten is None


def _title(items: Sequence[Replaced]) -> str:
    return (
        f"{words.many(len(items), 'fully connected layer')} before and after the replacement by convolutions"
    )


def _note(data: Drawing, items: Sequence[Replaced], drawn: int) -> str:
    parts = []
    if drawn < len(items):
        parts.append(f"{len(items)} layers, alike ones drawn once with ×.")
    if data.by == "convert":
        parts.append("Each layer by itself: a vector is an image of 1×1 places" + _tokens_too(items) + ".")
        if data.refused:
            parts.append("The network takes one size only: " + data.refused[0].rstrip(".") + ".")
    pools = [r for r in data.replaced if not r.kernel and r.law.startswith("global pool")]
    if pools:
        parts.append(f"{pools[0].path or 'The global pool'} becomes a {pools[0].after}.")
    if data.kept:
        parts.append(f"Not replaced: {words.many(len(data.kept), 'layer')}.")
    parts.append("Every weight keeps its value. Bars: √ of features; boxes: √ of channels and places.")
    return " ".join(parts)


def _tokens_too(items: Sequence[Replaced]) -> str:
    return ", tokens are places" if any(r.tokens for r in items) else ""


def _desc(data: Drawing, groups: Sequence[Run[Replaced]]) -> str:
    parts = []
    for run in groups:
        for number, first in enumerate(run.first):
            path = common_path([repeat[number].path for repeat in run.repeats])
            times = f" ({run.times} times alike)" if run.times > 1 else ""
            gone = f"; the flatten of {words.shape(first.map)} disappears" if first.flatten else ""
            parts.append(f"{path}{times}: {_before(first)} becomes {_after(first)}{gone}.")
    return " ".join([*parts, _note(data, [r for run in groups for rep in run.repeats for r in rep], 10**9)])


def _before(r: Replaced) -> str:
    if not r.weight:
        return r.before
    return f"fully connected {words.count(r.weight[1])} to {words.count(r.weight[0])}, weight {words.shape(r.weight)}"


def _after(r: Replaced) -> str:
    if not r.kernel:
        return r.after
    return f"a {words.shape(r.kernel[2:])} convolution, weight {words.shape(r.kernel)}"


class _Lanes:
    """The flow of values and layers, top to bottom, in two lanes."""

    def __init__(self, data: Drawing, groups: Sequence[Run[Replaced]], width: float) -> None:
        self.data, self.groups, self.width = data, groups, width
        repeated = any(run.times > 1 for run in groups)
        self.right_edge = width - MARGIN - (BRACKET if repeated else 0)
        self.lane = (self.right_edge - MARGIN - GUTTER) / 2
        self.lefts = (MARGIN, MARGIN + self.lane + GUTTER)
        self.made: list[Shape] = []
        self.y = MARGIN
        values = [n for run in groups for r in run.first if r.weight for n in (r.weight[0], r.weight[1])]
        self.most = max(values, default=1)

    def shapes(self) -> tuple[list[Shape], float]:
        self._heads()
        previous: Replaced | None = None
        for run in self.groups:
            start = self.y
            for number, item in enumerate(run.first):
                follows = previous is not None and self._follows(previous, item)
                self._item(number, item, run, follows, previous is not None)
                previous = item
            if run.times > 1:
                self._bracket(run.times, start + 3, self.y - 2)
                previous = None if len(run.first) > 1 else previous
        return self.made, self.y

    def _heads(self) -> None:
        names = ("before: fully connected", "after: convolutions")
        for x, text in zip(self.lefts, names, strict=True):
            self.made.append(
                Text(x, self.y + 7, shortened(text, self.lane, BODY + 0.2), BODY, "ink", bold=False)
            )
        self.y += 12
        self.made.append(line((MARGIN, self.y), (self.right_edge, self.y), stroke="rule", line=THIN))
        self.y += 3

    def _follows(self, before: Replaced, after: Replaced) -> bool:
        """Whether the one reads what the other gave: two layers of one row of fully connected layers."""
        rows = self.data.chains
        return any(row[i : i + 2] == (before.path, after.path) for row in rows for i in range(len(row) - 1))

    def _item(self, number: int, item: Replaced, run: Run[Replaced], follows: bool, later: bool) -> None:
        path = common_path([repeat[number].path for repeat in run.repeats])
        if not follows:
            if later:
                self._pause()
            self._source(item)
        self._layer(item, path)
        if item.weight:
            self._value(item.weight[0], item, "out")

    def _pause(self) -> None:
        for x in self.lefts:
            self.made.append(Text(x + self.lane / 2, self.y + 7, "⋮", BODY, "quiet", "middle"))
        self.y += 12

    def _source(self, item: Replaced) -> None:
        """What the layer reads: with the flatten before it on the left, and without on the right."""
        if item.flatten is not None and prod(item.map[1:]) > 1:
            self._flattened(item)
        elif item.weight:
            self._value(item.weight[1], item, "map")

    def _flattened(self, item: Replaced) -> None:
        left, right = self.lefts
        label = words.shape(item.map)
        high = 0.0
        for x in (left, right):
            drawn, tall = self._volume(item.map, x, self.y + 4, "map")
            high = max(high, tall)
            self.made += [drawn]
            self.made.append(
                Text(x + drawn_width(item.map, self._scale()) + 5, self.y + tall - 1, label, SMALL, "quiet")
            )
        self.y += high + 5
        low = self.y + 17
        self.made += arrow((left + 8, self.y), (left + 8, low))
        self.made.append(
            Text(left + 15, self.y + 10.5, shortened("flatten", self.lane - 15, SMALL), SMALL, "ink")
        )
        gone = Text(right + 15, self.y + 10.5, "no flatten", SMALL, "gone")
        self.made += [*arrow((right + 8, self.y), (right + 8, low + VALUE_ROOM - 6)), gone]
        self.y = low
        self._bar(item.weight[1], left, self.y + 3, "map")
        self.y += VALUE_ROOM - 6

    def _scale(self) -> float:
        """Points for the square root of one feature."""
        return (self.lane - 42) / sqrt(self.most)

    def _bar(self, features: int, x: float, y: float, colour: str) -> None:
        wide = max(1.2, sqrt(features) * self._scale())
        bar = Polygon(((x, y), (x + wide, y), (x + wide, y + 5), (x, y + 5)), colour, f"{colour}.edge", THIN)
        self.made.append(Group(f"vector-{len(self.made)}", f"a vector of {words.count(features)}", (bar,)))
        self.made.append(Text(x + wide + 4, y + 5, words.count(features), SMALL, "quiet"))

    def _value(self, features: int, item: Replaced, colour: str) -> None:
        """A vector, or tokens, on the left; the same numbers as an image on the right."""
        left, right = self.lefts
        top = self.y + 4
        places = item.map[1:] if item.tokens else (1,) * (len(item.map) - 1)
        if item.tokens:
            self._tokens(features, prod(places), left, top, colour)
        else:
            self._bar(features, left, top + 2, colour)
        drawn, tall = self._volume((features, *places), right, top, colour)
        wide = drawn_width((features, *places), self._scale())
        label = shortened(words.shape((features, *places)), self.lane - wide - 4, SMALL)
        self.made += [drawn, Text(right + wide + 4, top + tall - 2, label, SMALL, "quiet")]
        self.y = top + max(tall, 9) + 3

    def _tokens(self, features: int, places: int, x: float, y: float, colour: str) -> None:
        wide, high = max(1.2, sqrt(features) * self._scale()), token_height(places)
        sheet = Polygon(
            ((x, y), (x + wide, y), (x + wide, y + high), (x, y + high)), colour, f"{colour}.edge", THIN
        )
        self.made.append(Group(f"tokens-{len(self.made)}", f"{places} tokens of {features}", (sheet,)))
        label = shortened(f"{places}×{features}", self.lane - wide - 4, SMALL)
        self.made.append(Text(x + wide + 4, y + high - 2, label, SMALL, "quiet"))

    def _volume(self, shape: Sequence[int], x: float, y: float, colour: str) -> tuple[Group, float]:
        """A map as a box: channels to the right, rows down, columns away; and how tall it is with its top."""
        wide, high, depth = box_of(shape, self._scale())
        up = depth * RISE
        title = f"a map of {words.shape(shape)}"
        shapes = tuple(box(x, y + up, wide, high, depth, colour))
        return Group(f"map-{len(self.made)}", title, shapes), up + high

    def _layer(self, item: Replaced, path: str) -> None:
        """The layer as words beside its arrow, left and right; weights with their shapes."""
        left, right = self.lefts
        room = self.lane - 15
        if item.weight:
            before = (
                f"FC {words.count(item.weight[1])} → {words.count(item.weight[0])}",
                words.shape(item.weight),
            )
            size = words.shape(item.kernel[2:])
            after = (f"{size} conv → {words.count(item.kernel[0])}", words.shape(item.kernel))
        else:
            before, after = (item.kind, item.before), ("1×1 conv", item.after)
        rows = ((left, path, *before), (right, _same(item), *after))
        for x, head, what, weight in rows:
            texts = ((head, "ink" if x == left else "quiet"), (what, "ink"), (f"W {weight}", "quiet"))
            for i, (text, fill) in enumerate(texts):
                y = self.y + 8 + i * SMALL * LEADING
                self.made.append(Text(x + 15, y, shortened(text, room, SMALL), SMALL, fill))
            self.made += arrow((x + 8, self.y + 1), (x + 8, self.y + LAYER_ROOM - 11))
        self.y += LAYER_ROOM - 11

    def _bracket(self, times: int, top: float, low: float) -> None:
        x = self.right_edge + 3
        self.made.append(line((x, top), (x + 3, top), (x + 3, low), (x, low), stroke="quiet"))
        self.made.append(Text(x + 1.5, top - 3 if top > 24 else low + 8, f"×{times}", SMALL, "ink", "start"))


def _same(item: Replaced) -> str:
    return f"{words.short(item.weights)} weights" if item.weight else ""


def token_height(places: int) -> float:
    """Points for a number of tokens: their square root, within reason."""
    return min(26.0, max(2.5, 1.1 * sqrt(places)))


def box_of(shape: Sequence[int], scale: float) -> tuple[float, float, float]:
    """Width (√ of channels), height and depth (by places) of a map's box."""
    channels, *size = shape
    wide = max(1.2, sqrt(channels) * scale)
    if prod(size) == 1:
        return wide, 4.4, 4.4
    if len(size) == 1 or size[1] == 1:
        return wide, token_height(size[0]), 4.4
    rows, columns = size[-2:]
    return wide, min(26.0, 4.4 * sqrt(rows)), min(26.0, 4.4 * sqrt(columns))


def drawn_width(shape: Sequence[int], scale: float) -> float:
    """How wide a box is with its side."""
    wide, _, depth = box_of(shape, scale)
    return wide + depth * SLANT


class _Table:
    """Many layers: a row each, alike ones once."""

    def __init__(self, groups: Sequence[Run[Replaced]], width: float) -> None:
        self.groups, self.width = groups, width

    def shapes(self) -> tuple[list[Shape], float]:
        room = self.width - 2 * MARGIN
        made: list[Shape] = []
        y = MARGIN + 8
        step = SMALL * LEADING
        for run in self.groups:
            top = y - step + 1
            for number, first in enumerate(run.first):
                path = common_path([repeat[number].path for repeat in run.repeats])
                times = f"  ×{run.times}" if run.times > 1 else ""
                head = shortened(path, room - fonts.width(times, SMALL), SMALL) + times
                body = f"W {words.shape(first.weight)} → {words.shape(first.kernel)}"
                made.append(Text(MARGIN, y, head, SMALL, "ink"))
                made.append(Text(MARGIN + 8, y + step, shortened(body, room - 8, SMALL), SMALL, "quiet"))
                y += 2 * step + 1
            made.append(
                line((MARGIN, y - step + 2), (self.width - MARGIN, y - step + 2), stroke="rule", line=THIN)
            )
            y += 3
            del top
        return made, y - step


__all__ = ["HEAD", "figure", "moved", "rect"]
