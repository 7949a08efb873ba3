"""Where modules hold parameters: one place per name, by torch's own names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from onnx_ir import tensor_adapters
from torch import nn

from tieops.arguments import described
from tieops.errors import PreconditionError, SelectionError, UnsupportedModelError
from tieops.ir.notation import brief
from tieops.ir.view import Transpose, View
from tieops.torch.transposed_weight import SUFFIX, transposed_names

__all__ = ["Place", "brief_tensor", "check_module", "place_of", "places"]


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter or buffer under one of its names in a module."""

    owner: nn.Module
    attribute: str
    """What the owner calls it when it reads it: ``weight``."""
    path: str
    """The owner's name in the module."""
    tensor: torch.Tensor
    """What is stored; what is read is its transpose where ``transposed``."""
    transposed: bool

    @property
    def name(self) -> str:
        """Where it is read: ``decoder.weight``."""
        return f"{self.path}.{self.attribute}" if self.path else self.attribute

    @property
    def key(self) -> str:
        """What the owner has registered it under: ``weight``, or ``weight_transposed``."""
        return self.attribute + SUFFIX if self.transposed else self.attribute

    @property
    def slot(self) -> tuple[int, str]:
        """What it shares with the same place under another name of its owner."""
        return id(self.owner), self.key

    @property
    def stored_name(self) -> str:
        """Its name in ``state_dict`` and ``named_parameters``."""
        return f"{self.path}.{self.key}" if self.path else self.key

    @property
    def is_parameter(self) -> bool:
        """Whether it is a Parameter; else a buffer."""
        return isinstance(self.tensor, nn.Parameter)

    @property
    def seen(self) -> torch.Tensor:
        """What the owner reads."""
        return self.tensor.transpose(0, 1) if self.transposed else self.tensor

    def view(self, view: View) -> View:
        """Return how it is read, where ``view`` is how its stored tensor is."""
        if not self.transposed:
            return view
        return view.then(Transpose((1, 0, *range(2, len(view.shape)))))


def brief_tensor(tensor: torch.Tensor) -> str:
    """Return dtype and shape in one word.

    Example:
        >>> brief_tensor(torch.zeros(2, 3, dtype=torch.bfloat16))
        'bf16[2,3]'
    """
    try:
        dtype = tensor_adapters.from_torch_dtype(tensor.dtype)
    except TypeError:
        dtype = None  # a dtype that ONNX does not have
    return brief(dtype, tensor.shape)


def check_module(module: object) -> None:
    """Refuse what cannot be edited in place.

    Raises:
        UnsupportedModelError: If it is no module, or a TorchScript one.
    """
    if isinstance(module, nn.Module) and not isinstance(module, torch.jit.ScriptModule):
        return
    raise UnsupportedModelError(
        f"expected an nn.Module, got {described(module)}",
        None,
        "pass a live module; tieops.tie and the other top-level verbs take imported models",
    )


def places(module: nn.Module, *, buffers: bool = False) -> Iterator[Place]:
    """Yield every name of every parameter, in torch's order; a tensor with two names comes twice.

    Args:
        module: The module.
        buffers: Whether buffers come too, after the parameters.
    """
    parts = list(module.named_modules(remove_duplicate=False))
    for path, owner in parts:
        reads = {name + SUFFIX: name for name in transposed_names(owner)}
        for key, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            yield Place(owner, reads.get(key, key), path, parameter, key in reads)
    if not buffers:
        return
    for path, owner in parts:
        for key, buffer in owner.named_buffers(recurse=False, remove_duplicate=False):
            yield Place(owner, key, path, buffer, False)


def place_of(module: nn.Module, name: str) -> Place:
    """Return the parameter that a module calls by a name.

    Raises:
        SelectionError: If nothing has this name; the nearest names are listed.
        PreconditionError: If it is no Parameter that could be another one, which is said.
    """
    known = list(places(module, buffers=True))
    found = next((each for each in known if name in (each.name, each.stored_name)), None)
    if found is None:
        _refuse_computed(module, name)
        names = [each.name for each in known]
        near = difflib.get_close_matches(str(name), names, n=4, cutoff=0.4)
        raise SelectionError(
            f"nothing in the module is named {name}",
            {"nearest" if near else "parameters": ", ".join(near or names[:8]) or "none"},
            "see module.named_parameters()",
        )
    if not found.is_parameter:
        raise PreconditionError(f"{name} is a buffer", None, "name a parameter")
    if isinstance(found.tensor, nn.UninitializedParameter):
        raise PreconditionError(
            f"{name} has no shape yet", None, "call the module once, which gives it one"
        )
    return found


def _refuse_computed(module: nn.Module, name: str) -> None:
    path, _, attribute = str(name).rpartition(".")
    try:
        value = getattr(module.get_submodule(path), attribute)
    except AttributeError:
        return
    if isinstance(value, torch.Tensor):
        raise PreconditionError(
            f"{name} is not a Parameter: its module computes it",
            {"it is": brief_tensor(value)},
            "undo that first: torch.nn.utils.parametrize.remove_parametrizations",
        )
