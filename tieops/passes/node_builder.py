"""New nodes in the place of one that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir

from tieops.ir.edit import NameAuthority
from tieops.ir.walk import rename_scope

__all__ = ["NodeBuilder"]


class NodeBuilder:
    """Makes nodes that take the place of one node: named after it, and of its torch module.

    Args:
        name: What their names begin with.
        like: The node.
        names: Where they and their outputs get their names.
        layer: What the layer of the node was called, if it is now called ``name``.
    """

    def __init__(
        self, name: str, like: onnx_ir.Node, names: NameAuthority, layer: str | None = None
    ) -> None:
        self.nodes: list[onnx_ir.Node] = []
        """Those that were made, in order, to be inserted where the old one stands."""
        self._name = name
        self._like = like
        self._names = names
        self._layer = layer

    def __call__(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value],
        attributes: Mapping[str, int | list[int] | onnx_ir.Attr] | None = None,
        *,
        part: str | None = None,
    ) -> onnx_ir.Value:
        """Make a node; return its output.

        Args:
            op_type: Its operator, of ONNX's own domain.
            inputs: Its inputs.
            attributes: Its attributes.
            part: What its name ends with; ``op_type`` by default.
        """
        name = self._names.take(f"{self._name}_{part or op_type}")
        node = onnx_ir.node(op_type, inputs, attributes, name=name)
        node.metadata_props.update(self._like.metadata_props)
        if self._layer is not None:
            rename_scope(node, self._layer, self._name)
        node.outputs[0].name = self._names.take(f"{name}_out")
        self.nodes.append(node)
        return node.outputs[0]
