"""Readers: which slots form one reader of a tensor, and which reader owns which name.

A reader is one layer at one call, however often its program touches the weight. A name of a tensor
(``fc.weight``) belongs to a reader: when the reader leaves a tie, the name goes with it. This is
the only place that decides who owns a name. The criteria, strongest first:

1. what ``from_torch`` recorded on the reading node (``tieops.reads``);
2. a module of the name's path that reads in the role of its last part (``fc`` and ``weight``);
3. the reader whose module is the nearest one around it (``nn.MultiheadAttention`` reads the weight
   of its ``out_proj`` itself, a model's own ``forward`` may read ``self.fc.weight``);
4. the one name that is left for the one reader that is left.

Where several readers could own a name, the name is reported as doubtful; nothing guesses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir

from tieops.ir.metadata.keys import aliases_of, is_generated_name, packed_aliases
from tieops.ir.metadata.parsing import parsed, whole_texts
from tieops.ir.operators.identity import operator_name
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.walk import Scope, scope_of

__all__ = [
    "Reader",
    "Readers",
    "names_read_by",
    "owned_role",
    "readers_of",
    "record_reads",
]

READS = "tieops.reads"
"""On a node: by input, the names that this reader owns of those that the tensors have."""


def record_reads(node: onnx_ir.Node, index: int, names: Iterable[str]) -> None:
    """Record under which names a node reads what arrives at one of its inputs."""
    found = _recorded(node)
    known = found.setdefault(str(index), [])
    known += [name for name in names if name not in known]
    node.metadata_props[READS] = json.dumps(found)


def names_read_by(node: onnx_ir.Node, index: int) -> tuple[str, ...]:
    """Return the names that were recorded for an input of a node."""
    return tuple(_recorded(node).get(str(index), ()))


def _recorded(node: onnx_ir.Node) -> dict[str, list[str]]:
    found = parsed(node.metadata_props.get(READS))
    if not isinstance(found, dict):
        return {}
    return {str(key): list(whole_texts(names)) for key, names in found.items()}


# --- whose a name is ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reader:
    """One layer at one call, and what it reads of one stored tensor.

    Args:
        slots: Where it reads; several where its program touches the tensor more than once.
        names: The names of the tensor that are its own.
        title: What a tensor of its own is called: its first name, or what its module calls it.
    """

    slots: tuple[Slot, ...]
    names: tuple[str, ...]
    title: str


@dataclass(frozen=True, eq=False)
class Readers:
    """The readers of one stored tensor, in the order of the graph.

    Args:
        all: The readers.
        unread: Names of the tensor under which nothing reads it.
        doubtful: Names that several of the readers could own.
    """

    all: tuple[Reader, ...]
    unread: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()

    def of(self, slot: Slot) -> Reader:
        """Return the reader that a slot is part of."""
        return next(reader for reader in self.all if slot in reader.slots)


def readers_of(
    parameter: Parameter, slots: Iterable[Slot], chosen: Sequence[tuple[str, Slot]] = ()
) -> Readers:
    """Return who reads a stored tensor, and which of its names each of them owns.

    Args:
        parameter: The tensor.
        slots: The slots that read it.
        chosen: Names and whose they are, as if it was recorded on the nodes that read.
    """
    groups: dict[tuple[str, str], list[Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.reader, []).append(slot)
    candidates = [_Candidate(tuple(group)) for group in groups.values()]
    unread, doubtful = _match(_names(parameter.value), candidates, chosen)
    readers = tuple(
        Reader(candidate.slots, tuple(candidate.names), _title(candidate, candidates))
        for candidate in candidates
    )
    return Readers(readers, unread, doubtful)


def _names(value: onnx_ir.Value) -> tuple[str, ...]:
    parts = packed_aliases(value)
    if parts:
        return tuple(dict.fromkeys(name for names in parts for name in names))
    return aliases_of(value)


class _Candidate:
    """A reader while names are looked for."""

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        self.slots = slots
        self.scope = next((s for s in map(_scope, slots) if s is not None), None)
        self.paths: Sequence[str] = self.scope.paths if self.scope is not None else ()
        self.role = slots[0].first_role or slots[0].role
        self.names: list[str] = []

    @property
    def is_torch_layer(self) -> bool:
        """Whether it is a layer of torch's own that reads its own attribute: no name but that."""
        scope = self.scope
        if scope is None or not scope.is_torch:
            return False
        layer, _, call = self.slots[0].layer.rpartition("@")
        return (layer if call.isdecimal() else self.slots[0].layer) == scope.fqn

    @property
    def key(self) -> object:
        """What calls of one module have in common: they own the same names."""
        if self.scope is None or not self.scope.fqn:
            return self
        return self.paths[0], self.role, self.scope.cls

    def nearness(self, module: str) -> int:
        """Return how near around a module the reader's own is; less than 0 if it is not."""
        found = [len(path.split(".")) if path else 0 for path in self.paths if _holds(path, module)]
        return max(found, default=-1)


def _scope(slot: Slot) -> Scope | None:
    return next(
        (scope for node in (slot.node, *reversed(slot.path)) if (scope := scope_of(node))), None
    )


def _holds(outer: str, inner: str) -> bool:
    return not outer or inner == outer or inner.startswith(f"{outer}.")


