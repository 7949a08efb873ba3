"""Inputs and outputs of a session, and converting arrays to them without changing a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from tieops.arguments import described
from tieops.errors import PreconditionError
from tieops.ir.notation import brief, printable
from tieops.runtime.tensors import as_array, dtype_of, is_on_device, is_ort_value, shape_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Port", "check_feeds", "fitted"]


@dataclass(frozen=True)
class Port:
    """An input or output of a session.

    Attributes:
        name: Its name in the graph.
        dtype: ``float32``, ``int64``, ``string``…; for a sequence or optional, ONNX's own text.
        shape: A size, a symbolic name or None (unknown) for each axis. ONNX Runtime says ``()``
            for a scalar and for an unknown rank alike.

    Example:
        >>> print(Port("x", "int64", ("batch", 4)))
        x: i64[batch,4]
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def data_type(self) -> onnx_ir.DataType | None:
        """The element type, or None for what is not a tensor."""
        known = {"float32": "FLOAT", "float64": "DOUBLE"}.get(self.dtype, self.dtype.upper())
        return onnx_ir.DataType[known] if known in onnx_ir.DataType.__members__ else None

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor of numbers of whole bytes: no strings, no sequences, no int4."""
        dtype = self.data_type
        return dtype is not None and dtype != onnx_ir.DataType.STRING and dtype.bitwidth >= 8

    def __str__(self) -> str:
        dtype = self.data_type
        text = self.dtype if dtype is None else brief(dtype, self.shape)
        return f"{printable(self.name)}: {text}"


def check_feeds(feeds: object) -> Mapping[str, ArrayLike]:
    """Return inputs by name; refuse anything else.

    Raises:
        PreconditionError: If it is no mapping.

    Example:
        >>> check_feeds([1.0])
        Traceback (most recent call last):
        tieops.errors.PreconditionError: expected a dict of inputs by name, got a list
          fix: pass a dict: {"x": array}
    """
    if not isinstance(feeds, Mapping):
        raise PreconditionError(
            f"expected a dict of inputs by name, got {described(feeds)}",
            None,
            'pass a dict: {"x": array}',
        )
    return feeds


def fitted(
    feeds: Mapping[str, ArrayLike], required: Sequence[Port], optional: Sequence[Port] = ()
) -> dict[str, Any]:
    """Return the fed arrays in the dtypes that the ports want.

    Args:
        feeds: An array, or what numpy makes one of, by name.
        required: The ports that have to be fed.
        optional: The ports that may be.

    Raises:
        PreconditionError: If a name, dtype, rank or fixed size does not fit; names every misfit.

    Example:
        >>> fitted({"x": [1, 2]}, [Port("x", "int64", (2,))])
        {'x': array([1, 2])}
        >>> fitted({"y": [1.5]}, [Port("x", "int64", (2,))])
        Traceback (most recent call last):
        tieops.errors.PreconditionError: the inputs do not fit: x is missing; no input is named y
          inputs: x: i64[2]    fed: y
          fix: feed exactly these names, in these dtypes and shapes
    """
    ports = {port.name: port for port in (*required, *optional)}
    misfits = [
        f"{printable(port.name)} is missing"
        for port in required
        if port.name not in feeds and not port.dtype.startswith("optional")
    ]
    misfits += [f"no input is named {printable(str(name))}" for name in feeds if name not in ports]
    arrays: dict[str, Any] = {}
    for name, value in feeds.items():
        if name not in ports:
            continue
        try:
            arrays[name] = _fit(value, ports[name])
        except (TypeError, ValueError, RuntimeError) as error:
            misfits.append(f"{printable(name)} {error}")
    if misfits:
        raise PreconditionError(
            f"the inputs do not fit: {'; '.join(misfits)}",
            {"inputs": ", ".join(map(str, ports.values())), "fed": ", ".join(map(str, feeds))},
            "feed exactly these names, in these dtypes and shapes" + _about_sizes(misfits),
        )
    return arrays


def _about_sizes(misfits: Sequence[str]) -> str:
    if not any(" has shape " in misfit for misfit in misfits):
        return ""
    return "; for a dynamic size, import the model with from_torch(..., dynamic_shapes=)"


def _fit(value: Any, port: Port) -> Any:
    dtype = port.data_type
    if dtype is None:
        return value  # sequences, maps and optionals: ONNX Runtime's own checks apply
    if is_on_device(value):
        if dtype_of(value) != port.dtype:
            raise TypeError(f"is {dtype_of(value)}, not {port.dtype}, and is not converted there")
        _check_shape(shape_of(value), port)
        return value
    array = as_array(value)
    want = np.dtype(object) if dtype == onnx_ir.DataType.STRING else dtype.numpy()
    fits = array.dtype == want
    plain = not hasattr(value, "dtype") and not is_ort_value(value)
    result = array if fits else _converted(array, dtype, want, plain=plain)
    if result is None:
        raise TypeError(f"is {array.dtype}, not {port.dtype}")
    _check_shape(result.shape, port)
    return result


def _check_shape(shape: tuple[int, ...], port: Port) -> None:
    # An empty shape may mean that the rank is unknown.
    if port.shape and (
        len(port.shape) != len(shape)
        or any(isinstance(n, int) and n != m for n, m in zip(port.shape, shape, strict=True))
    ):
        raise ValueError(f"has shape {list(shape)}")


def _converted(
    array: np.ndarray[Any, Any], dtype: onnx_ir.DataType, want: np.dtype[Any], *, plain: bool
) -> np.ndarray[Any, Any] | None:
    """Return the array in the wanted dtype if no value changes, else None.

    Python's own numbers (``plain``) have no width, so they take the wanted one.
    """
    kind = array.dtype.kind
    if dtype == onnx_ir.DataType.STRING:
        return array.astype(object) if kind in "UT" else None
    if plain and (array.size == 0 or (dtype.is_floating_point() and kind in "iuf")):
        return array.astype(want)
    if dtype.is_integer() and kind in "iu":
        back = array.astype(want)
        # A negative number wraps into a large one and back again, so its sign is looked at too.
        whole = np.array_equal(back.astype(array.dtype), array)
        return back if whole and np.array_equal(back < 0, array < 0) else None
    if kind == "f" and want.kind == "f" and np.can_cast(array.dtype, want, "safe"):
        return array.astype(want)
    return None
