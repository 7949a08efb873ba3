"""Operator knowledge has one home, tieops/ir/operators: nobody else knows operators by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import tieops

ROOT = Path(tieops.__file__).parent
HOME = ROOT / "ir" / "operators"
CONTRIB = {
    "BiasGelu", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "GatherBlockQuantized",
    "MatMulNBits", "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "SimplifiedLayerNormalization",
}  # fmt: skip
NAMES = {schema.name for schema in onnx.defs.get_all_schemas()} | CONTRIB
MAKES = {"node", "Node", "make_node", "build", "add", "call", "_op"}
"""Functions that make nodes: what they are given is no knowledge of what a node means."""

EXCEPTIONS: dict[str, set[str]] = {
    # The pattern that it looks for and makes anew, in the protobuf message of a session.
    "runtime/memory/fused_matmul.py": {
        "Concat", "FusedMatMul", "Gemm", "Reshape", "Shape", "Slice", "Transpose", "com.microsoft",
    },
    # What torch calls the modes of its kernels, and the activations that it writes for them.
    "importers/torch/rnn.py": {"GRU", "LSTM", "Relu", "RNN", "Tanh"},
    # Functions of sympy, which an exported program's sizes are written in.
    "untrusted/program_checks.py": {
        "Abs", "Add", "And", "Identity", "Max", "Min", "Mod", "Mul", "Not", "Or", "Pow", "Where",
    },
    # A header of HTTP.
    "remote/http.py": {"Range"},
    # Any operator does to make onnx load them.
    "runtime/accounting/probe.py": {"Identity"},
}  # fmt: skip
"""Files that may name operators, and which: with the reason."""


def files() -> list[Path]:
    torch_operators = ROOT / "exporters" / "torch" / "ops"
    return [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if HOME not in path.parents and torch_operators not in path.parents
    ]


def named(path: Path) -> Iterator[str]:
    """Yield the operators that a file names, but for docstrings and the making of nodes."""
    yield from named_in(ast.parse(path.read_text("utf-8")))


def named_in(tree: ast.Module) -> Iterator[str]:
    """Yield the operators that a module names, alone, with a domain or in a list of words."""
    made = {
        id(inner)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and (getattr(call.func, "id", None) or getattr(call.func, "attr", "")) in MAKES
        and len(call.args) > 1  # a set takes one: that would be a list of names
        for argument in call.args[:2]
        for inner in ast.walk(argument)
        if isinstance(inner, ast.Constant)
    }
    # What a file exports may be called like an operator: Range, Shape, Slice.
    made |= {
        id(inner)
        for assigned in tree.body
        if isinstance(assigned, ast.Assign) and ast.unparse(assigned.targets[0]) == "__all__"
        for inner in ast.walk(assigned)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in made:
            continue
        words = re.split(r"[\s,|]+", node.value) if isinstance(node.value, str) else []
        bare = [word.rpartition(".")[2].rpartition(":")[2] for word in words]
        if words and all(word in NAMES for word in bare):
            yield f"{node.lineno}: {node.value}"
        if words in (["ai.onnx"], ["com.microsoft"]):
            yield f"{node.lineno}: {node.value}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_operators_are_named_in_their_home_alone(path: Path) -> None:
    allowed = EXCEPTIONS.get(str(path.relative_to(ROOT)), set())
    assert [each for each in named(path) if each.partition(": ")[2] not in allowed] == []


@pytest.mark.parametrize(
    "text",
    [
        "KNOWN = 'MatMul Gemm'.split()",
        "names.add('MatMul')",
        "TABLE = {'com.microsoft.FusedMatMul': 1}",
        "TABLE = {'Gather': 1}",
        "match kind:\n case 'Transpose': pass",
        "domain = 'com.microsoft'",
    ],
)
def test_no_way_of_naming_an_operator_is_overlooked(text: str) -> None:
    assert list(named_in(ast.parse(text)))
