"""Format tensors as ``f32[50257,768]``, and byte counts for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tieops.errors import printable

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["brief", "brief_bytes", "brief_dtype", "counted", "printable"]

_SHORT = {
    "FLOAT": "f32", "DOUBLE": "f64", "FLOAT16": "f16", "BFLOAT16": "bf16",
    "INT8": "i8", "INT16": "i16", "INT32": "i32", "INT64": "i64",
    "UINT8": "u8", "UINT16": "u16", "UINT32": "u32", "UINT64": "u64",
    "COMPLEX64": "c64", "COMPLEX128": "c128", "STRING": "str", "UNDEFINED": "?",
}  # fmt: skip


def brief_dtype(dtype: onnx_ir.DataType | None) -> str:
    """Return the short name of an ONNX data type.

    Example:
        >>> import onnx_ir
        >>> brief_dtype(onnx_ir.DataType.BFLOAT16), brief_dtype(onnx_ir.DataType.INT4)
        ('bf16', 'int4')
    """
    return "?" if dtype is None else _SHORT.get(dtype.name, dtype.name.lower())


def brief(dtype: onnx_ir.DataType | None, shape: Iterable[object] | None) -> str:
    """Return dtype and shape as one word; an unknown rank is ``[...]``, an unknown size ``?``.

    Example:
        >>> import onnx_ir
        >>> brief(onnx_ir.DataType.FLOAT, (50257, 768))
        'f32[50257,768]'
    """
    if shape is None:
        return f"{brief_dtype(dtype)}[...]"
    sizes = ",".join("?" if str(size) == "None" else printable(str(size)) for size in shape)
    return f"{brief_dtype(dtype)}[{sizes}]"


def brief_bytes(count: float) -> str:
    """Return a number of bytes in decimal units, three figures.

    Example:
        >>> brief_bytes(1_200_000), brief_bytes(812)
        ('1.20 MB', '812 B')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{count:.0f} B"


def counted(count: int, what: str) -> str:
    """Return a number with its noun in the right number.

    Example:
        >>> counted(1, "tie"), counted(3, "tie")
        ('1 tie', '3 ties')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
