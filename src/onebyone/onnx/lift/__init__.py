"""`convolutionalize` for ONNX: decoders from ONNX operators to neutral ones, and an emitter that writes onnx-ir nodes.

The rules themselves are in `onebyone.lifting`, which PyTorch's front end uses too.
"""
