"""Duplicates by content: equal bit for bit, as stored or with permuted axes.

Fingerprints nominate, bytes decide. A fingerprint is a few elements taken at places that
correspond under the permutation, so a tensor that matches no other costs the pages of those few
elements and nothing more; only tensors whose fingerprints agree are read whole, block by block and
no further than the first difference.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from tieops.detect.bits import Bits, bit_equal, blocks
from tieops.detect.stored import StoredBits
from tieops.ir.evidence import Evidence
from tieops.ir.names import is_made_up, origin_of
from tieops.ir.parameter import Parameter
from tieops.ir.storage import storage_key
from tieops.ir.ties import Duplicate
from tieops.ir.view import Shape
from tieops.progress import advance, progress

__all__ = ["find_duplicates", "same_range"]

Array = np.ndarray[Any, Any]
_Tensors = tuple[onnx_ir.TensorProtocol, onnx_ir.TensorProtocol]
SAMPLES = 16
MAX_RANK_PERMUTED = 5
"""Above this rank only equal order is looked for: 6 equal axes would be 720 orders."""
MIN_ELEMENTS = 64
"""Below this size equal content may be a coincidence: reported, not joined unless asked to."""
MAX_REPRESENTATIVES = 8
"""How many unequal tensors with equal fingerprints are compared one by one before a digest is."""


def same_range(one: onnx_ir.TensorProtocol, other: onnx_ir.TensorProtocol) -> bool:
    """Tell whether two tensors are one range of bytes, read the same way."""
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and storage_key(one) == storage_key(other)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A stored tensor with its axes sorted by size, largest first: one form for all orders."""

    parameter: Parameter
    order: Shape
    """The stored axes, in the order of the sorted form."""
    stored: StoredBits

    @property
    def shape(self) -> Shape:
        return tuple(self.parameter.shape[axis] for axis in self.order)

    def array(self) -> Bits:
        return self.stored.of(self.parameter.tensor).transpose(self.order)


def find_duplicates(parameters: Iterable[Parameter]) -> tuple[Duplicate, ...]:
    """Find stored tensors of equal content, as they are or with permuted axes.

    Args:
        parameters: The stored tensors to look at.

    Returns:
        One ``Duplicate`` for each set of equal tensors, the largest waste first. The first of each
        set is the one with a name of its own (not one that an exporter made up), the earliest.
    """
    stored = StoredBits()
    groups: defaultdict[tuple[onnx_ir.DataType, Shape], list[_Candidate]] = defaultdict(list)
    for parameter in parameters:
        shape = parameter.shape
        if parameter.elements == 0 or parameter.dtype == onnx_ir.DataType.STRING:
            continue
        order = tuple(sorted(range(len(shape)), key=lambda axis: -shape[axis]))
        candidate = _Candidate(parameter, order, stored)
        groups[parameter.dtype, candidate.shape].append(candidate)
    with progress("comparing weights", unit="bytes"):
        found = [
            duplicate
            for group in groups.values()
            for alike in _of_equal_corners(group)
            for duplicate in _equal_sets(alike)
        ]
    return tuple(sorted(found, key=lambda duplicate: -duplicate.wasted_bytes))


