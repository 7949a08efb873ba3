"""The ``tieops.*`` metadata keys of values in an ONNX file, and how they are read and written.

In memory they are metadata of the initializer's value, which a clone of the graph carries without
touching the original; in a file they are the initializer's own (``TensorProto.metadata_props``), so
they survive a save and a load by any tool that keeps metadata.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable

import onnx_ir

from tieops.ir.evidence import Evidence
from tieops.ir.metadata.parsing import parsed, whole_texts

__all__ = [
    "add_names",
    "aliases_of",
    "evidence_of",
    "forget_evidence",
    "is_generated_name",
    "join_packed_names",
    "keep_packed_names",
    "lr_factor_of",
    "names_of",
    "origin_of",
    "packed_aliases",
    "packed_parts",
    "recorded_names",
    "set_axes",
    "set_computed_with",
    "set_evidence",
    "set_lr_factor",
    "set_names",
    "set_origin",
    "set_stand_in",
    "was_computed_with",
]

NAMES = "tieops.names"
EVIDENCE = "tieops.evidence"
LR_FACTOR = "tieops.lr_factor"
PACKED = "tieops.packed"
AXES = "tieops.axes"
ORIGIN = "tieops.origin"
STAND_IN = "tieops.stand_in"
"""The name that a tensor is stored under, where an input or an output has the tensor's own."""
COMPUTED = "tieops.computed"
TORCH_INPUTS = "tieops.torch_inputs"
"""On the model: how its inputs nest in the torch program that it came from."""
TORCH_CONSTANTS = "tieops.torch_constants"
"""On the model: the arguments that were written into the program, by their positions."""
TORCH_NOTES = "tieops.torch_notes"
"""On the model, if torch said what its tensors are: what a graph cannot say, as a list of lines."""
TORCH_KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
"""What torch's exporter says that a tensor is: PARAMETER, BUFFER or CONSTANT_TENSOR."""
TORCH_PERSISTENT = "pkg.torch.export.graph_signature.InputSpec.persistent"
"""Whether a buffer is in the state_dict: False if it is not."""
FROZEN = "tieops.frozen"
"""On a parameter: true if it has ``requires_grad=False``; of several, the names of those."""
BUFFERS = "tieops.buffers"
"""On a parameter: its names that are buffers, each with whether it is in the state_dict."""
LEARNABLE = "tieops.learnable"
"""On a tensor that was untied: it is learnable, whatever reads it since then."""
PADDING_IDX = "tieops.padding_idx"
"""On a Gather: the row whose gradient torch's embedding leaves out."""

# Names that exporters invent for tensors that have none of their own.
_GENERATED = re.compile(
    r"onnx::\w+_\d+|val_\d+|_to_copy(_\d+)?|/.*_output_\d+|\d+|.*Constant_\d+.*"
)


def is_generated_name(name: str) -> bool:
    """Return whether an exporter generated this name, so that nobody would miss it.

    Example:
        >>> is_generated_name("onnx::MatMul_124"), is_generated_name("fc.weight")
        (True, False)
    """
    return _GENERATED.fullmatch(name) is not None


def _strings(value: onnx_ir.Value, key: str) -> list[str]:
    return whole_texts(parsed(value.metadata_props.get(key)))


def names_of(value: onnx_ir.Value) -> tuple[str, ...]:
    """Return every name that a stored tensor is known by, its own first, without repeats.

    Where an input or an output of the graph has that name, the tensor is stored under a stand-in,
    which is not one of its names (``set_stand_in``). Packed recurrent weights (``tieops.packed``)
    are known by the names of their parts too.
    """
    recorded = _strings(value, NAMES)
    others = [*recorded, *packed_parts(value)]
    is_stand_in = others and value.metadata_props.get(STAND_IN) == value.name
    names = others if is_stand_in else [value.name or "", *others]
    return tuple(dict.fromkeys(name for name in names if name))


def aliases_of(value: onnx_ir.Value) -> tuple[str, ...]:
    """Return the names that each stand for the whole of a stored tensor, its own first.

    A packed recurrent weight is one name: those of its parts stand for a part of it each.
    """
    parts = packed_parts(value)
    if parts:
        return (value.name or "",)
    return names_of(value)


def packed_parts(value: onnx_ir.Value) -> tuple[str, ...]:
    """Return the torch names of the parts that one packed recurrent weight was made of."""
    found = parsed(value.metadata_props.get(PACKED))
    return tuple(whole_texts(found.get("parts") if isinstance(found, dict) else None))


