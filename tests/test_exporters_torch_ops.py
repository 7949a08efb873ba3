"""Every operator that to_torch knows against the onnx package's own cases for it."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import onnx_ir
import pytest
import torch
from onnx.backend.test.case.test_case import TestCase as Case

import tieops
from fixtures.operators_page import PAGE, page
from tieops.errors import UnsupportedModelError
from tieops.exporters.torch_ops import find
from tieops.exporters.torch_store import as_torch

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
TOLERANCES = {torch.float16: (5e-3, 2e-3), torch.bfloat16: (2e-2, 1e-2)}
"""The cases' outputs are computed in another precision and rounded to that of their dtype."""


@functools.cache
def cases() -> dict[str, list[Case]]:
    """Return the cases of each operator that is in the table, all their operators included."""
    found: dict[str, list[Case]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about cases of infinities
        for case in node_cases.collect_testcases(None):
            versions = {each.domain: each.version for each in case.model.opset_import}
            nodes = [n for n in case.model.graph.node if n.op_type != "Constant"]
            if all(find(n.domain, n.op_type, versions.get(n.domain, 1)) for n in nodes):
                name = case.name.removeprefix("test_").removesuffix("_expanded")
                own = [n.op_type for n in nodes]
                found[own[0] if len(set(own)) == 1 else name.partition("_")[0]].append(case)
    return found


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


@pytest.mark.parametrize("name", sorted(cases()))
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_the_cases_of_an_operator_pass(name):
    failed = {}
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


def test_what_is_left_out_exists():
    known = {case.name for group in cases().values() for case in group}
    assert REASONS.keys() | RANDOM <= known


def test_the_page_of_operators_is_the_table():
    assert PAGE.read_text("utf-8") == page(), "run python -m fixtures.operators_page"
