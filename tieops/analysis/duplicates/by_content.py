"""Find duplicates by content: equal bit for bit, as stored or with permuted axes.

Fingerprints nominate, bytes decide. A fingerprint is a few elements taken at places that
correspond under the permutation, so a tensor that matches no other costs only the pages of those
few elements. Only tensors whose fingerprints agree are read further, block by block up to the first
difference.
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

from tieops.analysis.duplicates.bit_equality import Bits, bit_equal, blocks
from tieops.analysis.duplicates.stored_bits import StoredBits
from tieops.ir.evidence import Evidence
from tieops.ir.metadata.keys import AXES, origin_of
from tieops.ir.metadata.torch_kinds import has_generated_name
from tieops.ir.parameter import Parameter
from tieops.ir.storage.byte_ranges import storage_key
from tieops.ir.storage.ranged_tensors import RangedTensor, elements_at, prefetch
from tieops.ir.tie import Duplicate
from tieops.ir.view import Shape, relative
from tieops.progress import advance, progress

__all__ = ["find_duplicates", "same_range"]

Array = np.ndarray[Any, Any]
SAMPLES = 16
FIRST_SAMPLES = 4
MAX_RANK_PERMUTED = 5
"""Above this rank only equal order is looked for: 6 equal axes would be 720 orders."""
MIN_ELEMENTS = 64
"""Below this size equal content may be a coincidence: reported, not joined unless asked to."""
MAX_REPRESENTATIVES = 8
"""How many unequal tensors with equal fingerprints are compared one by one before a digest is."""


def same_range(one: onnx_ir.TensorProtocol, other: onnx_ir.TensorProtocol) -> bool:
    """Return whether two tensors are one range of bytes, read the same way."""
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

    def sample(self, symmetry: Shape, places: Sequence[Array]) -> bytes:
        """Return the elements at places of the sorted form, its axes in another order."""
        return np.ascontiguousarray(self.array().transpose(symmetry)[tuple(places)]).tobytes()

    def far_sample(self, symmetry: Shape, places: Sequence[Array]) -> bytes:
        """Return a sample where tensors of remote files are among those that are compared."""
        return elements_at(self.parameter.tensor, self.index(symmetry, places)).tobytes()

    def index(self, symmetry: Shape, places: Sequence[Array]) -> tuple[Array, ...]:
        """Return places of the sorted form, its axes in another order, along the stored axes."""
        index = dict(zip((self.order[axis] for axis in symmetry), places, strict=True))
        return tuple(index[axis] for axis in range(len(self.order)))


def find_duplicates(
    parameters: Iterable[Parameter], *, whole: bool = True
) -> tuple[Duplicate, ...]:
    """Find stored tensors of equal content, as they are or with permuted axes.

    Args:
        parameters: The stored tensors to look at.
        whole: Read what agrees in all samples whole, and be sure. Otherwise large tensors of remote
            files are not, and the evidence is ``samples``.

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
    several = [group for group in groups.values() if len(group) > 1]
    near = [group for group in several if not any(map(_is_ranged, group))]
    far = [group for group in several if any(map(_is_ranged, group))]
    with progress("comparing weights", unit="bytes"):
        alike = [each for group in near for each in _of_equal_corners(group)] + _sampled(far)
        found = [duplicate for group in alike for duplicate in _equal_sets(group, whole)]
    return tuple(sorted(found, key=lambda duplicate: -duplicate.wasted_bytes))


