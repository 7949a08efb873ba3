"""The single entry for untrusted files: every check on them happens here.

Read ``limits`` (how much a file may demand), then ``onnx_file``, then ``onnx_checks``. For an ONNX
file, ``onnx_file`` opens and maps it, ``wire`` checks its bytes before protobuf parses them,
``embedded`` steps over embedded weights, and ``onnx_checks`` checks the parsed model; graphs,
operators, attributes, tensors, types and calls have a module each. ``external_data`` checks data
files. For a PyTorch file, ``archives`` checks the zip file, and ``program_checks`` checks the
program. This package needs only errors, ir and system.
"""
