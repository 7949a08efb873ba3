"""Find out which provider runs which node of a session."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from tieops.errors import PreconditionError
from tieops.ir.notation import counted, printable
from tieops.ir.operators.on_cuda import computes_shapes
from tieops.ir.operators.roles import kind_of
from tieops.runtime.providers import CUDA, first_line, onnxruntime_errors, onnxruntime_module

__all__ = ["PlacedNode", "Placement", "placement_of", "recorded_placement"]

MAX_SHOWN = 40


@dataclass(frozen=True)
class PlacedNode:
    """A node and what runs it.

    Attributes:
        name: Its name in the graph; exporters may leave it empty.
        op_type: Its operator.
        domain: The operator's domain; empty for ONNX's own.
        provider: ONNX Runtime's name of the provider.
    """

    name: str
    op_type: str
    domain: str
    provider: str

    @property
    def computes_shapes(self) -> bool:
        """Whether this is arithmetic of shapes, if it runs on the CPU beside CUDA."""
        return computes_shapes(self)

    @property
    def has_weights(self) -> bool:
        """Whether the operator has learnable weights, and is not one of those of shapes."""
        return kind_of(self) is not None and not self.computes_shapes

    def __str__(self) -> str:
        kind = f"{self.domain}.{self.op_type}" if self.domain else self.op_type
        return printable(f"{kind} {self.name}".rstrip())


@dataclass(frozen=True)
class Placement:
    """The nodes of a session by provider.

    Attributes:
        asked: What the session was opened on, "cuda" or "cpu".
        nodes: All nodes, those of subgraphs included.

    Example:
        >>> nodes = (PlacedNode("fc", "Gemm", "", CUDA), PlacedNode("g", "GRU", "", "CPU"))
        >>> print(Placement("cuda", (*nodes, PlacedNode("n", "Slice", "", "CPU"))))
        CPU: 2 nodes
        CUDAExecutionProvider: 1 node
        not on CUDA:
          GRU g
        on the CPU on purpose, for they compute shapes:
          Slice n
    """

    asked: Literal["cuda", "cpu"]
    nodes: tuple[PlacedNode, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes each provider runs, the busiest first."""
        return dict(Counter(node.provider for node in self.nodes).most_common())

    @property
    def fell(self) -> tuple[PlacedNode, ...]:
        """The nodes that do not run on CUDA though the session does; some are there on purpose.

        ONNX Runtime itself puts operators that compute shapes on the CPU, where they are faster:
        those whose ``computes_shapes`` is true.
        """
        if self.asked != "cuda":
            return ()
        return tuple(node for node in self.nodes if node.provider != CUDA)

    def to_dict(self) -> dict[str, Any]:
        """Return it all as JSON-ready data."""
        return {
            "asked": self.asked,
            "counts": self.counts,
            "fell": [{**vars(node), "computes_shapes": node.computes_shapes} for node in self.fell],
            "nodes": [vars(node) for node in self.nodes],
        }

    def __str__(self) -> str:
        lines = [f"{name}: {counted(count, 'node')}" for name, count in self.counts.items()]
        for heading, of_shapes in (
            ("not on CUDA:", False),
            ("on the CPU on purpose, for they compute shapes:", True),
        ):
            nodes = [node for node in self.fell if node.computes_shapes == of_shapes]
            if nodes:
                lines += [heading, *(f"  {node}" for node in nodes[:MAX_SHOWN])]
            if len(nodes) > MAX_SHOWN:
                lines.append(f"  … and {len(nodes) - MAX_SHOWN} more")
        return "\n".join(lines) or "no nodes"


def placement_of(inner: Any, asked: Literal["cuda", "cpu"]) -> Placement:
    """Return which provider runs which node of an open session of ONNX Runtime.

    Args:
        inner: The session; made with ``session.record_ep_graph_assignment_info`` set to 1.
        asked: What it was opened on.

    Raises:
        PreconditionError: If ONNX Runtime is too old to report it, or was configured not to.
    """
    ask = getattr(inner, "get_provider_graph_assignment_info", None)
    version = onnxruntime_module().__version__
    if ask is None:
        raise PreconditionError(
            f"onnxruntime {version} does not report which node runs where", {}, "use 1.24 or newer"
        )
    try:
        return _placement(ask(), asked)
    except onnxruntime_errors() as error:
        raise PreconditionError(
            "which node runs where was not recorded",
            {"it says": first_line(error)},
            "leave session.record_ep_graph_assignment_info out of options=",
        ) from error


def recorded_placement(inner: Any, asked: Literal["cuda", "cpu"]) -> Placement | None:
    """Return what `placement_of` does, or None where it was not recorded."""
    try:
        return placement_of(inner, asked)
    except PreconditionError:
        return None


def _placement(parts: Any, asked: Literal["cuda", "cpu"]) -> Placement:
    nodes = tuple(
        PlacedNode(node.name, node.op_type, node.domain, part.ep_name)
        for part in parts
        for node in part.get_nodes()
    )
    return Placement(asked, nodes)
