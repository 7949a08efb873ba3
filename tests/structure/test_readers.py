"""Who owns a name is decided in one place, tieops/ir/readers: others ask it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tieops

ROOT = Path(tieops.__file__).parent
USERS = {
    # Says whom a name is of: reading its own records is the home's alone.
    "names_read_by": set[str](),
    # What torch said, what a caller chose, and who read what before it was joined.
    "record_reads": {
        "importers/torch/aliases.py",
        "passes/rename.py",
        "passes/join.py",
        "passes/untie.py",
    },
    # The one who tells it which slots there are.
    "readers_of": {"model.py"},
    # What torch calls a tensor; what takes names off it when readers leave it.
    "set_names": {"importers/torch/storages.py", "passes/detach.py"},
    "keep_packed_names": {"passes/detach.py"},
    "give_up_names": {"passes/readers_gone.py", "passes/replace_head.py"},
}
"""Functions by which a name gets an owner or leaves a tensor, and the files that may use them."""


def imported(word: str) -> set[str]:
    """Return the files that import a function of tieops."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tieops")
        if word in {each.name for each in node.names}
    }


@pytest.mark.parametrize("word", USERS)
def test_names_are_given_and_taken_where_readers_say_so(word: str) -> None:
    assert imported(word) == USERS[word]


def test_only_the_home_knows_the_record_of_who_reads_a_name() -> None:
    told = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if "tieops.reads" in path.read_text("utf-8")
    }
    assert told == {"ir/readers/readers.py"}
