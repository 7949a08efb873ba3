"""What torch reported of a stored tensor at export: its kind, and whether it trains.

Torch's exporter writes kinds into a file; ``from_torch`` completes them, and records which
parameters are frozen. This is the first source of ``tieops.ir.learnables.rules``. The second is
recorded here too: the tensors that ``untie`` splits keep the kind that the whole had.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Iterable, Mapping

import onnx_ir

from tieops.ir.metadata.keys import (
    BUFFERS,
    FROZEN,
    LEARNABLE,
    TORCH_KIND,
    TORCH_PERSISTENT,
    aliases_of,
    is_generated_name,
)
from tieops.ir.metadata.parsing import parsed, whole_texts

__all__ = [
    "Kind",
    "copy_kind",
    "has_generated_name",
    "is_frozen",
    "is_noted_learnable",
    "is_said_in_state",
    "join_kinds",
    "narrow_kind",
    "note_kind",
    "note_learnable",
    "word_of",
]


class Kind(enum.StrEnum):
    """What a stored tensor is to whoever trains the model."""

    PARAMETER = "PARAMETER"
    """An optimizer changes it, unless it is frozen."""
    BUFFER = "BUFFER"
    """State or a table beside the parameters: running statistics, quantized weights, scales."""
    CONSTANT = "CONSTANT_TENSOR"
    """A number of the program itself: a mask, a shape, a position, a factor."""


def word_of(value: onnx_ir.Value) -> Kind | None:
    """Return what torch said that a stored tensor is; nothing where it said nothing."""
    word = value.metadata_props.get(TORCH_KIND)
    return Kind(word) if word in Kind.__members__.values() else None


def is_said_in_state(value: onnx_ir.Value) -> bool:
    """Return whether torch said that a stored tensor is in the module's ``state_dict``."""
    word = word_of(value)
    if word is Kind.BUFFER:
        return value.metadata_props.get(TORCH_PERSISTENT) != "False"
    return word is Kind.PARAMETER


def has_generated_name(value: onnx_ir.Value, name: str) -> bool:
    """Return whether an exporter invented this name of a stored tensor.

    A module may call its own what an exporter would: the parameters of a ParameterList are numbers.
    What torch names as a parameter or a buffer has the module's name.
    """
    return is_generated_name(name) and word_of(value) not in (Kind.PARAMETER, Kind.BUFFER)


def note_kind(
    value: onnx_ir.Value,
    kind: Kind,
    *,
    persistent: bool = True,
    frozen: Iterable[str] | bool = False,
    buffers: Mapping[str, bool] | None = None,
) -> None:
    """Record what torch says that a stored tensor is.

    Args:
        value: What is stored.
        kind: Parameter, buffer or constant.
        persistent: Whether a buffer is in the ``state_dict``.
        frozen: Whether a parameter has ``requires_grad=False``; of packed parts, or of parameters
            over one storage, which have.
        buffers: The names of a parameter that are buffers over its storage, and whether each is in
            the ``state_dict``.
    """
    props = value.metadata_props
    props[TORCH_KIND] = kind.value
    if kind is Kind.BUFFER:
        props[TORCH_PERSISTENT] = str(persistent)
    if frozen is not False:
        props[FROZEN] = json.dumps(frozen if frozen is True else sorted(frozen))
    if buffers:
        props[BUFFERS] = json.dumps(dict(buffers))


def _buffers(value: onnx_ir.Value) -> dict[str, bool]:
    found = parsed(value.metadata_props.get(BUFFERS))
    if not isinstance(found, dict):
        return {}
    return {str(name): kept is not False for name, kept in found.items()}


def narrow_kind(value: onnx_ir.Value, names: Collection[str]) -> None:
    """Record what a tensor is once it has these of its names alone: a buffer if all of them are.

    Args:
        value: What is stored, with a record of what each name was where they differed.
        names: Its names from now on.
    """
    props, buffers, frozen = value.metadata_props, _buffers(value), _frozen(value)
    if not names:
        return
    left = {name: kept for name, kept in buffers.items() if name in names}
    parameters = [name for name in names if name not in left]
    props.pop(BUFFERS, None)
    if left and parameters:
        props[BUFFERS] = json.dumps(left)
    elif left:
        props[TORCH_KIND] = Kind.BUFFER.value
        props[TORCH_PERSISTENT] = str(any(left.values()))
        props.pop(FROZEN, None)
        return
    if not isinstance(frozen, bool) and frozen.issuperset(parameters):
        props[FROZEN] = "true"


def note_learnable(value: onnx_ir.Value) -> None:
    """Record that a tensor is learnable by readers that may not read it any more."""
    value.metadata_props[LEARNABLE] = "true"


def is_noted_learnable(value: onnx_ir.Value) -> bool:
    """Return whether a tensor was learnable when its readers were parted."""
    return value.metadata_props.get(LEARNABLE) == "true"


def is_frozen(value: onnx_ir.Value, part: str = "") -> bool:
    """Return whether a parameter has ``requires_grad=False`` in its module, as far as is recorded.

    Args:
        value: What is stored.
        part: Of packed recurrent weights, the torch name of the part.
    """
    found = _frozen(value)
    return found is True or (found is not False and part in found)


def _frozen(value: onnx_ir.Value) -> bool | frozenset[str]:
    found = parsed(value.metadata_props.get(FROZEN))
    return found is True or (isinstance(found, list) and frozenset(whole_texts(found)))


def copy_kind(value: onnx_ir.Value, source: onnx_ir.Value) -> None:
    """Record that a tensor is what another is recorded to be, frozen if that one is."""
    for key in (TORCH_KIND, TORCH_PERSISTENT, FROZEN, LEARNABLE, BUFFERS):
        if key in source.metadata_props:
            value.metadata_props[key] = source.metadata_props[key]


def join_kinds(keep: onnx_ir.Value, others: Iterable[onnx_ir.Value]) -> None:
    """Record on a tensor that others are joined into what all of them are now.

    A parameter joined with a buffer is one, and what one of them trains is trained.
    """
    everyone = [keep, *others]
    if any(word_of(each) is Kind.PARAMETER for each in everyone):
        buffers = {name: kept for each in everyone for name, kept in _buffers(each).items()}
        for each in everyone:
            if word_of(each) is Kind.BUFFER:
                buffers |= dict.fromkeys(aliases_of(each), is_said_in_state(each))
        keep.metadata_props[TORCH_KIND] = Kind.PARAMETER.value
        if buffers:
            keep.metadata_props[BUFFERS] = json.dumps(buffers)
        everyone = [each for each in everyone if word_of(each) is not Kind.BUFFER]
    if any(is_noted_learnable(each) for each in everyone):
        note_learnable(keep)
    found = [_frozen(each) for each in everyone]
    parts = [each for each in found if not isinstance(each, bool)]
    if False in found or (parts and not frozenset.intersection(*parts)):
        keep.metadata_props.pop(FROZEN, None)
    elif parts:
        keep.metadata_props[FROZEN] = json.dumps(sorted(frozenset.intersection(*parts)))
