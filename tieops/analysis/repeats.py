"""Find repeated blocks: the same sequence of layers several times in a row.

Two layers match if they agree in kind, in what they read, and in name except for numbers. This one
rule finds a transformer's twelve blocks, the twelve calls of ALBERT's one layer, and the blocks of
a graph without names. Operators without learnables rarely distinguish blocks, so they are ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tieops.ir.layer import Layer
from tieops.ir.parameter import Parameter
from tieops.ir.walk import scope_of

__all__ = ["Repeat", "common_module", "find_repeats", "module_of"]

MAX_PERIOD = 400
"""A block of more layers with learnables than this is not looked for."""
MIN_SINGLE = 3
"""Two similar layers in a row are not a repetition; three are."""

_Module = tuple[str, ...]


@dataclass(frozen=True)
class Repeat:
    """A stretch of layers in which one block comes several times.

    Args:
        starts: The position of each block's first layer.
        stop: The position behind the last block.
        modules: The module that each block is, as far as names tell; the same for all where one
            module is called several times.
    """

    starts: tuple[int, ...]
    stop: int
    modules: tuple[_Module, ...]

    @property
    def blocks(self) -> tuple[range, ...]:
        """The positions of each block's layers."""
        return tuple(range(a, b) for a, b in pairwise((*self.starts, self.stop)))

    @property
    def title(self) -> str:
        """What the blocks are called: ``h.0 … 11``, or the one module; empty if nothing tells."""
        first, last = self.modules[0], self.modules[-1]
        if first == last or not (first and last):
            return ".".join(first)
        return f"{'.'.join(first)} … {last[-1]}"


def find_repeats(layers: Sequence[Layer]) -> tuple[Repeat, ...]:
    """Return the repetitions among some layers, one behind the other.

    Of those that begin first, the one is taken that reaches furthest, with its blocks as short as
    can be. A block begins where a module does, if there is a choice.

    Args:
        layers: Layers in order, with learnables or without.

    Example:
        >>> import numpy as np, onnx, tieops
        >>> from onnx import numpy_helper
        >>> text = '''<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y3)
        ... { y1 = MatMul(x, w0)  r1 = Relu(y1)  y2 = MatMul(r1, w1)  r2 = Relu(y2)
        ...   y3 = MatMul(r2, w2) }'''
        >>> proto = onnx.parser.parse_model(text)
        >>> weights = np.random.default_rng(0).standard_normal((3, 4, 4), np.float32)
        >>> tensors = (numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
        >>> proto.graph.initializer.extend(tensors)
        >>> find_repeats(tieops.from_onnx(proto).layers)[0].blocks
        (range(0, 2), range(2, 4), range(4, 5))
    """
    return tuple(_found(layers))


def module_of(layer: Layer) -> _Module:
    """Return the path of the module that a layer comes from; empty if unknown."""
    scope = scope_of(layer.nodes[0])
    if scope is not None:
        return tuple(scope.fqn.split(".")) if scope.fqn else ()
    parts = layer.name.replace("/", ".").split(".")
    return tuple(parts if layer.is_learnable else parts[:-1])


def common_module(layers: Sequence[Layer]) -> _Module:
    """Return the innermost module that all layers with learnables come from."""
    paths = [module_of(layer) for layer in layers if layer.is_learnable]
    return paths[0][: _agreement(paths)] if paths else ()


def _agreement(paths: Sequence[_Module]) -> int:
    """Return with how many equal parts all paths begin."""
    places = enumerate(zip(*paths, strict=False))
    return next((i for i, parts in places if len({*parts}) > 1), min(map(len, paths)))


def _found(layers: Sequence[Layer]) -> Iterator[Repeat]:
    places = [place for place, layer in enumerate(layers) if layer.is_learnable]
    learnable = [layers[place] for place in places]
    periods, reaches = _tandems(_tokens(learnable))
    at = floor = 0
    while at < len(places):
        period, reach = int(periods[at]), int(reaches[at])
        if not period:
            at += 1
            continue
        start = _in_phase(learnable, at, period, reach)
        at = start + (reach - start) // period * period
        repeat = _repeat(layers, [places[start + i : start + i + period] for i in
                                  range(0, at - start, period)], floor)  # fmt: skip
        floor = repeat.stop
        yield repeat


