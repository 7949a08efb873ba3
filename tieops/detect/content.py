"""Duplicates by content: equal bit for bit, as stored or with permuted axes.

Fingerprints nominate, bytes decide. A fingerprint is a few elements taken at places that
correspond under the permutation, so a tensor that matches no other costs the pages of those few
elements and nothing more; only tensors whose fingerprints agree are read whole, block by block and
no further than the first difference.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from tieops.ir.evidence import Evidence
from tieops.ir.names import AXES, is_made_up, origin_of
from tieops.ir.parameter import Parameter
from tieops.ir.storage import storage_key
from tieops.ir.ties import Duplicate
from tieops.ir.view import Shape, relative
from tieops.progress import advance, progress

__all__ = ["bit_equal", "bits", "find_duplicates", "same_range"]

Array = np.ndarray[Any, Any]
SAMPLES = 16
BLOCK_BYTES = 1 << 20
"""Comparison goes block by block: large enough to be fast, small enough to stay in the cache."""
MAX_RANK_PERMUTED = 5
"""Above this rank only equal order is looked for: 6 equal axes would be 720 orders."""
MIN_ELEMENTS = 64
"""Below this size equal content may be a coincidence: reported, not joined unless asked to."""
MAX_REPRESENTATIVES = 8
"""How many unequal tensors with equal fingerprints are compared one by one before a digest is."""


def bits(array: Array) -> Array:
    """Return the array's bit patterns: unsigned integers of the same width, no copy.

    Equality of these is what tieops calls equal: +0.0 is not -0.0, a NaN equals the same NaN.

    Example:
        >>> bool((bits(np.array([0.0])) == bits(np.array([-0.0]))).all())
        False
    """
    if array.dtype.kind in "uib" and array.dtype.itemsize <= 8:
        return array
    width = array.dtype.itemsize
    if width in (1, 2, 4, 8):
        return array.view(f"u{width}")
    return array.view("u8").reshape(*array.shape, width // 8)


def bit_equal(one: Array, other: Array) -> bool:
    """Tell whether two arrays have the same shape and dtype and the same bits everywhere.

    Args:
        one: Any array; may be a transposed view.
        other: Any array; may be a transposed view.

    Compared in blocks, so that a transposed comparison needs no transposed copy and stops at the
    first block that differs.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.size == 0:
        return True
    if one.dtype.kind == "O" or one.dtype.kind in "SU":
        return bool(np.array_equal(one, other))
    for block in _blocks(one.shape, one.dtype.itemsize):
        part = bits_block(one, block)
        advance(part.nbytes)
        if not np.array_equal(part, bits_block(other, block)):
            return False
    return True


def bits_block(array: Array, block: tuple[slice, ...]) -> Array:
    """Return the bit patterns of one block; a block of a transposed view is copied, alone."""
    part = array[block]
    if part.dtype.kind in "uib":
        return part
    return bits(part if part.flags.c_contiguous else np.ascontiguousarray(part))


