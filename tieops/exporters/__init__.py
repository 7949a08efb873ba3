"""Writing models: ONNX files with one stored copy of every parameter."""
