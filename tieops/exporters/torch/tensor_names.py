"""Name stored tensors as the original module did, and store them under any name.

Names can be anything: ``code.weight``, ``inner.class``, ``0``, ``a"b``. ``register_parameter``
refuses a name that is already an attribute, and fx writes names into Python source unescaped. So a
tensor is put directly into the module's tables, and read from there where attribute access would
fail.
"""

from __future__ import annotations

import keyword
import operator
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
from torch import Tensor, fx, nn

from tieops.errors import PreconditionError
from tieops.importers.torch.rnn_weights import unpack
from tieops.ir.metadata.keys import PACKED, aliases_of
from tieops.ir.metadata.parsing import parsed, whole_texts
from tieops.ir.metadata.torch_kinds import has_generated_name, word_of
from tieops.ir.operators.predicates import is_lookup, is_matmul, is_recurrent
from tieops.ir.parameter import Slot
from tieops.ir.readers.forms import form_of
from tieops.ir.readers.readers import Reader
from tieops.ir.walk import scope_of

__all__ = ["attach", "identifier", "naming_of", "read"]

_TAKEN = ("self", "torch", "device", "inf", "nan", "fx_pytree", "pytree", "NoneType")
"""Names that the code of a GraphModule uses itself."""
_SLOT_OF_INDEX = {1: "W", 2: "R", 3: "B"}


@dataclass(frozen=True)
class Naming:
    """The names of one stored tensor in the module, and how it is stored there."""

    names: tuple[str, ...]
    perm: tuple[int, ...] | None = None
    """The order of axes in which the graph has it, where that is not the module's."""
    packed: Mapping[str, Any] | None = None
    """For packed recurrent weights ``op``, ``slot``, ``parts`` and ``names``, as in the file."""


def naming_of(value: onnx_ir.Value, readers: Sequence[Reader]) -> Naming:
    """Return what a stored tensor is called in the module.

    Names that the file knows come first. PyTorch's older exporter writes a Linear's weight as a
    transposed copy without a name, and an LSTM's as packed ones; there the names are those of the
    modules that read it, and the tensor takes the form that it has in them.

    Args:
        value: What is stored.
        readers: Who reads it.
    """
    slots = [slot for reader in readers for slot in reader.slots]
    known = [name for name in aliases_of(value) if not has_generated_name(value, name)]
    stored = (value.name or "constant",)
    # One parameter has one form: a name that stands for another one would be loaded with a tensor
    # of the wrong shape, or, if it is square, the wrong way round.
    forms = [form_of(value, name) for name in (*known, *stored)]
    form = next((each for each in forms if each.permutation is not None), forms[0])
    known = [name for name in known if form_of(value, name) == form]
    if (packed := _recorded(value)) is not None:
        return Naming((), None, packed)
    perm = _inverse(form.permutation) if form.steps and form.permutation is not None else None
    if word_of(value) is not None:
        return Naming(tuple(known) or stored, perm)
    if not known and (packed := _recurrent(value, slots)) is not None:
        return Naming((), None, packed)
    for name, order in _titles(value, readers):
        if not known:
            perm = order
        if order == perm and name not in known:
            known.append(name)
    return Naming(tuple(known) or stored, perm)


