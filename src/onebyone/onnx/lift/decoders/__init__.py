"""Decoders: which neutral operator an ONNX node is, one file for each kind of operator."""
