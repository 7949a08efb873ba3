"""How many copies of a tied weight there really are: each tie undone on purpose, and each kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper, parser

import tieops
from fixtures.torch_models import build
from tieops.errors import PreconditionError, UntrustedFileError
from tieops.model import TiedModel
from tieops.runtime import ResidentBytes, ledger_of
from tieops.runtime.accounting import probe
from tieops.runtime.session_config import SessionConfig

VOCAB, WIDTH = 40_000, 64
BYTES = VOCAB * WIDTH * 4
SLACK = 1_500_000
"""What an open session takes beside its weights, and what the page cache brings along."""

READERS = {
    "head": f"""g (int64[b, s] ids) => (float[b, s, {VOCAB}] y) {{
        e = Gather(w, ids)
        t = Transpose<perm = [1, 0]>(w)
        y = MatMul(e, t) }}""",
    "merged decoder": f"""g (int64[b, s] ids, bool c) => (float[b, s, {VOCAB}] y) {{
        e = Gather(w, ids)
        y = If(c) <
          then_branch = p () => (float[b, s, {VOCAB}] y1) {{
            t1 = Transpose<perm = [1, 0]>(w)
            y1 = MatMul(e, t1) }},
          else_branch = q () => (float[b, s, {VOCAB}] y2) {{
            n = Neg(e)
            t2 = Transpose<perm = [1, 0]>(w)
            y2 = MatMul(n, t2) }}> }}""",
    "autoencoder": f"""g (float[b, {VOCAB}] x) => (float[b, {VOCAB}] y) {{
        h = MatMul(x, w)
        t = Transpose<perm = [1, 0]>(w)
        y = MatMul(h, t) }}""",
}


def tied(readers: str, **changes: np.ndarray) -> TiedModel:
    proto = parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> ' + readers)
    rng = np.random.default_rng(0)
    weights = changes or {"w": rng.standard_normal((VOCAB, WIDTH), np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return tieops.from_onnx(proto)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Each model as tieops writes it, and in the form that its exporter gave it."""
    folder = tmp_path_factory.mktemp("tied")
    return {
        (case, form): tieops.to_onnx(
            tied(readers), folder / f"{case}-{form}.onnx", external_data=True, tie_form=form
        ).path
        for case, readers in READERS.items()
        for form in ("gemm", "portable")
    }


def looked_at(path: Path, memory: str, **changes: object) -> ResidentBytes:
    return ledger_of(SessionConfig(str(path), "cpu", memory, threads=1, **changes))


def kinds(found: ResidentBytes) -> list[tuple[str, str]]:
    return [(copy.kind, copy.place) for copy in found.ties[0].copies]


UNDONE = {
    ("head", "portable"): (
        "folded",
        [("original", "mapped"), ("folded", "dropped"), ("prepacked", "private")],
    ),
    ("head", "gemm"): ("prepacked", [("original", "mapped"), ("prepacked", "private")]),
    ("merged decoder", "portable"): (
        "folded",
        [("original", "mapped"), *[("folded", "private")] * 2, ("prepacked", "private")],
    ),
    ("merged decoder", "gemm"): ("prepacked", [("original", "mapped"), ("prepacked", "private")]),
    ("autoencoder", "portable"): (
        "folded",
        [("original", "dropped"), ("folded", "dropped"), *[("prepacked", "private")] * 2],
    ),
    ("autoencoder", "gemm"): (
        "prepacked",
        [("original", "dropped"), *[("prepacked", "private")] * 2],
    ),
}


@pytest.mark.parametrize("case", list(UNDONE), ids="-".join)
@pytest.mark.slow
def test_what_the_runtime_undoes_is_seen_and_counted_as_it_is_measured(files, case):
    verdict, copies = UNDONE[case]
    found = looked_at(files[case], "default")
    assert [each.verdict for each in found.ties] == [verdict]
    assert found.undone == found.ties
    assert kinds(found) == copies
    assert found.unique_bytes - BYTES <= 1000
    # Counted from the graph, measured in the process: two ways to one figure.
    assert found.measured.private_bytes == pytest.approx(found.counted_bytes("private"), abs=SLACK)
    assert found.ties[0].resident_bytes >= 2 * BYTES
    assert not found.unmeasured


