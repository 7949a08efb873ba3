"""Identify the operator of a node: its name and the domain of that name.

``Gemm`` is ONNX's operator only in ONNX's domain, which is written "" or "ai.onnx". In any other
domain the same name is a custom operator. So tables of operators use the names that
``operator_name`` returns, and nothing else in this package reads a node's op_type or domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = [
    "Operator",
    "domain_of",
    "domain_title",
    "is_of_runtime",
    "is_runtime_domain",
    "is_standard",
    "operator_name",
    "opset_version",
]

_STANDARD = ("", "ai.onnx")
_OF_RUNTIME = "com.microsoft"
_RUNTIME_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms")


class Operator(Protocol):
    """What has an operator: a node of a graph, or of a protobuf message."""

    @property
    def op_type(self) -> str:
        """The operator's name."""
        ...

    @property
    def domain(self) -> str:
        """The domain that the name is of."""
        ...


def operator_name(node: Operator) -> str:
    """Return an operator's name: alone in ONNX's own domain, after its domain in any other.

    Example:
        >>> import onnx
        >>> operator_name(onnx.helper.make_node("Gemm", [], [], domain="ai.onnx"))
        'Gemm'
        >>> operator_name(onnx.helper.make_node("Gemm", [], [], domain="my"))
        'my.Gemm'
    """
    domain = node.domain
    return node.op_type if domain in _STANDARD else f"{domain}.{node.op_type}"


def is_standard(node: Operator) -> bool:
    """Return whether a node is of ONNX's own domain."""
    return node.domain in _STANDARD


def is_of_runtime(node: Operator) -> bool:
    """Return whether a node is of ONNX's own domain, or of what ONNX Runtime adds to it."""
    return node.domain in (*_STANDARD, _OF_RUNTIME)


def domain_of(name: str) -> str:
    """Return a domain by the one of its names that is used here: "ai.onnx" is ""."""
    return "" if name in _STANDARD else name


def domain_title(name: str) -> str:
    """Return what a domain is called in a message: one that is not empty."""
    return domain_of(name) or "ai.onnx"


def opset_version(imports: Mapping[str, int], domain: str = "") -> int:
    """Return the version of a domain that a model or function imports; 0 if it imports none.

    Args:
        imports: The versions by domain, by whichever of its names.
        domain: Which domain.

    Example:
        >>> opset_version({"ai.onnx": 20}), opset_version({"": 20}, "com.microsoft")
        (20, 0)
    """
    wanted = domain_of(domain)
    return next((version for each, version in imports.items() if domain_of(each) == wanted), 0)


def is_runtime_domain(domain: str) -> bool:
    """Return whether runtimes have operators in a domain, or in one that it is part of.

    A runtime that has an operator takes it in the place of a function of that name, and wants all
    that the operator is declared with and no more.

    Example:
        >>> is_runtime_domain("com.microsoft"), is_runtime_domain("pkg.transformers")
        (True, False)
    """
    return not domain or f"{domain}.".startswith(tuple(f"{each}." for each in _RUNTIME_DOMAINS))
