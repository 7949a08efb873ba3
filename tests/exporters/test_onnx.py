"""To ONNX: one stored copy on the disk, and an old file that is whole whatever happens."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

import tieops
from tests.support.files import files
from tests.support.heads import RNG, ids, tied_head, weight_of
from tieops.errors import ExportError, PostconditionError
from tieops.exporters import model_files
from tieops.exporters.layout import PAGE_ALIGNED_FROM, PAGE_BYTES

# What is written


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize("tie_form", ["gemm", "portable"])
def test_a_tied_weight_is_on_the_disk_once(external_data, tie_form, tmp_path):
    model = tied_head()
    written = tieops.to_onnx(
        model, tmp_path / "m.onnx", external_data=external_data, tie_form=tie_form
    )
    weight = weight_of(model)
    raw = b"".join((tmp_path / name).read_bytes() for name in files(tmp_path))
    assert raw.count(weight.tobytes()) == 1
    assert raw.count(weight.T.tobytes()) == 0
    assert files(tmp_path) == (["m.onnx", "m.onnx.data"] if external_data else ["m.onnx"])
    assert written.data_path == (tmp_path / "m.onnx.data" if external_data else None)
    assert written.file_bytes == len(raw)
    assert weight.nbytes <= written.stored_bytes <= weight.nbytes + 64
    assert os.fspath(written) == str(tmp_path / "m.onnx")
    assert str(written).startswith(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize("tie_form", ["gemm", "portable"])
def test_other_readers_take_what_is_written(external_data, tie_form, tmp_path):
    model = tied_head(bias=True)
    path = tmp_path / "m.onnx"
    tieops.to_onnx(model, path, external_data=external_data, tie_form=tie_form)
    onnx.checker.check_model(path, full_check=True)
    loaded = onnx.load(path)
    stored = {each.name: each for each in loaded.graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(stored["w"]), weight_of(model))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": ids(2, 3)})
    assert found.shape == (2, 3, 200)
    assert tieops.verify(path, against=model, rtol=1e-4)


def test_large_tensors_begin_on_a_page_and_small_ones_stay_inside(tmp_path):
    model = tied_head(PAGE_ALIGNED_FROM // 64 + 1, 16, bias=True)
    path = tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True).path
    proto = onnx.load(path, load_external_data=False)
    entries = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }
    assert set(entries) == {"w", "b"}
    for name, entry in entries.items():
        array = weight_of(model, name)
        offset = int(entry["offset"])
        assert offset % (PAGE_BYTES if array.nbytes >= PAGE_ALIGNED_FROM else 64) == 0
        assert int(entry["length"]) == array.nbytes
        with (tmp_path / entry["location"]).open("rb") as file:
            file.seek(offset)
            assert file.read(array.nbytes) == array.tobytes()
    inside = [t for t in proto.graph.initializer if t.name not in entries]
    assert all(len(tensor.raw_data) < 1024 for tensor in inside)


def test_data_goes_into_a_file_from_16_mb_on(tmp_path):
    small = tieops.to_onnx(tied_head(1000, 1000), tmp_path / "small.onnx")
    large = tieops.to_onnx(tied_head(4100, 1000), tmp_path / "large.onnx")
    assert small.data_path is None
    assert large.data_path == tmp_path / "large.onnx.data"
    assert large.file_bytes < 1.01 * large.stored_bytes
    forced = tieops.to_onnx(tied_head(4100, 1000), tmp_path / "inline.onnx", external_data=False)
    assert forced.data_path is None


def test_tensors_that_share_a_range_in_the_source_share_one_in_the_target(tmp_path):
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 32] x) => (float[n, 32] y) { h = MatMul(x, a)  y = MatMul(h, b) }""")
    for name in "ab":
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[32, 32])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "w.bin", "offset": "64", "length": "4096"}.items():
            tensor.external_data.add(key=key, value=value)
        proto.graph.initializer.append(tensor)
    weight = RNG.standard_normal(1024).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(bytes(64) + weight.tobytes())
    model = tieops.from_onnx(proto, base_dir=tmp_path)
    written = tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True)
    assert written.stored_bytes == weight.nbytes
    assert written.data_path is not None
    assert written.data_path.read_bytes().count(weight.tobytes()) == 1
    again = onnx.load(written.path, load_external_data=False)
    assert len({str(sorted(map(str, t.external_data))) for t in again.graph.initializer}) == 1
    assert [t.name for t in again.graph.initializer] == ["a", "b"]
    loaded = tieops.from_onnx(written)
    assert loaded.ledger.stored_bytes == weight.nbytes
    onnx.save(proto, tmp_path / "source.onnx")
    assert tieops.verify(written, against=tmp_path / "source.onnx", rtol=0, atol=0)


