"""A pass as a command: an option for each field, and the messages that speak of these options.

A field of a pass is all that there is to write: its type, its default and its line under ``Args:``
make the option, so a new field is a new flag.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

import typer

from tieops.errors import PreconditionError
from tieops.ir.notation import printable

if TYPE_CHECKING:
    from tieops.passes.base import SurgeryPass

__all__ = ["field_docs", "flag_of", "in_flags", "option_parameters", "pass_with"]

_SHORT = {"targets": "-t"}
"""The fields that have a short flag too."""


def field_docs(surgery: type[SurgeryPass[Any]]) -> dict[str, str]:
    """Return what the docstring of a pass says of each of its fields."""
    _, _, args = (inspect.getdoc(surgery) or "").partition("Args:\n")
    found: dict[str, str] = {}
    for name, text in re.findall(r"^    (\w+): ((?:.+\n?)(?:^ {8}.*\n?)*)", args, re.MULTILINE):
        found[name] = " ".join(text.split())
    return found


def flag_of(field: Field[Any]) -> str:
    """Return the flag of a field: of a list the singular, as it may be given more than once."""
    name = field.name.removesuffix("s") if _is_list(field) else field.name
    return f"--{name.replace('_', '-')}"


def option_parameters(surgery: type[SurgeryPass[Any]]) -> Iterator[inspect.Parameter]:
    """Yield a parameter for typer for each field of a pass."""
    docs, hints = field_docs(surgery), get_type_hints(surgery)
    for field in _fields(surgery):
        kind, _ = _kind(hints[field.name])
        flags = [flag_of(field), *filter(None, [_SHORT.get(field.name)])]
        default = None if field.default is MISSING else field.default
        if kind is bool and default is True:
            flags[0] += f"/--no-{field.name.replace('_', '-')}"
        # Rich would take a bracket for markup.
        text = docs[field.name].replace("``", "").replace('"', "").replace("[", "\\[")
        required = field.default is MISSING and field.default_factory is MISSING
        if not required and (_is_list(field) or (kind is str and not isinstance(default, str))):
            kind, default = kind | None, None
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if required else default,
            annotation=Annotated[kind, typer.Option(*flags, help=text)],
        )


def pass_with(surgery: type[SurgeryPass[Any]], given: Mapping[str, object]) -> SurgeryPass[Any]:
    """Return a pass with the options of a command; what was left out has its default.

    Raises:
        PreconditionError: If a pair of a name and a value is not one.
    """
    hints = get_type_hints(surgery)
    options: dict[str, Any] = {}
    for field in _fields(surgery):
        value, (_, read) = given[field.name], _kind(hints[field.name])
        if value is not None and value != []:
            options[field.name] = read(flag_of(field), value)
    return surgery(**options)


def _fields(surgery: type[SurgeryPass[Any]]) -> tuple[Field[Any], ...]:
    return fields(cast("Any", surgery))  # every pass is a dataclass


def _is_list(field: Field[Any]) -> bool:
    return str(field.type).startswith(("tuple[", "Mapping["))


def _kind(hint: Any) -> tuple[Any, Callable[[str, Any], Any]]:
    """Return the type that typer is to read for a field's type, and what makes the field of it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # Of what cannot be written in a shell (None, an array, an object of the model), the rest.
        known = [kind for kind in (str, float, int, bool) if kind in inner]
        return (known[0] | None if type(None) in inner and known[0] is not str else known[0]), _same
    if origin is tuple and get_origin(inner[0]) is tuple:
        values = get_args(inner[0])[1]
        return list[str], _pairs if values is str else _named_values
    if origin is tuple:
        return list[str], _texts
    if inner:
        return list[str], _mapping
    return hint, _same


def _same(flag: str, value: Any) -> Any:
    del flag
    return value


def _texts(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    del flag
    return tuple(texts)


def _pairs(flag: str, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    for text in texts:
        if not all(text.partition("=")):
            raise PreconditionError(
                f"expected {flag} NAME=NAME, got {printable(text)}", None, f"write {flag} old=new"
            )
    return tuple((text.partition("=")[0], text.partition("=")[2]) for text in texts)


def _mapping(flag: str, texts: Sequence[str]) -> dict[str, str]:
    return dict(_pairs(flag, texts))


def _named_values(flag: str, texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    import numpy as np

    found: list[tuple[str, Any]] = []
    for text in texts:
        name, has_value, value = text.partition("=")
        try:
            found.append((name, np.asarray(json.loads(value)) if has_value else None))
        except (ValueError, RecursionError) as error:
            raise PreconditionError(
                f"expected {flag} NAME or NAME=VALUE, got {printable(text)}",
                {"why": error},
                f"write a number or a list of them: {flag} scale=0.5",
            ) from error
    return tuple(found)


# --- messages ------------------------------------------------------------------------------------

_VALUE = r"""(?:\[[^\]]*\]|"[^"]*"|'[^']*'|[-+.\w]*\w)?"""


def in_flags(
    text: str, surgery: type[SurgeryPass[Any]], commands: Mapping[str, type[SurgeryPass[Any]]]
) -> str:
    """Return a message as a user of the command line reads it: with flags and commands.

    Args:
        text: The message, which says ``field=value`` of options, and calls verbs.
        surgery: The pass whose command was given.
        commands: All passes, by their commands.
    """
    for command, each in commands.items():
        verb = re.sub(r"(?<!^)(?=[A-Z])", "_", each.__name__.removesuffix("Pass")).lower()
        text = re.sub(
            rf"(?:tieops\.)?\b{verb}\((?:model)?(?:, )?([^()]*)\)",
            lambda match, command=command, each=each: (
                f"tieops {command} {_with_flags(match[1], each).replace(', ', ' ')}".rstrip()
            ),
            text,
        )
    text = re.sub(r"print\(model(?:\.\w+)?\), or ", "", text)
    text = re.sub(r"print\(model(?:\.\w+)?\)|\bmodel\.[.\w]+", "tieops inspect MODEL", text)
    return _with_flags(text, surgery)


def _with_flags(text: str, surgery: type[SurgeryPass[Any]]) -> str:
    for field in _fields(surgery):
        pattern = rf"(?<![-\w]){field.name}=({_VALUE})"
        text = re.sub(pattern, lambda match, field=field: _flagged(field, match[1]), text)
        text = re.sub(rf"(?<![-\w]){field.name}(?= must be )", flag_of(field), text)
    return text


def _flagged(field: Field[Any], value: str) -> str:
    flag = flag_of(field)
    if value in ("True", "False"):
        return flag if value == "True" else f"--no-{flag[2:]}"
    words = ["NAME"] if value == "[...]" else re.split(r",\s*", value.strip("[]"))
    return " ".join(f"{flag} {word.strip(chr(34) + chr(39))}".rstrip() for word in words)