def _of_equal_corners(group: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """Split a group by the first and then the last element, which no order of axes moves.

    Most tensors differ there already: they cost a page or two each.
    """
    groups = [list(group)] if len(group) > 1 else []
    for place in (0, -1):
        corner = tuple(np.array([place]) for _ in group[0].order)
        alike: defaultdict[tuple[int, bytes], list[_Candidate]] = defaultdict(list)
        for index, each in enumerate(groups):
            for candidate in each:
                alike[index, _sample(candidate.array(), corner)].append(candidate)
        groups = [each for each in alike.values() if len(each) > 1]
    yield from groups


def _equal_sets(group: Sequence[_Candidate]) -> Iterator[Duplicate]:
    """Split tensors of one dtype and one sorted shape into sets of equal content."""
    shape = group[0].shape
    places = _places(shape)
    symmetries = _symmetries(shape)
    ranked = sorted(group, key=lambda candidate: _rank(candidate.parameter))
    buckets: dict[bytes, _Bucket] = {}
    for candidate in ranked:
        array = candidate.array()
        fingerprints = [(_sample(array.transpose(sym), places), sym) for sym in symmetries]
        for fingerprint, symmetry in fingerprints:
            bucket = buckets.get(fingerprint)
            if bucket is not None and bucket.admit(candidate, symmetry):
                break
        else:
            buckets.setdefault(fingerprints[0][0], _Bucket()).found(candidate)
    for bucket in buckets.values():
        for members in bucket.sets:
            if len(members) > 1:
                yield _duplicate(members)


def _rank(parameter: Parameter) -> int:
    """Return which of equal tensors to keep: the one that others left, then one with a name."""
    if origin_of(parameter.value) == parameter.name:
        return 0
    return 2 if is_made_up(parameter.name) else 1


class _Bucket:
    """Tensors of one fingerprint: sets of equal ones, each with the order that makes it equal."""

    def __init__(self) -> None:
        self.sets: list[list[tuple[_Candidate, Shape]]] = []
        self._by_digest: dict[bytes, list[tuple[_Candidate, Shape]]] = {}

    def found(self, candidate: _Candidate) -> None:
        members = [(candidate, tuple(range(len(candidate.order))))]
        self.sets.append(members)
        if len(self.sets) > MAX_REPRESENTATIVES:
            if not self._by_digest:
                self._by_digest = {_digest(*known[0]): known for known in self.sets}
            self._by_digest[_digest(*members[0])] = members

    def admit(self, candidate: _Candidate, symmetry: Shape) -> bool:
        array = candidate.array().transpose(symmetry)
        sets: Iterable[list[tuple[_Candidate, Shape]]] = self.sets
        if self._by_digest:
            # Many tensors that agree in the samples and nowhere else: one reading finds the one to
            # compare with, where comparing with each would be quadratic.
            known = self._by_digest.get(_digest(candidate, symmetry))
            sets = [] if known is None else [known]
        for members in sets:
            first = members[0][0]
            tensors = first.parameter.tensor, candidate.parameter.tensor
            if same_range(*tensors) or _equal(first, tensors, array):
                members.append((candidate, symmetry))
                return True
        return False


def _equal(first: _Candidate, tensors: _Tensors, array: Bits) -> bool:
    with first.stored.read_whole(*tensors):
        return bit_equal(first.array(), array)


def _duplicate(members: Sequence[tuple[_Candidate, Shape]]) -> Duplicate:
    keep = members[0][0]
    perms: list[Shape] = []
    for candidate, symmetry in members:
        # Sorted axis i of the first is stored axis keep.order[i]; it is sorted axis symmetry[i],
        # stored axis candidate.order[symmetry[i]], of the other.
        stored = [candidate.order[axis] for axis in symmetry]
        perm = [0] * len(stored)
        for mine, theirs in zip(keep.order, stored, strict=True):
            perm[theirs] = mine
        perms.append(tuple(perm))
    tensors = [candidate.parameter.tensor for candidate, _ in members]
    storage = all(same_range(tensors[0], tensor) for tensor in tensors[1:])
    return Duplicate(
        tuple(candidate.parameter for candidate, _ in members),
        tuple(perms),
        Evidence.STORAGE if storage else Evidence.CONTENT,
        "" if storage or _were_one(members) else _held_back(keep),
    )


def _were_one(members: Sequence[tuple[_Candidate, Shape]]) -> bool:
    origins = {origin_of(candidate.parameter.value) for candidate, _ in members}
    return len(origins) == 1 and origins != {""}


def _held_back(keep: _Candidate) -> str:
    if keep.parameter.elements < MIN_ELEMENTS:
        return f"fewer than {MIN_ELEMENTS} elements"
    return "constant" if _is_constant(keep.array()) else ""


def _is_constant(array: Bits) -> bool:
    first = array[tuple(np.zeros(1, np.int64) for _ in array.shape)]
    return all((array[cut] == first).all() for cut in blocks(array.shape, array.dtype.itemsize))


def _places(shape: Shape) -> tuple[Array, ...]:
    """Return coordinates spread over a tensor of this shape, the same ones for every tensor."""
    rng = random.Random(repr(shape))
    return tuple(
        np.array([0, size - 1, *(rng.randrange(size) for _ in range(SAMPLES))]) for size in shape
    )


def _symmetries(shape: Shape) -> list[Shape]:
    """Return the orders of axes that keep a sorted shape as it is, the plain one first."""
    rank = len(shape)
    if rank > MAX_RANK_PERMUTED:
        return [tuple(range(rank))]
    orders = itertools.permutations(range(rank))
    return [order for order in orders if tuple(shape[axis] for axis in order) == shape]


def _sample(array: Bits, places: tuple[Array, ...]) -> bytes:
    return np.ascontiguousarray(array[places]).tobytes()


def _digest(candidate: _Candidate, symmetry: Shape) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    array = candidate.array().transpose(symmetry)
    with candidate.stored.read_whole(candidate.parameter.tensor):
        for block in blocks(array.shape, array.dtype.itemsize):
            part = np.ascontiguousarray(array[block]).tobytes()
            advance(len(part))
            digest.update(part)
    return digest.digest()
