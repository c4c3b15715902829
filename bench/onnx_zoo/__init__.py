"""A zoo of ONNX files as exporters, quantisers and optimisers write them.

Each is converted in both directions and verified.
"""
