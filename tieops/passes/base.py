"""The protocol of all passes: options as fields, edits and refusals as data, checked promises."""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import onnx_ir

from tieops.errors import PostconditionError
from tieops.ir.edit import own_tensors
from tieops.ir.notation import printable
from tieops.ir.parameter import Parameter
from tieops.ir.walk import all_nodes
from tieops.model import Model, TiedModel, as_model
from tieops.system.gc_paused import gc_paused

__all__ = [
    "Change",
    "Plan",
    "Preserves",
    "Rewrite",
    "Skip",
    "SurgeryPass",
    "SurgeryResult",
    "adopt",
    "run",
    "unchangeable",
]


class Preserves(enum.Flag):
    """What a pass leaves as it was."""

    SIGNATURE = enum.auto()
    """Names, dtypes and shapes of the graph's inputs and outputs."""
    BITS = enum.auto()
    """Every bit of every output, with the runtime's optimizations off."""
    NUMERICS = enum.auto()
    """Every output within rounding: the same arithmetic in another order."""


@dataclass(frozen=True)
class Change:
    """One edit that was made."""

    target: str
    what: str

    def __str__(self) -> str:
        return printable(f"{self.target}: {self.what}")


@dataclass(frozen=True)
class Skip:
    """One edit that was declined, and why."""

    target: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.target}: not changed, {self.reason}")


@dataclass(frozen=True)
class Rewrite:
    """What a pass did and declined to do."""

    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()


@dataclass
class SurgeryResult(onnx_ir.passes.PassResult):
    """The result of a pass, with its edits and refusals."""

    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a pass is going to do to one graph; each pass adds what it needs to know.

    Args:
        model: The graph that was looked at, with all that was derived from it.
        skips: What is declined, and why.
    """

    model: TiedModel
    skips: tuple[Skip, ...] = ()


PlanT = TypeVar("PlanT", bound=Plan)


class SurgeryPass(onnx_ir.passes.InPlacePass, abc.ABC, Generic[PlanT]):
    """A pass whose fields are its options.

    Subclasses are frozen, keyword-only dataclasses. ``plan`` raises what must be refused and
    returns what is to be done, as data; ``apply`` edits. Called on its own a pass raises tieops'
    errors as they are; ``onnx_ir.passes.Sequential`` wraps them. A pass that raises has changed
    nothing.
    """

    preserves: ClassVar[Preserves]

    @abc.abstractmethod
    def plan(self, model: TiedModel) -> PlanT:
        """Return what is to be done to a model, which is left alone.

        Raises:
            TieopsError: What must be refused.
        """

    @abc.abstractmethod
    def apply(self, model: onnx_ir.Model, plan: PlanT) -> Rewrite:
        """Edit a graph in place; return the edits made and declined.

        Args:
            model: The graph that the plan was made for. What was derived from it before is no
                longer true afterwards.
            plan: What to do.
        """

    def __call__(
        self, model_or_result: onnx_ir.Model | onnx_ir.passes.PassResult, /
    ) -> SurgeryResult:
        """Run the pass in place on an ``onnx_ir.Model``."""
        is_result = isinstance(model_or_result, onnx_ir.passes.PassResult)
        return self.call(model_or_result.model if is_result else model_or_result)

    def call(self, model: onnx_ir.Model) -> SurgeryResult:
        """Run the pass in place on an ``onnx_ir.Model``."""
        plan = self.plan(TiedModel(model))
        own_tensors(model)  # clones of this graph, and the proto it was read from, keep their names
        return self._applied(model, plan)

    def on_copy(self, copy: TiedModel) -> tuple[TiedModel, SurgeryResult]:
        """Run the pass on a copy that owns its tensors and that nobody gets if it fails.

        Returns:
            The model as it is now: with all that was derived of it, if nothing changed.
        """
        result = self._applied(copy.ir, self.plan(copy))
        return TiedModel(copy.ir) if result.modified else copy, result

    def _applied(self, model: onnx_ir.Model, plan: PlanT) -> SurgeryResult:
        rewrite = self.apply(model, plan)
        self.ensures(model)
        return SurgeryResult(model, bool(rewrite.changes), rewrite.changes, rewrite.skips)

    def ensures(self, model: onnx_ir.Model) -> None:
        """Check that no value is read that nothing defines.

        Raises:
            PostconditionError: If a graph is broken, which is a bug in tieops.
        """
        for node in all_nodes(model):
            for value in node.inputs:
                if value is None or value.producer() is not None or value.graph is not None:
                    continue
                raise PostconditionError(
                    f"{type(self).__name__} left {node.name or node.op_type} reading "
                    f"{value.name}, which is gone",
                    None,
                    "this is a bug in tieops: please report it with the model",
                )


@gc_paused()
def run(surgery: SurgeryPass[Any], model: Model) -> tuple[TiedModel, SurgeryResult]:
    """Run a pass on a copy of a model; the weights are shared, not copied.

    Returns:
        The new model, and what was done. ``model`` is left alone.

    Raises:
        TieopsError: If it is given something else than a model, or what ``from_onnx`` imports.
    """
    return surgery.on_copy(TiedModel(as_model(model).clone()))


def adopt(model: onnx_ir.Model, draft: TiedModel) -> None:
    """Put the graph of a draft, a copy on which an edit was planned, in the place of a model's."""
    model.graph = draft.ir.graph
    model.functions.clear()
    model.functions.update(draft.ir.functions)


def unchangeable(parameter: Parameter) -> str:
    """Return why readers of a stored tensor cannot be given another one; empty if they can."""
    if parameter.is_overridable:
        return "it is a graph input too, which a caller may override for all readers at once"
    return ""
