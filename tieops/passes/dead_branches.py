"""Remove branches that never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.ir.dataflow.constant_conditions import fold_constant_conditions
from tieops.model import Model, TiedModel
from tieops.passes.base import Change, Plan, Preserves, Rewrite, SurgeryPass, run
from tieops.passes.readers_gone import ReadersBefore

__all__ = ["RemoveDeadBranchesPass", "remove_dead_branches"]


def remove_dead_branches(model: Model) -> TiedModel:
    """Remove the branches that never run, of Ifs whose condition is a constant.

    The branch that runs takes the place of its If. A condition is a constant if it is stored, and
    no caller can override it, or is computed from such tensors by Identity, Cast to bool, logic and
    comparisons.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.

    Returns:
        A new model without these branches, and without the nodes and stored tensors that only they
        or their conditions needed. All outputs are the same to the last bit.

    Raises:
        UnsupportedModelError: If it is given something else than a TiedModel.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) <bool yes = {1}, float[2] w = {1, 2}>
        ... { y = If(yes) <then_branch = a () => (float[2] p) { p = Neg(x) },
        ...                else_branch = b () => (float[2] q) { q = Mul(x, w) }> }''')
        >>> smaller = remove_dead_branches(TiedModel(graph))
        >>> [node.op_type for node in smaller.ir.graph], len(smaller.ir.graph.initializers)
        (['Neg'], 0)
    """
    smaller, _ = run(RemoveDeadBranchesPass(), model)
    return smaller


@dataclass(frozen=True, kw_only=True)
class RemoveDeadBranchesPass(SurgeryPass[Plan]):
    """Put the branch that runs in the place of its If; see ``remove_dead_branches``."""

    preserves: ClassVar[Preserves] = Preserves.SIGNATURE | Preserves.BITS

    def plan(self, model: TiedModel) -> Plan:
        """Nothing has to be refused: without such branches nothing changes."""
        return Plan(model=model)

    def apply(self, model: onnx_ir.Model, plan: Plan) -> Rewrite:
        """Remove what goes, and say why."""
        before = ReadersBefore(plan.model)
        changes = [
            Change(
                f"{kind} {name}",
                "never runs" if kind.endswith("_branch") else "nothing needs it any more",
            )
            for kind, name in fold_constant_conditions(model)
        ]
        before.release_names(model)
        return Rewrite(tuple(changes))
