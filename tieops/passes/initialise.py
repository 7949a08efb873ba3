"""Initialise new weights by the field's standard formulas, from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from tieops.errors import PreconditionError

__all__ = ["INITS", "check_head_options", "head_values", "new_bias", "new_weight"]

Array = np.ndarray[Any, Any]
INITS = ("kaiming_uniform", "xavier_uniform", "normal", "zeros")
NORMAL_STD = 0.02


def new_weight(init: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return a new weight of shape (out, in, *kernel), float32.

    Args:
        init: ``"kaiming_uniform"``: uniform within 1/sqrt(fan_in), which is what torch's Linear and
            Conv2d do (kaiming_uniform_ with a = sqrt(5); He et al. 2015);
            ``"xavier_uniform"``: within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010);
            ``"normal"``: mean 0, standard deviation 0.02 (Radford et al. 2018); ``"zeros"``.
        shape: The weight's shape.
        rng: Where the numbers come from.

    Raises:
        PreconditionError: If no formula has this name.
    """
    kernel = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * kernel, shape[0] * kernel
    match init:
        case "kaiming_uniform":
            bound = 1 / math.sqrt(fan_in)
        case "xavier_uniform":
            bound = math.sqrt(6 / (fan_in + fan_out))
        case "normal":
            return rng.normal(0.0, NORMAL_STD, shape).astype(np.float32)
        case "zeros":
            return np.zeros(shape, np.float32)
        case _:
            raise PreconditionError(
                f"unknown initialisation {init!r}",
                {"known": ", ".join(INITS)},
                "use one of these, or pass an array",
            )
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def new_bias(init: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return a new bias of shape (out,), float32, for a weight of ``shape``.

    Uniform within 1/sqrt(fan_in) with ``"kaiming_uniform"``, as in torch; zeros elsewhere.
    """
    if init != "kaiming_uniform":
        return np.zeros(shape[:1], np.float32)
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return rng.uniform(-bound, bound, shape[:1]).astype(np.float32)


def check_head_options(
    out_features: int, seed: int, lr_factor: float, bias_lr_factor: float | None
) -> None:
    """Refuse what no new head can be made with.

    Raises:
        PreconditionError: If a size, a seed or a factor is invalid.
    """
    if type(out_features) is not int or out_features < 1:
        raise PreconditionError(
            f"out_features must be a positive integer, got {out_features!r}",
            None,
            "pass the number of classes",
        )
    if type(seed) is not int or seed < 0:
        raise PreconditionError(
            f"seed must be a non-negative integer, got {seed!r}", None, "pass an int such as 0"
        )
    for what, factor in (("lr_factor", lr_factor), ("bias_lr_factor", bias_lr_factor)):
        left_out = factor is None and what == "bias_lr_factor"
        if not left_out and not _is_factor(factor):
            raise PreconditionError(
                f"{what} must be a learning-rate factor of at least 0, got {factor!r}",
                None,
                "give 0 or more",
            )


def _is_factor(factor: object) -> bool:
    try:
        return isinstance(factor, Real) and 0 <= float(factor) < math.inf
    except OverflowError:
        return False  # an int that no float can hold


def head_values(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    init: str | Array,
    bias: bool | Array,
    seed: int,
) -> tuple[Array, Array | None]:
    """Return the values of a new head: a weight of ``shape``, and a bias if it has one.

    Args:
        shape: (out, in, *kernel).
        dtype: What the values are converted to.
        init: A formula of ``new_weight``, or the weight.
        bias: Whether there is a bias, or its values; of shape (out,).
        seed: Where the numbers of a formula come from.

    Raises:
        PreconditionError: If given values have another shape, or do not fit the dtype.
    """
    rng = np.random.default_rng(seed)
    if isinstance(init, str):
        try:
            weight = new_weight(init, shape, rng)
        except (MemoryError, ValueError) as error:
            raise PreconditionError(
                f"a weight of {shape[0]} outputs cannot be allocated",
                {"shape": list(shape), "why": error},
                "give a smaller out_features",
            ) from error
        offset = new_bias(init, shape, rng)
    else:
        hint = "give (out_features, in_features) values, as torch.nn.Linear stores them"
        weight = _given("init", init, shape, hint)
        offset = np.zeros(shape[:1], np.float32)
    if not isinstance(bias, bool):
        offset = _given("bias", bias, shape[:1], "give one value for each output")
    weight, offset = _converted("init", weight, dtype), _converted("bias", offset, dtype)
    return weight, None if bias is False else offset


def _given(what: str, values: Array, shape: Sequence[int], fix: str) -> Array:
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of unequal lengths
        raise PreconditionError(f"{what} must be an array", {"why": error}, fix) from error
    if array.shape != tuple(shape) or array.dtype.kind not in "fiuV":
        raise PreconditionError(
            f"{what} does not have the shape that the new head needs",
            {what: f"{array.dtype}{list(array.shape)}", "needs": list(shape)},
            fix,
        )
    return array


def _converted(what: str, values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    finite = np.isfinite(values.astype(np.float64))
    if not np.isfinite(converted.astype(np.float64))[finite].all():
        raise PreconditionError(
            f"{what} has values that the head's dtype cannot hold",
            {"dtype": dtype, "largest": float(np.abs(values[finite]).max())},
            "scale them, or convert the model first",
        )
    return converted
