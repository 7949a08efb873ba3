"""Outputs removed from whatever nest of Ifs, Loops, Scans and functions hypothesis draws."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import inliner

import tieops
from tests.support.graphs import FUNCTION
from tests.support.model_facts import serialized, unread_anywhere
from tests.support.plain_runtime import PlainRuntime
from tieops.errors import PreconditionError
from tieops.ir.dataflow.input_dependent import input_dependent_values

VECTOR = "float[2]"
MOVES = ("Neg", "Identity", "Add", "Max", "Sub")


@dataclass
class Writer:
    """Draws ONNX text: every value is a ``float[2]``, but for what a Scan goes through."""

    draw: st.DrawFn
    stacks: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    functions: list[tuple[str, int, int]] = field(default_factory=list)
    made: int = 0

    def name(self) -> str:
        self.made += 1
        return f"v{self.made}"

    def names(self, low: int, high: int) -> list[str]:
        return [self.name() for _ in range(self.draw(st.integers(low, high)))]

    def picked(self, scope: list[str], count: int) -> list[str]:
        return [self.draw(st.sampled_from(scope)) for _ in range(count)]

    def block(self, scope: list[str], depth: int) -> tuple[list[str], list[str]]:
        """Draw lines of nodes that read what is in scope; return them and what they compute."""
        lines: list[str] = []
        known: list[str] = []
        kinds = [self.move, self.move]
        kinds += [self.branch, self.loop, *([self.scan] if self.stacks else [])] if depth else []
        kinds += [self.call] if self.functions else []
        for _ in range(self.draw(st.integers(1, 4))):
            line, outputs = self.draw(st.sampled_from(kinds))(scope + known, depth)
            lines.append(line)
            known += outputs
        return lines, known

    def body(self, given: list[str], first: str, scope: list[str], results: int, depth: int) -> str:
        """Draw a graph; ``first`` is an output of another type, and the node that makes it."""
        lines, known = self.block(scope + given, depth)
        outputs = [self.name() for _ in range(results)]
        ends = self.picked(scope + given + known, results)
        lines += [f"{out} = Identity({end})" for out, end in zip(outputs, ends, strict=True)]
        inputs = ", ".join(f"{VECTOR} {name}" for name in given)
        results_text = ", ".join(f"{VECTOR} {name}" for name in outputs)
        if first:
            inputs = f"int64 i{first}, bool go{first}" + (", " + inputs if given else "")
            results_text = f"bool on{first}" + (", " + results_text if outputs else "")
            lines.insert(0, f"on{first} = Identity(go{first})")
        stored = ""
        if self.draw(st.booleans()):
            own = self.name()
            lines.append(f"{self.name()} = Neg({own})")
            stored = f" <{VECTOR} {own} = {{1, 2}}>"
        return f"b{self.name()} ({inputs}) => ({results_text}){stored} {{ {' '.join(lines)} }}"

    def move(self, scope: list[str], _: int) -> tuple[str, list[str]]:
        kind, out = self.draw(st.sampled_from(MOVES)), self.name()
        operands = self.picked(scope, 1 if kind in ("Neg", "Identity") else 2)
        return f"{out} = {kind}({', '.join(operands)})", [out]

    def call(self, scope: list[str], _: int) -> tuple[str, list[str]]:
        title, inputs, count = self.draw(st.sampled_from(self.functions))
        outputs = [self.name() for _ in range(count)]
        return f"{', '.join(outputs)} = f.{title}({', '.join(self.picked(scope, inputs))})", outputs

    def flag(self) -> tuple[str, str]:
        if self.flags and self.draw(st.booleans()):
            return "", self.draw(st.sampled_from(self.flags))
        name = self.name()
        return f"{name}c = Constant<value_int = 1>() {name} = Cast<to = 9>({name}c) ", name

    def count(self) -> tuple[str, str]:
        if self.counts and self.draw(st.booleans()):
            return "", self.draw(st.sampled_from(self.counts))
        name = self.name()
        return f"{name} = Constant<value_int = {self.draw(st.integers(0, 3))}>() ", name

    def branch(self, scope: list[str], depth: int) -> tuple[str, list[str]]:
        outputs = self.names(1, 3)
        line, flag = self.flag()
        then, other = (self.body([], "", scope, len(outputs), depth - 1) for _ in range(2))
        branches = f"then_branch = {then}, else_branch = {other}"
        return f"{line}{', '.join(outputs)} = If({flag}) <{branches}>", outputs

    def loop(self, scope: list[str], depth: int) -> tuple[str, list[str]]:
        states, stacked = self.names(1, 3), self.names(0, 2)
        line, count = self.count()
        given = [self.name() for _ in states]
        body = self.body(given, self.name(), scope, len(states) + len(stacked), depth - 1)
        inputs = ", ".join([count, "", *self.picked(scope, len(states))])
        outputs = ", ".join([*states, *(f"{name}s" for name in stacked)])
        return f"{line}{outputs} = Loop({inputs}) <body = {body}>" + self.summed(stacked), [
            *states,
            *stacked,
        ]

    def scan(self, scope: list[str], depth: int) -> tuple[str, list[str]]:
        states, stacked = self.names(0, 2), self.names(1, 2)
        scanned = self.picked([*self.stacks], self.draw(st.integers(1, 3)))
        given = [self.name() for _ in (*states, *scanned)]
        body = self.body(given, "", scope, len(states) + len(stacked), depth - 1)
        inputs = ", ".join([*self.picked(scope, len(states)), *scanned])
        outputs = ", ".join([*states, *(f"{name}s" for name in stacked)])
        directions = [self.draw(st.integers(0, 1)) for _ in scanned]
        attributes = f"num_scan_inputs = {len(scanned)}, scan_input_directions = {directions}"
        return (
            f"{outputs} = Scan({inputs}) <{attributes}, body = {body}>" + self.summed(stacked),
            [*states, *stacked],
        )

    def summed(self, stacked: list[str]) -> str:
        lines = [
            f" {n}a = Constant<value_ints = [0]>() {n} = ReduceSum<keepdims = 0>({n}s, {n}a)"
            for n in stacked
        ]
        return "".join(lines)


@st.composite
def models(draw: st.DrawFn) -> str:
    functions: list[tuple[str, int, int]] = []
    texts: list[str] = []
    for i in range(draw(st.integers(0, 3))):
        writer = Writer(draw, functions=[*functions], made=1000 * (i + 1))
        given = writer.names(1, 3)
        lines, known = writer.block(given, 1)
        outputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        body = " ".join(lines)
        texts.append(f"f{i} ({', '.join(given)}) => ({', '.join(outputs)}) {{ {body} }}")
        functions.append((f"f{i}", len(given), len(outputs)))
    writer = Writer(draw, ("xs", "ws"), ("m",), ("c",), functions)
    lines, known = [], []
    for _ in range(2):
        more, new = writer.block(["x", "y", "w0", "w1", *known], 2)
        lines, known = lines + more, known + new
    outputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=5, unique=True))
    inputs = f"{VECTOR} x, {VECTOR} y, float[3,2] xs, int64 m, bool c"
    results = ", ".join(f"{VECTOR} {name}" for name in outputs)
    stored = f"{VECTOR} w0 = {{0.5, -3}}, {VECTOR} w1 = {{1.5, 2}}, float[3,2] ws = {{1,2,3,4,5,6}}"
    return "\n".join([
        '<ir_version: 10, opset_import: ["" : 20, "f" : 1]>',
        f"g ({inputs}) => ({results}) <{stored}> {{ {' '.join(lines)} }}",
        *(FUNCTION + text for text in texts),
    ])  # fmt: skip


def feeds(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        **{name: rng.standard_normal(2).astype("f4") for name in ("x", "y")},
        "xs": rng.standard_normal((3, 2)).astype("f4"),
        "m": np.array(1 + seed % 3),
        "c": np.array(bool(seed % 2)),
    }


def ran(runtime: PlainRuntime, model: onnx_ir.Model, seed: int) -> dict[str, bytes]:
    outputs = runtime.run(model, feeds(seed))
    names = [str(value.name) for value in model.graph.outputs]
    return {name: array.tobytes() for name, array in zip(names, outputs, strict=True)}


def checked(model: tieops.TiedModel) -> None:
    onnx.checker.check_model(onnx_ir.to_proto(model.ir), full_check=True)
    assert list(unread_anywhere(model)) == []


@settings(max_examples=50)
@given(models(), st.data())
def test_what_stays_is_the_same_to_the_last_bit(
    plain_runtime: PlainRuntime, text: str, data: st.DataObject
) -> None:
    model = tieops.from_onnx(onnx.parser.parse_model(text))
    before = serialized(model.ir)
    names = [str(value.name) for value in model.ir.graph.outputs]
    keep = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    small = tieops.remove_disconnected_outputs(model, keep=keep)
    assert serialized(model.ir) == before
    checked(small)
    assert serialized(tieops.remove_disconnected_outputs(small, keep=keep).ir) == serialized(
        small.ir
    )
    for seed in range(2):
        want, got = (ran(plain_runtime, each.ir, seed) for each in (model, small))
        assert got == {name: want[name] for name in names if name in keep}


@settings(max_examples=50)
@given(models())
@pytest.mark.slow
def test_what_goes_is_the_same_on_every_run(plain_runtime: PlainRuntime, text: str) -> None:
    model = tieops.from_onnx(onnx.parser.parse_model(text))
    try:
        small = tieops.remove_disconnected_outputs(model)
    except PreconditionError:
        kept = set()
    else:
        checked(small)
        kept = {value.name for value in small.ir.graph.outputs}
    runs = [ran(plain_runtime, model.ir, seed) for seed in range(4)]
    for value in model.ir.graph.outputs:
        if value.name not in kept:
            assert len({run[str(value.name)] for run in runs}) == 1


@settings(max_examples=50)
@given(models())
def test_a_function_hides_nothing_of_what_an_output_depends_on(text: str) -> None:
    proto = onnx.parser.parse_model(text)
    assume(proto.functions)
    found = [
        {value.name for value in input_dependent_values(each) if value.is_graph_output()}
        & {value.name for value in proto.graph.output}
        for each in map(onnx_ir.from_proto, (proto, inliner.inline_local_functions(proto)))
    ]
    assert found[0] == found[1]