@pytest.mark.parametrize("memory", ["packed", "mapped"])
@pytest.mark.parametrize("form", ["gemm", "portable"])
@pytest.mark.parametrize("case", ["head", "merged decoder"])
@pytest.mark.slow
def test_what_tieops_arranges_is_one_copy(files, case, form, memory):
    found = looked_at(files[case, form], memory)
    assert [each.verdict for each in found.ties] == ["kept"]
    assert found.undone == ()
    assert found.ties[0].resident_bytes == BYTES
    private = BYTES if memory == "packed" else 0
    assert found.measured.private_bytes == pytest.approx(private, abs=SLACK)
    assert found.measured.file_bytes <= SLACK


@pytest.mark.slow
def test_an_autoencoder_is_one_copy_mapped_and_two_packed(files):
    path = files["autoencoder", "gemm"]
    mapped, packed = looked_at(path, "mapped"), looked_at(path, "packed")
    assert [each.verdict for each in mapped.ties] == ["kept"]
    # Two operators, two layouts: packing cannot make it one.
    assert kinds(packed) == [("original", "given back"), *[("prepacked", "private")] * 2]
    assert [each.verdict for each in packed.ties] == ["prepacked"]


def test_the_transposed_copy_is_told_from_a_weight_that_only_looks_like_it(tmp_path):
    rng = np.random.default_rng(1)
    one, other = (rng.standard_normal((600, 600), np.float32) for _ in range(2))
    text = """g (int64[b] ids) => (float[b, 600] y) {
        e = Gather(w, ids)  t = Transpose<perm = [1, 0]>(w)  h = MatMul(e, t)
        u = Transpose<perm = [1, 0]>(v)  y = MatMul(h, u) }"""
    path = tieops.to_onnx(
        tied(text, w=one, v=other), tmp_path / "m.onnx", external_data=True, tie_form="portable"
    ).path
    found = looked_at(path, "default")
    copies = {each.names[0]: [c.view for c in each.copies] for each in found.parameters}
    assert copies == {"w": ["", "transpose", ""], "v": ["", "transpose", ""]}
    assert [each.is_tied for each in found.parameters] == [True, False]
    assert found.others == ()


def test_float16_becomes_float32_on_the_cpu_and_that_is_told(tmp_path):
    weight = np.random.default_rng(0).standard_normal((VOCAB, WIDTH)).astype(np.float16)
    text = READERS["head"].replace(f"float[b, s, {VOCAB}]", f"float16[b, s, {VOCAB}]")
    path = tieops.to_onnx(tied(text, w=weight), tmp_path / "m.onnx", external_data=True).path
    found = looked_at(path, "packed")
    assert [each.verdict for each in found.ties] == ["folded"]
    assert [copy.view for copy in found.ties[0].copies if copy.kind == "folded"] == ["cast f32"]
    assert found.measured.private_bytes == pytest.approx(BYTES, abs=SLACK)


