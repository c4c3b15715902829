"""The structures of `kernels/steps.h` declared with ctypes: how steps are passed to C++.

Every record has one field per field of its C++ structure, in the same order; `tests/native/test_step_records.py`
compares the two. `steps.h` documents what each field means.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, Union, c_double, c_int64, c_void_p
from typing import Any


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names.split()]


def _integers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int64) for name in names.split()]


_IMAGE = _integers("samples height width channels")


class SlidingWindowRecord(Structure):
    """How a window slides over a feature map."""

    _fields_ = _integers("kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w")


class StridesRecord(Structure):
    """Where the rows of one operand of attention are: offsets in floats."""

    _fields_ = _integers("begin sample head row")


class InputRecord(Structure):
    """`InputStep` of steps.h."""

    _fields_ = (*_pointers("input output"), *_IMAGE, *_integers("pad_h pad_w"))


class ConvolutionRecord(Structure):
    """`ConvolutionStep` of steps.h."""

    _fields_ = (
        *_pointers("input weight bias addend output"),
        *_IMAGE,
        *_integers("out_height out_width out_channels"),
        ("window", SlidingWindowRecord),
        *_integers("whole_rows few_outputs activation"),
    )


class WinogradRecord(Structure):
    """`WinogradStep` of steps.h."""

    _fields_ = (
        *_pointers("input weight bias addend output scratch"),
        *_IMAGE,
        *_integers("out_channels pad_h pad_w relu max_pool"),
    )


class DepthwiseRecord(Structure):
    """`DepthwiseStep` of steps.h."""

    _fields_ = (
        *_pointers("input weight bias output"),
        *_IMAGE,
        *_integers("out_height out_width"),
        ("window", SlidingWindowRecord),
        *_integers("activation"),
    )


class MaxPoolRecord(Structure):
    """`MaxPoolStep` of steps.h."""

    _fields_ = (
        *_pointers("input output"),
        *_IMAGE,
        *_integers("out_height out_width"),
        ("window", SlidingWindowRecord),
    )


class MeanRecord(Structure):
    """`MeanStep` of steps.h."""

    _fields_ = (*_pointers("input output scratch"), *_IMAGE)


class ElementwiseRecord(Structure):
    """`ElementwiseStep` of steps.h."""

    _fields_ = (
        *_pointers("input second output index"),
        *_integers("positions channels operation positions_per_row period activation"),
    )


class LinearRecord(Structure):
    """`LinearStep` of steps.h."""

    _fields_ = (
        *_pointers("input weight bias addend output scratch index factors channel_scales signs"),
        *_integers("rows inputs outputs pieces first_row rows_per_factor levels vectors activation"),
    )


class LayerNormRecord(Structure):
    """`LayerNormStep` of steps.h."""

    _fields_ = (
        *_pointers("input weight bias output index"),
        *_integers("rows channels"),
        ("epsilon", c_double),
    )


class AttentionRecord(Structure):
    """`AttentionStep` of steps.h."""

    _fields_ = (
        *_pointers("queries keys values bias output scratch"),
        *_integers("samples heads query_rows key_rows depth value_depth"),
        ("query_strides", StridesRecord),
        ("key_strides", StridesRecord),
        ("value_strides", StridesRecord),
        *_integers("bias_sample_stride bias_head_stride"),
        ("scale", c_double),
    )


class GatherRecord(Structure):
    """`GatherStep` of steps.h."""

    _fields_ = (
        *_pointers("source output index"),
        *_integers("pieces length output_begin pieces_per_block block_stride"),
    )


class TransposeRecord(Structure):
    """`TransposeStep` of steps.h."""

    _fields_ = (*_pointers("input output"), *_integers("matrices rows columns"))


RECORDS: dict[str, type[Structure]] = {
    "input": InputRecord,
    "convolution": ConvolutionRecord,
    "winograd": WinogradRecord,
    "depthwise": DepthwiseRecord,
    "max_pool": MaxPoolRecord,
    "mean": MeanRecord,
    "elementwise": ElementwiseRecord,
    "linear": LinearRecord,
    "layer_norm": LayerNormRecord,
    "attention": AttentionRecord,
    "gather": GatherRecord,
    "transpose": TransposeRecord,
}
"""The record of each kind of step, in the order of `Kind` in steps.h."""


class StepFields(Union):
    """The fields of one step: the member named after its kind is in use."""

    _fields_ = tuple(RECORDS.items())


class StepRecord(ctypes.Structure):
    """`Step` of steps.h: a tagged union. `kind` says which member of `fields` is in use."""

    _fields_ = (("kind", c_int64), ("fields", StepFields))

    @classmethod
    def of(cls, kind: int, fields: Structure) -> StepRecord:
        """The record of a step of that kind."""
        record = cls(kind=kind)
        setattr(record.fields, list(RECORDS)[kind], fields)
        return record
