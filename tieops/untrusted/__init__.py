"""The door for files that somebody else made: every check that stands between them and the rest.

It needs errors, ir and system, and nothing of what comes after an import. ``limits`` says how much
a file may ask for. Of an ONNX file, ``onnx_file`` opens and maps it, ``wire`` and ``onnx_wire``
walk its bytes before protobuf parses them, ``embedded`` steps over the weights inside, and
``onnx_checks`` holds the parsed model to what the rest relies on (graphs, operators, operands,
attributes, tensors, types and calls have a module each). ``external_data`` is for data files. Of
PyTorch's, ``archives`` checks the zip file, ``program_checks`` and ``treespecs`` what a program
says. Read ``limits``, then ``onnx_file``, then ``onnx_checks``.
"""