def test_a_tied_convolution_in_a_blocked_layout_is_found_by_its_elements(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((256, 256, 3, 3), np.float32)
    text = """g (float[1, 256, 8, 8] x) => (float[1, 256, h, w] y) {
        e = Conv(x, c)  y = ConvTranspose(e, c) }"""
    path = tieops.to_onnx(tied(text, c=kernel), tmp_path / "m.onnx", external_data=True).path
    found = looked_at(path, "default")
    resident = [copy.kind for copy in found.ties[0].copies if copy.is_resident]
    assert len(resident) == 2
    assert found.counted_bytes("private") + found.counted_bytes("mapped") == 2 * kernel.nbytes


ELSEWHERE = {
    "loop": (
        f"""g (float[b, {WIDTH}] e, int64 n) => (float[b, {WIDTH}] y) {{
            c = Constant<value_int = 1>()
            go = Cast<to = 9>(c)
            y = Loop(n, go, e) <body = body (int64 i, bool k, float[b, {WIDTH}] s) =>
                (bool k2, float[b, {WIDTH}] s2) {{
                    k2 = Identity(k)
                    t = Transpose<perm = [1, 0]>(w)
                    z = MatMul(s, t)
                    s2 = MatMul(z, w) }}> }}""",
        3,
    ),
    "two heads": (
        f"""g (float[b, {WIDTH}] x) => (float[b, {VOCAB}] y, float[b, {VOCAB}] z) {{
            t = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, t)
            z = Gemm(x, t) }}""",
        2,
    ),
    "two equal heads": (
        f"""g (float[b, {WIDTH}] x) => (float[b, {VOCAB}] y, float[b, {VOCAB}] z) {{
            t = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, t)
            n = Neg(x)
            z = MatMul(n, t) }}""",
        1,
    ),
}


@pytest.mark.parametrize("case", list(ELSEWHERE))
@pytest.mark.slow
def test_wherever_the_readers_are_what_is_counted_is_what_is_measured(case, tmp_path):
    readers, copies = ELSEWHERE[case]
    path = tieops.to_onnx(
        tied(readers), tmp_path / "m.onnx", external_data=True, tie_form="portable"
    ).path
    found = looked_at(path, "default")
    assert found.ties[0].resident_bytes == copies * BYTES
    assert found.ties[0].verdict == ("kept" if copies == 1 else "folded")
    assert found.measured.private_bytes == pytest.approx(copies * BYTES, abs=SLACK)
    assert looked_at(path, "mapped").ties[0].verdict == "kept"


@pytest.mark.slow
def test_weights_inside_the_file_are_two_private_copies_in_every_mode(tmp_path):
    path = tieops.to_onnx(tied(READERS["head"]), tmp_path / "m.onnx", external_data=False).path
    for memory in ("packed", "mapped"):
        found = looked_at(path, memory)
        assert kinds(found) == [("original", "private"), ("prepacked", "private")]
        assert found.measured.private_bytes == pytest.approx(2 * BYTES, abs=SLACK)


def test_equal_weights_that_are_not_tied_share_the_packed_buffer(tmp_path):
    weight = np.random.default_rng(0).standard_normal((9000, 64), np.float32)
    text = """g (float[b, 64] x) => (float[b, 9000] y, float[b, 9000] z) {
        y = Gemm<transB = 1>(x, w)  z = Gemm<transB = 1>(x, v) }"""
    model = tied(text, w=weight, v=weight.copy())
    found = looked_at(
        tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True).path, "default"
    )
    assert found.ties == ()
    assert {copy.place for each in found.parameters for copy in each.copies} == {
        "dropped",
        "private",
    }
    # The kernel packs whole blocks of columns, so the last one may be padded.
    assert found.counted_bytes("private") == pytest.approx(weight.nbytes, rel=0.01)


def test_a_weight_that_is_computed_away_is_told_and_what_came_of_it(tmp_path):
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal((1000, 600), np.float32) for _ in range(2))
    text = """g (float[b, 1000] x) => (float[b, 600] y, float[b, 600] z) {
        sum = Add(one, other)  y = MatMul(x, sum)
        difference = Sub(one, other)  z = MatMul(x, difference) }"""
    model = tied(text, one=one, other=other)
    path = tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True).path
    found = looked_at(path, "default")
    assert [each.verdict for each in found.ties] == ["rewritten"] * 2
    assert {c.name for c in found.others if not c.is_packed} == {"sum", "difference"}
    assert "made by the runtime: sum\n  folded" in str(found)
    assert found.measured.private_bytes == pytest.approx(found.counted_bytes("private"), abs=SLACK)


# Sessions


@pytest.mark.slow
def test_a_session_that_is_open_is_looked_into_whatever_it_was_made_from(files):
    proto = onnx.load(files["head", "gemm"])
    graph = onnx_ir.load(files["head", "gemm"])
    model = tieops.from_onnx(files["head", "gemm"])
    for source, verdict in ((model, "kept"), (graph, "kept"), (proto, "prepacked")):
        with tieops.session(source, "cpu", threads=1) as session:
            found = tieops.resident_bytes(session)
        assert [each.verdict for each in found.ties] == [verdict]
        assert (found.provider, found.memory) == ("cpu", "packed")