def test_names_and_evidence_survive_other_tools(tmp_path):
    model = tieops.tie(tied_copies(), "a", "b")
    path = tmp_path / "m.onnx"
    tieops.to_onnx(model, path)
    onnx.save(onnx.load(path), tmp_path / "by onnx.onnx")
    onnx_ir.save(onnx_ir.load(path), tmp_path / "by onnx_ir.onnx")
    for other in ("by onnx.onnx", "by onnx_ir.onnx"):
        (tie,) = tieops.from_onnx(tmp_path / other).ties
        assert tie.names == ("a", "b")
        assert str(tie.evidence) == "declared"
    assert {p.key for p in onnx.load(path).metadata_props} >= {"tieops.version"}


def tied_copies() -> tieops.TiedModel:
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[n, 32] x) => (float[n, 32] y) { h = MatMul(x, a)  y = MatMul(h, b) }""")
    weight = RNG.standard_normal((32, 32)).astype(np.float32)
    for name, array in (("a", weight), ("b", weight)):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return tieops.from_onnx(proto)


def test_the_model_is_left_alone(tmp_path):
    model = tied_head(bias=True)
    before = onnx_ir.to_proto(model.ir).SerializeToString(deterministic=True)
    tieops.to_onnx(model, tmp_path / "a.onnx", external_data=True)
    tieops.to_onnx(model, tmp_path / "b.onnx")
    assert onnx_ir.to_proto(model.ir).SerializeToString(deterministic=True) == before


def test_the_same_model_is_written_as_the_same_bytes(tmp_path):
    model = tied_head()
    one = tieops.to_onnx(model, tmp_path / "a.onnx").path.read_bytes()
    other = tieops.to_onnx(model, tmp_path / "b.onnx").path.read_bytes()
    assert one == other


# The form of the tied read


@pytest.mark.parametrize("shape", ["n", "n, s", "n, s, t", "2, 3", "2, s", "n, 3"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_tied_head_is_a_gemm_for_any_rank(shape, bias, dtype, tmp_path):
    model = tied_head(64, 8, shape=shape, bias=bias, dtype=dtype)
    path = tieops.to_onnx(model, tmp_path / "m.onnx").path
    onnx.checker.check_model(path, full_check=True)
    again = tieops.from_onnx(path)
    operators = [node.op_type for node in again.ir.graph]
    assert operators.count("Gemm") == 1
    assert "Transpose" not in operators
    assert "MatMul" not in operators
    (tie,) = again.ties
    assert len(tie.slots) == 2
    (out,), (was,) = again.ir.graph.outputs, model.ir.graph.outputs
    assert (out.name, str(out.shape), out.dtype) == (was.name, str(was.shape), was.dtype)
    loose = {"rtol": 1e-2, "atol": 1e-2} if dtype == np.float16 else {"rtol": 1e-4}
    assert tieops.verify(path, against=model, **loose)


@pytest.mark.parametrize("shape", ["n", "n, 3", "n, s", "n, s, t", "2, s"])
def test_an_empty_batch_has_the_shape_that_the_portable_form_gives(shape, tmp_path):
    model = tied_head(64, 8, shape=shape)
    sizes = [0 if name.strip().isalpha() else int(name) for name in shape.split(",")]
    found = []
    for form in ("gemm", "portable"):
        path = tieops.to_onnx(model, tmp_path / f"{form}.onnx", tie_form=form).path
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {"x": np.zeros(sizes, np.int64)})
        found.append(output.shape)
    assert found == [(*sizes, 64)] * 2


def test_the_portable_form_is_the_model_as_it_was(tmp_path):
    model = tied_head(bias=True)
    path = tieops.to_onnx(model, tmp_path / "m.onnx", tie_form="portable").path
    operators = [node.op_type for node in tieops.from_onnx(path).ir.graph]
    assert operators == ["Gather", "Transpose", "MatMul", "Add"]
    source = onnx_ir.to_proto(model.ir)
    assert tieops.verify(path, against=source, rtol=0, atol=0, optimize=False)


def test_an_unknown_form_is_refused(tmp_path):
    with pytest.raises(ExportError, match="unknown tie form 'gem'") as caught:
        tieops.to_onnx(tied_head(), tmp_path / "m.onnx", tie_form="gem")
    assert "known: gemm, portable" in str(caught.value)
    assert files(tmp_path) == []


# Saving over something


@pytest.mark.parametrize("external_data", [False, True])
def test_saving_over_the_own_source(external_data, tmp_path):
    path = tmp_path / "m.onnx"
    first = tied_head()
    weight = weight_of(first).copy()
    tieops.to_onnx(first, path, external_data=external_data)
    for _ in range(3):
        model = tieops.from_onnx(path)
        held = model.parameters[0].numpy()
        written = tieops.to_onnx(tieops.tie(model), path, external_data=external_data)
        np.testing.assert_array_equal(held, weight)  # what was mapped can still be read
        np.testing.assert_array_equal(model.parameters[0].numpy(), weight)
        assert len(files(tmp_path)) == (2 if external_data else 1)
        assert written.stored_bytes >= weight.nbytes
        np.testing.assert_array_equal(tieops.from_onnx(path).parameters[0].numpy(), weight)
    assert tieops.verify(path, against=first, rtol=1e-4)


def test_saving_over_another_tools_data_leaves_that_data(tmp_path):
    model = tied_head(bias=True)
    proto = onnx_ir.to_proto(model.ir)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin")
    theirs = (tmp_path / "weights.bin").read_bytes()
    source = tieops.from_onnx(tmp_path / "m.onnx")
    tieops.to_onnx(source, tmp_path / "m.onnx", external_data=True)
    assert (tmp_path / "weights.bin").read_bytes() == theirs
    assert tieops.verify(tmp_path / "m.onnx", against=model, rtol=1e-4)


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "m.onnx").symlink_to(victim)
    (tmp_path / "m.onnx.data").symlink_to(victim)
    os.link(victim, tmp_path / "hard.onnx")
    for name in ("m.onnx", "hard.onnx"):
        tieops.to_onnx(tied_head(), tmp_path / name, external_data=True)
        assert not (tmp_path / name).is_symlink()
        assert len(tieops.from_onnx(tmp_path / name).ties) == 1
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "m.onnx.data").is_symlink()


def test_no_data_file_of_another_model_is_touched(tmp_path):
    other = tmp_path / "m.onnx.data"
    other.write_bytes(b"of another model")
    written = tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True)
    assert other.read_bytes() == b"of another model"
    assert written.data_path == tmp_path / "m.onnx.1.data"
    assert len(tieops.from_onnx(written).ties) == 1


# When it does not work


def broken(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("external_data", [False, True])
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("at", ["write_data", "_check_written", "os.fsync", "Path.replace"])
def test_an_error_in_the_middle_leaves_the_old_file(
    at, exists, external_data, monkeypatch, tmp_path
):
    if at == "write_data" and not external_data:
        at = "os.fsync"
    path = tmp_path / "m.onnx"
    if exists:
        tieops.to_onnx(tied_head(), path, external_data=external_data)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with monkeypatch.context() as patch:
        if at == "os.fsync":
            patch.setattr(os, "fsync", broken)
        elif at == "Path.replace":
            patch.setattr(Path, "replace", broken)
        else:
            patch.setattr(model_files, at, broken)
        with pytest.raises(ExportError) as caught:
            tieops.to_onnx(tied_head(), path, external_data=external_data)
    text = str(caught.value)
    assert text.startswith(f"cannot write {path}")
    assert "the system says: No space left on device" in text
    assert "existing files are unchanged" in text
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_an_interrupt_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "m.onnx"
    tieops.to_onnx(tied_head(), path, external_data=True)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_files, "_check_written", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tieops.to_onnx(tied_head(), path, external_data=True)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_what_was_written_is_read_again_before_it_replaces_anything(monkeypatch, tmp_path):
    path = tmp_path / "m.onnx"
    tieops.to_onnx(tied_head(), path)
    before = path.read_bytes()
    original = onnx_ir.to_proto

    def lossy(model: Any) -> Any:
        proto = original(model)
        proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
        return proto

    monkeypatch.setattr(model_files.onnx_ir, "to_proto", lossy)
    with pytest.raises(PostconditionError, match="a model that it cannot read"):
        tieops.to_onnx(tied_head(), path)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["m.onnx"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="cannot write") as caught:
        tieops.to_onnx(tied_head(), tmp_path / "none" / "m.onnx")
    assert "the system says: No such file or directory" in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path):
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(ExportError, match="cannot write"):
        tieops.to_onnx(tied_head(), tmp_path / "m.onnx")
    assert files(tmp_path) == ["m.onnx"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    # /proc takes no new files, not even from root, to whom a folder's mode means nothing.
    del tmp_path
    with pytest.raises(ExportError, match=r"cannot write /proc/m\.onnx"):
        tieops.to_onnx(tied_head(), Path("/proc/m.onnx"))


CHILD = """
import resource, signal, sys
from pathlib import Path
import tieops
from tieops.errors import ExportError

