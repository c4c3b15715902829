"""Targets for ONNX models: the description of their nodes, and the rewriting of those that a target would not take."""
