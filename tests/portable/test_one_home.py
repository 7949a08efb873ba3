"""No name that a system lacks is used outside of ``tieops/system``."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tieops
from tests.portable.names import MODULES, ONLY_LINUX, WINDOWS

ROOT = Path(tieops.__file__).parent
HOME = ROOT / "system"
# ``/proc`` and ``/dev`` in a text: what stands for an open file must not be written to.
KNOWN = {
    ("cli/streams.py", "/dev"),
}


def foreign(tree: ast.AST) -> Iterator[str]:
    """Yield the names and paths in a module that Windows or macOS does not have."""
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                yield from foreign_names(module, name)
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                yield from foreign_imports(module, [each.name for each in names])
            case ast.keyword(arg="dir_fd" | "src_dir_fd" | "prot"):
                yield str(node.arg)
            case ast.Constant() if id(node) not in docs:
                yield from (path for path in ("/proc", "/dev") if str(node.value).startswith(path))
            case _:
                pass


def foreign_names(module: str, name: str) -> Iterator[str]:
    """Yield what is foreign about ``module.name``."""
    has = WINDOWS.get(module)
    public = not name.startswith("_")
    if has is not None and public and (name not in has or name in ONLY_LINUX):
        yield f"{module}.{name}"
    if (module, name) in (("sys", "platform"), ("os", "name")):
        yield f"{module}.{name}"
    if name in ("madvise", "st_uid", "st_gid", "malloc_trim", "prctl"):
        yield name


def foreign_imports(module: str, names: list[str]) -> Iterator[str]:
    """Yield what is foreign of the names that are imported from a module."""
    if module in MODULES:
        yield module
    has = WINDOWS.get(module)
    if has is not None:
        yield from (f"{module}.{name}" for name in names if name not in has)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("from resource import setrlimit", ["resource"]),
        ("os.pread(0, 1, 2)", ["os.pread"]),
        ("os.O_RDONLY | os.O_NOFOLLOW", ["os.O_NOFOLLOW"]),
        ("mmap.mmap(0, 1, prot=mmap.PROT_READ)", ["prot", "mmap.PROT_READ"]),
        ("signal.SIGKILL; signal.SIGTERM", ["signal.SIGKILL"]),
        ("from signal import setitimer", ["signal.setitimer"]),
        ("pages.madvise(1)", ["madvise"]),
        ("Path('/proc/self/statm')", ["/proc"]),
        ("os.replace(a, b); os.fstat(0)", []),
        ('"""/proc tells."""', []),
    ],
)
def test_what_counts_as_foreign(code, found):
    assert list(foreign(ast.parse(code))) == found


def test_only_the_one_home_knows_what_systems_lack():
    against = set()
    for path in sorted(ROOT.rglob("*.py")):
        if HOME in path.parents:
            continue
        where = path.relative_to(ROOT).as_posix()
        against |= {(where, name) for name in foreign(ast.parse(path.read_text("utf-8")))}
    assert against == KNOWN


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["Windows", "Darwin"])
def test_the_stubs_of_other_systems_know_all_that_is_used(platform):
    """Of Python's library, as typeshed says which system has what."""
    command = [sys.executable, "-m", "pyright", "--pythonplatform", platform, "--outputjson"]
    done = subprocess.run(
        command, cwd=ROOT.parent, capture_output=True, text=True, encoding="utf-8", check=False
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    outside = [
        f"{each['file']}: {each['message']}"
        for each in found
        if each["severity"] == "error"
        and HOME not in Path(each["file"]).parents
        and each.get("rule") != "reportDeprecated"  # it is there all the same
    ]
    assert outside == []
    assert found  # the home itself has some: that the check sees them
