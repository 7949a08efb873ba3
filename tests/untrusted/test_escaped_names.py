"""Names from files reach no terminal, no page and no error unescaped, whatever they hold."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import tieops
from tieops.cli import main
from tieops.errors import TieopsError

NASTY = (
    "\x1b[31mred\x1b]0;title\x07", "\x9b31m", "a\nb", "a\r\x08b", "\u202etxt.exe", "\u2066a\u2069",
    "[red]a[/red]", "[link=https://a.b]c[/link]", "<script>alert(1)</script>", "<b onclick=x>",
    "</script><script>", "a\u2028b", "\ufeff", "../../etc/passwd", "a\"b'c\\d", "-rf",
    "%s{0}", "\x00",
)  # fmt: skip

names = st.lists(
    st.one_of(
        st.sampled_from(NASTY),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    ),
    min_size=10,
    max_size=10,
    unique=True,
)


def build(texts: list[str]) -> onnx.ModelProto:
    """Return a tied model, in which each name holds one of these texts."""
    x, ids, emb, copy, hidden, turned, y, node, dim, graph = (
        f"{text}{number}" for number, text in enumerate(texts)
    )
    rng = np.random.default_rng(0)
    table = rng.standard_normal((12, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", [emb, x], [hidden], name=node),
        helper.make_node("Relu", [hidden], [turned], name=node + "r", doc_string=texts[0]),
        helper.make_node("MatMul", [turned, copy], [y], name=node + "m"),
        helper.make_node("Identity", [emb], [ids], name=node + "i"),
    ]
    made = helper.make_graph(
        nodes,
        graph,
        [helper.make_tensor_value_info(x, TensorProto.INT64, [dim])],
        [
            helper.make_tensor_value_info(y, TensorProto.FLOAT, [dim, 12]),
            helper.make_tensor_value_info(ids, TensorProto.FLOAT, [12, 4]),
        ],
        [
            numpy_helper.from_array(table, emb),
            numpy_helper.from_array(np.ascontiguousarray(table.T), copy),
        ],
        doc_string=texts[1],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {texts[2] + "k": texts[3]})
    for each in model.graph.node:
        each.metadata_props.add(key="namespace", value=texts[4])
    return model


def clean(text: str) -> None:
    """Check that a text holds nothing that moves a cursor, changes a colour or turns a line."""
    bad = {ascii(c) for line in text.split("\n") for c in line if not c.isprintable()}
    assert not bad, f"{bad} in {text[:2000]!r}"


def texts_of(model: tieops.TiedModel) -> dict[str, str]:
    tied = tieops.tie(model)
    free = tieops.untie(tied, tied.ties[0].slots[0]) if tied.ties else tied
    found: dict[str, Any] = {
        "model": model, "ties": tied.ties, "duplicates": model.duplicates, "layers": model.layers,
        "parameters": model.parameters, "ledger": tied.ledger, "analysis": model.analysis,
        "diff": tieops.diff(model, free), "tied": tied,
    }  # fmt: skip
    texts = {name: str(value) for name, value in found.items()}
    texts |= {f"repr {name}": repr(value) for name, value in found.items()}
    for name, group in (("tie", tied.ties), ("layer", model.layers), ("slot", model.slots)):
        texts |= {f"{name} {n}": f"{each}\n{each!r}" for n, each in enumerate(group)}
    for number, problem in enumerate(model.analysis.problems):
        texts[f"problem {number}"] = str(problem)
    return texts


def errors_of(model: tieops.TiedModel, texts: list[str]) -> list[str]:
    """Return what the verbs say of names that are not there, and of models that do not fit."""
    attempts = [
        lambda: tieops.untie(model, texts[0] + "?"),
        lambda: tieops.tie(model, texts[0] + "?", texts[1] + "?"),
        lambda: tieops.tie(model, model.layers[0].name, texts[1]),
        lambda: tieops.replace_head(model, texts[2] + "?", out_features=3),
        lambda: tieops.replace_head(model, out_features=0),
    ]
    said = []
    for attempt in attempts:
        with contextlib.suppress(TieopsError):
            attempt()
            continue
        try:
            attempt()
        except TieopsError as error:
            said.append(str(error))
    return said


class Page(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(f"{tag} {sorted(name for name, _ in attrs)}")


@settings(max_examples=25)
@given(texts=names)
def test_no_text_holds_what_a_terminal_obeys(texts):
    model = tieops.from_onnx(build(texts))
    for name, text in texts_of(model).items():
        assert text is not None, name
        clean(text)
    for text in errors_of(model, texts):
        clean(text)


@settings(max_examples=15)
@given(texts=names)
def test_a_page_has_the_tags_that_it_has_with_plain_names(texts):
    plain = tieops.from_onnx(build([f"n{number}" for number in range(10)]))
    model = tieops.from_onnx(build(texts))
    assert Page(model._repr_html_()).tags == Page(plain._repr_html_()).tags


@pytest.mark.parametrize("text", NASTY)
def test_pictures_are_clean(text, tmp_path):
    model = tieops.from_onnx(build([f"{text}{number}" for number in range(10)]))
    page = tieops.render(model, tmp_path / "m.html", title=text).read_text("utf-8")
    plain = tieops.from_onnx(build([f"n{number}" for number in range(10)]))
    other = tieops.render(plain, tmp_path / "n.html", title="n").read_text("utf-8")
    assert page.count("<script") == other.count("<script")
    assert page.count("</script") == other.count("</script")
    assert set(Page(page).tags) == set(Page(other).tags)
    clean(tieops.render(model, tmp_path / "m.txt").read_text("utf-8"))
    picture = tieops.render(model, tmp_path / "m.svg", title=text).read_text("utf-8")
    assert "<script" not in picture
    assert not {c for c in picture if not c.isprintable()} - {"\n", "\t"}


def _said(*arguments: str) -> str:
    """Return what a command prints, on both streams."""
    out = io.StringIO()
    before = sys.argv
    sys.argv = ["tieops", *arguments]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            contextlib.suppress(SystemExit),
        ):
            main()
    finally:
        sys.argv = before
    return out.getvalue()


@pytest.mark.parametrize("text", NASTY)
def test_commands_print_nothing_that_a_terminal_obeys(text, tmp_path):
    (tmp_path / "m.onnx").write_bytes(
        build([f"{text}{number}" for number in range(10)]).SerializeToString()
    )
    path, tied = str(tmp_path / "m.onnx"), str(tmp_path / "tied.onnx")
    word = text.replace("\x00", "")
    said = {
        "tie": _said("tie", path, tied),
        "inspect": _said("inspect", path, "--all"),
        "json": _said("inspect", path, "--json"),
        "diff": _said("diff", path, tied),
        "check": _said("check", path, "--expect-tie", f"{word},b", "--max-duplicate-bytes", "0"),
        "untie": _said("untie", tied, str(tmp_path / "u.onnx"), "-t", word),
        "verify": _said("verify", tied, path),
        "run": _said("run", path),
        "size": _said("run", path, "--size", f"{word}=3"),
        "missing": _said("inspect", str(tmp_path / f"{word.replace('/', '')}.onnx")),
    }
    for command, printed in said.items():
        assert printed.strip(), command
        clean(printed)


@pytest.mark.slow
def test_a_name_of_ten_megabytes_is_cut(tmp_path):
    texts = [f"n{number}" for number in range(10)]
    texts[2] = "x" * 10_000_000
    model = tieops.from_onnx(build(texts), limits=tieops.Limits(name_bytes=20_000_000))
    texts = {name: text for name, text in texts_of(model).items() if not name.startswith("repr")}
    longest = {name: len(text) for name, text in texts.items() if len(text) > 100_000}
    assert not longest
    with pytest.raises(TieopsError) as caught:
        tieops.untie(model, "y" * 10_000_000)
    assert len(str(caught.value)) < 100_000


def test_escaping_twice_is_escaping_once():
    from tieops.ir.notation import printable

    for text in map("".join, itertools.product(NASTY, repeat=2)):
        assert printable(printable(text)) == printable(text)
        clean(printable(text))
