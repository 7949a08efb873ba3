"""Check that an open session runs on CUDA, and that its nodes can run to the end."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tieops.ir.notation import counted
from tieops.ir.operators.on_cuda import needs_cudnn
from tieops.runtime.cuda.libraries import cudnn_error
from tieops.runtime.placement import PlacedNode, recorded_placement
from tieops.runtime.providers import CUDA, not_on_cuda

__all__ = ["check_nodes", "missing_cudnn"]

_PACKAGE = str(Path(__file__).parents[2])


def check_nodes(inner: Any) -> str:
    """Look at the nodes of a session that was opened on CUDA.

    Args:
        inner: ONNX Runtime's session.

    Returns:
        What to say of nodes that have weights and run on the CPU; also said as a warning.

    Raises:
        ProviderError: If no node runs on CUDA, or one needs cuDNN, which does not load.
    """
    placed = recorded_placement(inner, "cuda")
    if placed is None or not placed.nodes:
        return ""
    there = [node for node in placed.nodes if node.provider == CUDA]
    if not there:
        raise not_on_cuda(
            f"ONNX Runtime has a CUDA kernel for none of the nodes: {_listed(placed.nodes)}",
            "export the model in another dtype or opset",
        )
    wanting = [node for node in there if needs_cudnn(node)]
    error = cudnn_error() if wanting else None
    if error is not None:
        raise not_on_cuda(f"cuDNN, which {_listed(wanting)} is computed by: {error}")
    heavy = [node for node in placed.fell if node.has_weights]
    if not heavy:
        return ""
    note = f"on the CPU, for want of a CUDA kernel: {_listed(heavy)}"
    warnings.warn(f"a session on CUDA has nodes with weights {note}", stacklevel=_caller_level())
    return note


def _caller_level() -> int:
    """Return how many calls up the first frame outside tieops is: the one that opens a session."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


def _listed(nodes: Iterable[PlacedNode]) -> str:
    counts = Counter(node.op_type for node in nodes)
    return ", ".join(counted(count, op) if count > 1 else op for op, count in counts.items())


def missing_cudnn(error: Exception) -> str | None:
    """Return why cuDNN does not load, if that is what an error of ONNX Runtime comes of."""
    text = str(error).lower()
    if "cudnn" in text or "/cuda/nn/" in text:
        why = cudnn_error()
        return None if why is None else f"cuDNN: {why}"
    return None