def _match(
    names: Sequence[str], candidates: Sequence[_Candidate], chosen: Sequence[tuple[str, Slot]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give each reader the names that it owns; return those of nobody and the doubtful ones."""
    # A record on the node is proof, and everything below is inference. So recorded names are given
    # first, and the rest is only about names and readers that are left over.
    recorded = {
        candidate: [n for slot in candidate.slots for n in names_read_by(slot.node, slot.index)]
        + [name for name, slot in chosen if slot in candidate.slots]
        for candidate in candidates
    }
    for candidate, known in recorded.items():
        mine = [name for name in dict.fromkeys(known) if name in names]
        # A module under several names has all of them recorded; the call says by which it was.
        exact = [name for name in mine if _module_of(name) in candidate.paths]
        candidate.names += exact or mine
    left = [name for name in names if not any(name in candidate.names for candidate in candidates)]
    # From the strongest reason to the weakest. A reader that has a name takes no part in the next
    # round, so that a weak reason never gives it a second name that belongs to another reader.
    for is_near in (_is_attribute, _is_within_module, _is_around):
        idle = [candidate for candidate in candidates if not candidate.names]
        if is_near is not _is_attribute:
            # A Linear of torch's reads its own weight and no other name.
            idle = [candidate for candidate in idle if not candidate.is_torch_layer]
        left = _claim(left, idle, is_near)
        _join_calls(candidates)
    idle = [
        candidate
        for candidate in candidates
        if not candidate.names and not candidate.is_torch_layer
    ]
    # One name and one module are left. A generated name is not given away even then, because it
    # says nothing about who read it.
    if (
        len({candidate.key for candidate in idle}) == 1
        and len(left) == 1
        and not is_generated_name(left[0])
    ):
        for candidate in idle:
            candidate.names.append(left[0])
        return (), ()
    return ((), tuple(left)) if idle and len(candidates) > 1 else (tuple(left), ())


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _is_attribute(candidate: _Candidate, name: str) -> int:
    return (
        0
        if _module_of(name) in candidate.paths and name.rpartition(".")[2] == candidate.role
        else -1
    )


def _is_within_module(candidate: _Candidate, name: str) -> int:
    return 0 if candidate.paths and "." in name and _module_of(name) in candidate.paths else -1


def _is_around(candidate: _Candidate, name: str) -> int:
    return candidate.nearness(_module_of(name)) if "." in name else -1


def _claim(
    names: Sequence[str],
    candidates: Sequence[_Candidate],
    nearness: Callable[[_Candidate, str], int],
) -> list[str]:
    """Give names to the nearest reader, or the calls of one module; return those that are left."""
    wanted: dict[object, list[str]] = {}
    by_key: dict[object, list[_Candidate]] = {}
    for candidate in candidates:
        by_key.setdefault(candidate.key, []).append(candidate)
    for name in names:
        near = {key: max(nearness(p, name) for p in each) for key, each in by_key.items()}
        best = max(near.values(), default=-1)
        nearest = [key for key, value in near.items() if value == best]
        if best >= 0 and len(nearest) == 1:
            wanted.setdefault(nearest[0], []).append(name)
    # A module for which two names compete gets neither: each of them could be the wrong one, and
    # a wrong name would lead a checkpoint to the wrong parameter.
    claimed = {key: found[0] for key, found in wanted.items() if len(found) == 1}
    for key, name in claimed.items():
        for candidate in by_key[key]:
            candidate.names.append(name)
    return [name for name in names if name not in claimed.values()]


def _join_calls(candidates: Sequence[_Candidate]) -> None:
    """Give a further call of a module the names of the first, where a count is behind its name."""
    named = {
        (path, candidate.role): candidate.names
        for candidate in candidates
        for path in candidate.paths[:1]
    }
    for candidate in candidates:
        if not candidate.names and candidate.scope is not None and candidate.scope.called:
            candidate.names += named.get((candidate.scope.called, candidate.role), ())


def _title(candidate: _Candidate, candidates: Sequence[_Candidate]) -> str:
    """Return what a tensor of a reader's own is called."""
    first = candidate.slots[0]
    if candidate.names:
        return candidate.names[0]
    if candidate.scope is None or not candidate.scope.fqn:
        return first.name
    if first.layer in candidate.paths:
        return f"{candidate.paths[0]}.{candidate.role}"
    for other in candidates:
        # The twin of a module whose name is known: MultiheadAttention reads its out_proj's weight.
        if other.scope is None or not other.names or not candidate.scope.fqn or not other.scope.fqn:
            continue
        operators = [operator_name(slot.node) for slot in (other.slots[0], first)]
        same = other.scope.cls == candidate.scope.cls and operators[0] == operators[1]
        tail = other.names[0].removeprefix(f"{other.paths[0]}.")
        if same and tail != other.names[0]:
            return f"{candidate.paths[0]}.{tail}"
    return first.name


def owned_role(
    node: onnx_ir.Node, index: int, names: Sequence[str], *, inner: bool = False
) -> str | None:
    """Return the attribute under which the module of a node holds what arrives at an input.

    Args:
        node: Who reads.
        index: At which input.
        names: The names of the tensors that arrive there.
        inner: Whether it may be an attribute of a module within, as that of a parametrization is.
    """
    scope = scope_of(node)
    if scope is None or not scope.fqn:
        return None
    known = [name for name in names_read_by(node, index) if name in names]
    for name in (*known, *names):
        for path in scope.paths:
            role = name.removeprefix(f"{path}.")
            if role != name and (inner or "." not in role):
                return role
    return None
