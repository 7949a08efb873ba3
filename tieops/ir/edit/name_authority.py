"""Generate names that nothing in a model uses yet."""

from __future__ import annotations

import itertools
from collections import Counter

import onnx_ir

from tieops.ir.walk import all_graphs

__all__ = ["NameAuthority"]


class NameAuthority:
    """Hands out names that no value or node of any graph of a model has, collected once.

    One name for two values is invalid ONNX within a graph and its subgraphs, and readers mix the
    two up in silence; so a name is new to the whole model.

    Args:
        model: The model; later edits that use other names are not seen.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) { y = Relu(x) }''')
        >>> names = NameAuthority(graph)
        >>> names.take("y"), names.take("y"), names.take("z")
        ('y_1', 'y_2', 'z')
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        self._computed = {
            output.name: output
            for node in model.graph
            for output in node.outputs
            if output.name and not output.is_graph_output()
        }
        # Counted: constants of two branches may have one name, and one of them may go.
        self._taken = Counter(
            each.name
            for graph in all_graphs(model)
            for each in (
                *graph.inputs,
                *graph.initializers.values(),
                *graph,
                *(output for node in graph for output in node.outputs),
            )
            if each.name is not None
        )
        self._next: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        """Return ``wanted``, or ``wanted_1``, ``wanted_2``…, and never again."""
        name = wanted
        if self._taken[name] > 0:
            counts = itertools.count(self._next.get(wanted, 1))
            count = next(i for i in counts if self._taken[f"{wanted}_{i}"] <= 0)
            self._next[wanted] = count + 1
            name = f"{wanted}_{count}"
        self._taken[name] += 1
        return name

    def claim(self, wanted: str) -> str:
        """Return a name for a stored tensor; a computed value of that name gives it up.

        An exporter that stores a view of a tensor calls what computes it as the module calls the
        parameter. When that is stored by itself, the name is the tensor's.
        """
        holder = self._computed.pop(wanted, None)
        if holder is None or holder.name != wanted or self._taken[wanted] > 1:
            return self.take(wanted)
        holder.name = self.take(f"{wanted}_view")
        return wanted

    def release(self, name: str) -> None:
        """Give a name back: the value that had it is gone."""
        self._taken[name] -= 1
