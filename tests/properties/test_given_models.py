"""Verbs take what from_onnx imports: a path, bytes, a proto, a graph; and change none of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest

import tieops
from tests.support.heads import head
from tests.support.model_facts import serialized
from tieops.errors import TieopsError
from tieops.passes import TiePass, UntiePass

VERBS: dict[str, Callable[[Any], object]] = {
    "analyze": lambda given: tieops.analyze(given).to_dict(),
    "tie": lambda given: tieops.tie(given),
    "untie": lambda given: tieops.untie(given),
    "replace_head": lambda given: tieops.replace_head(given, out_features=3),
    "remove_disconnected_outputs": lambda given: tieops.remove_disconnected_outputs(given),
    "remove_dead_branches": lambda given: tieops.remove_dead_branches(given),
    "extract": lambda given: tieops.extract(given, outputs=["h"]),
    "rename": lambda given: tieops.rename(given, {"y": "logits"}),
    "remove_layers": lambda given: tieops.remove_layers(given, "Tanh_h"),
    "freeze_inputs": lambda given: tieops.freeze_inputs(given, {"ids": [[1, 2]]}),
    "pipeline": lambda given: tieops.Pipeline([UntiePass(), TiePass()])(given).model,
    "diff": lambda given: str(tieops.diff(given, tieops.untie(given))),
    "to_torch": lambda given: tieops.to_torch(given).code,
}
FORMS = ("path", "text", "bytes", "proto", "graph")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    return tieops.to_onnx(head(60, 16), folder / "m.onnx", external_data=False).path


def given_as(form: str, path: Path) -> Any:
    proto = onnx.load(path)
    return {
        "path": path, "text": os.fspath(path), "bytes": path.read_bytes(), "proto": proto,
        "graph": onnx_ir.from_proto(proto),
    }[form]  # fmt: skip


def facts(found: object) -> object:
    return serialized(found.ir) if isinstance(found, tieops.TiedModel) else found


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_does_the_same_to_what_is_imported_for_it(verb: str, path: Path) -> None:
    before = path.read_bytes()
    want = facts(VERBS[verb](tieops.from_onnx(path)))
    for form in FORMS:
        given = given_as(form, path)
        assert facts(VERBS[verb](given)) == want, form
        if form == "proto":
            assert given.SerializeToString() == onnx.load(path).SerializeToString()
        if form == "graph":
            assert serialized(given) == serialized(onnx_ir.from_proto(onnx.load(path)))
    assert path.read_bytes() == before


def test_render_takes_paths(path: Path, tmp_path: Path) -> None:
    texts = [
        tieops.render(given, tmp_path / "m.txt", before=given).read_text("utf-8")
        for given in (path, tieops.from_onnx(path))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("odd", ["gone.onnx", b"no model", 3, None, [], object()])
def test_what_is_no_model_is_one_error(verb: str, odd: object) -> None:
    with pytest.raises(TieopsError) as failure:
        VERBS[verb](odd)
    assert failure.value.fix
