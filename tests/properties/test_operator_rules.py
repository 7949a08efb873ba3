"""What is said of an operator equals what ONNX Runtime does: shapes, and values through views.

Over opsets, with operands that are stored, computed, fed, overridable and attributes by reference.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.operator_cases import (
    FORMS,
    KNOWN_FORMS,
    OPEN,
    SHAPES,
    VIEWS,
    Case,
    arrays_of,
    model_of,
)
from tests.support.onnx_cases import onnx_cases
from tests.support.plain_runtime import REFUSALS
from tieops.ir.operators.shape_rules import output_shapes, shape_operators
from tieops.ir.operators.sizes import NotKnownError
from tieops.ir.operators.views import ViewTransfer
from tieops.ir.view import Join, View

EXAMPLES = settings(max_examples=40, deadline=None)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """Return what ONNX Runtime computes; None if it refuses the model or the values."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [np.asarray(each) for each in session.run(None, feeds)]
    except REFUSALS:
        return None


def node_of(proto: onnx.ModelProto) -> tuple[onnx_ir.Node, onnx_ir.Model]:
    """Return the node under test: the last one, of the function if there is one."""
    model = onnx_ir.from_proto(proto)
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    return list(graphs[-1])[-1], model


def run_case(
    case: Case, form: str, *, narrow: bool
) -> tuple[list[np.ndarray] | None, onnx_ir.Node]:
    """Return what ONNX Runtime computes, None if it refuses, and the node."""
    proto, feeds = model_of(case, form, narrow=narrow and case.op == "Slice")
    return run(proto, feeds), node_of(proto)[0]


def shapes_said(node: onnx_ir.Node, inputs: list[tuple[int, ...] | None]) -> list[Any] | None:
    try:
        return [list(sizes) for sizes in output_shapes(node, inputs)]
    except NotKnownError:
        return None


def input_shapes(case: Case, node: onnx_ir.Node) -> list[tuple[int, ...] | None]:
    found: list[tuple[int, ...] | None] = list(case.shapes)
    for index in range(len(found), len(node.inputs)):
        given_here = index in case.operands
        found.append(np.asarray(case.operands[index]).shape if given_here else None)
    return found


def agrees(said: list[Any], ran: list[np.ndarray]) -> bool:
    return all(
        len(sizes) == array.ndim
        and all(size is None or size == real for size, real in zip(sizes, array.shape, strict=True))
        for sizes, array in zip(said, ran, strict=False)
    )


@pytest.mark.parametrize("op", SHAPES)
def test_shapes_are_those_of_the_runtime_or_not_known(op: str) -> None:
    seen = {"compared": 0}

    @EXAMPLES
    @given(SHAPES[op], st.sampled_from(FORMS), st.booleans())
    def check(case: Case, form: str, narrow: bool) -> None:
        ran, node = run_case(case, form, narrow=narrow)
        if ran is None:
            return
        said = shapes_said(node, input_shapes(case, node))
        if said is not None:
            assert agrees(said, ran), (said, [array.shape for array in ran])
            seen["compared"] += 1
        if form in KNOWN_FORMS:
            assert said is not None, "everything is known"
            assert case.op in OPEN or all(None not in sizes for sizes in said)

    check()
    assert seen["compared"] > 5


@pytest.mark.parametrize("op", SHAPES)
def test_attributes_by_reference_are_not_known(op: str) -> None:
    @EXAMPLES
    @given(SHAPES[op])
    def check(case: Case) -> None:
        if any(np.asarray(each).dtype.kind == "f" for each in case.operands.values()):
            return
        proto, feeds = model_of(case, "referenced")
        node, _ = node_of(proto)
        said = shapes_said(node, input_shapes(case, node))
        through = ViewTransfer().through(node, 0, View(case.shapes[0]))
        if case.attributes:
            assert said is None
            assert through is None
        ran = run(proto, feeds)
        assert said is None or ran is None or agrees(said, ran)

    check()


@pytest.mark.parametrize("op", VIEWS)
def test_views_are_what_the_runtime_computes_or_not_known(op: str) -> None:
    seen = {"compared": 0}

    @EXAMPLES
    @given(VIEWS[op], st.sampled_from(FORMS), st.booleans())
    def check(case: Case, form: str, narrow: bool) -> None:
        ran, node = run_case(case, form, narrow=narrow)
        if ran is None:
            return
        first = arrays_of(case)[0]
        through = ViewTransfer().through(node, 0, View(case.shapes[0]))
        if form in KNOWN_FORMS:
            assert through is not None, "everything is known"
        for output, view in through or ():
            array = ran[node.outputs.index(output)]
            assert view.shape == array.shape
            if view.steps and isinstance(join := view.steps[-1], Join):
                array = np.moveaxis(array, join.axis, 0)[join.start :][: first.shape[join.axis]]
                array = np.moveaxis(array, 0, join.axis)
                view = View(view.source, view.steps[:-1])
            assert np.array_equal(view.apply(first), array)
            seen["compared"] += 1

    check()
    assert seen["compared"] > 5


@functools.cache
def cases_of_onnx() -> list[Any]:
    return [
        case
        for case in onnx_cases()
        if case.model is not None and len(case.model.graph.node) == 1 and case.data_sets
    ]


@pytest.mark.slow
def test_onnx_s_own_cases_have_the_shapes_that_are_said() -> None:
    compared: set[str] = set()
    for case in cases_of_onnx():
        graph = case.model.graph
        (proto,) = graph.node
        if proto.domain or proto.op_type not in shape_operators():
            continue
        read, written = case.data_sets[0]
        if not all(isinstance(each, np.ndarray | np.generic) for each in (*read, *written)):
            continue
        arrays = dict(zip((each.name for each in graph.input), map(np.asarray, read), strict=True))
        for stored in (True, False):
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            if stored:
                del model.graph.input[:]
                model.graph.initializer.extend(
                    onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
                )
            node = list(onnx_ir.from_proto(model).graph)[-1]
            shapes = [arrays[name].shape if name in arrays else None for name in proto.input]
            said = shapes_said(node, shapes)
            if said is None:
                continue
            for name, sizes in zip(proto.output, said, strict=False):
                if name:
                    place = [each.name for each in graph.output].index(name)
                    assert agrees([sizes], [np.asarray(written[place])]), (case.name, sizes)
            compared.add(proto.op_type)
    left = shape_operators() - compared
    # onnx's cases of the first two hold strings or packed floats only; the last one has none.
    assert left <= {"Cast", "CastLike", "GlobalLpPool"}