path, limit, external = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
model = tieops.from_onnx(path)
print("ready", flush=True)
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        tieops.to_onnx(model, path, external_data=external)
    except ExportError as error:
        print(error)
        sys.exit(0)
    sys.exit(3)
while True:
    tieops.to_onnx(tieops.tie(tieops.from_onnx(path)), path, external_data=external)
"""


def child(path: Path, limit: int, external: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(path), str(limit), str(external)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("external_data", [False, True])
def test_a_full_disk_leaves_the_old_file(external_data, tmp_path):
    path = tmp_path / "m.onnx"
    tieops.to_onnx(tied_head(2000, 64), path, external_data=external_data)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    process = child(path, 100_000, external_data)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "cannot write" in out
    assert "the system says: File too large" in out
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    killed_at_any_moment(tmp_path, external_data=False)


def killed_at_any_moment(tmp_path: Path, *, external_data: bool) -> None:
    path = tmp_path / "m.onnx"
    model = tied_head(2000, 64)
    weight = weight_of(model)
    tieops.to_onnx(model, path, external_data=external_data)
    delays = random.Random(0)
    for _ in range(20):
        process = child(path, 0, external_data)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delays.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        again = tieops.from_onnx(path)
        np.testing.assert_array_equal(again.parameters[0].numpy(), weight)
        assert len(again.ties) == 1
    # And what the killed ones left behind is in nobody's way.
    tieops.to_onnx(model, path, external_data=external_data)
    assert tieops.verify(path, against=model, rtol=1e-4)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_file_and_its_data(tmp_path):
    killed_at_any_moment(tmp_path, external_data=True)


def test_the_data_has_one_link_when_the_model_appears(tmp_path, monkeypatch):
    """Readers refuse data with two hard links: a kill at this moment must not leave them."""
    links = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        links.append((tmp_path / "m.onnx.data").stat().st_nlink)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True)
    assert links == [1]


def test_data_with_two_hard_links_is_refused_by_name_or_read(tmp_path):
    model = tied_head()
    tieops.to_onnx(model, tmp_path / "m.onnx", external_data=True)
    os.link(tmp_path / "m.onnx.data", tmp_path / "other")
    try:
        again = tieops.from_onnx(tmp_path / "m.onnx")
    except tieops.TieopsError:
        return
    np.testing.assert_array_equal(again.parameters[0].numpy(), weight_of(model))


@pytest.mark.parametrize("external_data", [None, False])
def test_external_data_of_a_small_model_comes_along_inline(external_data, tmp_path):
    model = tied_head()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tieops.to_onnx(model, tmp_path / "a" / "m.onnx", external_data=True)
    source = tieops.from_onnx(tmp_path / "a" / "m.onnx")
    tieops.to_onnx(source, tmp_path / "b" / "m.onnx", external_data=external_data)
    proto = onnx.load(tmp_path / "b" / "m.onnx", load_external_data=False)
    assert not any(t.external_data for t in proto.graph.initializer)
    tieops.to_onnx(source, tmp_path / "a" / "n.onnx", external_data=external_data)
    proto = onnx.load(tmp_path / "a" / "n.onnx", load_external_data=False)
    assert not any(t.external_data for t in proto.graph.initializer)


def test_a_small_model_with_external_data_runs_and_verifies(tmp_path):
    tieops.to_onnx(tied_head(), tmp_path / "m.onnx", external_data=True)
    model = tieops.from_onnx(tmp_path / "m.onnx")
    assert tieops.verify(model, against=tmp_path / "m.onnx")


@pytest.mark.parametrize(("inputs", "version"), [("float[2] x", 4), ("float[2] x, float[2] w", 3)])
def test_an_initializer_that_is_no_input_needs_a_newer_version(inputs, version, tmp_path):
    """An example of ONNX Runtime's own says 3 without the inputs that 3 asks for."""
    proto = parser.parse_model(
        f'<ir_version: 3, opset_import: ["" : 7]> g ({inputs}) => (float[2] y) {{ y = Mul(x, w) }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    written = tieops.to_onnx(tieops.from_onnx(proto), tmp_path / "m.onnx")
    onnx.checker.check_model(str(written.path))
    assert onnx.load(written.path).ir_version == version
