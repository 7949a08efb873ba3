"""Replace values, keeping their names and their places among the graph outputs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from tieops.ir.edit.name_authority import NameAuthority

__all__ = [
    "as_graph_input",
    "bypass",
    "keep_as_output",
    "remove_input",
    "rename_values",
    "replace_value",
]


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


def bypass(output: onnx_ir.Value, source: onnx_ir.Value, names: NameAuthority) -> None:
    """Let what reads a value read its source instead; a graph output keeps its name.

    Args:
        output: A value that is about to go.
        source: What has its type and shape, visible in its graph.
        names: Where values get new names.
    """
    is_free = source.producer() is not None and not source.is_graph_output()
    if output.is_graph_output() and is_free and source.graph is output.graph:
        replace_value(output, source)
        return
    keep_as_output(output, source, names)
    output.replace_all_uses_with(source)


def as_graph_input(value: onnx_ir.Value, names: NameAuthority) -> onnx_ir.Value:
    """Return a graph input in the place of a value: one of its name, type, shape and readers.

    Args:
        value: The value; it loses its readers and gets another name, unless it is an input itself.
        names: Where it gets that.
    """
    if value.is_graph_input():
        return value
    new = onnx_ir.Value(name=value.name, type=value.type, shape=value.shape)
    value.name = names.take(f"{value.name}_computed")
    value.replace_all_uses_with(new)
    return new


def remove_input(model: onnx_ir.Model, value: onnx_ir.Value) -> None:
    """Take an input that has a stored value away: nobody can feed another one any more."""
    model.graph.inputs.remove(value)
    # Before IR version 4 every initializer had to be a graph input.
    model.ir_version = max(model.ir_version, 4)


def rename_values(model: onnx_ir.Model, renamed: Mapping[onnx_ir.Value, str]) -> None:
    """Give values new names, all at once: two may change places; initializers keep their order.

    Args:
        model: The graph.
        renamed: The new names; a computed value that has one gives it up.
    """
    names = NameAuthority(model)
    homes = {value.graph for value in renamed if value.is_initializer()}
    stored = {
        graph: [*graph.initializers.values()] for graph in homes if isinstance(graph, onnx_ir.Graph)
    }
    for graph in stored:
        graph.initializers.clear()
    for value in renamed:
        names.release(value.name or "")
        value.name = None
    # Tensors of two branches may have one name, and have one afterwards.
    taken = {new: names.claim(new) for new in dict.fromkeys(renamed.values())}
    for value, new in renamed.items():
        value.name = taken[new]
    for graph, values in stored.items():
        for value in values:
            graph.initializers.add(value)
