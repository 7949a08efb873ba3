"""Walks over graphs, edits and the look at an operator's name have homes; nobody has others."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tieops

ROOT = Path(tieops.__file__).parent
HOMES = ("ir/dataflow/", "ir/functions/", "ir/edit/", "ir/operators/", "ir/walk.py")

WALKS = {
    # The traces that readers, views and provenance are made of.
    "analysis/trace.py": {"trace"},
    "analysis/computed_weights.py": {"uses", "_between"},
    "ir/learnables/number_sources.py": {"_backwards", "_arrivals", "source_of"},
    "ir/learnables/rules.py": {"_is_trained_later"},
    # A weight's way from what stores it to one slot, on which untie copies nodes.
    "passes/detach.py": {"handles_of", "_returned"},
    # Where numbers go that a caller feeds, by what each operator makes of values.
    "verification/index_bounds.py": {"tables", "_shape"},
    # Chains of movements that an exporter writes before packed weights.
    "importers/torch/rnn_weights.py": {"chain_of", "_end", "_remove_unread"},
    # A graph and its protobuf message side by side.
    "analysis/shapes.py": {"_told"},
}
"""Functions that follow values or nested graphs themselves, in loops: with the reason."""

EDITS = {
    # What a pass makes anew stands where the old stood.
    "passes/lower.py": {"insert_before", "remove"},
    "passes/retie_slices.py": {"insert_before", "remove", "replace_all_uses_with"},
    "passes/replace_head.py": {"insert_before"},
    # What an exporter left is put in order before anybody else sees it.
    "importers/torch/storages.py": {"insert_before", "replace_all_uses_with"},
    "importers/torch/rnn_weights.py": {"remove", "Value"},
    "importers/torch/rnn.py": {"Value"},
}
"""Changes of a graph by onnx_ir's own calls, where the kit has none: with the reason."""

NAMES = {
    # What a runtime packs is told by the names of its operators.
    "runtime/accounting/ledger.py": {"node.op_type in {*ops}"},
    # Its table is of the operators that exporters/torch/ops has.
    "exporters/torch/graph.py": {"ON_INTEGERS[node.op_type]"},
    # The protobuf message of a session imports a domain.
    "runtime/memory/fused_matmul.py": {"opset.domain != DOMAIN"},
}
"""Decisions by an operator's bare name or domain."""

FOLLOWS = {"consumers", "predecessors", "producer", "subgraphs_of", "successors", "uses"}
CHANGES = {
    "insert_after", "insert_before", "register_initializer", "remove", "replace_all_uses_with",
    "resize_inputs", "resize_outputs", "Value",
}  # fmt: skip
LOOKS_UP = {"count", "endswith", "get", "index", "pop", "setdefault", "startswith"}
Finder = Callable[[ast.Module], Iterator[str]]


def files() -> list[str]:
    return [
        name
        for path in sorted(ROOT.rglob("*.py"))
        if not (name := path.relative_to(ROOT).as_posix()).startswith(HOMES)
    ]


def called(call: ast.Call) -> str:
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def aliases(tree: ast.Module) -> dict[str, str]:
    """Return the names that a module gives to what it imports or assigns, with what they mean."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {each.asname: each.name for each in node.names if each.asname}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = getattr(node.value, "attr", "")
    return found


def walks(tree: ast.Module) -> Iterator[str]:
    """Yield functions that follow values in a loop that does not end by itself, or by recursion."""
    known = aliases(tree)
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        again = any(called(call) == function.name for call in calls(function))
        loops = [each for each in ast.walk(function) if isinstance(each, ast.While)]
        for part in loops or ([function] if again else []):
            names = {called(call) for call in calls(part)}
            if FOLLOWS & (names | {known.get(name, "") for name in names}):
                yield function.name
                break


def edits(tree: ast.Module) -> Iterator[str]:
    """Yield the calls of onnx_ir by which a file changes a graph."""
    for call in calls(tree):
        if called(call) not in CHANGES:
            continue
        owner = ast.unparse(getattr(call.func, "value", call.func))
        is_graph = "graph" in owner or called(call) not in ("remove", "Value")
        if is_graph or owner in ("ir", "onnx_ir"):
            yield called(call)
    for node in ast.walk(tree):
        is_store = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
        if is_store and ast.unparse(node.value).endswith(".initializers"):
            yield "initializers"


def names(tree: ast.Module) -> Iterator[str]:
    """Yield what decides by an operator's bare name or domain: comparisons, matches, look-ups."""
    bare = {
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr in ("op_type", "domain")
    }

    def looks(node: ast.AST) -> bool:
        return any(
            (isinstance(each, ast.Attribute) and each.attr in ("op_type", "domain"))
            or (isinstance(each, ast.Name) and each.id in bare)
            for each in ast.walk(node)
        )

    for node in ast.walk(tree):
        match node:
            case ast.Compare() if looks(node):
                yield ast.unparse(node)
            case ast.Match(subject=subject) if looks(subject):
                yield ast.unparse(subject)
            case ast.Subscript(slice=key) if looks(key):
                yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=owner, attr=attr), args=args):
                if attr in LOOKS_UP and any(map(looks, (owner, *args))):
                    yield ast.unparse(node)


KINDS: dict[str, tuple[Finder, dict[str, set[str]]]] = {
    "walks": (walks, WALKS),
    "edits": (edits, EDITS),
    "names": (names, NAMES),
}


def is_torch_operator(name: str) -> bool:
    return name.startswith("exporters/torch/ops/")


@pytest.mark.parametrize("kind", KINDS)
def test_homes_alone_do_what_is_theirs(kind: str) -> None:
    find, allowed = KINDS[kind]
    found: dict[str, set[str]] = {}
    for name in files():
        if kind == "names" and is_torch_operator(name):
            continue
        for each in find(ast.parse((ROOT / name).read_text("utf-8"))):
            found.setdefault(name, set()).add(each)
    assert found == allowed


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("walks", "def f(v):\n while v:\n  v = v.producer().inputs[0]"),
        ("walks", "def f(v):\n for u in v.uses():\n  f(u.node.outputs[0])"),
        (
            "walks",
            "from x import subgraphs_of as inner\ndef f(s):\n while s:\n  s += inner(s.pop())",
        ),
        ("edits", "def f(graph, n):\n graph.remove(n)"),
        ("edits", "def f(g, v):\n g.initializers['a'] = v"),
        ("edits", "import onnx_ir as ir\nv = ir.Value(name='a')"),
        ("names", "def f(node):\n return node.op_type in WANTED"),
        ("names", "def f(node):\n kind = node.op_type\n return kind == WANTED"),
        ("names", "def f(node):\n match node.op_type:\n  case _: pass"),
        ("names", "def f(node):\n return TABLE.get(node.op_type)"),
        ("names", "def f(node):\n return TABLE[node.domain, node.op_type]"),
        ("names", "def f(node):\n return node.domain.startswith('a')"),
    ],
)
def test_what_would_go_around_a_home_is_found(kind: str, text: str) -> None:
    assert list(KINDS[kind][0](ast.parse(text)))
