"""Hold a ``.pt2`` to a grammar before torch reads it.

``torch.export.load`` trusts its file: sizes go through sympy's eval, names into Python source that
is executed, targets through getattr to any function of any module, and some weights are pickles.
``torch.utils._pytree.treespec_loads`` imports any module that the text names, as the factory of a
defaultdict or as the module of an enum. Here every string must match a known form, and all others
are refused.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from tieops.errors import UntrustedFileError
from tieops.ir.notation import printable

__all__ = ["check_payload", "check_program", "is_safe_treespec"]

EXPANDED_ELEMENTS = 2**28
"""How many elements a weight may have beyond its bytes, by a stride of 0."""

_NAME = re.compile(r"(?!\d)\w{0,1000}", re.ASCII)
_WORD = re.compile(r"\w+(\.\w+)*|", re.ASCII)
_VERSION = re.compile(r"[\w.+-]{0,100}", re.ASCII)
_TARGET = re.compile(r"torch\.ops\.(\w+)\.(?!_?_dir|__)(\w+)(\.(?!__)\w+)?", re.ASCII)

_FREE = ("as_string", "as_strings", "guards_code")
"""Texts that torch hands on as they are; guards are dropped before they could run."""
_FQNS = ("parameter_name", "buffer_name", "tensor_constant_name", "fqn")
_NAMES = ("name", "as_name", "forward_arg_names", "user_input_name")
_REFUSED = ("as_operator", "as_custom_obj", "custom_obj", "custom_obj_values", "token")
_RULED = frozenset((*_FQNS, *_NAMES, *_REFUSED, "target", "expr_str", "in_spec", "out_spec"))

_OPERATORS = frozenset(
    f"_operator.{name}"
    for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv",
                 "mod", "pow", "truediv", "and_", "or_", "getitem")
) | frozenset(
    f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt", "sum")
) | frozenset(("math.trunc", "math.ceil", "math.floor", "torch._sym_sqrt"))  # fmt: skip
_NAMESPACES = ("aten", "prims", "quantized_decomposed", "torchvision")
_HIGHER_ORDER = ("cond", "while_loop", "scan", "associative_scan", "map_impl", "strict_mode",
                 "wrap_with_set_grad_enabled", "wrap_with_autocast", "invoke_subgraph")  # fmt: skip
_OUTSIDE = ("from_file", "_print")
"""Operators that open a file or print, as the program says."""

_FUNCTIONS = (
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs",
    "floor", "ceiling", "And", "Or", "Not", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality",
    "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Piecewise",
    "ExprCondPair", "Tuple", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv",
    "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow",
    "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal",
    "ToFloat", "Identity", "IsNonOverlappingAndDenseIndicator",
)  # fmt: skip
_POWERS = ("Pow", "PowByNatural", "FloatPow", "LShift")
_CONSTANTS = ("oo", "int_oo", "true", "false")
_SYMBOL = re.compile(r"(zuf|zf|[suzidn])\d{1,6}", re.ASCII)
_NODES = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp,
          ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.Tuple)  # fmt: skip
_EXPRESSION_LENGTH = 10_000
_EXPONENT = 64
_DIGITS = 20


def check_program(data: Any, name: str) -> None:
    """Check the serialized graph of an exported program.

    Args:
        data: What ``models/model.json`` holds.
        name: What errors call the file.

    Raises:
        UntrustedFileError: If it holds what torch would evaluate, import or look up, other than
            operators on tensors and sizes.
    """
    for key, value in _texts(data, name):
        problem = _problem(key, value)
        if problem:
            raise _refused(name, problem, value)
    ranges = data.get("range_constraints") if isinstance(data, dict) else None
    for symbol in ranges if isinstance(ranges, dict) else ():
        # torch counts up to the number of a symbol.
        if not _SYMBOL.fullmatch(symbol):
            raise _refused(name, "a size that is no symbol", symbol)


def check_payload(config: Any, kind: str, sizes: Mapping[str, int], name: str) -> None:
    """Check what the program says of its weights, or of its constants.

    Args:
        config: What the configuration file holds.
        kind: What its tensors' files are called: ``weight`` or ``tensor``.
        sizes: The bytes of each file beside it.
        name: What errors call the file.

    Raises:
        UntrustedFileError: If one is pickled, or larger than the bytes that it has.
    """
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise _refused(name, "no list of weights", config)
    for fqn, entry in entries.items():
        if not _is_fqn(fqn) or not isinstance(entry, dict):
            raise _refused(name, "a weight without a proper name", fqn)
        if entry.get("use_pickle") is not False:
            raise _refused(name, "a pickled object", fqn)
        file = entry.get("path_name")
        if not isinstance(file, str) or not re.fullmatch(kind + r"_\d{1,9}", file, re.ASCII):
            raise _refused(name, "a pickled object or another file", f"{fqn} in {file}")
        if file not in sizes:
            raise _refused(name, "a weight that is not there", f"{fqn} in {file}")
        meta = entry.get("tensor_meta")
        if not isinstance(meta, dict) or not _fits(meta, sizes[file]):
            raise _refused(name, "a tensor that its bytes do not fill", fqn)


def is_safe_expression(text: str) -> bool:
    """Return whether a size is made of symbols, numbers and known functions alone.

    Example:
        >>> is_safe_expression("Mul(Integer(8), Symbol('s27', positive=True, integer=True))")
        True
        >>> is_safe_expression("__import__('os').getcwd()"), is_safe_expression("9**9**9")
        (False, False)
    """
    if len(text) > _EXPRESSION_LENGTH or not text.isascii():
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    symbols = {id(node.args[0]) for node in nodes if isinstance(node, ast.Call) and node.args
               and isinstance(node.func, ast.Name) and node.func.id == "Symbol"}  # fmt: skip
    return all(_is_safe_node(node, id(node) in symbols) for node in nodes)


def _is_safe_node(node: ast.AST, names_symbol: bool) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _FUNCTIONS or name in _CONSTANTS or bool(_SYMBOL.fullmatch(name))
        case ast.Constant(value=value):
            if isinstance(value, str):
                return names_symbol and bool(_SYMBOL.fullmatch(value))
            return isinstance(value, (bool, float)) or (
                isinstance(value, int) and value < 10**_DIGITS
            )
        case ast.Call(func=ast.Name(id=name), args=args):
            return name in _FUNCTIONS and (name not in _POWERS or _is_small_power(args))
        case ast.Call():
            return False
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            return _is_small_power([left, right])
        case ast.BinOp(op=ast.LShift()):
            return False
        case _:
            return isinstance(node, _NODES)


def _is_small_power(args: list[ast.expr]) -> bool:
    """Return whether a power has a small exponent and no power in its base: sympy computes it."""
    if len(args) < 2:
        return False
    exponent = args[1]
    if isinstance(exponent, ast.Call) and len(exponent.args) == 1:
        exponent = exponent.args[0]
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    small = isinstance(exponent, ast.Constant) and isinstance(exponent.value, (int, float))
    return (
        small
        and exponent.value <= _EXPONENT  # pyright: ignore[reportOptionalOperand, reportOperatorIssue, reportAttributeAccessIssue]
        and not any(
            isinstance(node, ast.Pow) or (isinstance(node, ast.Name) and node.id in _POWERS)
            for node in ast.walk(args[0])
        )
    )


def _texts(data: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each text with the key that it stands under, and what is refused by its key."""
    stack: list[tuple[str, Any]] = [("", data)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str) or (key in _REFUSED and value):
            yield key, value
        elif isinstance(value, list):
            stack += [(key, each) for each in value]
        elif isinstance(value, dict):
            for inner, each in value.items():
                if not _is_fqn(inner):
                    raise _refused(name, "an improper name", inner)
                # Names of arguments and tensors are the file's: one called "metadata" is no
                # metadata, so what is there keeps the rules that it has anywhere else.
                if key != "metadata" or not isinstance(each, str) or inner in _RULED:
                    stack.append((inner, each))