@pytest.mark.slow
def test_options_and_optimize_are_those_of_the_session(files):
    path = files["head", "gemm"]
    options = {"session.disable_prepacking": "1"}
    unpacked = tieops.resident_bytes(tieops.session(path, "cpu", memory="default", options=options))
    assert kinds(unpacked) == [("original", "mapped")]
    assert unpacked.measured.private_bytes <= SLACK
    plain = looked_at(files["head", "portable"], "default", optimize=False)
    assert [copy.kind for copy in plain.ties[0].copies] == ["original"]


def test_it_prints_itself_and_goes_to_json(files):
    found = looked_at(files["head", "gemm"], "default")
    lines = str(found).splitlines()
    assert lines[0] == "on cpu, memory=default"
    assert lines[1] == "w: f32[40000,64]  prepacked, 20.5 MB of 10.2 MB"
    assert lines[2] == "  original    10.2 MB  mapped"
    assert lines[3] == "  prepacked   10.2 MB  private     Gemm"
    assert lines[-1] == "1 tie, 1 undone by the runtime"
    data = json.loads(json.dumps(found.to_dict()))
    assert data["parameters"][0]["verdict"] == "prepacked"
    assert data["counted_bytes"] == {"private": BYTES, "mapped": BYTES, "device": 0}
    assert data["measured"]["private_bytes"] > BYTES


@pytest.mark.slow
def test_a_network_of_torch(tmp_path):
    case = build("lstm", 20_000, 64)
    model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path = tieops.to_onnx(model, tmp_path / "lstm.onnx", external_data=True).path
    for memory, verdict in (("packed", "kept"), ("default", "prepacked")):
        found = looked_at(path, memory)
        assert found.ties[0].verdict == verdict
        assert found.ties[0].names[0] in str(found)


def test_nothing_is_left_behind(files, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    looked_at(files["head", "gemm"], "packed")
    assert list(tmp_path.iterdir()) == []


# What does not work is said


def test_where_there_is_no_proc_the_result_says_so(files, monkeypatch):
    monkeypatch.setattr(
        probe,
        "_CHILD",
        "import sys; sys.platform = 'darwin'; from tieops.runtime.accounting.probe import main; "
        "main(sys.argv[1])",
    )
    found = looked_at(files["head", "gemm"], "default")
    assert [each.verdict for each in found.ties] == ["prepacked"]
    assert found.measured == probe.Measured()
    assert found.unmeasured == "the process's memory: no /proc on darwin"
    assert "not measured: the process's memory: no /proc on darwin" in str(found)
    assert "measured  " not in str(found)


def test_a_closed_session_is_refused(files):
    session = tieops.session(files["head", "gemm"], "cpu")
    session.close()
    with pytest.raises(PreconditionError, match="it is closed"):
        tieops.resident_bytes(session)


def test_what_the_runtime_refuses_is_told_with_its_words(tmp_path):
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "nowhere" : 1]> '
        "g (float[n] x) => (float[n] y) { y = nowhere.Foo(x) }"
    )
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(PreconditionError, match="could not be reopened") as caught:
        looked_at(tmp_path / "m.onnx", "packed")
    assert "Foo" in str(caught.value)


def test_a_file_that_is_none_is_refused_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    (tmp_path / "no.onnx").write_bytes(b"no model at all")
    with pytest.raises(UntrustedFileError):
        looked_at(tmp_path / "no.onnx", "packed")


def test_a_process_that_dies_is_an_error_with_its_last_words(files, monkeypatch):
    monkeypatch.setattr(probe, "_CHILD", "import sys; sys.exit('no room')")
    with pytest.raises(PreconditionError, match="in a separate process") as caught:
        looked_at(files["head", "gemm"], "packed")
    assert "it says: no room" in str(caught.value)
    assert sys.executable not in str(caught.value)


def test_a_session_whose_file_was_replaced_is_not_told_of(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    tieops.to_onnx(tied(READERS["head"]), path, external_data=True)
    with tieops.session(path, "cpu") as session:
        assert tieops.resident_bytes(session).ties
        tieops.to_onnx(tieops.untie(tied(READERS["head"])), path, external_data=True)
        with pytest.raises(PreconditionError, match="its file was replaced"):
            tieops.resident_bytes(session)
        assert session.run({"ids": [[1]]})["y"].shape == (1, 1, VOCAB)
