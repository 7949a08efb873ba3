"""How the code of tieops is built, in figures, and what has changed since a commit.

    python -m tests.support.house                     # this tree
    python -m tests.support.house --against COMMIT    # beside an older one, out of a git worktree

Counted are the files below ``tieops/``. Code lines are those that hold code: no docstrings, no
comments, no blank lines. Complexity is McCabe's, as ruff's C901 counts it: one for each function,
and one for each branch, loop, ``except`` and ``case`` in it. What a verb passes is counted while it
runs: functions of tieops that are entered, the files that they are in, and traces of the graph,
which are what costs on a large one.

The script needs nothing of the tree that it looks at but the public verbs, so that it can look at
an old one as well.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

__all__ = ["code_lines", "complexities", "importers", "look", "repeated"]

ROOT = Path(__file__).parents[2]
Figures = dict[str, float | str]
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
Defined = ast.FunctionDef | ast.AsyncFunctionDef


# -- lines ----------------------------------------------------------------------------------------


def code_lines(text: str) -> int:
    """Return how many lines hold code: no docstrings, comments and blank lines."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            held |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            held -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(held)


def comment_lines(text: str) -> int:
    """Return how many lines have a comment for people: none that only tells a tool something."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    tools = re.compile(r"#\s*(noqa|fmt:|type:|pyright:|pragma)")
    return sum(t.type == tokenize.COMMENT and not tools.match(t.string) for t in tokens)


# -- who imports whom -----------------------------------------------------------------------------


def dotted(path: Path, root: Path) -> str:
    """Return the name of the module in a file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def importers(package: Path) -> dict[str, set[str]]:
    """Return for each module of a package, but for its packages, which modules import it.

    A name in a string counts: names that are imported late stand in tables.
    """
    texts = {dotted(path, package.parent): path for path in package.rglob("*.py")}
    found: dict[str, set[str]] = {
        name: set()
        for name, path in texts.items()
        if path.stem not in ("__init__", "__main__", "_version")
    }
    for name, path in texts.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for read in _named(node) & found.keys() - {name}:
                found[read].add(name)
    return found


def _named(node: ast.AST) -> set[str]:
    """Return the names that may be modules in one node."""
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    if isinstance(node, ast.Import):
        return {each.name for each in node.names}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value.partition(":")[0]}
    return set()


def repeated(package: Path) -> dict[str, list[str]]:
    """Return names that several files have, with the files."""
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        if path.stem not in ("__init__", "__main__"):
            homes[path.name].append(path.relative_to(package).as_posix())
    return {name: files for name, files in homes.items() if len(files) > 1}


# -- complexity -----------------------------------------------------------------------------------


def complexities(text: str) -> dict[str, int]:
    """Return McCabe's number of each function of a module; one in another counts for both."""
    found: Counter[str] = Counter()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Defined):
            found[f"{node.lineno}: {node.name}"] = 1 + _branches(node.body)
    return dict(found)


def _branches(body: list[ast.stmt]) -> int:
    return sum(_of_statement(node) for node in body)


def _of_statement(node: ast.stmt) -> int:
    inner = sum(_branches(getattr(node, name, [])) for name in ("body", "orelse", "finalbody"))
    match node:
        case ast.If():
            return 1 + inner
        case ast.For() | ast.AsyncFor() | ast.While():
            return 1 + inner
        case ast.Try() | ast.TryStar():
            handled = sum(1 + _branches(each.body) for each in node.handlers)
            return inner + handled + bool(node.orelse)
        case ast.Match():
            last = node.cases[-1]
            always = last.guard is None and _matches_all(last.pattern)
            return sum(1 + _branches(each.body) for each in node.cases) - always
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return 1 + inner
        case _:
            return inner


def _matches_all(pattern: ast.pattern) -> bool:
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


# -- what verbs pass ------------------------------------------------------------------------------


@contextmanager
def _entered(package: Path) -> Iterator[Counter[CodeType]]:
    """Count how often each function of a package is entered."""
    counts: Counter[CodeType] = Counter()
    inside = str(package)

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(inside):
            counts[frame.f_code] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(before)


