"""Check torch's serialized input nesting before torch's pytree reads it.

``torch.utils._pytree.treespec_loads`` imports any module that the text names, as the factory of a
defaultdict or as the module of an enum. So only text that needs neither is accepted.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["is_safe_treespec"]

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
