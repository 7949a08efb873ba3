"""The figures of tests.support.house: each counted in a way that others count as well."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import tieops
from tests.support.house import code_lines, comment_lines, complexities, importers, look, repeated

PACKAGE = Path(tieops.__file__).parent


def test_lines_of_code_are_those_that_hold_some() -> None:
    text = '''"""A module."""

# why
X = 1  # and why this
"""What X is."""


def f(a):  # noqa: E501
    """Return a
    and more."""
    return """two
lines""" + a
'''
    assert code_lines(text) == 4
    assert comment_lines(text) == 2


def test_complexity_is_what_ruff_counts() -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "C901",
        "--exit-zero",
        "--config",
        "lint.mccabe.max-complexity=0",
        "--output-format",
        "json",
        str(PACKAGE),
    ]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    want = Counter[tuple[str, int]]()
    for each in said:
        number = re.search(r"\((\d+) > 0\)", each["message"])
        assert number
        want[each["filename"], int(number[1])] += 1
    found = Counter[tuple[str, int]]()
    for path in PACKAGE.rglob("*.py"):
        for number in complexities(path.read_text("utf-8")).values():
            found[str(path), number] += 1
    assert found == want


def test_who_imports_a_module_is_found_in_every_form(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    for name, text in {
        "__init__": "TABLE = {'late': 'p.late'}",
        "one": "from p.two import x\nfrom p import three",
        "two": "import p.three",
        "three": "def f():\n    from p import one",
        "late": "",
    }.items():
        (package / f"{name}.py").write_text(text, "utf-8")
    assert importers(package) == {
        "p.one": {"p.three"}, "p.two": {"p.one"}, "p.three": {"p.one", "p.two"}, "p.late": {"p"},
    }  # fmt: skip


def test_a_name_of_two_files_is_found(tmp_path: Path) -> None:
    for name in ("a/x.py", "b/x.py", "b/y.py", "a/__init__.py", "b/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert repeated(tmp_path) == {"x.py": ["a/x.py", "b/x.py"]}


@pytest.mark.slow
def test_this_tree_has_figures() -> None:
    figures = look(PACKAGE.parent)
    assert figures["files"] == len([*PACKAGE.rglob("*.py")])
    assert figures['functions of untie(m, "fc")'] > 20
    assert figures["traces of to_onnx"] == 1
    assert 1 < figures["complexity, mean"] < 10
