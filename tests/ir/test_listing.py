"""Lists of a model: by place, by name, and shown where they are looked at."""

from __future__ import annotations

import pytest

import tieops
from tests.support.graphs import stored, weight
from tests.support.heads import head
from tieops.errors import SelectionError
from tieops.ir.listing import Listing


def test_what_a_model_holds_is_found_by_name():
    model = tieops.rename(head(9, 4), {"table": "emb.weight", "MatMul_y": "fc"})
    table = model.parameters["emb.weight"]
    assert table is model.parameters[0]
    assert model.layers["fc"].slots[0].parameter is table
    assert model.slots["fc.weight"].layer == "fc"
    assert model.ties["emb.weight"].parameter is table
    assert model.inputs["ids"] is model.ir.graph.inputs[0]
    assert model.outputs["y"] is model.ir.graph.outputs[0]
    assert "fc" in model.layers
    assert "cf" not in model.layers
    assert table in model.parameters


def test_duplicates_are_found_by_any_of_their_names():
    model = stored("(float[1,4] x) => (float[1,4] y) { h = MatMul(x, a)  y = MatMul(h, b) }",
                   a=weight(4, 4), b=weight(4, 4))  # fmt: skip
    assert model.duplicates["b"] is model.duplicates[0]


def test_a_list_shows_itself():
    model = head(9, 4)
    assert repr(model.outputs) == "1 output\n  y: f32[b,s,9]"
    assert repr(model.duplicates) == "no duplicates"
    assert model.inputs._repr_html_() == "<b>1 input</b><pre>ids: i64[b,s]</pre>"


def test_a_long_list_is_cut_and_printed_whole():
    numbers = Listing(range(100), "number")
    assert repr(numbers).splitlines()[-1] == "  … 60 more"
    assert len(str(numbers).splitlines()) == 100


def test_names_are_escaped_where_they_are_shown():
    listed = Listing(["<b>"], "name")
    assert listed._repr_html_() == "<b>1 name</b><pre>&lt;b&gt;</pre>"


def test_a_name_that_nothing_or_several_have_is_refused():
    model = head(9, 4)
    with pytest.raises(SelectionError, match="no parameter is called tabel") as failure:
        model.parameters["tabel"]
    assert failure.value.facts == {"nearest": "table"}
    twice = Listing(["a", "a"], "name", lambda item: [item])
    with pytest.raises(LookupError, match="2 names are called a"):
        twice["a"]
