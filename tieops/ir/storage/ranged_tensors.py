"""Stored tensors in a file that is read range by range, such as a remote one."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir

from tieops.errors import PreconditionError
from tieops.ir.notation import brief_bytes, printable
from tieops.system.mapping import map_file

__all__ = ["RangedTensor", "Ranges", "elements_at", "prefetch", "prefetch_operands"]

Array = np.ndarray[Any, Any]
SMALL_BYTES = 16 << 10
"""A tensor up to this size is read in one piece: a request for its samples costs as much."""
OPERAND_ELEMENTS = 64
IN_MEMORY_BYTES = 1 << 20
BLOCK_BYTES = 4 << 20
BLOCKS_AT_ONCE = 4


class Ranges(Protocol):
    """A file of known size of which any ranges can be read.

    Attributes:
        name: What messages call it; safe for a terminal.
        size: Bytes.
    """

    name: str
    size: int

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each range ``(start, stop)``, all of them or an error."""
        ...


@dataclass(eq=False)
class _Kept:
    """What has been read of a range: samples, or all of it."""

    groups: dict[int, bytes] = field(default_factory=dict[int, bytes])
    array: Array | None = None
    data: bytes | mmap.mmap | None = None


class RangedTensor(onnx_ir.LazyTensor):
    """A tensor in a range of a file; what is looked at is read, and nothing before that.

    Args:
        source: The file.
        offset: Where in it the tensor's bytes begin, laid out as ONNX's ``raw_data``.
        dtype: The ONNX data type.
        shape: Its sizes.
        name: Its name.
        metadata_props: What the file says of it.

    Samples are kept. A tensor that is read whole is kept too: in a temporary file if it is large,
    so that it costs no memory and its bytes come over the wire once.
    """

    def __init__(
        self,
        source: Ranges,
        offset: int,
        dtype: onnx_ir.DataType,
        shape: Sequence[int],
        *,
        name: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        sizes = onnx_ir.Shape(shape, frozen=True)
        super().__init__(
            self._tensor_of_all, dtype, sizes, name=name, metadata_props=metadata_props
        )
        self.source = source
        self.offset = offset
        self._kept = _Kept()  # shared with copies of this tensor, so that bytes come over once

    @property
    def is_small(self) -> bool:
        """Whether its samples are all of it."""
        return self.nbytes <= SMALL_BYTES

    @property
    def is_read(self) -> bool:
        """Whether all of it is here already."""
        return self._kept.array is not None

    def numpy(self) -> Array:
        """Return all values; read whole when this is first called.

        Raises:
            PreconditionError: If there is no room for a temporary file.
        """
        if self._kept.array is None:
            self._kept.array = self._whole()
        return self._kept.array

    def _tensor_of_all(self) -> onnx_ir.TensorProtocol:
        return onnx_ir.Tensor(self.numpy(), dtype=self.dtype, name=self.name)

    def tobytes(self) -> bytes:
        """Return all bytes, little endian, packed as in the file."""
        return b"".join(self._blocks())

    def tofile(self, file: Any) -> None:
        """Write all bytes to a file, some MB at a time."""
        for block in self._blocks():
            file.write(block)

    def _blocks(self) -> Iterable[bytes]:
        data = self._kept.data
        if data is not None:
            yield from (data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES))
            return
        stop = self.offset + int(self.nbytes)
        starts = range(self.offset, stop, BLOCK_BYTES)
        for first in range(0, len(starts), BLOCKS_AT_ONCE):
            some = starts[first : first + BLOCKS_AT_ONCE]
            yield from self.source.read([(at, min(at + BLOCK_BYTES, stop)) for at in some])

    def _whole(self) -> Array:
        shape = self._sizes()
        if self.nbytes <= IN_MEMORY_BYTES or self.dtype.bitwidth < 8:
            return _decoded(self.tobytes(), self.dtype, shape)
        try:
            with tempfile.TemporaryFile(prefix="tieops-") as file:
                self.tofile(file)
                self._kept.data = _mapped(file)
        except OSError as error:
            raise PreconditionError(
                f"no disk space to buffer {printable(self.name or 'a tensor')} while it is read",
                {"bytes": brief_bytes(self.nbytes), "the system says": error.strerror or error},
                "free space in the folder for temporary files, or set TMPDIR to another one",
            ) from error
        dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
        return np.frombuffer(self._kept.data, dtype).reshape(shape)

    # A group is the fewest elements that are whole bytes: one, or as many as share a byte.

    def _group_size(self) -> tuple[int, int]:
        bits = self.dtype.bitwidth
        shared = math.lcm(bits, 8)
        return shared // bits, shared // 8

    def missing(self, flat: Array) -> list[Piece]:
        """Return the pieces of the file that have to be read for these elements.

        Args:
            flat: Their numbers in the stored order.
        """
        if self._kept.array is not None or not self.size:
            return []
        stop = self.offset + int(self.nbytes)
        if self.is_small:
            return [Piece(self, None, (self.offset, stop))]
        per_group, width = self._group_size()
        groups = [int(each) for each in np.unique(flat // per_group)]
        unread = [each for each in groups if each not in self._kept.groups]
        starts = {each: self.offset + each * width for each in unread}
        return [Piece(self, at, (start, min(start + width, stop))) for at, start in starts.items()]

    def keep(self, piece: Piece, data: bytes) -> None:
        """Note what was read of a piece."""
        if piece.group is None:
            self._kept.data = data
            self._kept.array = _decoded(data, self.dtype, self._sizes())
        else:
            self._kept.groups[piece.group] = data

    def elements(self, flat: Array) -> Array:
        """Return single elements.

        Args:
            flat: Their numbers in the stored order.
        """
        _read(self.missing(flat))
        if self._kept.array is not None:
            return self._kept.array.reshape(-1)[flat]
        per_group, width = self._group_size()
        data = b"".join(self._kept.groups[int(g)].ljust(width, b"\0") for g in flat // per_group)
        values = _decoded(data, self.dtype, (len(flat) * per_group,))
        return values[np.arange(len(flat)) * per_group + flat % per_group]

    def flat(self, index: Sequence[Array]) -> Array:
        """Return the numbers of elements of which the coordinates along each axis are given."""
        return np.ravel_multi_index(tuple(index), self._sizes())

    def _sizes(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.shape.numpy())


@dataclass(frozen=True)
class Piece:
    """A few bytes of a tensor, or all of a small one.

    Args:
        tensor: The tensor.
        group: Which of its groups of elements; None for the whole.
        range: Where they lie in its file.
    """

    tensor: RangedTensor
    group: int | None
    range: tuple[int, int]


def _read(pieces: Iterable[Piece]) -> None:
    """Read pieces of any tensors, those of one file in one go."""
    by_source: dict[Ranges, list[Piece]] = {}
    for piece in pieces:
        by_source.setdefault(piece.tensor.source, []).append(piece)
    for source, some in by_source.items():
        for piece, data in zip(some, source.read([each.range for each in some]), strict=True):
            piece.tensor.keep(piece, data)


def _mapped(file: Any) -> mmap.mmap:
    file.flush()
    return map_file(file.fileno())


def _decoded(data: bytes, dtype: onnx_ir.DataType, shape: Sequence[int]) -> Array:
    proto = onnx.TensorProto(data_type=int(dtype), dims=shape, raw_data=data)
    return onnx_ir.from_proto(proto).numpy()


def elements_at(tensor: onnx_ir.TensorProtocol, index: Sequence[Array]) -> Array:
    """Return single elements of a stored tensor.

    Args:
        tensor: The tensor.
        index: For each of its axes the coordinates of the elements, all of one length.
    """
    if isinstance(tensor, RangedTensor) and tensor.shape:
        return tensor.elements(tensor.flat(index))
    return tensor.numpy()[tuple(index)]


def prefetch_operands(tensors: Iterable[onnx_ir.TensorProtocol]) -> None:
    """Read what tells shapes and axes, of all tensors that lie in ranges of a file, in one go.

    Args:
        tensors: Any stored tensors; the small ones of integers are read.
    """
    ranged = [each for each in tensors if isinstance(each, RangedTensor) and each.is_small]
    few = [each for each in ranged if each.dtype.is_integer() and each.size <= OPERAND_ELEMENTS]
    _read(piece for tensor in few for piece in tensor.missing(np.zeros(1, int)))


def prefetch(wanted: Iterable[tuple[onnx_ir.TensorProtocol, Sequence[Array]]]) -> None:
    """Read the elements that will be asked for of each file in one go.

    Args:
        wanted: Tensors, each with coordinates as ``elements_at`` takes them. Of those that do not
            lie in ranges of a file nothing is read.
    """
    ranged = [(each, index) for each, index in wanted if isinstance(each, RangedTensor)]
    _read(piece for tensor, index in ranged for piece in tensor.missing(tensor.flat(index)))
