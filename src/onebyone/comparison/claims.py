"""The claims that are tested, worded as they are usually made, by id."""

from __future__ import annotations

CLAIMS = {
    "S1": "Both are a weighted transformation: every output is a weighted sum of inputs.",
    "S2": "Both have learnable parameters, and training changes them in the same way.",
    "S3": "Both are followed by a non-linear activation; without it, successive layers collapse into one.",
    "S4": "Both combine features: every input channel contributes to every output channel.",
    "S5": "Both make a model flexible: more and wider layers give it more capacity.",
    "D1": "A 1×1 convolution operates on one position across channels, a fully connected layer on the whole map.",
    "D2": "A 1×1 convolution accepts maps of any size, a fully connected layer a vector of fixed length.",
    "D3": "A 1×1 convolution sees no neighbours; a fully connected layer sees all positions, but no neighbourhood.",
    "D4": "A 1×1 convolution reduces or expands the channels; a fully connected layer does not.",
    "D5": "A 1×1 convolution has fewer parameters and is cheaper than a fully connected layer.",
    "D6": "1×1 convolutions occur in convolutional networks, fully connected layers in feed-forward networks.",
    "D7": "A 1×1 convolution preserves spatial patterns; flattening for a fully connected layer loses them.",
    "D8": "A 1×1 convolution combines features per position, a fully connected layer globally.",
    "R1": "Each fully connected layer can be replaced by a 1×1 convolution.",
    "R2": "Two successive fully connected layers become channels and kernels on images of 1×1 pixels.",
    "R3": "The two are interchanged in image classification.",
    "R4": "The two are interchanged in object detection, for spatial context and better results.",
}
"""In the order in which reports list them: claimed similarities, claimed differences, claims about replacement."""
