"""What stands behind a head: nodes that take any number of classes, and nodes that do not."""

from __future__ import annotations

from typing import Any

import numpy as np

FOLLOWS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "Softmax": ("y = Softmax(k)", "float[n,10] y", {}, (2, 15)),
    "LogSoftmax": ("y = LogSoftmax(k)", "float[n,10] y", {}, (2, 15)),
    "Sigmoid": ("y = Sigmoid(k)", "float[n,10] y", {}, (2, 15)),
    "Transpose": ("y = Transpose(k)", "float[10,n] y", {}, (15, 2)),
    "ArgMax": ("y = ArgMax<axis = -1>(k)", "int64[n,1] y", {}, (2, 1)),
    "ArgMax of rows": ("y = ArgMax<axis = 0, keepdims = 0>(k)", "int64[10] y", {}, (15,)),
    "TopK": ("y, i = TopK(k, c)", "float[n,3] y, int64[n,3] i", {"c": np.array([3])}, (2, 3)),
    "Reshape": ("y = Reshape(k, c)", "float[n,10] y", {"c": np.array([-1, 10])}, (2, 15)),
    "Reshape to more axes": (
        "y = Reshape(k, c)",
        "float[n,1,10] y",
        {"c": np.array([-1, 1, 10])},
        (2, 1, 15),
    ),
    "Reshape that keeps": ("y = Reshape(k, c)", "float[n,10] y", {"c": np.array([0, -1])}, (2, 15)),
    "Flatten": ("y = Flatten(k)", "float[n,10] y", {}, (2, 15)),
    "Unsqueeze": ("y = Unsqueeze(k, c)", "float[n,1,10] y", {"c": np.array([1])}, (2, 1, 15)),
    "Squeeze": (
        "u = Unsqueeze(k, c)  y = Squeeze(u, c)",
        "float[n,10] y",
        {"c": np.array([0])},
        (2, 15),
    ),
    "a scale": ("y = Mul(k, c)", "float[n,10] y", {"c": np.ones(1, np.float32)}, (2, 15)),
    "Where": ("z = Greater(k, c)  y = Where(z, k, c)", "float[n,10] y", {"c": (1,)}, (2, 15)),
    "ReduceSum": ("y = ReduceSum(k, c)", "float[n,1] y", {"c": np.array([1])}, (2, 1)),
    "ReduceMax": (
        "y = ReduceMax<keepdims = 0>(k, c)",
        "float[10] y",
        {"c": np.array([0])},
        (15,),
    ),
    "Gather": ("y = Gather<axis = 1>(k, c)", "float[n,2] y", {"c": np.array([3, 9])}, (2, 2)),
    "Gather of rows": (
        "y = Gather<axis = 0>(k, c)",
        "float[10] y",
        {"c": np.array(0)},
        (15,),
    ),
    "Slice of rows": (
        "y = Slice(k, s, e, a)",
        "float[m,10] y",
        {"s": np.array([0]), "e": np.array([1]), "a": np.array([0])},
        (1, 15),
    ),
    "Slice of all": (
        "y = Slice(k, s, e, a)",
        "float[n,10] y",
        {"s": np.array([0]), "e": np.array([2**62]), "a": np.array([1])},
        (2, 15),
    ),
    "Cast": ("y = Cast<to = 10>(k)", "float16[n,10] y", {}, (2, 15)),
    "several": (
        "s = Softmax(k)  t = Transpose(s)  y = Log(t)",
        "float[10,n] y",
        {},
        (15, 2),
    ),
}


BAKED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "Add of a constant": ("n1 = Relu(k)  y = Mul(n1, c)", "float[n,10] y", {"c": (10,)}, "Mul"),
    "Reshape that splits": (
        "y = Reshape(k, c)",
        "float[n,2,5] y",
        {"c": np.array([-1, 2, 5])},
        "Reshape",
    ),
    "Gather out of range": (
        "y = Gather<axis = 1>(k, c)",
        "float[n,1] y",
        {"c": np.array([9])},
        "Gather",
    ),
    "Slice": (
        "y = Slice(k, s, e, a)",
        "float[n,5] y",
        {"s": np.array([5]), "e": np.array([10]), "a": np.array([1])},
        "Slice",
    ),
    "Slice to the end": (
        "y = Slice(k, s, e, a)",
        "float[n,10] y",
        {"s": np.array([0]), "e": np.array([10]), "a": np.array([1])},
        "Slice",
    ),
    "TopK": ("y, i = TopK(k, c)", "float[n,9] y, int64[n,9] i", {"c": np.array([9])}, "TopK"),
    "an operator that is not known": (
        "y = Pad(k, c)",
        "float[n,12] y",
        {"c": np.array([0, 1, 0, 1])},
        "Pad",
    ),
    "another layer": ("y = MatMul(k, c)", "float[n,3] y", {"c": (10, 3)}, "MatMul"),
    "both axes": ("t = Transpose(k)  y = MatMul(k, t)", "float[n,n] y", {}, "MatMul"),
    "Split": (
        "y, z = Split<axis = 1, num_outputs = 2>(k)",
        "float[n,5] y, float[n,5] z",
        {},
        "Split",
    ),
}
