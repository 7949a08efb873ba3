"""Generate inputs for a comparison: every axis at several sizes, every table from end to end."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir

from tieops.errors import PreconditionError, UnsupportedModelError
from tieops.ir.notation import brief_bytes, printable
from tieops.verification.index_bounds import Size, table_sizes

__all__ = ["InputSet", "check_plan", "make_inputs", "plan"]

_Array: TypeAlias = np.ndarray[Any, Any]

# One element, then two sizes that tell axes apart and are not multiples of each other.
_BASE_SIZES = (1, 2, 5)
# Runs added until each table is swept, and how many ids each may look up: four of 256 sweep a
# table of 1000 rows, and keep a language model's logits below 100 MB.
_SWEEP_RUNS = 4
_SWEEP_IDS = 256
# What may be made: a file may ask for inputs or tables that no memory holds.
MAX_INPUT_BYTES = 2_000_000_000
_MAX_SWEPT_ROWS = 10_000_000
_EXPRESSION_LENGTH = 200
_WORDS = ("tie", "untie", "head", "slot", "view", "layer", "", "été")


@dataclass(frozen=True)
class InputSet:
    """Arrays for one run.

    Attributes:
        sizes: What each symbol of the input shapes stands for in this run; an axis without a
            symbol is called ``name[axis]``.
        arrays: An array for each input, in the graph's order.
        tables: How many rows the smallest table has that an integer input indexes.
    """

    sizes: Mapping[str, int]
    arrays: Mapping[str, _Array]
    tables: Mapping[str, int]


def check_plan(sizes: object, seed: object) -> None:
    """Refuse sizes and seeds from which no inputs can be made.

    Raises:
        PreconditionError: If sizes do not map names to integers, or the seed is not an integer.
    """
    if sizes is not None and not (
        isinstance(sizes, Mapping)
        and all(isinstance(k, str) and isinstance(n, int | np.integer) for k, n in sizes.items())
    ):
        raise PreconditionError(
            "expected sizes to map names to integers", {"sizes": sizes}, 'pass them as {"batch": 4}'
        )
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise PreconditionError(
            f"seed must be a non-negative integer, got {seed!r}", None, "pass an int such as 0"
        )


def make_inputs(
    model: onnx_ir.Model, *, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, _Array]:
    """Make one array for each input of a model.

    Integers that index a table are spread over all of its rows, the last and the first before the
    others. Other integers are 0 or 1, and mostly 1 in what is named a mask; floats are standard
    normal.

    Args:
        model: The model.
        sizes: Sizes for symbols of the input shapes, by name; the others get 2, 3, ….
        seed: The same seed makes the same arrays.

    Raises:
        UnsupportedModelError: If an input is a sequence or optional, or of unknown rank or dtype.
        PreconditionError: If a name in ``sizes`` is no symbol of the inputs, or a size negative.

    Example:
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (int64[n] x) => (float[n, 2] y)'
        >>> text += " <float[3, 2] w = {0, 1, 2, 3, 4, 5}> { y = Gather(w, x) }"
        >>> sorted(make_inputs(onnx_ir.from_onnx_text(text), sizes={"n": 3})["x"].tolist())
        [0, 1, 2]
    """
    check_plan(sizes, seed)
    maker = _Maker(model, sizes or {}, seed)
    return dict(maker.make(maker.binding(1), 0).arrays)


def plan(
    model: onnx_ir.Model, *, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> Iterator[InputSet]:
    """Yield the input sets that a comparison runs: several sizes, then more ids.

    The symbols that ``sizes`` leaves open are 1, then about 2, then about 5, each another number;
    the same symbol has the same size everywhere. Then up to four runs follow, of up to 256 ids
    each, until every table was indexed at every row; only a leading axis grows for that.

    Args:
        model: The model.
        sizes: Sizes for symbols of the input shapes, by name.
        seed: The same seed yields the same sets.

    Raises:
        UnsupportedModelError: As `make_inputs` does.
        PreconditionError: As `make_inputs` does.

    Example:
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n, 4] x) => (float[n, 4] y)'
        >>> text += " { y = Neg(x) }"
        >>> [each.sizes for each in plan(onnx_ir.from_onnx_text(text))]
        [{'n': 1}, {'n': 2}, {'n': 5}]
    """
    maker = _Maker(model, sizes or {}, seed)
    bindings = [maker.binding(run) for run in range(len(_BASE_SIZES))]
    distinct = [each for run, each in enumerate(bindings) if each not in bindings[:run]]
    for run, binding in enumerate(distinct):
        yield maker.make(binding, run)
    for run in range(_SWEEP_RUNS):
        if not maker.unswept:
            return
        yield maker.make(maker.grown(distinct[-1]), len(distinct) + run)


class _Maker:
    """Makes arrays, and remembers which rows of the tables are still to be indexed."""

    def __init__(self, model: onnx_ir.Model, sizes: Mapping[str, int], seed: int) -> None:
        self.inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        self.shapes = {value.name or "": _shape(value) for value in self.inputs}
        self.fixed = sizes
        self.seed = seed
        self.tables = table_sizes(model)
        self.left: dict[str, _Array] = {}
        self.rows: dict[str, int] = {}
        self.symbols = list(
            dict.fromkeys(
                symbol
                for name, shape in self.shapes.items()
                for axis, size in enumerate(shape)
                for symbol in _symbols(size, f"{name}[{axis}]", sizes)
            )
        )
        _check_sizes(sizes, self.symbols)

    @property
    def unswept(self) -> dict[str, int]:
        """How many rows no run has indexed yet, for each input that indexes a table."""
        return {name: len(left) for name, left in self.left.items() if len(left)}

    def binding(self, run: int) -> dict[str, int]:
        """Return the sizes of one of the first runs."""
        free = [symbol for symbol in self.symbols if symbol not in self.fixed]
        base = _BASE_SIZES[run]
        # Axes of different names differ, so that a mix-up of the two cannot go unseen.
        made = {symbol: base + (position % 4 if run else 0) for position, symbol in enumerate(free)}
        return {symbol: made[symbol] if symbol in made else self.fixed[symbol] for symbol in
                self.symbols}  # fmt: skip

    def grown(self, binding: dict[str, int]) -> dict[str, int]:
        """Return the sizes with the leading axis of unswept inputs made longer."""
        result = dict(binding)
        for name, missing in self.unswept.items():
            shape = self.shapes[name]
            # A single axis is often a sequence, which a table of positions may bound.
            if len(shape) < 2 or isinstance(shape[0], int):
                continue
            found = _symbols(shape[0], f"{name}[0]", self.fixed)
            if len(found) != 1 or found[0] in self.fixed:
                continue
            # Ids per step of the leading axis. The axis is made long enough for all missing rows,
            # but one run has at most _SWEEP_IDS ids, so that a large vocabulary does not need a
            # huge batch.
            row = max(1, int(np.prod(_bound(name, shape, binding)[1:])))
            wanted = min(-(-missing // row), _SWEEP_IDS // row)
            result[found[0]] = max(result[found[0]], wanted)
        return result

    def make(self, binding: dict[str, int], run: int) -> InputSet:
        """Return the arrays of one run."""
        arrays: dict[str, _Array] = {}
        left_bytes = MAX_INPUT_BYTES
        for value in self.inputs:
            name = value.name or ""
            shape = _bound(name, self.shapes[name], binding)
            dtype = value.dtype or onnx_ir.DataType.UNDEFINED
            # Eight bytes an element: values are drawn as float64 or int64 first.
            left_bytes -= prod(shape) * 8
            _check_left(name, shape, left_bytes)
            # Seeded by name, not by position: two models whose inputs differ in order or number
            # still get the same array for the same input. crc32 is stable, where hash() differs
            # from run to run.
            rng = np.random.default_rng([self.seed, run, zlib.crc32(name.encode())])
            rows = self._rows(name, dtype, binding) if dtype.is_integer() else None
            if rows is None:
                arrays[name] = _unbounded(name, dtype, shape, rng)
            else:
                arrays[name] = self._swept(name, rows, shape, rng).astype(dtype.numpy())
        return InputSet(binding, arrays, dict(self.rows))

    def _rows(self, name: str, dtype: onnx_ir.DataType, binding: Mapping[str, int]) -> int | None:
        sizes = [_evaluated(size, binding) for size in self.tables.get(name, ())]
        known = [size for size in sizes if size is not None]
        return min(*known, int(ml_dtypes.iinfo(dtype.numpy()).max) + 1) if known else None

    def _swept(
        self, name: str, rows: int, shape: tuple[int, ...], rng: np.random.Generator
    ) -> _Array:
        """Return the next rows that are still to be indexed, and random ones once all were."""
        # A table that an axis sizes may be another in each run: its sweep then starts again.
        if self.rows.get(name) != rows:
            self.rows[name] = rows
            few = rows <= _MAX_SWEPT_ROWS
            inner = (
                rng.permutation(np.arange(1, max(1, rows - 1)))
                if few
                else rng.integers(1, rows - 1, _SWEEP_RUNS * _SWEEP_IDS)
            )
            # The last and the first row come first, because a table that was cut off or shifted by
            # one shows there, even if a run has only two ids.
            self.left[name] = np.concatenate([np.unique([rows - 1, 0])[::-1], inner])
        count = int(np.prod(shape))
        now, self.left[name] = self.left[name][:count], self.left[name][count:]
        ids = np.concatenate([now, rng.integers(0, max(1, rows), count - len(now))])
        return rng.permutation(ids).reshape(shape)


def _shape(value: onnx_ir.Value) -> list[Size]:
    """Return the shape of an input that can be made, each unknown size as its own symbol."""
    fix = "pass the inputs yourself: inputs={name: array, …}"
    name = printable(value.name or "")
    if not isinstance(value.type, onnx_ir.TensorType):
        kind = type(value.type).__name__.removesuffix("Type").lower()
        raise UnsupportedModelError(f"cannot make the input {name}", {name: kind}, fix)
    if value.shape is None or value.dtype in (None, onnx_ir.DataType.UNDEFINED):
        raise UnsupportedModelError(
            f"cannot make the input {name}", {name: "its rank or dtype is unknown"}, fix
        )
    return list(value.shape)


_TRIED = 12
"""A size that many numbers divide."""
_NO_EXPRESSION = (
    ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, MemoryError,
)  # fmt: skip
"""What sympy raises on texts that are names, or that have no value."""


def _symbols(size: Size, anonymous: str, fixed: Mapping[str, int]) -> list[str]:
    """Return the names that a size depends on."""
    if isinstance(size, int):
        return []
    if size.value is None:
        return [anonymous]
    if size.value in fixed or not _is_expression(size.value):
        return [size.value]
    try:
        names = sorted(size.free_symbols())
        # One that has no value, such as n%0, is a name like any other, as it is for ONNX Runtime.
        has_value = isinstance(size.evaluate(dict.fromkeys(names, _TRIED)), int)
    except _NO_EXPRESSION:
        return [size.value]
    return names if names and has_value else [size.value]


def _is_expression(text: str) -> bool:
    """Return whether a size may be computed: a tower of powers takes longer than anyone waits."""
    return len(text) <= _EXPRESSION_LENGTH and "**" not in text


def _evaluated(size: Size, binding: Mapping[str, int]) -> int | None:
    if isinstance(size, int):
        return size
    if size.value is None:
        return None
    if size.value in binding:
        return binding[size.value]
    if not _is_expression(size.value):
        return None
    try:
        result = size.evaluate(dict(binding))
    except _NO_EXPRESSION:
        return None
    return result if isinstance(result, int) else None


def _bound(name: str, shape: list[Size], binding: Mapping[str, int]) -> tuple[int, ...]:
    sizes = [
        binding[f"{name}[{axis}]"]
        if not isinstance(size, int) and size.value is None
        else _evaluated(size, binding)
        for axis, size in enumerate(shape)
    ]
    known = tuple(size for size in sizes if size is not None and size >= 0)
    if len(known) < len(sizes):
        raise PreconditionError(
            f"cannot size the input {printable(name)}",
            {"shape": f"[{', '.join(map(str, shape))}]", "sizes": dict(binding)},
            "pass other sizes=, or the inputs themselves: inputs={name: array, …}",
        )
    return known


def _check_left(name: str, shape: tuple[int, ...], left_bytes: int) -> None:
    if left_bytes < 0:
        raise UnsupportedModelError(
            f"cannot make the input {printable(name)}: all inputs would be larger than "
            f"{brief_bytes(MAX_INPUT_BYTES)}",
            {"shape": list(shape)},
            "pass smaller sizes=, or the inputs yourself: inputs={name: array, …}",
        )


def _check_sizes(sizes: Mapping[str, int], symbols: list[str]) -> None:
    unknown = [name for name in sizes if name not in symbols]
    if unknown or any(size < 0 for size in sizes.values()):
        what = f"no input has an axis {', '.join(unknown)}" if unknown else "a size is negative"
        raise PreconditionError(
            printable(what),
            {"axes": ", ".join(map(printable, symbols)) or "none is open", "sizes": dict(sizes)},
            "name axes of the inputs, with sizes of 0 or more",
        )


def _unbounded(
    name: str, dtype: onnx_ir.DataType, shape: tuple[int, ...], rng: np.random.Generator
) -> _Array:
    if dtype == onnx_ir.DataType.STRING:
        return rng.choice(np.array(_WORDS, dtype=object), shape)
    if dtype == onnx_ir.DataType.BOOL or dtype.is_integer():
        ones = _mask(shape) if "mask" in name.lower() else rng.integers(0, 2, shape)
        return np.asarray(ones).astype(dtype.numpy())
    if dtype in (onnx_ir.DataType.COMPLEX64, onnx_ir.DataType.COMPLEX128):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.numpy())
    return np.asarray(rng.standard_normal(shape)).astype(dtype.numpy())


def _mask(shape: tuple[int, ...]) -> _Array:
    """Return ones with the last quarter of every second row padded by zeros."""
    mask = np.ones(shape, dtype=np.int64)
    if mask.ndim and (width := shape[-1] // 4):
        mask.reshape(-1, shape[-1])[1::2, -width:] = 0
    return mask
