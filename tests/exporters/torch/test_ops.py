"""Every operator that to_torch knows against the onnx package's own cases for it."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx.backend.test.case.test_case import TestCase as Case

import tieops
from fixtures.operators_page import PAGE, page
from tests.support.onnx_cases import onnx_cases
from tieops.errors import UnsupportedModelError
from tieops.exporters.torch.ops import find, operators
from tieops.exporters.torch.store import as_torch

# What torch cannot do, with the reason. A case that begins to pass has to leave this list.
UNSIGNED = "torch has no arithmetic for unsigned integers of more than eight bits"
FEW_BITS = "torch has no integers of fewer than eight bits, and no floats of four"
STRINGS = "torch has no strings"
OPTIONALS = "inner graphs with optionals, which are no tensors"
ROUNDING = "torch rounds to the nearest power of two, not up"
LEFT_OUT = {
    UNSIGNED: [
        "add_uint16", "add_uint32", "add_uint64", "bitwise_not_3d", "div_uint16",
        "div_uint32", "div_uint64", "greater_equal_uint16", "greater_equal_uint16_expanded",
        "greater_equal_uint32", "greater_equal_uint32_expanded", "greater_equal_uint64",
        "greater_equal_uint64_expanded", "greater_uint16", "greater_uint32",
        "greater_uint64", "less_equal_uint16", "less_equal_uint16_expanded",
        "less_equal_uint32", "less_equal_uint32_expanded", "less_equal_uint64",
        "less_equal_uint64_expanded", "less_uint16", "less_uint32", "less_uint64",
        "max_uint16", "max_uint32", "max_uint64", "min_uint16", "min_uint32", "min_uint64",
        "mod_uint16", "mod_uint32", "mod_uint64", "sub_uint16", "sub_uint32", "sub_uint64",
    ],
    FEW_BITS: [
        "cast_FLOAT16_to_FLOAT4E2M1", "cast_FLOAT16_to_INT2", "cast_FLOAT16_to_INT4",
        "cast_FLOAT16_to_UINT2", "cast_FLOAT16_to_UINT4", "cast_FLOAT4E2M1_to_FLOAT",
        "cast_FLOAT4E2M1_to_FLOAT16", "cast_FLOAT_to_FLOAT4E2M1", "cast_FLOAT_to_INT2",
        "cast_FLOAT_to_INT4", "cast_FLOAT_to_UINT2", "cast_FLOAT_to_UINT4",
        "castlike_FLOAT16_to_FLOAT4E2M1", "castlike_FLOAT16_to_FLOAT4E2M1_expanded",
        "castlike_FLOAT16_to_INT2", "castlike_FLOAT16_to_INT2_expanded",
        "castlike_FLOAT16_to_INT4", "castlike_FLOAT16_to_INT4_expanded",
        "castlike_FLOAT16_to_UINT2", "castlike_FLOAT16_to_UINT2_expanded",
        "castlike_FLOAT16_to_UINT4", "castlike_FLOAT16_to_UINT4_expanded",
        "castlike_FLOAT4E2M1_to_FLOAT", "castlike_FLOAT4E2M1_to_FLOAT16",
        "castlike_FLOAT4E2M1_to_FLOAT16_expanded", "castlike_FLOAT4E2M1_to_FLOAT_expanded",
        "castlike_FLOAT_to_FLOAT4E2M1", "castlike_FLOAT_to_FLOAT4E2M1_expanded",
        "castlike_FLOAT_to_INT2", "castlike_FLOAT_to_INT2_expanded",
        "castlike_FLOAT_to_INT4", "castlike_FLOAT_to_INT4_expanded",
        "castlike_FLOAT_to_UINT2", "castlike_FLOAT_to_UINT2_expanded",
        "castlike_FLOAT_to_UINT4", "castlike_FLOAT_to_UINT4_expanded",
        "castlike_INT2_to_FLOAT", "castlike_INT2_to_FLOAT16", "castlike_INT2_to_INT8",
        "castlike_INT4_to_FLOAT", "castlike_INT4_to_FLOAT16", "castlike_INT4_to_INT8",
        "castlike_UINT2_to_FLOAT", "castlike_UINT2_to_FLOAT16", "castlike_UINT2_to_UINT8",
        "castlike_UINT4_to_FLOAT", "castlike_UINT4_to_FLOAT16", "castlike_UINT4_to_UINT8",
        "dequantizelinear_float4e2m1", "quantizelinear_float4e2m1", "quantizelinear_int2",
        "quantizelinear_int4", "quantizelinear_uint2", "quantizelinear_uint4",
    ],
    STRINGS: [
        "equal_string", "equal_string_broadcast",
    ],
    OPTIONALS: [
        "if_opt", "loop16_seq_none",
    ],
    ROUNDING: [
        "cast_e8m0_FLOAT16_to_FLOAT8E8M0", "cast_e8m0_FLOAT_to_FLOAT8E8M0",
    ],
}  # fmt: skip
REASONS = {f"test_{name}": reason for reason, names in LEFT_OUT.items() for name in names}
# Random numbers of another generator: of these, the dtypes and shapes are compared.
RANDOM = {f"test_{name}" for name in (
    "bernoulli", "bernoulli_double", "bernoulli_double_expanded", "bernoulli_expanded",
    "bernoulli_seed", "bernoulli_seed_expanded", "training_dropout",
    "training_dropout_default", "training_dropout_default_mask", "training_dropout_mask",
)}  # fmt: skip
# Operators that onnx has no case for, in programs that ONNX Runtime runs too.
PROGRAMS = {
    "GlobalLpPool": "{ y = GlobalLpPool<p = 3>(x) }",
    "SimplifiedLayerNormalization": "{ y = SimplifiedLayerNormalization(x, four) }",
    "ConcatFromSequence, SequenceAt, SequenceConstruct, SequenceErase, SequenceLength": """{
        s = SequenceConstruct(x, x)  z = Neg(x)  t = SequenceInsert(s, z)
        u = SequenceErase(t, one)  a = SequenceAt(u, one)  n = SequenceLength(u)
        f = Cast<to = 1>(n)  c = ConcatFromSequence<axis = 1>(u)  e = Sum(a, f)
        y = Concat<axis = 1>(c, e) }""",
    "SequenceEmpty": "{ s = SequenceEmpty()  t = SequenceInsert(s, x)  y = SequenceAt(t, zero) }",
}
RANDOM_PROGRAMS = {
    "RandomNormal": "{ y = RandomNormal<shape = [50, 40], mean = 0.5, scale = 0.2>() }",
    "RandomUniform": "{ y = RandomUniform<shape = [50, 40], low = 0.0, high = 1.0>() }",
    "RandomNormalLike": "{ y = RandomNormalLike<mean = 0.5, scale = 0.2>(x) }",
    "RandomUniformLike": "{ y = RandomUniformLike<low = 0.0, high = 1.0>(x) }",
    "Multinomial": "{ i = Multinomial<sample_size = 40>(pair)  y = Cast<to = 1>(i) }",
}
WITHOUT_CASES = {n for names in (*PROGRAMS, *RANDOM_PROGRAMS) for n in names.split(", ")}
TOLERANCES = {torch.float16: (5e-3, 2e-3), torch.bfloat16: (2e-2, 1e-2)}
"""The cases' outputs are computed in another precision and rounded to that of their dtype."""