def _of_equal_corners(group: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """Split a group by the first and then the last element, which no order of axes moves.

    Most tensors differ there already: they cost a page or two each.
    """
    groups = [list(group)]
    plain = tuple(range(len(group[0].order)))
    for place in (0, -1):
        corner = tuple(np.array([place]) for _ in group[0].order)
        alike: defaultdict[tuple[int, bytes], list[_Candidate]] = defaultdict(list)
        for index, each in enumerate(groups):
            for candidate in each:
                alike[index, candidate.sample(plain, corner)].append(candidate)
        groups = [each for each in alike.values() if len(each) > 1]
    yield from groups


def _sampled(groups: list[list[_Candidate]]) -> list[list[_Candidate]]:
    """Fetch samples of remote tensors, many in one go, and drop those that differ from all others.

    The first few samples tell most tensors apart; only those that agree are asked for the rest.
    """
    found: list[list[_Candidate]] = []
    _fetch(groups, FIRST_SAMPLES)
    for group in groups:
        places = _places(group[0].shape, FIRST_SAMPLES)
        seen: defaultdict[bytes, set[_Candidate]] = defaultdict(set)
        for symmetry in _symmetries(group[0].shape):
            for candidate in group:
                seen[candidate.far_sample(symmetry, places)].add(candidate)
        alike = {each for some in seen.values() if len(some) > 1 for each in some}
        found.append([candidate for candidate in group if candidate in alike])
    found = [group for group in found if group]
    _fetch(found, None)
    return found


def _fetch(groups: Iterable[Sequence[_Candidate]], count: int | None) -> None:
    prefetch(
        (candidate.parameter.tensor, candidate.index(symmetry, places))
        for group in groups
        for candidate in group
        for places in [_places(candidate.shape, count)]
        for symmetry in _symmetries(candidate.shape)
    )


def _equal_sets(group: Sequence[_Candidate], whole: bool) -> Iterator[Duplicate]:
    """Split tensors of one dtype and one sorted shape into sets of equal content."""
    shape = group[0].shape
    places = _places(shape)
    symmetries = _symmetries(shape)
    sample = _Candidate.far_sample if any(map(_is_ranged, group)) else _Candidate.sample
    ranked = sorted(group, key=lambda candidate: _rank(candidate.parameter))
    buckets: dict[bytes, _Bucket] = {}
    for candidate in ranked:
        fingerprints = [(sample(candidate, sym, places), sym) for sym in symmetries]
        for fingerprint, symmetry in fingerprints:
            bucket = buckets.get(fingerprint)
            if bucket is not None and bucket.admit(candidate, symmetry, whole):
                break
        else:
            buckets.setdefault(fingerprints[0][0], _Bucket()).found(candidate)
    for bucket in buckets.values():
        for members in bucket.sets:
            if len(members) > 1:
                yield from _by_origin(_duplicate(members, whole))


def _rank(parameter: Parameter) -> int:
    """Return which of equal tensors to keep: the one that others left, then one with a name.

    One that left under the name of all, its axes in another order, is not the one that others left.
    """
    if origin_of(parameter.value) == parameter.name and AXES not in parameter.value.metadata_props:
        return 0
    return 2 if has_generated_name(parameter.value, parameter.name) else 1


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

    def admit(self, candidate: _Candidate, symmetry: Shape, whole: bool) -> bool:
        if not whole and _is_far(candidate):
            self.sets[0].append((candidate, symmetry))
            return True
        sets: Iterable[list[tuple[_Candidate, Shape]]] = self.sets
        if self._by_digest:
            # Many tensors that agree in the samples and nowhere else: one reading finds the one to
            # compare with, where comparing with each would be quadratic.
            known = self._by_digest.get(_digest(candidate, symmetry))
            sets = [] if known is None else [known]
        for members in sets:
            first = members[0][0]
            tensors = first.parameter.tensor, candidate.parameter.tensor
            if same_range(*tensors) or _equal(first, candidate, symmetry):
                members.append((candidate, symmetry))
                return True
        return False


def _equal(first: _Candidate, other: _Candidate, symmetry: Shape) -> bool:
    with first.stored.read_whole(first.parameter.tensor, other.parameter.tensor):
        return bit_equal(first.array(), other.array().transpose(symmetry))


def _is_ranged(candidate: _Candidate) -> bool:
    return isinstance(candidate.parameter.tensor, RangedTensor)


def _is_far(candidate: _Candidate) -> bool:
    """Return whether reading it whole means to fetch a large tensor from a remote file."""
    tensor = candidate.parameter.tensor
    return isinstance(tensor, RangedTensor) and not tensor.is_read


def _duplicate(members: Sequence[tuple[_Candidate, Shape]], whole: bool) -> Duplicate:
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
    parameters = tuple(candidate.parameter for candidate, _ in members)
    if not (whole or storage) and any(_is_far(candidate) for candidate, _ in members):
        return Duplicate(parameters, tuple(perms), Evidence.SAMPLES, "not read whole")
    held_back = "" if storage or _were_one(members) else _held_back(keep)
    evidence = Evidence.STORAGE if storage else Evidence.CONTENT
    return Duplicate(parameters, tuple(perms), evidence, held_back)


def _by_origin(whole: Duplicate) -> Iterator[Duplicate]:
    """Split a set that is held back: those that were one tensor before may be one again."""
    if not whole.held_back or whole.evidence is Evidence.SAMPLES:
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


def _held_back(keep: _Candidate) -> str:
    if keep.parameter.elements < MIN_ELEMENTS:
        return f"fewer than {MIN_ELEMENTS} elements"
    return "constant" if _is_constant(keep.array()) else ""


def _is_constant(array: Bits) -> bool:
    first = array[tuple(np.zeros(1, np.int64) for _ in array.shape)]
    return all((array[cut] == first).all() for cut in blocks(array.shape, array.dtype.itemsize))


def _places(shape: Shape, count: int | None = None) -> tuple[Array, ...]:
    """Return coordinates spread over a tensor of this shape, the same ones for every tensor."""
    rng = random.Random(repr(shape))
    return tuple(
        np.array([0, size - 1, *(rng.randrange(size) for _ in range(SAMPLES))][:count])
        for size in shape
    )


def _symmetries(shape: Shape) -> list[Shape]:
    """Return the orders of axes that keep a sorted shape as it is, the plain one first."""
    rank = len(shape)
    if rank > MAX_RANK_PERMUTED:
        return [tuple(range(rank))]
    orders = itertools.permutations(range(rank))
    return [order for order in orders if tuple(shape[axis] for axis in order) == shape]


def _digest(candidate: _Candidate, symmetry: Shape) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    array = candidate.array().transpose(symmetry)
    with candidate.stored.read_whole(candidate.parameter.tensor):
        for block in blocks(array.shape, array.dtype.itemsize):
            part = np.ascontiguousarray(array[block]).tobytes()
            advance(len(part))
            digest.update(part)
    return digest.digest()
