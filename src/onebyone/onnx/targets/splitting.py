"""Split a convolution over a target's limits: sums over groups of input channels, concatenations over outputs.

Conv(x, W) = Σ_j Conv(x[j], W[:, j]) over disjoint runs j of input channels, and the concatenation of Conv(x, W[i])
over runs i of output channels. A sum over runs adds the same products in another order. The bound γₙ·(|W||x| + |b|)
holds for every order of n terms (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), so the layer is
verified within the same bound as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from itertools import product as all_pairs

import onnx_ir as ir

from onebyone.onnx.constant_values import NotRewritable, sizes_of
from onebyone.onnx.graph_writer import GraphWriter
from onebyone.onnx.model_rewriting import Rewriting
from onebyone.onnx.targets.windows import (
    ConstantConvolution,
    padded,
    read_any_convolution,
    window_positions,
    write_conv,
)
from onebyone.onnx.weight_rewriting import Step, WeightRewriter
from onebyone.records import by

SPLIT = "convolution = sums over input channels, concatenated over output channels"
TILED = "convolution = sum over parts of its kernel"
#: More parts than this are refused: they would cost more than the layer.
MOST_PARTS = 64


@dataclass(frozen=True)
class ConvolutionLimits:
    """The largest numbers of one convolution; None where there is no limit."""

    inputs: int | None = None
    outputs: int | None = None
    groups: int | None = None


@dataclass(frozen=True)
class _ChannelRun:
    """A run of groups, or within one group a run of outputs, that one or several convolutions compute."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    groups: int


def split_channels(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter, limits: ConvolutionLimits
) -> Rewriting | str | None:
    """A convolution as several, each within the limits."""
    read = read_any_convolution(node)
    if isinstance(read, str):
        return read
    parts = list(_parts(read, limits))
    inner = _largest_run(read, limits)
    pieces = sum(len(runs_of(*part.inputs, inner if part.groups == 1 else None)) for part in parts)
    if pieces > MOST_PARTS:
        return f"it would take {pieces} convolutions; at most {MOST_PARTS} are written"
    results = []
    for part in parts:
        runs = runs_of(*part.inputs, inner if part.groups == 1 else None)
        terms = [
            _piece(read, writer, weights, replace(part, inputs=run), with_bias=index == 0)
            for index, run in enumerate(runs)
        ]
        results.append(_sum(writer, terms))
    value = results[0]
    if len(results) > 1:
        sizes = sizes_of(results[0])
        shape = None if sizes is None else [sizes[0], read.weight_shape[0], *sizes[2:]]
        value = writer.op("Concat", results, {"axis": 1}, shape=shape)
    return read.written(value, SPLIT, f"{pieces} convolutions")


def _largest_run(read: ConstantConvolution, limits: ConvolutionLimits) -> int | None:
    if limits.inputs == 0 or limits.outputs == 0:
        raise NotRewritable("its kernel alone exceeds the limit")
    return limits.inputs


def _parts(read: ConstantConvolution, limits: ConvolutionLimits) -> Iterator[_ChannelRun]:
    groups = read.settings.group
    inputs, outputs = read.weight_shape[1], read.weight_shape[0] // groups
    caps = [
        groups if limits.groups is None else limits.groups,
        groups if limits.inputs is None else limits.inputs // inputs,
        groups if limits.outputs is None else limits.outputs // outputs,
    ]
    run = min(groups, *caps)
    if run > 1 or (groups == 1 and run == 1):
        for first, last in runs_of(0, groups, run):
            yield _ChannelRun(
                (first * inputs, last * inputs), (first * outputs, last * outputs), last - first
            )
        return
    for group in range(groups):
        for start, stop in runs_of(group * outputs, (group + 1) * outputs, limits.outputs):
            yield _ChannelRun((group * inputs, (group + 1) * inputs), (start, stop), 1)


def runs_of(start: int, stop: int, largest: int | None) -> list[tuple[int, int]]:
    """Consecutive runs of nearly equal length, none longer than `largest`.

    >>> runs_of(0, 10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    count = 1 if largest is None else -(-(stop - start) // largest)
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _piece(
    read: ConstantConvolution,
    writer: GraphWriter,
    weights: WeightRewriter,
    part: _ChannelRun,
    *,
    with_bias: bool,
) -> ir.Value:
    per_group = read.weight_shape[1]
    data = read.data
    if part.inputs != (0, per_group * read.settings.group):
        data = writer.slice_axis(data, 1, *part.inputs)
    steps: list[Step] = []
    if part.outputs != (0, read.weight_shape[0]):
        steps.append(("slice", (0, *part.outputs)))
    if part.groups == 1:
        first = part.inputs[0] % per_group
        length = part.inputs[1] - part.inputs[0]
        if length != per_group:
            steps.append(("slice", (1, first, first + length)))
    bias = read.bias if with_bias else None
    if bias is not None and steps and steps[0][1][0] == 0:
        bias = weights.rewrite(writer, bias, [("slice", (0, *part.outputs))])
    weight = weights.rewrite(writer, read.weight, steps)
    return write_conv(writer, data, weight, bias, replace(read.settings, pads=read.pads, group=part.groups))


def _sum(writer: GraphWriter, terms: list[ir.Value]) -> ir.Value:
    value = terms[0]
    for term in terms[1:]:
        value = writer.op("Add", [value, term], shape=sizes_of(value))
    return value


def split_kernel(
    node: ir.Node, writer: GraphWriter, weights: WeightRewriter, largest: tuple[int, ...]
) -> Rewriting | str | None:
    """A convolution as a sum over parts of its kernel, none larger than `largest` on any axis.

    The part that begins at tap t of an axis reads the padded map from t·dilation on.
    """
    read = read_any_convolution(node)
    if isinstance(read, str):
        return read
    if None in read.sizes[2:]:
        return "the size of its map is not known, so that the parts of its kernel would read too far"
    runs = [runs_of(0, k, limit) for k, limit in zip(read.settings.kernel, largest, strict=True)]
    count = 1
    for each in runs:
        count *= len(each)
    if count > MOST_PARTS:
        return f"it would take {count} convolutions; at most {MOST_PARTS} are written"
    source = padded(read, writer)
    free = replace(read.settings, pads=(0,) * len(read.pads))
    positions = window_positions((sizes_of(source) or [])[2:], free)
    terms = []
    for index, taps in enumerate(all_pairs(*runs)):
        data, steps = source, list[Step]()
        for axis, (start, stop) in enumerate(taps):
            dilation, stride, outputs = free.dilations[axis], free.strides[axis], positions[axis]
            assert outputs is not None
            begin = start * dilation
            end = begin + (outputs - 1) * stride + (stop - start - 1) * dilation + 1
            data = writer.slice_axis(data, 2 + axis, begin, end)
            steps.append(("slice", (2 + axis, start, stop)))
        weight = weights.rewrite(writer, read.weight, steps)
        part = replace(free, kernel=tuple(stop - start for start, stop in taps))
        terms.append(write_conv(writer, data, weight, read.bias if index == 0 else None, part))
    return read.written(_sum(writer, terms), TILED, f"{count} convolutions of kernel ≤ {by(largest)}")