def _problem(key: str, value: Any) -> str | None:
    """Return what is wrong with a text, by the key that it stands under."""
    if key in _REFUSED:
        return "an object or a function of Python"
    if key in _FREE:
        return None
    if key == "target":
        return None if _is_operator(value) else "an operator that may be anything"
    if key == "expr_str":
        return None if is_safe_expression(value) else "a size that is an expression of Python"
    if key in ("in_spec", "out_spec"):
        return None if not value or is_safe_treespec(value) else "inputs of a type to be imported"
    if key in _NAMES:
        return None if _NAME.fullmatch(value) else "an improper name"
    if key in _FQNS:
        return None if _is_fqn(value) else "an improper name"
    form = _VERSION if key == "torch_version" else _WORD
    return None if form.fullmatch(value) else f"an improper {key or 'text'}"


def _is_fqn(text: Any) -> bool:
    """Return whether a name can stand between quotes in Python source."""
    return isinstance(text, str) and text.isprintable() and not set("\"'\\") & set(text)


def _is_operator(target: str) -> bool:
    """Return whether a target is an operator on tensors or sizes, and does nothing else."""
    if target in _OPERATORS:
        return True
    match = _TARGET.fullmatch(target)
    if match is None:
        return False
    namespace, operator, overload = match.groups()
    if namespace == "higher_order":
        return operator in _HIGHER_ORDER and overload is None
    # TorchScript's own operators are looked up the same way, and some of them write files; only
    # what torch's dispatcher knows computes on tensors.
    import torch

    known = f"{namespace}::{operator}{overload or ''}".removesuffix(".default")
    return (
        namespace in _NAMESPACES
        and operator not in _OUTSIDE
        and torch._C._dispatch_has_kernel(known)  # pyright: ignore[reportPrivateUsage]
    )


