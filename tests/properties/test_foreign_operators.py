"""A name of ONNX's own operators in another domain is somebody's own operator to every verb."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper

import tieops
from tieops import TiedModel
from tieops.ir.operators import identity
from tieops.ir.operators.fused_roles import FUSED
from tieops.passes.lower import LowerTiedReadsPass
from tieops.rendering.picture import picture_of
from tieops.verification.index_bounds import table_sizes
from tieops.verification.randomness import random_nodes

KNOWN = {schema.name for schema in onnx.defs.get_all_schemas()}
OF_RUNTIME = r"com\.microsoft\.\w+"
OPAQUE = "Opaque"
DOMAINS = ("my", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.ml")
ATTRIBUTES = "<axis = 0, to = 1, perm = [1, 0], axes = [0]>"


def table_names() -> Iterator[str]:
    """Yield each operator that the tables of the home have, with its domain."""
    for path in Path(identity.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and (text in KNOWN or re.fullmatch(OF_RUNTIME, text)):
                yield text


NAMES = sorted({*table_names(), *FUSED})
OFTEN = {"Add", "Concat", "Conv", "DequantizeLinear", "Gather", "Gemm", "Identity", "MatMul", "Mul",
         "Reshape", "Slice", "Split", "Transpose", "com.microsoft.FusedMatMul"}  # fmt: skip
"""Tried in the fast part of the tests: one of each kind of question that tables answer."""


def proto(name: str, domain: str) -> onnx.ModelProto:
    """Return a model in which a foreign operator stands in every place that tables tell of."""
    op = f"{domain}.{name}"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20, "{domain}": 1]>
        g (float[2,8] x, int64[2] ids) => (float[2,8] y, float[2,8] z, float[2,6] c) {{
          [as_view] t = {op} {ATTRIBUTES} (w)
          [reads_view] a = MatMul(x, t)
          [as_lookup] b = {op} {ATTRIBUTES} (w, ids)
          [as_product] p = {op} {ATTRIBUTES} (x, w, bias)
          [sum] s = Add(p, bias)
          [lookup] e = Gather(w, ids)
          [scaled] q = {op} {ATTRIBUTES} (quantized, scale)
          [gain] g = {op} (s, gain)
          [sum_of_all] y = Sum(a, b, g, e, q)
          [score] k = {op} {ATTRIBUTES} (x, a)
          [masked] z = Add(k, mask)
          [size] r = {op} {ATTRIBUTES} (y)
          [shaped] v = Reshape(y, r)
          [drawn] d = {op} {ATTRIBUTES} ()
          [mixed] m = Add(v, d)
          [fc] l = MatMul(x, classes)
          [last] n = Identity(m)
          [behind] c = {op} {ATTRIBUTES} (l)
        }}"""
    )
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 8)).astype(np.float32)
    tensors = {
        "w": w,
        "bias": rng.standard_normal(8).astype(np.float32),
        "gain": rng.standard_normal(8).astype(np.float32),
        "mask": rng.standard_normal(8).astype(np.float32),
        "quantized": rng.integers(-8, 8, (2, 8)).astype(np.int8),
        "scale": rng.standard_normal(8).astype(np.float32),
        "classes": rng.standard_normal((8, 6)).astype(np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return model


def graph_of(model: TiedModel) -> str:
    return onnx.printer.to_text(onnx_ir.to_proto(model.ir).graph)


VERBS: dict[str, Callable[[TiedModel], object]] = {
    "layers": lambda m: (m.layers, [slot.view for slot in m.slots], [s.role for s in m.slots]),
    "parameters": lambda m: [(p.name, m.trace.learnables.kind_of(p.value)) for p in m.parameters],
    "ties": lambda m: (m.ties, m.accidental_ties, m.duplicates, m.ledger),
    "untie": lambda m: graph_of(tieops.untie(m)),
    "tie": lambda m: graph_of(tieops.tie(tieops.untie(m))),
    "lower": lambda m: graph_of(TiedModel(LowerTiedReadsPass()(m.ir).model)),
    "replace_head": lambda m: graph_of(tieops.replace_head(m, "fc", out_features=3)),
    "find_head": lambda m: graph_of(tieops.replace_head(m, out_features=3)),
    "analyze": lambda m: tieops.analyze(m).to_dict(),
    "dead outputs": lambda m: graph_of(tieops.remove_disconnected_outputs(m)),
    "dead branches": lambda m: graph_of(tieops.remove_dead_branches(m)),
    "to_torch": lambda m: tieops.to_torch(m).code,
    "verify": lambda m: (table_sizes(m.ir), random_nodes(m.ir)),
    "picture": lambda m: picture_of(m).as_data(),
    "diff": lambda m: tieops.diff(m, m),
}


def outcome(verb: str, name: str, domain: str, hidden: str) -> str:
    """Return what a verb makes of the model, with both names of the operator made one."""
    try:
        found = str(VERBS[verb](tieops.from_onnx(proto(name, domain))))
    except tieops.TieopsError as error:
        found = f"{type(error).__name__}: {error}"
    # Widths of columns follow the names.
    return re.sub(r"[ ─]+", " ", re.sub(rf"\b({hidden}|{OPAQUE})\b", "@", found))


@cache
def expected(domain: str, hidden: str) -> dict[str, str]:
    return {verb: outcome(verb, OPAQUE, domain, hidden) for verb in VERBS}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.slow) for n in NAMES]
)
def test_a_foreign_operator_is_opaque_whatever_it_is_called(name: str) -> None:
    bare = name.rpartition(".")[2]
    others = [domain for domain in DOMAINS if f"{domain}.{bare}" not in NAMES]
    domain = others[NAMES.index(name) % len(others)]
    found = {verb: outcome(verb, bare, domain, bare) for verb in VERBS}
    assert found == expected(domain, bare)
