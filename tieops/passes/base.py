"""The protocol of all passes: options as fields, edits and refusals as data, promises checked."""

from __future__ import annotations

import abc
import enum
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir

from tieops.errors import PostconditionError
from tieops.ir.edit import own_tensors
from tieops.ir.notation import printable
from tieops.ir.walk import all_nodes
from tieops.model import TiedModel, check_model
from tieops.system.gc_paused import collector_paused

__all__ = ["Change", "Preserves", "Rewrite", "Skip", "SurgeryPass", "SurgeryResult", "run"]


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


class SurgeryPass(onnx_ir.passes.InPlacePass, abc.ABC):
    """A pass whose fields are its options.

    Subclasses are frozen, keyword-only dataclasses. ``requires`` raises before the first edit,
    ``rewrite`` edits the graph and says what it did, ``ensures`` checks what was promised. Called
    on its own a pass raises tieops' errors as they are; ``onnx_ir.passes.Sequential`` wraps them.
    """

    preserves: ClassVar[Preserves]
    rewrite_checks: ClassVar[bool] = False
    """Whether ``rewrite`` raises all that ``requires`` does: on a copy that nobody gets if it
    fails, the latter is left out."""

    @abc.abstractmethod
    def rewrite(self, model: onnx_ir.Model) -> Rewrite:
        """Edit the graph in place; return the edits made and declined."""

    def __call__(
        self, model_or_result: onnx_ir.Model | onnx_ir.passes.PassResult, /
    ) -> SurgeryResult:
        """Run the pass in place on an ``onnx_ir.Model``."""
        model = (
            model_or_result.model
            if isinstance(model_or_result, onnx_ir.passes.PassResult)
            else model_or_result
        )
        self.requires(model)
        own_tensors(model)  # clones of this graph, and the proto it was read from, keep their names
        return self._checked(model)

    def call(self, model: onnx_ir.Model) -> SurgeryResult:
        """Run the rewrite; what ``onnx_ir`` calls between the checks."""
        rewrite = self.rewrite(model)
        return SurgeryResult(model, bool(rewrite.changes), rewrite.changes, rewrite.skips)

    def on_copy(self, copy: onnx_ir.Model) -> SurgeryResult:
        """Run the pass on a copy that is thrown away if it fails."""
        return self._checked(copy) if self.rewrite_checks else self(copy)

    def _checked(self, model: onnx_ir.Model) -> SurgeryResult:
        result = self.call(model)
        self.ensures(model)
        return result

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


@collector_paused()
def run(surgery: SurgeryPass, model: TiedModel) -> tuple[TiedModel, SurgeryResult]:
    """Run a pass on a copy of a model; the weights are shared, not copied.

    Returns:
        The new model, and what was done. ``model`` is left alone.

    Raises:
        UnsupportedModelError: If it is given something else than a TiedModel.
    """
    check_model(model)
    result = surgery.on_copy(model.clone())
    return TiedModel(result.model), result
