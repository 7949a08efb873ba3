"""New weights, by the formulas that the field uses, from a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tieops.errors import PreconditionError

__all__ = ["INITS", "new_bias", "new_weight"]

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
                f"no initialisation is called {init!r}",
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
