"""A verb that is given what it cannot use says so in one tieops error, before it does anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

import tieops
from tieops import TiedModel, TieopsError

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1,2,3,4}> { y = MatMul(x, w) }"""

ODD = (3, 2.5, None, object(), ["a", 3], {"a": 3}, b"bytes", np.zeros(2), tieops)
"""Given for every argument in turn: of no use for most of them."""


def _model() -> TiedModel:
    return TiedModel(onnx_ir.from_onnx_text(TEXT))


VERBS: dict[str, Callable[[Any, Path], object]] = {
    "tie": lambda odd, _: tieops.tie(odd),
    "tie target": lambda odd, _: tieops.tie(_model(), odd),
    "untie": lambda odd, _: tieops.untie(odd),
    "untie target": lambda odd, _: tieops.untie(_model(), odd),
    "untie names": lambda odd, _: tieops.untie(_model(), names=odd),
    "replace_head": lambda odd, _: tieops.replace_head(odd, out_features=3),
    "replace_head head": lambda odd, _: tieops.replace_head(_model(), odd, out_features=3),
    "replace_head size": lambda odd, _: tieops.replace_head(_model(), out_features=odd),
    "replace_head factor": lambda odd, _: tieops.replace_head(
        _model(), out_features=3, lr_factor=odd
    ),
    "replace_head seed": lambda odd, _: tieops.replace_head(_model(), out_features=3, seed=odd),
    "replace_head name": lambda odd, _: tieops.replace_head(_model(), out_features=3, name=odd),
    "remove outputs": lambda odd, _: tieops.remove_disconnected_outputs(odd),
    "remove outputs keep": lambda odd, _: tieops.remove_disconnected_outputs(_model(), keep=odd),
    "extract": lambda odd, _: tieops.extract(odd, outputs=["y"]),
    "extract outputs": lambda odd, _: tieops.extract(_model(), outputs=odd),
    "rename": lambda odd, _: tieops.rename(odd, {"y": "z"}),
    "rename names": lambda odd, _: tieops.rename(_model(), odd),
    "freeze_inputs": lambda odd, _: tieops.freeze_inputs(odd, ["x"]),
    "freeze_inputs inputs": lambda odd, _: tieops.freeze_inputs(_model(), odd),
    "remove_layers": lambda odd, _: tieops.remove_layers(odd, "fc"),
    "remove_layers layers": lambda odd, _: tieops.remove_layers(_model(), odd),
    "remove branches": lambda odd, _: tieops.remove_dead_branches(odd),
    "to_onnx": lambda odd, folder: tieops.to_onnx(odd, folder / "m.onnx"),
    "to_onnx path": lambda odd, _: tieops.to_onnx(_model(), odd),
    "to_torch": lambda odd, _: tieops.to_torch(odd),
    "render": lambda odd, folder: tieops.render(odd, folder / "m.txt"),
    "render path": lambda odd, _: tieops.render(_model(), odd),
    "from_onnx": lambda odd, _: tieops.from_onnx(odd),
    "from_torch": lambda odd, _: tieops.from_torch(odd),
    "session": lambda odd, _: tieops.session(odd),
    "session provider": lambda odd, _: tieops.session(_model(), provider=odd),
    "session memory": lambda odd, _: tieops.session(_model(), memory=odd),
    "resident_bytes": lambda odd, _: tieops.resident_bytes(odd),
    "sessions": lambda odd, _: tieops.sessions(odd),
    "verify": lambda odd, _: tieops.verify(odd, against=_model()),
    "verify against": lambda odd, _: tieops.verify(_model(), against=odd),
    "diff": lambda odd, _: tieops.diff(_model(), odd),
    "analyze": lambda odd, _: tieops.analyze(odd),
    "scan": lambda odd, _: list(tieops.scan(odd)),
    "Pipeline": lambda odd, _: tieops.Pipeline(odd),
    "Pipeline on": lambda odd, _: tieops.Pipeline([])(odd),
    "Limits": lambda odd, _: tieops.Limits(nodes=odd),
    "Sandbox": lambda odd, _: tieops.Sandbox(memory_bytes=odd),
    "param_groups": lambda odd, _: tieops.param_groups(odd, lr=0.1),
}
FINE = {
    ("untie names", "NoneType"), ("replace_head name", "NoneType"),
    ("replace_head head", "NoneType"), ("replace_head factor", "int"),
    ("replace_head factor", "float"), ("replace_head size", "int"), ("replace_head seed", "int"),
    ("Limits", "int"), ("Sandbox", "int"), ("Sandbox", "float"), ("scan", "dict"),
}  # fmt: skip
"""Those that a verb can use."""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
def test_what_a_verb_cannot_use_is_one_error(verb: str, odd: object, tmp_path: Path) -> None:
    if (verb, type(odd).__name__) in FINE:
        VERBS[verb](odd, tmp_path)
        return
    with pytest.raises(TieopsError) as caught:
        VERBS[verb](odd, tmp_path)
    assert caught.value.fix
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("end", ["/", os.sep])
def test_the_path_of_a_folder_is_no_file_to_write(end: str, tmp_path: Path) -> None:
    for write in (tieops.to_onnx, tieops.render):
        with pytest.raises(TieopsError, match="got a folder"):
            write(_model(), f"{tmp_path / 'new'}{end}")
    assert [*tmp_path.iterdir()] == []


def test_numbers_of_numpy_are_numbers() -> None:
    small = tieops.replace_head(_model(), out_features=np.int64(3), seed=np.uint8(1))
    assert small.parameters[0].shape == (3, 2)
