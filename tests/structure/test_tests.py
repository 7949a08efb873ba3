"""The tests themselves: what they share is in tests/support, and folders mirror tieops."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tieops

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
KINDS = {
    "benchmarks", "corpus", "docs", "golden", "gpu", "hostile", "portable", "properties",
    "structure", "support",
}  # fmt: skip
"""Folders that mirror no package: kinds of tests, and what tests share."""


def imported(path: Path) -> set[str]:
    """Return every module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


def is_collected(module: str) -> bool:
    """Return whether pytest takes tests or fixtures from a module."""
    package, _, name = module.rpartition(".")
    return package.startswith("tests") and (name.startswith("test_") or name == "conftest")


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_test_module_imports_another(path: Path) -> None:
    assert [module for module in imported(path) if is_collected(module)] == []


def test_what_is_shared_needs_no_kind_of_tests() -> None:
    folders = {f"tests.{kind}" for kind in KINDS} - {"tests.support"}
    for path in (TESTS / "support").glob("*.py"):
        assert {".".join(module.split(".")[:2]) for module in imported(path)} & folders == set()


def test_folders_mirror_tieops() -> None:
    package = Path(tieops.__file__).parent
    for folder in (each.parent for each in TESTS.rglob("test_*.py")):
        inner = folder.relative_to(TESTS)
        assert (inner.parts[:1] and inner.parts[0] in KINDS) or (package / inner).is_dir(), inner


def test_every_folder_of_tests_is_a_package() -> None:
    """Names of test modules need to be unique within their folder only."""
    for path in TESTS.rglob("test_*.py"):
        assert (path.parent / "__init__.py").is_file(), path
