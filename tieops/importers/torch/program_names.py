"""Give stored tensors neutral names while torch works on an exported program.

``torch.export`` accepts every name that a module can have, but the tools that process its programs
do not. They put the tensors into a ``GraphModule``, which has attributes such as ``code``,
``graph`` and ``meta``; they write names into Python source (``self.class.weight``); and they rename
initializers one by one, in a dict in which a parameter ``p_x`` already stands for ``x``. The
neutral names used here collide with none of this; the original names are restored afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind

from tieops.importers.torch.default_types import write_types

__all__ = ["ProgramNames", "exporting_names"]

_NEUTRAL = re.compile(r"tieops((?:\._\d)+)\.(parametrizations\.)?t\b")
"""``tieops._1._4.t`` is the fourteenth: a dot is in no name of an operation or an input.

Each tensor has a module of its own, as torch takes what one module holds twice for one tensor, and
a digit is a module, as torch looks at all that a module holds for each that it puts there.
"""
_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_WRITTEN = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


class ProgramNames:
    """Gives the stored tensors of programs neutral names, and knows what each one stands for."""

    def __init__(self) -> None:
        self._fqns: dict[str, str] = {}
        self._neutral: dict[str, str] = {}

    def neutral(self, program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
        """Return a program with neutral names; it shares all else with the one that is given."""
        return self._renamed(program, self._neutral_name)

    def original(self, program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
        """Return a program that was made of a neutral one, with its own names."""
        return self._renamed(program, self.fqn)

    def fqn(self, name: str) -> str:
        """Return what a neutral name stands for; any other name as it is."""
        found = _NEUTRAL.match(name)
        return name if found is None else self._written(found) + name[found.end() :]

    def text(self, message: str) -> str:
        """Return what torch says with the names that the caller knows."""
        return _NEUTRAL.sub(self._written, message)

    def _written(self, found: re.Match[str]) -> str:
        fqn = self._fqns.get(found[1])
        if fqn is None:
            return found[0]
        # A tensor that wraps others is taken apart by torch.nn.utils.parametrize.
        owner, dot, leaf = fqn.rpartition(".")
        return f"{owner}{dot}{found[2] or ''}{leaf}"

    def _neutral_name(self, fqn: str) -> str:
        if self.fqn(fqn) != fqn:
            return fqn  # it is one of ours
        if fqn not in self._neutral:
            path = "".join(f"._{digit}" for digit in str(len(self._fqns)))
            self._fqns[path], self._neutral[fqn] = fqn, f"tieops{path}.t"
        return self._neutral[fqn]

    @staticmethod
    def _renamed(program: torch.export.ExportedProgram, name: Any) -> torch.export.ExportedProgram:
        signature = program.graph_signature
        stored = {
            spec.target
            for spec in signature.input_specs
            if spec.kind in _STORED and spec.target is not None
        }

        def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
            return {name(each) if each in stored else each: t for each, t in tensors.items()}

        inputs = [
            dataclasses.replace(spec, target=name(spec.target)) if spec.target in stored else spec
            for spec in signature.input_specs
        ]
        outputs = [
            dataclasses.replace(spec, target=name(spec.target))
            if spec.kind in _WRITTEN and spec.target in stored
            else spec
            for spec in signature.output_specs
        ]
        found: Any = copy.copy(program)  # as torch does; its constructor would edit the graph
        found._graph_signature = ExportGraphSignature(inputs, outputs)
        found._state_dict = renamed(program.state_dict)
        found._constants = renamed(program.constants)
        return found


@contextmanager
def exporting_names() -> Generator[ProgramNames]:
    """While this is active, ``torch.onnx.export`` in this thread works on neutral names.

    The exporter makes a program of a module, decomposes it and writes ONNX, in one call. The names
    change where it asks the program for its decomposition, so modules and programs go one way, and
    types are written that the program leaves to the process. The exporter's initializers and the
    program that it returns have neutral names.
    """
    names = ProgramNames()
    thread = threading.get_ident()
    original = torch.export.ExportedProgram.run_decompositions

    def run_decompositions(
        self: torch.export.ExportedProgram, *args: Any, **kwargs: Any
    ) -> torch.export.ExportedProgram:
        if threading.get_ident() != thread:
            return original(self, *args, **kwargs)
        program = original(names.neutral(self), *args, **kwargs)
        write_types(program)
        return program

    torch.export.ExportedProgram.run_decompositions = run_decompositions  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield names
    finally:
        torch.export.ExportedProgram.run_decompositions = original
