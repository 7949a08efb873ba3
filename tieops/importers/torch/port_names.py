"""Name the inputs and outputs of an exported graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.edit import NameAuthority
from tieops.ir.walk import all_graphs

__all__ = ["check_port_names", "name_ports"]

_ORIGINAL = "pkg.torch.onnx.original_node_name"
_OUTPUT_KIND = "pkg.torch.export.graph_signature.OutputSpec.kind"


def check_port_names(input_names: Sequence[str] | None, output_names: Sequence[str] | None) -> None:
    """Refuse names that no graph can have, before anything is exported.

    Raises:
        PreconditionError: If one is not a string with text in it, or stands there twice.
    """
    seen: dict[str, str] = {}
    for kind, names in (("input_names", input_names), ("output_names", output_names)):
        if isinstance(names, str):
            raise PreconditionError(
                f"{kind} must be a sequence of names, got the string {names!r}",
                None,
                f"write {kind}=[{names!r}]",
            )
        for name in names or ():
            if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise PreconditionError(
                    f"each of {kind} must be a non-empty string, got {name!r}",
                    None,
                    "give every input and output that you name a text",
                )
            if name in seen:
                raise PreconditionError(
                    f"inputs and outputs must have distinct names, got {name!r} twice",
                    {"in": seen[name] if seen[name] == kind else f"{seen[name]} and {kind}"},
                    "give each a name of its own, also where an output is an input handed through",
                )
            seen[name] = kind


def name_ports(
    model: onnx_ir.Model,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Give each output a value of its own, and inputs and outputs the names that were asked for.

    An output that is an input, something stored or an output before it reads that through an
    Identity: the two have a name each.  Another value that has a name that was asked for gets a
    new one; a parameter is found by its records then.

    Args:
        model: The exported graph; changed in place.
        input_names: Names that passed ``check_port_names``, in order; inputs past the last keep
            their own.
        output_names: The same for outputs.

    Raises:
        PreconditionError: If there are more names than inputs or outputs, or an input or output
            that was not named has one of them already.

    Example:
        >>> model = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] x) { y = Relu(x) }''')
        >>> name_ports(model, ["given"], ["same"])
        >>> model.graph.inputs[0].name, model.graph.outputs[0].name
        ('given', 'same')
    """
    graph = model.graph
    fresh = NameAuthority(model)
    _separate_outputs(graph, fresh)
    wanted = {
        **_paired("input", graph.inputs, input_names or ()),
        **_paired("output", graph.outputs, output_names or ()),
    }
    taken = set(wanted.values())
    for value in graph.inputs:
        if value.name in taken and value not in wanted:
            raise PreconditionError(
                f"expected a name that no input has, got {value.name!r}",
                {"inputs": ", ".join(str(each.name) for each in graph.inputs)},
                "choose another name, or name that input too: input_names=[…]",
            )
    for each in all_graphs(model):
        outputs = (output for node in each for output in node.outputs)
        for value in (*each.inputs, *each.initializers.values(), *outputs):
            if value.name in taken and value not in wanted:
                value.name = fresh.take(value.name)
    # In two steps, so that two can swap their names.
    for value in wanted:
        value.metadata_props[_ORIGINAL] = str(value.name)
        value.name = fresh.take("port")
    for value, name in wanted.items():
        value.name = name


def _paired(
    kind: str, values: Sequence[onnx_ir.Value], names: Sequence[str]
) -> dict[onnx_ir.Value, str]:
    if len(names) > len(values):
        raise PreconditionError(
            f"expected at most {len(values)} {kind} names, got {len(names)}",
            {
                f"the program's {kind}s": ", ".join(str(v.name) for v in values) or "none",
                "asked for": ", ".join(names),
            },
            "leave out the surplus names; arguments that are not tensors have no input",
        )
    return dict(zip(values, names, strict=False))


def _separate_outputs(graph: onnx_ir.Graph, fresh: NameAuthority) -> None:
    seen: set[onnx_ir.Value] = set()
    for position, value in enumerate(graph.outputs):
        if value.producer() is not None and value not in seen:
            seen.add(value)
            continue
        node = onnx_ir.node("Identity", [value])
        (output,) = node.outputs
        output.name = fresh.take(f"{value.name}_output")
        node.name = f"{output.name}_node"
        output.type, output.shape = value.type, value.shape
        if _OUTPUT_KIND in value.metadata_props:
            output.metadata_props[_OUTPUT_KIND] = value.metadata_props[_OUTPUT_KIND]
        graph.append(node)
        graph.outputs[position] = output
