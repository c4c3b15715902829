"""The statements under test, as they are usually made, by id."""

from __future__ import annotations

STATEMENTS = {
    "S1": "Both are a weighted transformation: every output is a weighted sum of inputs.",
    "S2": "Both have learnable parameters, which training changes alike.",
    "S3": "Both are followed by a non-linear activation, without which layers in a row are one layer.",
    "S4": "Both combine features: every input channel has a part in every output channel.",
    "S5": "Both make a model flexible: more of them, and wider, is more capacity.",
    "D1": "A 1×1 convolution operates on one location across channels, a fully connected layer on the whole map.",
    "D2": "A 1×1 convolution takes maps of any size, a fully connected layer a vector of fixed length.",
    "D3": "A 1×1 convolution sees no neighbours; a fully connected layer sees all positions, unordered.",
    "D4": "A 1×1 convolution reduces or expands the channels; a fully connected layer does not.",
    "D5": "A 1×1 convolution has fewer parameters and is cheaper than a fully connected layer.",
    "D6": "1×1 convolutions occur in convolutional networks, fully connected layers in feed-forward ones.",
    "D7": "A 1×1 convolution keeps spatial patterns; flattening for a fully connected layer loses them.",
    "D8": "A 1×1 convolution combines features per location, a fully connected layer globally.",
    "R1": "Each fully connected layer can be replaced by a 1×1 convolution.",
    "R2": "Two fully connected layers in a row become channels and kernels on images of 1×1 pixels.",
    "R3": "The two are interchanged in image classification.",
    "R4": "The two are interchanged in object detection, for spatial context and better results.",
}
"""In the order of the table."""
