"""Find dead weights, branches that never run, and outputs that no input reaches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir

from tieops.analysis.problems.fixes import outputs_fix
from tieops.ir.dataflow.constant_conditions import constant_ifs, fold_constant_conditions
from tieops.ir.dataflow.input_dependent import input_dependent_values
from tieops.ir.dataflow.liveness import eliminate_dead_code, is_all_live
from tieops.ir.edit import copy_model
from tieops.ir.notation import brief_bytes, counted, printable
from tieops.ir.problem import Problem
from tieops.ir.storage.byte_ranges import stored_bytes

__all__ = ["unneeded_problems"]

_KINDS = ("node", "initializer", "function")


def unneeded_problems(model: onnx_ir.Model) -> Iterator[Problem]:
    """Yield disconnected outputs, what no output needs, dead branches, and inputs nothing reads.

    Args:
        model: The graph; left alone.
    """
    reached = input_dependent_values(model)
    outputs = [output.name or "" for output in model.graph.outputs]
    apart = [output.name or "" for output in model.graph.outputs if output not in reached]
    if len(apart) < len(outputs):
        for name in apart:
            yield Problem(
                "disconnected output",
                "wrong",
                f"no input reaches the output {printable(name)}: it is the same on every run",
                *outputs_fix(),
            )
    elif outputs and model.graph.inputs:
        yield Problem(
            "disconnected output",
            "wrong",
            "no input reaches any output: the model is a constant",
            "tieops convert SOURCE OUT",
            "tieops.from_torch(module, inputs)",
        )
    yield from _dead(model, outputs if len(apart) == len(outputs) else [])
    yield from _dead_branches(model)
    yield from _unused_inputs(model)


def _dead(model: onnx_ir.Model, keep: list[str]) -> Iterator[Problem]:
    """Yield what ``remove_disconnected_outputs`` removes although no output goes."""
    if is_all_live(model):
        return
    smaller = copy_model(model)
    gone = [each for each in eliminate_dead_code(smaller) if each[0] in _KINDS]
    if not gone:
        return
    wasted = stored_bytes(model) - stored_bytes(smaller)
    counts = Counter(kind for kind, _ in gone)
    shown = ", ".join(counted(count, kind) for kind, count in counts.items())
    names = ", ".join(printable(name) for _, name in gone[:2])
    more = ", …" if len(gone) > 2 else ""
    yield Problem(
        "unneeded",
        "waste",
        f"no output needs {shown} ({names}{more}): {brief_bytes(wasted)}",
        *outputs_fix(keep=keep),
        wasted,
    )


def _dead_branches(model: onnx_ir.Model) -> Iterator[Problem]:
    """Yield one problem for all branches that never run, with the bytes that only they hold."""
    names = [
        f"{'else_branch' if taken else 'then_branch'} of "
        + printable(node.name or f"If_{node.outputs[0].name}")
        for node, taken in constant_ifs(model)
    ]
    if not names:
        return
    smaller = copy_model(model)
    fold_constant_conditions(smaller)
    wasted = stored_bytes(model) - stored_bytes(smaller)
    shown = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
    verb = "branches never run" if len(names) > 1 else "branch never runs"
    yield Problem(
        "dead branch",
        "waste",
        f"{len(names)} {verb}, the condition is a constant ({shown}): {brief_bytes(wasted)}",
        "tieops remove-branches MODEL OUT",
        "tieops.remove_dead_branches(model)",
        wasted,
    )


def _unused_inputs(model: onnx_ir.Model) -> Iterator[Problem]:
    for value in model.graph.inputs:
        if not value.is_initializer() and not value.uses() and not value.is_graph_output():
            yield Problem(
                "unused input",
                "wrong",
                f"nothing reads the input {printable(value.name or '')}",
                *outputs_fix(unused_inputs=True),
            )