def _passed(package: Path, work: Callable[[], object]) -> tuple[int, int, int]:
    """Return through how many functions and files some work goes, and how often it traces."""
    with _entered(package) as counts:
        work()
    codes = [code for code in counts if not code.co_name.startswith("<")]
    traces = sum(
        number
        for code, number in counts.items()
        if code.co_name == "trace" and Path(code.co_filename).stem == "trace"
    )
    return len(codes), len({code.co_filename for code in codes}), traces


def _tied() -> Any:
    """Return a table that a Gather reads, and layer ``fc`` through a Transpose."""
    import onnx_ir

    numbers = ", ".join(str(i % 7) for i in range(96))
    graph = onnx_ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[n] ids) => (float[n, 12] y) <float[12, 8] emb = {{ {numbers} }}> {{
            h = Gather(emb, ids)  t = Transpose<perm = [1, 0]>(emb)  y = MatMul(h, t) }}""")
    graph.graph[-1].name = "fc"
    return graph


def verbs(package: Path) -> Figures:
    """Return what ``untie(m, "fc")`` and ``to_onnx`` pass on a small tied network."""
    import tieops

    assert Path(tieops.__file__).is_relative_to(package), "another tieops is imported"
    model, other = tieops.from_onnx(_tied()), tieops.from_onnx(_tied())
    with tempfile.TemporaryDirectory() as folder:
        works: dict[str, Callable[[], object]] = {
            'untie(m, "fc")': lambda: tieops.untie(model, "fc"),
            "to_onnx": lambda: tieops.to_onnx(other, Path(folder, "m.onnx")),
        }
        passed = {name: _passed(package, work) for name, work in works.items()}
    return {
        f"{what} of {name}": number
        for name, numbers in passed.items()
        for what, number in zip(("functions", "files", "traces"), numbers, strict=True)
    }


# -- all of it ------------------------------------------------------------------------------------


def look(root: Path) -> Figures:
    """Return the figures of the tree below a folder."""
    package = root / "tieops"
    texts = {path: path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    largest = max(lines, key=lambda path: lines[path])
    alone = [name for name, users in importers(package).items() if len(users) == 1]
    worst, numbers = ("", 0), []
    for path, text in texts.items():
        for name, number in complexities(text).items():
            numbers.append(number)
            if number > worst[1]:
                worst = (f"{path.stem}.{name.partition(': ')[2]}", number)
    total = sum(lines.values())
    comments = sum(map(comment_lines, texts.values()))
    tests = [path.read_text("utf-8") for path in sorted((root / "tests").rglob("*.py"))]
    return {
        "files": len(texts),
        "lines": total,
        "code lines": sum(map(code_lines, texts.values())),
        "lines of a file, median": statistics.median(lines.values()),
        "lines of a file, most": f"{lines[largest]} ({largest.relative_to(root).as_posix()})",
        "modules with one importer": len(alone),
        "names that several files have": len(repeated(package)),
        "functions": len(numbers),
        "complexity, mean": round(statistics.mean(numbers), 2),
        "complexity, worst": f"{worst[1]} ({worst[0]})",
        "functions over 10": sum(number > 10 for number in numbers),
        "comment lines": comments,
        "comment lines, percent": round(100 * comments / total, 2),
        **verbs(package),
        "files of tests": len(tests),
        "code lines of tests": sum(map(code_lines, tests)),
    }


def _look_in_a_process(root: Path) -> Figures:
    """Look at a tree with its own modules, whatever this process has imported."""
    command = [sys.executable, __file__, "--json", str(root)]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def _at(commit: str) -> Figures:
    """Look at the tree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            return _look_in_a_process(tree)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> None:
    """Print the figures of this tree, beside those of another commit if one is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--json", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.json:
        print(json.dumps(look(Path(given.json))))
        return
    here = _look_in_a_process(ROOT)
    before = _at(given.against) if given.against else {}
    print(f"| | {f'{given.against} | ' if before else ''}here |")
    print(f"|---|{'---|' if before else ''}---|")
    for name, value in here.items():
        print(f"| {name} | {f'{before[name]} | ' if before else ''}{value} |")


if __name__ == "__main__":
    main()
