"""The package: what importing it costs, which way imports point, what docstrings promise."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tieops

ROOT = Path(tieops.__file__).parent
HEAVY = (
    "torch",
    "onnxruntime",
    "fsspec",
    "aiohttp",
    "rich",
    "transformers",
    "onnxscript",
    "pandas",
    "scipy",
)

# What each part may import of the others: those before it.
ORDER = (
    "_interrupt", "_lazy", "_version", "errors", "arguments", "progress", "system", "ir",
    "untrusted", "remote", "analysis", "model", "analysis.diff", "select", "passes",
    "pipeline", "importers", "scanning",
    "exporters", "runtime", "verification", "torch", "rendering", "__init__", "examples",
    "cli", "__main__",
)  # fmt: skip
# Side by side in the design: none of these reads the other one.
APART = {("importers", "passes"), ("importers", "pipeline"), ("importers", "select")}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    return place(".".join(path.relative_to(ROOT).with_suffix("").parts))


def place(name: str) -> str:
    """Return which entry of ORDER a dotted name below tieops belongs to: the longest."""
    words = name.split(".")
    inner = ".".join(words[:2])
    return inner if inner in ORDER else words[0]


def dotted(path: Path) -> str:
    parts = ("tieops", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Yield every part of tieops that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "tieops":
                head = place(rest)
                yield head if head in ORDER else "__init__"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    ["import tieops", "import tieops.cli", "import tieops; tieops.from_onnx, tieops.session",
     "import tieops.verification, tieops.runtime, tieops.passes.tie, tieops.select",
     "import tieops.torch, tieops.examples; tieops.torch.__all__"],
)  # fmt: skip
def test_importing_tieops_loads_nothing_heavy(statement):
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(python(code))}
    heavy = set(HEAVY) - ({"rich"} if "cli" in statement else set())  # typer prints help with it
    assert loaded & heavy == set()
    assert "tieops" in loaded


def test_work_on_onnx_files_needs_neither_torch_nor_the_runtime():
    code = """
import sys, tempfile, pathlib, onnx_ir, tieops
graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1,2,3,4}> { y = MatMul(x, w) }''')
with tempfile.TemporaryDirectory() as folder:
    tieops.to_onnx(tieops.tie(tieops.from_onnx(graph)), pathlib.Path(folder, "m.onnx"))
print([name for name in ("torch", "onnxruntime") if name in sys.modules])
"""
    assert python(code) == "[]\n"


def test_the_verbs_on_modules_say_that_torch_is_missing():
    code = """
import sys
sys.modules["torch"] = None
import tieops
for verb in (lambda: tieops.torch.tie, lambda: tieops.param_groups):
    try:
        verb()
    except tieops.TieopsError as error:
        print(isinstance(error, ImportError), error)
"""
    assert python(code).splitlines() == [
        "True tieops.torch.tie needs torch, which is not installed",
        '  fix: pip install "tieops[torch]"',
        "True tieops.torch.param_groups needs torch, which is not installed",
        '  fix: pip install "tieops[torch]"',
    ]


def test_a_star_import_does_not_hide_torch():
    assert "torch" not in tieops.__all__
    assert tieops.torch.tie is importlib.import_module("tieops.torch.tying").tie
    assert sorted(tieops.torch.__all__) == list(tieops.torch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        tieops.torch.fly  # noqa: B018


def test_every_public_name_is_there_and_no_more_is_promised():
    assert sorted(tieops.__all__) == list(tieops.__all__)
    for name in tieops.__all__:
        assert getattr(tieops, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        tieops.fly  # noqa: B018
    assert tieops.__version__.count(".") == 2
    assert (ROOT / "py.typed").is_file()


def test_imports_point_one_way():
    against = []
    for path in modules():
        here = part(path)
        assert here in ORDER, f"{path} has no place in the order of imports"
        for there in imported(path):
            if there == here:
                continue
            if ORDER.index(there) >= ORDER.index(here) or (here, there) in APART:
                against.append(f"{dotted(path)} imports {there}")
    assert against == []


def test_no_modules_import_each_other_in_a_circle():
    known = {dotted(path) for path in modules()}
    reads: dict[str, set[str]] = {}
    for path in modules():
        names = reads.setdefault(dotted(path), set())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in known:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
                names |= inner or {node.module}
    # A package's own module names its parts for those who come from outside.
    packages = {name for name in known if any(each.startswith(f"{name}.") for each in known)}
    graph = {name: found - packages for name, found in reads.items() if name not in packages}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (
            "torch",
            {
                "untrusted",
                "importers",
                "exporters",
                "runtime",
                "verification",
                "torch",
                "examples",
                "cli",
            },
        ),
        ("onnxscript", {"importers"}),
        ("onnxruntime", {"runtime"}),
        ("transformers", set()),
    ],
)
def test_a_heavy_package_is_imported_in_its_place_alone(package, allowed):
    found = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] == package for name in names):
                found.add(part(path))
    assert found <= allowed


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield what a module's ``__all__`` names, and the public methods of its classes."""
    exported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = set(ast.literal_eval(node.value))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in exported:
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    each
                    for each in node.body
                    if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
                )


def raised(node: ast.AST) -> set[str]:
    """Return the errors of tieops that a function's own body raises."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call):
            found.add(ast.unparse(each.exc.func))
    return {name for name in found if issubclass(getattr(errors, name, int), tieops.TieopsError)}


errors = importlib.import_module("tieops.errors")


@pytest.mark.parametrize(
    "path", [path for path in modules() if not path.stem.startswith("_rnn")], ids=dotted
)
def test_what_is_public_has_a_docstring_that_names_its_errors(path):
    tree = ast.parse(path.read_text("utf-8"))
    if path.stat().st_size:
        assert ast.get_docstring(tree), "the module has no docstring"
    for node in public(tree):
        text = ast.get_docstring(node) or ""
        overloaded = isinstance(node, ast.FunctionDef) and any(
            "overload" in ast.unparse(d) for d in node.decorator_list
        )
        assert text or overloaded, f"{node.name} has no docstring"
        # Commands' docstrings are their help; a pass's own methods promise what the protocol does.
        told = part(path) == "cli" or node.name in ("plan", "apply", "ensures")
        if isinstance(node, ast.FunctionDef) and not told:
            missing = [name for name in raised(node) if name not in text]
            assert missing == [], f"{node.name} raises {missing} and does not say so"


VERBS = [
    getattr(home, name)
    for home in (tieops, tieops.torch)
    for name in home.__all__
    if inspect.isfunction(getattr(home, name))
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: f"{verb.__module__}.{verb.__name__}")
def test_every_verb_says_what_it_takes_gives_and_raises_with_an_example(verb):
    text = inspect.getdoc(verb) or ""
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text, f"{verb} has no {section}"
    assert ">>> " in text


def test_the_root_of_the_repository_holds_nothing_by_accident():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT.parent, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {name.partition("/")[0] for name in tracked} == {
        ".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CONTRIBUTING.md", "LICENSE",
        "README.md", "SECURITY.md", "docs", "fixtures", "mkdocs.yml", "pyproject.toml", "tests",
        "tieops",
    }  # fmt: skip
