"""Names of a tensor of which it cannot be known whose they are: said, and chosen by the caller."""

from __future__ import annotations

import pytest

import tieops
from tests.support.graphs import made
from tieops.errors import SelectionError
from tieops.ir.metadata.keys import add_names

TEXT = """g (int64[n] x) => (float[n, 6] y) {
    h = Gather(emb, x)  t = Transpose<perm = [1, 0]>(emb)  y = MatMul(h, t) }"""


def doubtful(*more: str) -> tieops.TiedModel:
    model = made(TEXT, emb=(6, 3))
    add_names(model.ties[0].parameter.value, more)
    return tieops.from_onnx(model.ir)


def kinds(model: tieops.TiedModel) -> list[str]:
    return [each.kind for each in model.analysis.problems]


def test_doubtful_names_are_a_problem_that_says_how_to_choose() -> None:
    (found,) = [p for p in doubtful("out").analysis.problems if p.kind == "doubtful name"]
    assert found.severity == "note"
    assert all(word in found.what for word in ("emb", "out", "Gather_h.weight", "MatMul_y.weight"))
    assert 'names={"emb": "Gather_h.weight", "out": "MatMul_y.weight"}' in found.call


def test_one_name_stays_with_who_keeps_the_tensor() -> None:
    assert "doubtful name" not in kinds(doubtful())


@pytest.mark.parametrize(
    "names",
    [
        {"emb": "Gather_h"},
        {"out": "MatMul_y"},
        {"out": "MatMul_y.weight", "emb": "Gather_h.weight"},
        {"emb": "MatMul_y"},
        {"out": "Gather_h", "emb": "MatMul_y"},
    ],
)
def test_a_caller_chooses_whose_a_name_is(names: dict[str, str]) -> None:
    model = doubtful("out")
    free = tieops.untie(model, names=names)
    table = "out" if "MatMul" in names.get("emb", "") else "emb"
    found = {slot.layer: slot.parameter.names for slot in free.slots}
    other = "emb" if table == "out" else "out"
    assert found == {"Gather_h": (table,), "MatMul_y": (other,)}
    assert "doubtful name" in kinds(model), "the argument was changed"


@pytest.mark.parametrize(
    "names", [{"nowhere": "Gather_h"}, {"emb": "nowhere"}, {"emb": ""}, {"": "Gather_h"}]
)
def test_a_choice_that_cannot_be_is_one_error(names: dict[str, str]) -> None:
    with pytest.raises(SelectionError):
        tieops.untie(doubtful("out"), names=names)