def _tokens(layers: Sequence[Layer]) -> list[int]:
    """Return a number for each layer, the same for layers that look alike."""
    readers = Counter(read.parameter for layer in layers for s in layer.slots for read in s.reads)
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(_looks(layer, readers), len(numbers)) for layer in layers]


def _looks(layer: Layer, readers: Counter[Parameter]) -> Hashable:
    # "query@3" and "query_3" are calls of "query"; "h.3" is a sibling of "h.4".
    name = re.sub(r"\d+", "#", re.sub(r"[@_]\d+(?=[./]|$)", "", layer.name))
    reads = tuple(
        (slot.role, read.parameter.dtype, slot.view.shape, readers[read.parameter],
         re.sub(r"\d+", "#", str(read.view)))
        for slot in layer.slots
        for read in slot.reads
    )  # fmt: skip
    return layer.kind, name, reads


def _tandems(tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each place the period of the repetition that begins there, and its end.

    A part of a last round counts as reached. Where nothing begins, the period is 0.
    """
    row = np.asarray(tokens, np.int64)
    size = len(row)
    periods, reaches = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for period in range(1, min(MAX_PERIOD, size // 2) + 1):
        here = np.arange(size - period)
        differs = np.where(row[:-period] != row[period:], here, size - period)
        reach = np.minimum.accumulate(differs[::-1])[::-1] + period
        rounds = MIN_SINGLE if period == 1 else 2
        better = (reach - here >= rounds * period) & (reach > reaches[: size - period])
        periods[: size - period][better] = period
        reaches[: size - period][better] = reach[better]
    return periods, reaches


def _in_phase(layers: Sequence[Layer], start: int, period: int, reach: int) -> int:
    """Return the start at which the blocks are modules: each within one, as deep as can be."""
    if period == 1:
        return start
    # A block's modules agree as far as each agrees with the next one.
    pairs = list(pairwise(layers[start:reach]))
    depths = np.array([_agreement([module_of(a), module_of(b)]) for a, b in pairs])
    calls = np.array([_call(a) == _call(b) for a, b in pairs])

    def fit(shift: int) -> tuple[int, bool, int, int]:
        count = (reach - start - shift) // period
        inner = np.arange(count)[:, None] * period + np.arange(period - 1) + shift
        return int(depths[inner].min()), bool(calls[inner].all()), count, -shift

    return start + max(range(min(period, reach - start - 2 * period + 1)), key=fit)


def _call(layer: Layer) -> str:
    return layer.name.partition("@")[2]


def _repeat(layers: Sequence[Layer], blocks: Sequence[Sequence[int]], floor: int) -> Repeat:
    """Return a repetition with the operators that belong to its blocks.

    Args:
        layers: All layers.
        blocks: The positions of the layers with learnables of each block.
        floor: Where the repetition before this one ended.
    """
    modules = [common_module([layers[i] for i in block]) for block in blocks]
    firsts = [block[0] for block in blocks]
    starts = [_lead(layers, firsts[0], floor, modules[0])]
    for first, before, mine, other in zip(firsts[1:], firsts, modules[1:], modules, strict=False):
        starts.append(_lead(layers, first, before, mine if mine != other else ()))
    stop = blocks[-1][-1] + 1
    for like in layers[blocks[0][-1] + 1 : starts[1]]:
        if stop == len(layers) or layers[stop].is_learnable or layers[stop].kind != like.kind:
            break
        stop += 1
    depth = _agreement(modules)
    return Repeat(tuple(starts), stop, tuple(module[: depth + 1] for module in modules))


def _lead(layers: Sequence[Layer], first: int, floor: int, module: _Module) -> int:
    """Return where a block begins whose first layer with learnables is known: at its operators."""
    at = first
    while at > floor and module and not layers[at - 1].is_learnable:
        if module_of(layers[at - 1])[: len(module)] != module:
            break
        at -= 1
    return at
