"""Resolve targets to layers and slots: by name, glob, object or predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from tieops.errors import SelectionError
from tieops.ir.layer import Layer
from tieops.ir.nearest import nearest
from tieops.ir.notation import printable
from tieops.ir.parameter import Slot
from tieops.model import TiedModel

__all__ = ["Target", "one_layer", "slots_of", "weight_slot"]

Target = str | Layer | Slot | Callable[[Slot], bool]
"""A name or glob of a layer, slot or parameter, an object from the model, a predicate on slots."""

_GLOB = frozenset("*?[")


def slots_of(model: TiedModel, target: Target) -> tuple[Slot, ...]:
    """Return the slots that a target names, in the order of the graph.

    Args:
        model: The model.
        target: ``"fc"`` is all slots of the layer; ``"fc.weight"`` is one slot, or every slot that
            reads the parameter of that name; globs such as ``"layers.*.q_proj"`` match any of
            these; objects from ``model.layers`` and ``model.slots`` are themselves.

    Raises:
        SelectionError: If nothing matches; the nearest names are listed.

    Example:
        >>> import onnx_ir
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1,2,3,4}>
        ... { y = MatMul(x, w) }''')
        >>> [slot.name for slot in slots_of(TiedModel(graph), "w")]
        ['MatMul_y.weight']
    """
    if isinstance(target, Slot):
        found = [slot for slot in model.slots if slot.name == target.name]
    elif isinstance(target, Layer):
        found = [slot for slot in model.slots if slot.layer == target.name]
    elif isinstance(target, str):
        found = _by_name(model, target)
    elif callable(target):
        found = [slot for slot in model.slots if target(slot)]
    else:  # pyright: ignore[reportUnnecessaryComparison]
        raise SelectionError(
            f"expected a target, got {target!r}",
            {"type": type(target).__name__},
            "give a name, a glob, a layer, a slot or a predicate",
        )
    if not found:
        raise SelectionError(*_nothing(model, target))
    return tuple(found)


def weight_slot(model: TiedModel, target: Target) -> Slot:
    """Return the one slot that a target names; of a layer, its weight.

    Raises:
        SelectionError: If nothing matches, or several slots do.
    """
    found = list(slots_of(model, target))
    if len(found) > 1:
        found = [slot for slot in found if slot.role == "weight"] or found
    parameters = {slot.parameter for slot in found}
    if len(found) > 1 and len(parameters) > 1:
        raise SelectionError(
            f"expected one slot, but {_text(target)} names {len(found)}",
            {"slots": ", ".join(printable(slot.name) for slot in found[:6])},
            "name one of them",
        )
    return found[0]


def one_layer(model: TiedModel, target: str | Layer) -> Layer:
    """Return the one layer of this name, or the only one of the module of this name.

    A module that only computes, such as ``nn.Softmax``, is a layer called after the module and what
    it computes: ``sm`` finds ``sm.softmax``.

    Raises:
        SelectionError: If there is none, with the nearest names.
    """
    name = target.name if isinstance(target, Layer) else target
    for layer in model.layers:
        if layer.name == name:
            return layer
    inner = [layer for layer in model.layers if layer.name.startswith(f"{name}.")]
    if len(inner) != 1:
        raise SelectionError(*_nothing(model, name))
    return inner[0]


def _by_name(model: TiedModel, text: str) -> list[Slot]:
    exact = [slot for slot in model.slots if slot.layer == text]
    exact = exact or [slot for slot in model.slots if slot.name == text]
    exact = exact or [
        slot for slot in model.slots if any(text in read.parameter.names for read in slot.reads)
    ]
    if exact or not _GLOB & set(text):
        return exact
    return [
        slot
        for slot in model.slots
        if fnmatchcase(slot.layer, text)
        or fnmatchcase(slot.name, text)
        or any(fnmatchcase(name, text) for read in slot.reads for name in read.parameter.names)
    ]


def _text(target: object) -> str:
    return printable(target) if isinstance(target, str) else repr(target)


def _nothing(model: TiedModel, target: object) -> tuple[str, dict[str, object], str]:
    known = _known_names(model)
    facts = nearest(target if isinstance(target, str) else "", known, "layers")
    fix = "see print(model.layers), or tieops inspect MODEL"
    return f"nothing in the model is named {_text(target)}", facts, fix


def _known_names(model: TiedModel) -> list[str]:
    names: Iterable[str] = (
        name for slot in model.slots for name in (slot.layer, slot.name, *slot.parameter.names)
    )
    return list(dict.fromkeys((*names, *(layer.name for layer in model.layers))))