def _blocks(shape: Shape, itemsize: int) -> Iterator[tuple[slice, ...]]:
    # Nearly square tiles over the last two axes: both orders of reading stay within the cache.
    budget = max(1, BLOCK_BYTES // itemsize)
    if len(shape) < 2:
        sizes = [min(budget, size) for size in shape]
    else:
        side = max(1, int(budget**0.5))
        columns = min(shape[-1], max(side, budget // max(shape[-2], 1)))
        rows = min(shape[-2], max(1, budget // columns))
        sizes = [1] * (len(shape) - 2) + [rows, columns]
        for axis in reversed(range(len(shape) - 2)):
            if sizes[axis + 1] < shape[axis + 1]:
                break
            used = int(np.prod(sizes))
            sizes[axis] = max(1, min(shape[axis], budget // max(used, 1)))
    starts = [range(0, size, step) for size, step in zip(shape, sizes, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(a, a + step) for a, step in zip(corner, sizes, strict=True))


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

    @property
    def shape(self) -> Shape:
        return tuple(self.parameter.shape[axis] for axis in self.order)

    def array(self) -> Array:
        return self.parameter.numpy().transpose(self.order)


def find_duplicates(parameters: Iterable[Parameter]) -> tuple[Duplicate, ...]:
    """Find stored tensors of equal content, as they are or with permuted axes.

    Args:
        parameters: The stored tensors to look at.

    Returns:
        One ``Duplicate`` for each set of equal tensors, the largest waste first. The first of each
        set is the one with a name of its own (not one that an exporter made up), the earliest.
    """
    groups: defaultdict[tuple[onnx_ir.DataType, Shape], list[_Candidate]] = defaultdict(list)
    for parameter in parameters:
        shape = parameter.shape
        if parameter.elements == 0 or parameter.dtype == onnx_ir.DataType.STRING:
            continue
        order = tuple(sorted(range(len(shape)), key=lambda axis: -shape[axis]))
        candidate = _Candidate(parameter, order)
        groups[parameter.dtype, candidate.shape].append(candidate)
    with progress("comparing weights", unit="bytes"):
        found = [d for group in groups.values() if len(group) > 1 for d in _equal_sets(group)]
    return tuple(sorted(found, key=lambda duplicate: -duplicate.wasted_bytes))


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
                yield from _by_origin(_duplicate(members))


def _rank(parameter: Parameter) -> int:
    """Return which of equal tensors to keep: the one that others left, then one with a name.

    One that left under the name of all, its axes in another order, is not the one that others left.
    """
    if origin_of(parameter.value) == parameter.name and AXES not in parameter.value.metadata_props:
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
                self._by_digest = {_digest(known[0][0].array()): known for known in self.sets}
            self._by_digest[_digest(candidate.array())] = members

    def admit(self, candidate: _Candidate, symmetry: Shape) -> bool:
        array = candidate.array().transpose(symmetry)
        sets: Iterable[list[tuple[_Candidate, Shape]]] = self.sets
        if self._by_digest:
            # Many tensors that agree in the samples and nowhere else: one reading finds the one to
            # compare with, where comparing with each would be quadratic.
            known = self._by_digest.get(_digest(array))
            sets = [] if known is None else [known]
        for members in sets:
            first = members[0][0]
            if same_range(first.parameter.tensor, candidate.parameter.tensor) or bit_equal(
                first.array(), array
            ):
                members.append((candidate, symmetry))
                return True
        return False


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
        "" if storage or _were_one(members) else _held_back(keep.parameter),
    )


def _by_origin(whole: Duplicate) -> Iterator[Duplicate]:
    """Split a set that is held back: those that were one tensor before may be one again."""
    if not whole.held_back:
        yield whole
        return
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for place, parameter in enumerate(whole.parameters):
        groups[origin_of(parameter.value) or place].append(place)
    yield from (_part(whole, places, "") for places in groups.values() if len(places) > 1)
    firsts = [places[0] for places in groups.values()]
    yield _part(whole, firsts, whole.held_back)


def _part(whole: Duplicate, places: Sequence[int], held_back: str) -> Duplicate:
    base = whole.perms[places[0]]
    return Duplicate(
        tuple(whole.parameters[place] for place in places),
        tuple(relative(base, whole.perms[place]) for place in places),
        whole.evidence,
        held_back,
    )


def _were_one(members: Sequence[tuple[_Candidate, Shape]]) -> bool:
    origins = {origin_of(candidate.parameter.value) for candidate, _ in members}
    return len(origins) == 1 and origins != {""}


def _held_back(parameter: Parameter) -> str:
    if parameter.elements < MIN_ELEMENTS:
        return f"fewer than {MIN_ELEMENTS} elements"
    array = parameter.numpy()
    first = array[(0,) * array.ndim]
    flat = np.broadcast_to(first, array.shape)
    return "constant" if bit_equal(np.asarray(flat), array) else ""


def _places(shape: Shape) -> tuple[Array, ...]:
    """Return coordinates spread over a tensor of this shape, the same ones for every tensor."""
    rng = np.random.default_rng([len(shape), *shape])
    return tuple(np.concatenate(([0, size - 1], rng.integers(0, size, SAMPLES))) for size in shape)


def _symmetries(shape: Shape) -> list[Shape]:
    """Return the orders of axes that keep a sorted shape as it is, the plain one first."""
    rank = len(shape)
    if rank > MAX_RANK_PERMUTED:
        return [tuple(range(rank))]
    orders = itertools.permutations(range(rank))
    return [order for order in orders if tuple(shape[axis] for axis in order) == shape]


def _sample(array: Array, places: tuple[Array, ...]) -> bytes:
    return np.ascontiguousarray(array[places]).tobytes()


def _digest(array: Array) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for block in _blocks(array.shape, array.dtype.itemsize):
        part = np.ascontiguousarray(array[block]).tobytes()
        advance(len(part))
        digest.update(part)
    return digest.digest()
