"""Values that take the place of others, under their names and as the graph outputs they were."""

from __future__ import annotations

import onnx_ir

from tieops.ir.edit.name_authority import NameAuthority

__all__ = ["keep_as_output", "replace_value"]


def replace_value(old: onnx_ir.Value, new: onnx_ir.Value) -> None:
    """Put a new value in the place of an old one, under its name, as a graph output too.

    Args:
        old: The output of a node that is about to go; it loses its name.
        new: The output of a node. What it says of its type and shape is replaced by what ``old``
            says, and its metadata is extended by that of ``old``.
    """
    new.type, new.shape = old.type, old.shape
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name = name
    new.metadata_props.update(old.metadata_props)


def keep_as_output(old: onnx_ir.Value, source: onnx_ir.Value, names: NameAuthority) -> None:
    """Let ``source`` be the graph output that ``old`` was, under its name, through an Identity.

    Args:
        old: A value that is about to go, or to lose its readers; it gets another name. Nothing
            happens where it is not a graph output.
        source: What has its values, visible in the graph of ``old``.
        names: Where the old value gets its new name.
    """
    graph = old.graph
    if graph is None or not old.is_graph_output():
        return
    name = old.name
    identity = onnx_ir.node("Identity", [source], name=f"{name}_identity")
    out = identity.outputs[0]
    out.type, out.shape = old.type, old.shape
    positions = [i for i, output in enumerate(graph.outputs) if output is old]
    old.name = names.take(f"{name}_stored")
    out.name = name
    graph.append(identity)
    for position in positions:
        graph.outputs[position] = out
