"""The steps of a compiled network: one class for each kind, with the fields of that kind alone.

A step reads maps and writes one. Until `kernels.fusion.lower` has packed them, its weights have PyTorch's shapes. A
step becomes the record that C++ reads by `Step.record`; `kernels/steps.h` documents the records.
"""

from onebyone.native.maps import Map
from onebyone.native.steps.base import (
    Activation,
    Addresses,
    BinaryOperation,
    Kind,
    Present,
    SlidingWindow,
    Step,
    Strides,
)
from onebyone.native.steps.image import (
    ConvolutionStep,
    DepthwiseStep,
    ElementwiseStep,
    ImageStep,
    InputStep,
    MaxPoolStep,
    MeanStep,
    WinogradStep,
)
from onebyone.native.steps.rows import AttentionStep, GatherStep, LayerNormStep, LinearStep, TransposeStep

__all__ = [
    "Activation",
    "Addresses",
    "AttentionStep",
    "BinaryOperation",
    "ConvolutionStep",
    "DepthwiseStep",
    "ElementwiseStep",
    "GatherStep",
    "ImageStep",
    "InputStep",
    "Kind",
    "LayerNormStep",
    "LinearStep",
    "Map",
    "MaxPoolStep",
    "MeanStep",
    "Present",
    "SlidingWindow",
    "Step",
    "Strides",
    "TransposeStep",
    "WinogradStep",
]
