"""Many rows in batches: which inputs are cut along their first axis, and which outputs joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tieops.arguments import described, whole_number
from tieops.errors import PreconditionError
from tieops.ir.notation import printable
from tieops.runtime.feeds import Port
from tieops.runtime.tensors import is_ort_value

__all__ = ["batch_size_of", "batches", "check_joinable", "joined"]


def batch_size_of(size: object) -> int:
    """Return a number of rows.

    Raises:
        PreconditionError: If it is not a whole number of 1 or more.
    """
    number = whole_number(size)
    if number is None or number < 1:
        got = described(size) if number is None else str(number)
        raise PreconditionError(
            f"expected a batch size of 1 or more, got {got}", None, "give an int: batch_size=128"
        )
    return number


def batches(
    feeds: Mapping[str, Any], inputs: Sequence[Port], size: int
) -> tuple[int, Iterator[dict[str, Any]]]:
    """Return how many batches there are, and the feeds of each.

    Args:
        feeds: What is fed, by name.
        inputs: The inputs. The name of the first free first axis is the batch: every input whose
            first axis has that name is cut along it, and all others are fed whole each time.
        size: How many rows a batch has; the last may have fewer.

    Raises:
        PreconditionError: If no first axis is free, or the inputs have different numbers of rows.
    """
    cut = [port.name for port in inputs if port.name in feeds and _is_batch(port, inputs)]
    if not cut:
        raise PreconditionError(
            "no input has a first axis of any size, so there are no batches",
            {"inputs": ", ".join(map(str, inputs))},
            "use run, or export the model with a dynamic first axis",
        )
    feeds = {name: each.numpy() if is_ort_value(each) else each for name, each in feeds.items()}
    shapes = {name: np.shape(feeds[name]) for name in cut}
    if () in shapes.values() or len({shape[0] for shape in shapes.values()}) > 1:
        raise PreconditionError(
            "the inputs have different numbers of rows",
            {printable(name): str(shape) for name, shape in shapes.items()},
            "feed as many rows to each of them",
        )
    rows = shapes[cut[0]][0]
    starts = range(0, max(rows, 1), size)
    return len(starts), (
        {name: each[at : at + size] if name in cut else each for name, each in feeds.items()}
        for at in starts
    )


def _is_batch(port: Port, inputs: Sequence[Port]) -> bool:
    free = [each.shape[0] for each in inputs if each.shape and not isinstance(each.shape[0], int)]
    return bool(port.shape and free) and port.shape[0] == free[0]


def check_joinable(outputs: Sequence[Port], inputs: Sequence[Port]) -> None:
    """Refuse outputs that are not made of rows.

    Raises:
        PreconditionError: If the first axis of one is not the batch.
    """
    odd = [port for port in outputs if not _is_batch(port, inputs) and not _is_unknown(port)]
    if odd:
        raise PreconditionError(
            "some outputs have no row for each row that is fed",
            {"outputs": ", ".join(map(str, odd))},
            "leave them out: outputs=[...], or use run",
        )


def _is_unknown(port: Port) -> bool:
    return bool(port.shape) and port.shape[0] is None


def joined(parts: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the outputs of all batches, one behind the other.

    Raises:
        PreconditionError: If batches have different sizes in another axis.
    """
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise PreconditionError(
            f"the outputs of the batches cannot be joined: {error}",
            None,
            "pad the inputs to one length, or run the batches yourself",
        ) from error