NAMES = sorted({entry.op_type for entry in operators()})
SEVERAL = "several operators"


@functools.cache
def cases() -> dict[str, list[Case]]:
    """Return the cases whose operators are all in the table, by the operator they are about."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in onnx_cases():
        versions = {each.domain: each.version for each in case.model.opset_import}
        nodes = [n for n in case.model.graph.node if n.op_type != "Constant"]
        if all(find(n.domain, n.op_type, versions.get(n.domain, 1)) for n in nodes):
            found[subject(case.name, [n.op_type for n in nodes])].append(case)
    return found


def subject(name: str, nodes: list[str]) -> str:
    """Return the only operator of a case, or the one that its function body is of."""
    if len(set(nodes)) == 1:
        return nodes[0]
    plain = name.removeprefix("test_").replace("_", "")
    return max((n for n in NAMES if plain.startswith(n.lower())), key=len, default=SEVERAL)


def tensors(data: Any) -> Any:
    """Return a case's input for torch."""
    if isinstance(data, list):
        return [tensors(each) for each in data]
    if isinstance(data, onnx.TensorProto):
        return as_torch(onnx_ir.from_proto(data))
    return as_torch(onnx_ir.tensor(np.array(data, order="C")))


def check(found: Any, wanted: Any) -> None:
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for each, other in zip(found, wanted, strict=True):
            check(each, other)
        return
    wanted = tensors(wanted)
    rtol, atol = TOLERANCES.get(wanted.dtype, (1e-3, 1e-5))
    if wanted.dtype.itemsize == 1 and wanted.dtype.is_floating_point:
        found, wanted = found.to(torch.float32), wanted.to(torch.float32)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, equal_nan=True)


