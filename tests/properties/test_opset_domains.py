"""ONNX's own domain has two names, "" and "ai.onnx": a model means the same under both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import numpy_helper

import tieops
from tieops import TiedModel
from tieops.passes.lower import LowerTiedReadsPass


def load(domain: str, opset: int, body: str) -> TiedModel:
    """Return a model with a tied pair, under one of the names of ONNX's domain."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["{domain}": {opset}]>
        g (int64[2] ids, float[2,3,4] x) => (float[2,8] y, float[2,3,4] z) {{
          h = Gather(w, ids)
          t = Transpose <perm = [1, 0]> (w)
          [fc] y = MatMul(h, t)
          {body}
        }}"""
    )
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 4)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return tieops.from_onnx(proto)


def graph_of(model: TiedModel) -> str:
    return onnx.printer.to_text(onnx_ir.to_proto(model.ir).graph)


def computed(model: TiedModel) -> str:
    ids, x = torch.tensor([1, 2]), torch.linspace(-2, 2, 24).reshape(2, 3, 4)
    return str([each.tolist() for each in tieops.to_torch(model)(ids, x)])


VERBS: dict[str, Callable[[TiedModel], str]] = {
    "to_torch": computed,
    "untie": lambda m: graph_of(tieops.untie(m)),
    "replace_head": lambda m: graph_of(tieops.replace_head(m, "fc", out_features=3)),
    "lower": lambda m: graph_of(TiedModel(LowerTiedReadsPass()(m.ir).model)),
    "analyze": lambda m: str(tieops.analyze(m)),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("opset", [11, 13, 18, 23])
def test_a_model_means_the_same_under_both_names_of_its_domain(verb: str, opset: int) -> None:
    one, other = (load(domain, opset, "z = Softmax(x)") for domain in ("", "ai.onnx"))
    assert VERBS[verb](one) == VERBS[verb](other)
    assert not tieops.diff(one, other)
