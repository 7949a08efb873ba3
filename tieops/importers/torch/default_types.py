"""The default type of a process, which a program has by itself, and an ONNX file has not.

``torch.ones(3)`` is of ``torch.get_default_dtype()``, and so is an integer that is divided. An
exported program says so in the type of the result alone, and torch's exporter writes float32.
"""

from __future__ import annotations

import torch

__all__ = ["write_types"]


def write_types(program: torch.export.ExportedProgram) -> None:
    """Write the type of what a program makes of no tensor, where it was left to the default.

    Args:
        program: The program; its graph is changed in place, not what it computes.
    """
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        made = node.meta.get("val")
        if schema is None or not isinstance(made, torch.Tensor) or not made.is_floating_point():
            continue
        takes_type = any(argument.name == "dtype" for argument in schema.arguments)
        reads = any(isinstance(each.meta.get("val"), torch.Tensor) for each in node.all_input_nodes)
        if takes_type and not reads and node.kwargs.get("dtype") is None:
            node.update_kwarg("dtype", made.dtype)
