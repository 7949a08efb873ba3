"""Passes: what can be done to a tied model, each an ``onnx_ir`` pass and a function."""