def _titles(
    value: onnx_ir.Value, readers: Sequence[Reader]
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Yield what readers without a name call a weight, and the order of axes in the graph."""
    nameless = any(has_generated_name(value, name) for name in aliases_of(value))
    for reader in readers:
        slot = reader.slots[0]
        scope = scope_of(slot.node)
        module = reader.title.rpartition(".")[0]
        if reader.names or slot.is_joined or scope is None or module not in scope.paths:
            continue
        if is_lookup(slot.node) and slot.index == 0 and slot.view.is_identity:
            yield reader.title, None
        elif is_matmul(slot.node) and slot.index == 1 and nameless:
            # A product reads (in, out); a Linear has (out, in).
            if slot.view.is_identity and len(slot.view.shape) == 2:
                yield reader.title, (1, 0)
            elif slot.view.permutation == (1, 0):
                yield reader.title, None


def _recurrent(value: onnx_ir.Value, slots: Sequence[Slot]) -> dict[str, Any] | None:
    """Return the torch names of the parts of a recurrent weight without a name."""
    slot = slots[0] if slots else None
    if slot is None or not is_recurrent(slot.node) or slot.index not in _SLOT_OF_INDEX:
        return None
    scope = scope_of(slot.node)
    if scope is None or not scope.fqn or any(s.is_joined or not s.view.is_identity for s in slots):
        return None
    number = re.fullmatch(r"[A-Z]+(?:_(\d+))?", scope.fx_name)
    if number is None:
        return None
    layer, which = int(number[1] or 0), _SLOT_OF_INDEX[slot.index]
    kinds = {"W": ("weight_ih",), "R": ("weight_hh",), "B": ("bias_ih", "bias_hh")}[which]
    both = slot.view.shape[0] == 2
    parts = [
        f"{scope.fqn}.{kind}_l{layer}{end}"
        for end in (("", "_reverse") if both else ("",))
        for kind in kinds
    ]
    return {"op": slot.node.op_type, "slot": which, "parts": parts}


def _recorded(value: onnx_ir.Value) -> dict[str, Any] | None:
    """Return how a recurrent weight was packed, if the file says so and it can be undone."""
    about: Any = parsed(value.metadata_props.get(PACKED))
    assert value.const_value is not None
    # Its shape decides, so no values are read.
    shape = np.broadcast_to(np.zeros((), np.int8), value.const_value.shape.numpy())
    try:
        parts = about["parts"]
        unpack(shape, about["op"], about["slot"], parts)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, PreconditionError):
        return None
    return about if whole_texts(parts) == parts else None


def _inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def identifier(name: str) -> str:
    """Return a Python identifier made of a name.

    Example:
        >>> identifier("onnx::MatMul_12"), identifier("2.out"), identifier("lambda")
        ('onnx_MatMul_12', '_2_out', 'lambda_')
    """
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    found = f"_{found}" if found[0].isdigit() else found
    return f"{found}_" if keyword.iskeyword(found) or found in _TAKEN else found


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""What torch itself assigns to: a module with a tensor of that name cannot be put into eval()."""


def attach(module: nn.Module, name: str, held: Tensor, *, persistent: bool) -> bool:
    """Put a tensor into a module under its FQN, with modules on the way.

    Args:
        module: The outermost module; changed in place.
        name: The FQN.
        held: A Parameter, or a buffer.
        persistent: Whether a state_dict has the buffer.

    Returns:
        Whether a module can have that name beside those that it has. If not, nothing is changed.

    Example:
        >>> import torch
        >>> module = nn.Module()
        >>> attach(module, "class.train", nn.Parameter(torch.zeros(2)), persistent=True)
        True
        >>> attach(module, "class", torch.zeros(2), persistent=True), [*module.state_dict()]
        (False, ['class.train'])
    """
    *path, leaf = name.split(".")
    if not all((*path, leaf)) or _OF_EVERY_MODULE.intersection((*path, leaf)):
        return False
    at: nn.Module | None = module
    for part in path:
        if at is not None:
            if part in at._parameters or part in at._buffers:  # pyright: ignore[reportPrivateUsage]
                return False
            at = at._modules.get(part)  # pyright: ignore[reportPrivateUsage]
    if at is not None and any(
        leaf in table
        for table in (at._parameters, at._buffers, at._modules)  # pyright: ignore[reportPrivateUsage]
    ):
        return False
    owner = _made(module, path)
    if isinstance(held, nn.Parameter):
        owner._parameters[leaf] = held  # pyright: ignore[reportPrivateUsage]
    else:
        owner._buffers[leaf] = held  # pyright: ignore[reportPrivateUsage]
        if not persistent:
            owner._non_persistent_buffers_set.add(leaf)  # pyright: ignore[reportPrivateUsage]
    return True


def _made(module: nn.Module, path: list[str]) -> nn.Module:
    for part in path:
        child = module._modules.get(part)  # pyright: ignore[reportPrivateUsage]
        if child is None:
            child = module._modules[part] = nn.Module()  # pyright: ignore[reportPrivateUsage]
        module = child
    return module


def read(graph: fx.Graph, module: nn.Module, name: str) -> fx.Node:
    """Add the node that reads a tensor of a module to a graph of that module.

    It is a ``get_attr``, unless no Python attribute gives the tensor.
    """
    *path, leaf = name.split(".")
    if _is_attribute(module, [*path, leaf]):
        return graph.create_node("get_attr", name, name=identifier(name))
    owner: Any = module
    for part in path:
        owner = owner._modules[part]
    table = "_parameters" if leaf in owner._parameters else "_buffers"
    if path:
        function, source, place = entry, "_modules", (*path, table, leaf)
    else:
        function, source, place = operator.getitem, table, leaf
    args = (graph.get_attr(source), place)
    return graph.create_node("call_function", function, args, name=identifier(name))


def entry(modules: Mapping[str, nn.Module], path: tuple[str, ...]) -> Tensor:
    """Return a tensor from the tables of a module within ``modules``: that of its class, its name.

    Example:
        >>> outer = nn.ModuleDict({"code": nn.Linear(2, 3)})
        >>> entry(outer._modules, ("code", "_parameters", "bias")).shape
        torch.Size([3])
    """
    first, *inner, table, leaf = path
    module = modules[first]
    for part in inner:
        module: Any = module._modules[part]  # pyright: ignore[reportPrivateUsage]
    return getattr(module, table)[leaf]


def _is_plain(part: str) -> bool:
    """Return whether a name means itself in source text, as an identifier or between quotes."""
    if part.isidentifier():
        # Python reads identifiers in the normal form: a ligature of f and i is two letters.
        return not keyword.iskeyword(part) and unicodedata.is_normalized("NFKC", part)
    return part.isprintable() and not set('"\\') & set(part)


def _is_attribute(module: Any, path: list[str]) -> bool:
    """Return whether source text finds the tensor: ``self.inner.weight``."""
    *outer, leaf = path
    if not all(map(_is_plain, path)):
        return False
    for part in outer:
        child = module._modules[part]
        if getattr(module, part, None) is not child:
            return False
        module = child
    held = module._parameters.get(leaf)
    return getattr(module, leaf, None) is (module._buffers[leaf] if held is None else held)
