"""Tie undoes untie where functions hold weights or are handed them: on drawn nests of calls."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir
from hypothesis import given, settings
from hypothesis import strategies as st

import tieops
from tests.support.graphs import made
from tests.support.model_facts import dead, facts, outputs, serialized, unread
from tieops.errors import PreconditionError
from tieops.ir.view import Slice
from tieops.passes.base import run
from tieops.passes.tie import TiePass
from tieops.passes.untie import UntiePass

SIZE = 3


@dataclass
class Writer:
    """Writes bodies of main graphs and functions as ONNX text: a row goes from layer to layer."""

    draw: st.DrawFn
    functions: list[tuple[str, int, bool]] = field(default_factory=list[tuple[str, int, bool]])
    """Name, how many weights it takes after the row, and whether it returns one."""
    count: int = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def weight(self, known: list[str], lines: list[str]) -> str:
        """Return a weight: one that is there, or a view, a constant or something computed."""
        kind = self.draw(st.sampled_from(["known", "known", "known", "turned", "held", "made"]))
        if kind == "known" and known:
            return self.draw(st.sampled_from(known))
        name = self.name("k")
        if kind == "turned" and known:
            lines.append(f"{name} = Transpose({self.draw(st.sampled_from(known))})")
        elif kind == "made" and known:
            lines.append(f"{name} = Neg({self.draw(st.sampled_from(known))})")
        else:
            # No two are equal in any order of axes: what only seems shared is another test's.
            numbers = [(each * 7 % 5 - 2) + self.count / 8 for each in range(SIZE * SIZE)]
            values = ", ".join(map(str, numbers))
            lines.append(f"{name} = Constant<value = float[{SIZE},{SIZE}] {{{values}}}>()")
        known.append(name)
        return name

    def part(self, known: list[str], lines: list[str]) -> str:
        """Return a bias of a layer: one or two rows that are cut out of a weight."""
        whole = self.weight(known, lines)
        name, flat, wide = (self.name("c") for _ in range(3))
        way = self.draw(st.sampled_from(["rows", "turned", "split", "flat", "back"]))
        start, end = self.draw(st.sampled_from([(0, 2), (1, 3), (1, 2)]))
        match way:
            case "rows":
                lines += self.slice(name, whole, start, end)
            case "turned":
                lines += self.slice(wide, whole, start, end, axis=1)
                lines.append(f"{name} = Transpose({wide})")
            case "back":
                lines += self.slice(name, whole, end - 1, start - SIZE - 1, step=-1)
            case "split":
                lines.append(f"{wide} = Constant<value_ints = [2, 1]>()")
                lines.append(f"{name}, {flat} = Split<axis = 0>({whole}, {wide})")
            case _:
                lines.append(f"{wide} = Constant<value_ints = [-1]>()")
                lines.append(f"{flat} = Reshape({whole}, {wide})")
                lines += self.slice(name, flat, start, start + SIZE)
        return name

    def slice(
        self, name: str, whole: str, start: int, end: int, axis: int = 0, step: int = 1
    ) -> list[str]:
        bounds = [self.name("i") for _ in range(4)]
        numbers = zip(bounds, (start, end, axis, step), strict=True)
        lines = [f"{bound} = Constant<value_ints = [{number}]>()" for bound, number in numbers]
        return [*lines, f"{name} = Slice({whole}, {', '.join(bounds)})"]

    def body(self, row: str, weights: list[str], depth: int) -> tuple[list[str], str, list[str]]:
        """Return the lines of a body, the row that it computes, and the weights that it knows."""
        lines: list[str] = []
        known = list(weights)
        for _ in range(self.draw(st.integers(1, 3))):
            after = self.name("r")
            kinds = ["read", "read", "part"]
            kinds += ["call"] * 3 * bool(self.functions) + ["if"] * bool(depth)
            kind = self.draw(st.sampled_from(kinds))
            if kind == "read":
                lines.append(f"{after} = MatMul({row}, {self.weight(known, lines)})")
            elif kind == "part":
                # An operator with a role: what Add reads is a weight or not as shapes are known.
                weight = self.weight(known, lines)
                lines.append(f"{after} = Gemm({row}, {weight}, {self.part(known, lines)})")
            elif kind == "call":
                function, takes, returns = self.draw(st.sampled_from(self.functions))
                given = [row, *(self.weight(known, lines) for _ in range(takes))]
                back = self.name("k")
                lines.append(f"{after}{f', {back}' * returns} = f.{function}({', '.join(given)})")
                known += [back] * returns
            else:
                inner, end, _ = self.body(row, known, depth - 1)
                other = self.name("r")
                lines.append(
                    f"{after} = If(flag) <then_branch = t{after} () => (float[2,{SIZE}] {end}) "
                    f"{{ {' '.join(inner)} }}, else_branch = e{after} () => (float[2,{SIZE}] "
                    f"{other}) {{ {other} = Neg({row}) }}>"
                )
            row = after
        return lines, row, known


@st.composite
def nests(draw: st.DrawFn) -> tieops.TiedModel:
    """Draw a model whose functions call earlier ones and hold weights, take them, return them."""
    writer = Writer(draw)
    texts: list[str] = []
    for number in range(draw(st.integers(1, 3))):
        takes = [f"p{number}_{i}" for i in range(draw(st.integers(0, 2)))]
        row = f"a{number}"
        lines, end, known = writer.body(row, takes, 0)
        returns = bool(known) and draw(st.integers(0, 4)) == 0
        back = [draw(st.sampled_from(known))] if returns else []
        ends = [end]
        if back:
            ends.append(writer.name("k"))
            lines.append(f"{ends[1]} = Identity({back[0]})")
        body = f"f{number} ({', '.join([row, *takes])}) => ({', '.join(ends)})"
        texts.append(f"{body} {{ {' '.join(lines)} }}")
        writer.functions.append((f"f{number}", len(takes), returns))
    lines, end, _ = writer.body("x", ["w", "v"], 1)
    main = f"g (float[2,{SIZE}] x, bool flag) => (float[2,{SIZE}] {end}) {{ {' '.join(lines)} }}"
    return tieops.remove_disconnected_outputs(
        made(main, texts, w=(SIZE, SIZE), v=(SIZE, SIZE)), keep=[end]
    )


FEEDS = {"x": np.arange(2 * SIZE, dtype=np.float32).reshape(2, SIZE), "flag": np.array(True)}


def feeds_of(model: tieops.TiedModel) -> dict[str, np.ndarray]:
    return {str(value.name): FEEDS[str(value.name)] for value in model.inputs}


def unread_inputs(model: tieops.TiedModel) -> int:
    """Count the inputs of functions that nothing in these reads."""
    return sum(
        not value.uses() and not value.is_graph_output()
        for function in model.ir.functions.values()
        for value in function.inputs
    )


def bits(model: tieops.TiedModel) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in outputs(model, feeds_of(model)).items()}


@settings(max_examples=150)
@given(nests())
def test_tie_undoes_untie(model: tieops.TiedModel) -> None:
    model = tieops.tie(model, include_small=True)
    before = serialized(model.ir)
    free, result = run(UntiePass(), model)
    assert serialized(model.ir) == before
    onnx.checker.check_model(onnx_ir.to_proto(free.ir), full_check=True)
    assert bits(free) == bits(model)
    assert not unread(free)
    assert not dead(free)
    assert unread_inputs(free) <= unread_inputs(model)
    left = [tie for tie in free.ties if len(tie.slots) > 1]
    assert bool(left) == bool(result.skips)
    assert result.modified == (serialized(free.ir) != before)
    assert serialized(tieops.untie(free).ir) == serialized(free.ir)
    if not left and not any(isinstance(s, Slice) for slot in free.slots for s in slot.view.steps):
        # What nobody shares a part of stays whole, and so does what functions return to no reader.
        owned = {slot.parameter.name: slot.parameter.nbytes for slot in free.slots}
        assert sum(owned.values()) == sum(slot.logical_bytes for slot in free.slots)
    again, result = run(TiePass(include_small=True), free)
    assert bits(again) == bits(model)
    if not any("is gone" in str(skip) for skip in result.skips):  # rows that nobody read
        assert facts(again) == facts(model)


@settings(max_examples=100)
@given(nests(), st.data())
def test_one_slot_leaves_alone_or_not_at_all(model: tieops.TiedModel, data: st.DataObject) -> None:
    shared = [slot for tie in model.ties if len(tie.slots) > 1 for slot in tie.slots]
    if not shared:
        return
    slot = data.draw(st.sampled_from(shared))
    try:
        free = tieops.untie(model, slot)
    except PreconditionError:
        assert slot.path  # an inner function returns it to several readers
        return
    onnx.checker.check_model(onnx_ir.to_proto(free.ir), full_check=True)
    assert bits(free) == bits(model)
    assert not unread(free)
    (own,) = [each for each in free.slots if each.name == slot.name]
    assert not any(own in tie.slots for tie in free.ties if len(tie.slots) > 1)
    assert np.array_equal(
        own.view.moved.apply(own.parameter.numpy()), slot.view.moved.apply(slot.parameter.numpy())
    )
