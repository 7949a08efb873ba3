"""Unwrap tensor subclasses, which quantization libraries use as weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tieops.errors import ExportError

__all__ = ["plain_tensors"]


def plain_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with memory that these are made of.

    A tensor that wraps others (``__tensor_flatten__``) has no memory of its own. torch's exporter
    puts what it wraps in its place, and computes from that what the wrapper stands for, as
    ``torch.nn.utils.parametrize`` would: ``fc.weight`` becomes
    ``fc.parametrizations.weight.original0`` and so on.

    Args:
        tensors: Parameters and buffers by their names.

    Returns:
        The same for plain ones; in the place of each other the plain ones in it, under the names
        that they have in the exported program.

    Raises:
        ExportError: If one has no memory and does not say what it is made of.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not is_traceable_wrapper_subclass(tensor):
            _check_has_values(name, tensor)
            found[name] = tensor
            continue
        owner, dot, leaf = name.rpartition(".")
        for position, inner in enumerate(_inner(tensor)):
            found[f"{owner}{dot}parametrizations.{leaf}.original{position}"] = inner
    return found


def _check_has_values(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError as error:
        kind = type(tensor.data).__name__
        raise ExportError(
            f"expected {name} to have values that can be stored, got a {kind}",
            {"torch says": str(error).strip().partition("\n")[0]},
            "give that class __tensor_flatten__ and __tensor_unflatten__, or use plain tensors",
        ) from error


def _inner(tensor: Any) -> Iterator[torch.Tensor]:
    """Yield the plain tensors in one, in the order in which torch takes it apart."""
    # The data of a Parameter: a Parameter that is such a tensor flattens as the tensor does.
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        inner = getattr(tensor, name)
        if is_traceable_wrapper_subclass(inner):
            yield from _inner(inner)
        else:
            yield inner
