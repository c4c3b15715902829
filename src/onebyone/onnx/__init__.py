"""The ONNX front end: convert fully connected layers to convolutions, and 1×1 convolutions to matrix products."""