def packed_aliases(value: onnx_ir.Value) -> tuple[tuple[str, ...], ...]:
    """Return, for each part of a packed recurrent weight, all of its names, its own first."""
    found = parsed(value.metadata_props.get(PACKED))
    more = found.get("names") if isinstance(found, dict) else None
    aliases: dict[str, object] = more if isinstance(more, dict) else {}
    return tuple((part, *whole_texts(aliases.get(part))) for part in packed_parts(value))


def keep_packed_names(value: onnx_ir.Value, mine: Container[str]) -> None:
    """Leave a packed recurrent weight those names of its parts that are in ``mine``.

    A part of which none is keeps all.
    """
    found = parsed(value.metadata_props.get(PACKED))
    groups = [
        [name for name in names if name in mine] or list(names) for names in packed_aliases(value)
    ]
    if isinstance(found, dict) and groups:
        found["parts"] = [group[0] for group in groups]
        found["names"] = {group[0]: group[1:] for group in groups if group[1:]}
        value.metadata_props[PACKED] = json.dumps(found)
        set_names(value, [name for group in groups for name in group[1:]])


def join_packed_names(value: onnx_ir.Value, other: onnx_ir.Value) -> None:
    """Add the names of another packed weight's parts to those of the same parts of this one."""
    found = parsed(value.metadata_props.get(PACKED))
    mine, theirs = packed_aliases(value), packed_aliases(other)
    if isinstance(found, dict) and len(mine) == len(theirs):
        joined = [list(dict.fromkeys((*a, *b))) for a, b in zip(mine, theirs, strict=True)]
        found["names"] = {group[0]: group[1:] for group in joined if group[1:]}
        value.metadata_props[PACKED] = json.dumps(found)
        add_names(value, [name for group in joined for name in group[1:]])


def set_names(value: onnx_ir.Value, names: Iterable[str]) -> None:
    """Record the names that a stored tensor is known by."""
    value.metadata_props[NAMES] = json.dumps(list(dict.fromkeys(names)))


def add_names(value: onnx_ir.Value, names: Iterable[str]) -> None:
    """Add names to those that a stored tensor is known by."""
    set_names(value, [*_strings(value, NAMES), *names])


def set_stand_in(value: onnx_ir.Value, names: Iterable[str]) -> None:
    """Record a tensor's names, of which the one that it is stored under is none.

    The record lapses when the tensor is stored under another name.
    """
    set_names(value, names)
    value.metadata_props[STAND_IN] = value.name or ""


def evidence_of(value: onnx_ir.Value) -> Evidence | None:
    """Return why the readers of this tensor are believed to share it, if the file says so."""
    word = value.metadata_props.get(EVIDENCE)
    return Evidence(word) if word in Evidence.__members__.values() else None


def set_evidence(value: onnx_ir.Value, evidence: Evidence) -> None:
    """Record why the readers of this tensor share it."""
    value.metadata_props[EVIDENCE] = evidence.value


def forget_evidence(value: onnx_ir.Value) -> None:
    """Remove the record of why a tensor is shared: it no longer is."""
    value.metadata_props.pop(EVIDENCE, None)


def origin_of(value: onnx_ir.Value) -> str:
    """Return the tensor that this one was untied from, or that was untied from it; else nothing."""
    return value.metadata_props.get(ORIGIN, "")


def set_origin(value: onnx_ir.Value, name: str) -> None:
    """Record that tensors of one origin were one: what makes equal content no coincidence."""
    value.metadata_props[ORIGIN] = name


def set_computed_with(value: onnx_ir.Value) -> None:
    """Record that layers use what is computed from a tensor, whoever of them reads it later."""
    value.metadata_props[COMPUTED] = "true"


def was_computed_with(value: onnx_ir.Value) -> bool:
    """Return whether layers used what is computed from a tensor when it was untied."""
    return value.metadata_props.get(COMPUTED) == "true"


def recorded_names(value: onnx_ir.Value) -> tuple[str, ...]:
    """Return the names that were recorded for a tensor, without the one it is stored under."""
    return tuple(_strings(value, NAMES))


def set_axes(value: onnx_ir.Value, perm: Iterable[int]) -> None:
    """Record in which order of axes a tensor is stored, beside the one its name stands for."""
    value.metadata_props[AXES] = json.dumps([int(axis) for axis in perm])


def lr_factor_of(value: onnx_ir.Value) -> float:
    """Return the learning-rate factor stored with a tensor; 1.0 where there is none."""
    try:
        factor = float(value.metadata_props.get(LR_FACTOR, "1"))
    except ValueError:
        return 1.0
    return factor if math.isfinite(factor) and factor >= 0 else 1.0


def set_lr_factor(value: onnx_ir.Value, factor: float) -> None:
    """Store a learning-rate factor with a tensor."""
    value.metadata_props[LR_FACTOR] = repr(float(factor))
