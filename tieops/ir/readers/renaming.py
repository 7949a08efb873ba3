"""Names of stored tensors, replaced wherever a model remembers them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx_ir

from tieops.ir.metadata.keys import FROZEN, NAMES, ORIGIN, PACKED
from tieops.ir.metadata.parsing import parsed
from tieops.ir.readers.forms import FORMS
from tieops.ir.readers.readers import READS
from tieops.ir.walk import all_nodes, stored_values

__all__ = ["rename_tensors"]

_ON_VALUES = (NAMES, PACKED, FORMS, FROZEN)
"""Keys under which JSON has names of tensors, as texts of lists or as keys of objects."""


def rename_tensors(model: onnx_ir.Model, renamed: Mapping[str, str]) -> None:
    """Replace names of stored tensors in all records of a model, in place.

    The names that values are stored under stay: those are the caller's to change.

    Args:
        model: The model.
        renamed: New names by old ones.

    Example:
        >>> value = onnx_ir.Value(name="w", const_value=onnx_ir.tensor([1.0]))
        >>> value.metadata_props["tieops.names"] = '["w", "fc.weight"]'
        >>> graph = onnx_ir.Graph([], [], nodes=[], initializers=[value])
        >>> rename_tensors(onnx_ir.Model(graph, ir_version=10), {"fc.weight": "head.weight"})
        >>> value.metadata_props["tieops.names"]
        '["w", "head.weight"]'
    """
    for value in stored_values(model):
        props = value.metadata_props
        for key in _ON_VALUES:
            _rename(props, key, renamed)
        if ORIGIN in props:
            props[ORIGIN] = renamed.get(props[ORIGIN], props[ORIGIN])
    for node in all_nodes(model):
        _rename(node.metadata_props, READS, renamed)


def _rename(props: dict[str, str], key: str, renamed: Mapping[str, str]) -> None:
    found = parsed(props.get(key))
    if isinstance(found, list | dict):
        props[key] = json.dumps(_replaced(found, renamed))


def _replaced(found: object, renamed: Mapping[str, str]) -> object:
    # Of a depth that JSON's own parser has accepted; our records are three deep.
    match found:
        case str():
            return renamed.get(found, found)
        case list():
            return [_replaced(each, renamed) for each in found]
        case dict():
            return {renamed.get(k, k): _replaced(each, renamed) for k, each in found.items()}
        case _:
            return found