def run(case: Case, *, values: bool = True) -> None:
    net = tieops.to_torch(tieops.from_onnx(case.model))
    for inputs, outputs in case.data_sets:
        found = net(*(tensors(each) for each in inputs))
        found = found if isinstance(found, tuple) else (found,)
        assert len(found) == len(outputs)
        for each, wanted in zip(found, outputs, strict=True):
            if values:
                check(each, wanted)
            else:
                assert (each.dtype, each.shape) == (tensors(wanted).dtype, wanted.shape)


@pytest.mark.parametrize("name", [*(n for n in NAMES if n not in WITHOUT_CASES), SEVERAL])
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_the_cases_of_an_operator_pass(name):
    failed = {}
    assert cases()[name]
    for case in cases()[name]:
        if case.name in RANDOM:
            run(case, values=False)
            continue
        if case.name in REASONS:
            with pytest.raises((AssertionError, NotImplementedError, UnsupportedModelError)):
                run(case)
            continue
        try:
            run(case)
        except Exception as error:
            failed[case.name] = f"{type(error).__name__}: {error}"
    assert failed == {}


def model_of(body: str) -> tieops.TiedModel:
    header = '<ir_version: 8, opset_import: ["" : 17]> g (float[a, 3, 4] x, float[b, 2] pair) => '
    stored = "<int64 zero = {0}, int64 one = {1}, float[4] four = {1, 2, 3, 4}>"
    return tieops.from_onnx(onnx_ir.from_onnx_text(f"{header} (float[c, d, e] y) {stored} {body}"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_operator_without_cases_equals_onnx_runtime(name, plain_runtime):
    model = model_of(PROGRAMS[name])
    assert all(not cases()[each] for each in name.split(", "))
    model.ir.graph.outputs[0].shape = None
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal(s, np.float32) for n, s in (("x", (2, 3, 4)), ("pair", (1, 2)))}
    (wanted,) = plain_runtime.run(model.ir, feeds)
    found = tieops.to_torch(model)(*(torch.from_numpy(feeds[n]) for n in ("x", "pair")))
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-5, atol=1e-6)


def test_a_real_signal_may_come_without_an_axis_for_its_parts(plain_runtime):
    """So onnxscript writes it, and ONNX Runtime reads it; the cases have the axis."""
    graph = onnx_ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 40] x) => (float[2, t, f, 2] y)
        <int64 step = {4}, float[8] window = {1, 2, 3, 4, 4, 3, 2, 1}>
        { y = STFT(x, step, window) }"""
    )
    x = np.random.default_rng(0).standard_normal((2, 40), np.float32)
    (wanted,) = plain_runtime.run(graph, {"x": x})
    found = tieops.to_torch(tieops.from_onnx(graph))(torch.from_numpy(x))
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fmod", [0, 1])
def test_the_rest_of_a_size(fmod):
    """Mamba 2 pads to a multiple of its chunk: sizes are numbers, and so is their rest."""
    graph = onnx_ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n] x) => (float[m] y) <int64[1] by = {{-4}}> {{
             size = Shape(x)
             rest = Mod<fmod = {fmod}>(size, by)
             far = Abs(rest)
             y = Expand(x, far)
        }}"""
    )
    found = tieops.to_torch(tieops.from_onnx(graph))(torch.ones(1))
    assert found.shape == (1 if fmod else 3,)


@pytest.mark.parametrize("name", RANDOM_PROGRAMS)
def test_random_numbers_have_the_distribution_asked_for(name):
    torch.manual_seed(0)
    net = tieops.to_torch(model_of(RANDOM_PROGRAMS[name]))
    found = net(torch.zeros(50, 3, 4), torch.zeros(50, 2))
    assert not found.equal(net(torch.zeros(50, 3, 4), torch.zeros(50, 2)))
    assert abs(float(found.mean()) - 0.5) < 0.05
    if "Normal" in name:
        assert abs(float(found.std()) - 0.2) < 0.02
    else:
        assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_what_is_left_out_exists():
    known = {case.name for group in cases().values() for case in group}
    assert REASONS.keys() | RANDOM <= known


def test_the_page_of_operators_is_the_table():
    assert PAGE.read_text("utf-8") == page(), "run python -m fixtures.operators_page"
