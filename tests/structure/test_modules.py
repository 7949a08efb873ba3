"""Modules of tieops: cut by what they are about, not by length, and each called like no other."""

from __future__ import annotations

import ast
from pathlib import Path

import tieops
from tests.support.house import importers, repeated

PACKAGE = Path(tieops.__file__).parent

KINDS = ("cli.", "exporters.torch.ops.", "analysis.problems.")
"""Commands, tables of operators, kinds of problems: each has a module, which one other lists."""

REASONS = {
    "an algorithm of its own, which tests call by itself": """
        analysis.computed_weights analysis.diff.layer_pairs analysis.duplicates.stored_bits
        analysis.layers ir.dataflow.backwards ir.dataflow.captures ir.functions.inlining
        ir.learnables.number_sources ir.overlap passes.head passes.join passes.retie_slices
        passes.shape_propagation rendering.folding rendering.picture_changes runtime.batches
        verification.index_bounds""",
    "all that a property of TiedModel returns": "analysis.analysis",
    "one form of what is shown": """
        analysis.report.as_html analysis.report.plain_data rendering.html_page
        rendering.picture_text""",
    "runs in another process, or is sent to one": """
        ir.pickling scanning.one_model scanning.workers verification.sandbox_child""",
    "one step of writing, with a promise of its own": """
        exporters.data_file exporters.data_file_cleanup exporters.model_files scanning.journal""",
    "what differs between operating systems": "system.disk",
    "one step of from_torch, with what it has to keep": """
        importers.torch.default_types importers.torch.exported_graph importers.torch.gradients
        importers.torch.port_names
        importers.torch.rnn""",
    "one kind of what an attacker may write": """
        ir.operators.operand_checks untrusted.archives untrusted.onnx_checks untrusted.onnx_graphs
        untrusted.onnx_operators""",
    "what another library does, kept in one place": """
        exporters.torch.graph remote.http runtime.accounting.optimized runtime.cuda.cuda_graph
        runtime.memory.fused_matmul runtime.memory.shared_weights runtime.running""",
    "the home of a question that others must not answer": """
        ir.operators.fused_roles ir.readers.renaming""",
    "a command's sums over many models": "scanning.summary",
    "one part of an example": "examples.language examples.language_model examples.pictures",
}
"""Why a module is a module, though one other alone imports it."""

REPEATED = {
    "onnx.py": ["exporters/onnx.py", "importers/onnx.py"],
    "tie.py": ["ir/tie.py", "passes/tie.py"],
    "values.py": ["ir/edit/values.py", "ir/operators/values.py"],
}
"""Names that two files have: the mirror of importers and exporters, and what is left of others."""


def test_a_module_has_two_importers_or_a_reason() -> None:
    with_reason = {name for names in REASONS.values() for name in names.split()}
    alone = {
        name.removeprefix("tieops.")
        for name, users in importers(PACKAGE).items()
        if len(users) < 2 and not any(is_package(user) for user in users)
    }
    alone = {name for name in alone if not name.startswith(KINDS)}
    assert alone - with_reason == set(), "join them with their importer, or say why not"
    assert with_reason - alone == set(), "these need no reason any more"


def is_package(module: str) -> bool:
    """Return whether a module is a package: what it alone imports is what the package offers."""
    return (PACKAGE.parent / module.replace(".", "/")).is_dir()


def test_a_name_is_one_files() -> None:
    assert repeated(PACKAGE) == REPEATED


def test_every_package_says_what_lives_there() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