def _fits(meta: dict[str, Any], nbytes: int) -> bool:
    """Return whether a tensor is no larger than its record, but for a modest expansion."""
    sizes, strides = _numbers(meta.get("sizes")), _numbers(meta.get("strides"))
    offset = _numbers([meta.get("storage_offset")])
    if sizes is None or strides is None or offset is None or len(sizes) != len(strides):
        return False
    elements = prod(sizes)
    if not elements or not nbytes:
        return not elements
    last = offset[0] + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
    return last < nbytes and elements <= max(nbytes, EXPANDED_ELEMENTS)


def _numbers(entries: Any) -> list[int] | None:
    """Return sizes that are plain numbers, of 0 or more."""
    found = [each.get("as_int") if isinstance(each, dict) else None for each in entries or ()]
    return found if all(type(each) is int and each >= 0 for each in found) else None  # pyright: ignore[reportReturnType, reportOptionalOperand]


def _refused(name: str, what: str, found: object) -> UntrustedFileError:
    return UntrustedFileError(
        f"{printable(name)} holds {what}: tieops does not hand it to torch",
        {"found": printable(str(found)[:200])},
        "if you trust who made it: from_torch(path, trust=True), or --trust on the command line",
    )


_KEY = re.compile(r"[\w.-]{0,200}", re.ASCII)
_FACTORIES = ("list", "dict", "set", "tuple", "int", "float", "str", "bool")


def is_safe_treespec(text: str) -> bool:
    """Return whether loading a treespec would import nothing.

    Example:
        >>> leaf = '{"type": null, "context": null, "children_spec": []}'
        >>> is_safe_treespec(f'[1, {{"type": "builtins.list", "context": "null",'
        ...                  f' "children_spec": [{leaf}]}}]')
        True
        >>> is_safe_treespec('[1, {"type": "collections.defaultdict", "context": '
        ...     '{"default_factory_module": "this", "default_factory_name": "s"}}]')
        False
    """
    try:
        protocol, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    if protocol != 1:
        return False
    nodes: list[Any] = [root]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, dict) or not _is_plain(node.get("context")):
            return False
        if not (node.get("type") is None or _is_key(node["type"])):
            return False
        inner: Any = node.get("children_spec") or []
        if not isinstance(inner, list):
            return False
        nodes += inner
    return True


def _is_plain(context: Any) -> bool:
    if isinstance(context, dict):
        return (
            context.get("default_factory_module") == "builtins"
            and context.get("default_factory_name") in _FACTORIES
            and _is_flat(context.get("dict_context"))
        )
    if isinstance(context, str) and not _KEY.fullmatch(context):
        try:
            context = json.loads(context)
        except (ValueError, RecursionError):
            return False
    return _is_flat(context)


def _is_flat(context: Any) -> bool:
    items = context if isinstance(context, list) else [context]
    return all(each is None or isinstance(each, (int, float)) or _is_key(each) for each in items)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None
