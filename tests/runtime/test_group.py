"""Sessions that share: the same outputs, whatever they share and whichever goes first."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
from onnx import parser

import tieops
from fixtures.torch_models import build
from tests.support.graphs import stored, weight
from tests.support.heads import decoder, encoder
from tieops.errors import PreconditionError, ProviderError, UnsupportedModelError
from tieops.runtime.memory import shared_weights
from tieops.runtime.providers import Blocker

MODES = ("packed", "mapped", "default")


def ran(sessions: Any, vocab: int) -> np.ndarray[Any, Any]:
    """Run the encoder, then the decoder on what it gives."""
    ids = np.random.default_rng(3).integers(0, vocab, (2, 3))
    memory = sessions["encoder"].run({"ids": ids})["y"]
    return sessions["decoder"].run({"ids": ids, "memory": memory})["y"]


# What is computed.


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("form", ["gemm", "portable"])
@pytest.mark.parametrize("optimize", [True, False])
def test_outputs_are_those_of_separate_sessions(
    memory: Any, form: str, optimize: bool, tmp_path: Path
) -> None:
    table = weight(3000, 64)
    paths = {}
    for name, each in {"encoder": encoder(table), "decoder": decoder(table)}.items():
        path = tmp_path / f"{name}.onnx"
        paths[name] = tieops.to_onnx(each, path, external_data=True, tie_form=form).path
    together = tieops.sessions(paths, "cpu", memory=memory, optimize=optimize)
    apart = {
        name: tieops.session(path, "cpu", memory="default", optimize=optimize)
        for name, path in paths.items()
    }
    assert len(together.shared) == (0 if memory == "default" else 1)
    for name, session in together.items():
        assert [port.name for port in session.inputs] == [p.name for p in apart[name].inputs]
    # Mapped weights are not packed, and what is not packed is added in another order.
    np.testing.assert_allclose(ran(together, 3000), ran(apart, 3000), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.slow
def test_every_kind_of_model_can_share(memory: Any, tmp_path: Path) -> None:
    table = weight(3000, 64)
    one, other = encoder(table), decoder(table, "lm_head")
    proto = onnx_ir.to_proto(other.ir)
    path = tieops.to_onnx(one, tmp_path / "encoder.onnx", external_data=False).path
    wanted = ran({"encoder": tieops.session(one), "decoder": tieops.session(other)}, 3000)
    for first, second in itertools.product(
        (one, path, str(path), path.read_bytes(), one.ir), (other, proto, proto.SerializeToString())
    ):
        group = tieops.sessions({"encoder": first, "decoder": second}, "cpu", memory=memory)
        assert [str(each) for each in group.shared] == (
            [] if memory == "default" else ["f32[3000,64]: table in encoder, lm_head in decoder"]
        )
        np.testing.assert_allclose(ran(group, 3000), wanted, rtol=1e-5, atol=1e-6)
        assert group["encoder"].model is first


@pytest.mark.parametrize("given", ["paths", "inside", "TiedModels"])
@pytest.mark.parametrize("memory", ["packed", "mapped"])
@pytest.mark.slow
def test_models_that_were_read_with_raised_limits_share(
    memory: Any, given: str, tmp_path: Path
) -> None:
    table, raised = weight(5000, 64), tieops.Limits(name_bytes=100_000, hard_links=True)
    models: dict[str, Any] = {}
    for name, each in {"encoder": encoder(table), "decoder": decoder(table)}.items():
        next(iter(each.ir.graph)).name = "n" * 70_000
        path = tmp_path / f"{name}.onnx"
        written = tieops.to_onnx(each, path, external_data=given != "inside")
        if written.data_path is not None:
            (tmp_path / f"{name}.other").hardlink_to(written.data_path)
        models[name] = each if given == "TiedModels" else written.path
    limits = None if given == "TiedModels" else raised
    together = tieops.sessions(models, "cpu", memory=memory, limits=limits)
    (shared,) = together.shared
    assert shared.nbytes == table.nbytes
    assert not tieops.resident_bytes(together["decoder"]).undone
    apart = {name: tieops.session(each, "cpu", memory="default") for name, each in models.items()}
    np.testing.assert_allclose(ran(together, 5000), ran(apart, 5000), rtol=1e-5, atol=1e-6)


def test_a_name_alone_merges_nothing(tmp_path: Path) -> None:
    tables = weight(3000, 64), weight(3000, 64)
    tables[1][-1, -1] = np.nextafter(tables[1][-1, -1], np.float32(1))
    tables[1][0, 0] = 7
    made = {"encoder": encoder(tables[0]), "decoder": decoder(tables[1])}
    group = tieops.sessions(made, "cpu", memory="mapped")
    assert group.shared == ()
    apart = {name: tieops.session(each, "cpu") for name, each in made.items()}
    np.testing.assert_allclose(ran(group, 3000), ran(apart, 3000), rtol=1e-5, atol=1e-6)


def test_other_dtypes_and_shapes_are_not_the_same_weight() -> None:
    table = weight(3000, 64)
    zeros = np.zeros((3000, 64), np.float32)
    wide = stored("(int64[n] x) => (double[n, 64] y) { y = Gather(t, x) }", t=table.astype(float))
    tall = stored("(int64[n] x) => (float[n, 3000] y) { y = Gather(t, x) }", t=table.T.copy())
    minus = stored("(int64[n] x) => (float[n, 64] y) { y = Gather(t, x) }", t=-zeros)
    plus = stored("(int64[n] x) => (float[n, 64] y) { y = Gather(t, x) }", t=zeros)
    same = stored("(int64[n] x) => (float[n, 64] y) { y = Gather(u, x) }", u=table)
    group = tieops.sessions(
        {"a": same, "b": wide, "c": tall, "d": minus, "e": plus}, "cpu", memory="mapped"
    )
    assert group.shared == ()
    assert np.signbit(group["d"].run({"x": [1]})["y"]).all()
    assert not np.signbit(group["e"].run({"x": [1]})["y"]).any()


@pytest.mark.parametrize("name", ["gpt2", "t5", "lstm"])
@pytest.mark.slow
def test_real_models_with_every_weight_shared(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_weights, "MIN_SHARED_BYTES", 512)
    case = build(name, 300, 32)
    source = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    path = tieops.to_onnx(source, tmp_path / "m.onnx", external_data=True).path
    feeds = {each: tensor.numpy() for each, tensor in case.inputs.items()}
    wanted = tieops.session(path, "cpu", memory="default").run(feeds)
    for memory in ("packed", "mapped"):
        group = tieops.sessions({"a": path, "b": source}, "cpu", memory=memory)
        assert sum(each.nbytes for each in group.shared) >= 0.7 * source.ledger.stored_bytes
        for session in group.values():
            for output, array in session.run(feeds).items():
                np.testing.assert_allclose(array, wanted[output], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", MODES)
def test_models_of_different_opsets(memory: Any) -> None:
    table = weight(3000, 64)
    made = {"encoder": encoder(table, opset=13), "decoder": decoder(table, opset=21)}
    group = tieops.sessions(made, "cpu", memory=memory)
    wanted = ran({name: tieops.session(each, "cpu") for name, each in made.items()}, 3000)
    np.testing.assert_allclose(ran(group, 3000), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", ["packed", "mapped"])
def test_quantized_tables_stay_constants(memory: Any) -> None:
    """A quantized table in both, and the head that multiplies by it in one."""
    table = np.random.default_rng(0).integers(-127, 127, (3000, 64)).astype(np.int8)
    look = "e = Gather(q, ids)  f = DequantizeLinear(e, scale)"
    one = stored(
        f"(int64[n] ids) => (float[n, 64] f) <float scale = {{0.1}}> {{ {look} }}", q=table
    )
    other = stored(
        f"""(int64[n] ids) => (float[n, 3000] y) <float scale = {{0.1}}> {{ {look}
        w = DequantizeLinear(q, scale)  t = Transpose<perm = [1, 0]>(w)  y = MatMul(f, t) }}""",
        q=table,
    )
    group = tieops.sessions({"one": one, "other": other}, "cpu", memory=memory)
    assert [str(each) for each in group.shared] == ["i8[3000,64]: q in one, q in other"]
    for name, each in {"one": one, "other": other}.items():
        found = group[name].run({"ids": [1, 5]})
        wanted = tieops.session(each, "cpu", memory="default").run({"ids": [1, 5]})
        for output, array in wanted.items():
            np.testing.assert_allclose(found[output], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", MODES)
def test_a_shared_weight_that_is_an_output_and_one_that_is_an_input(memory: Any) -> None:
    table = weight(3000, 64)
    out = stored(
        "(int64[n] x) => (float[n, 64] y, float[3000, 64] t) { y = Gather(t, x) }", t=table
    )
    fed = stored(
        "(int64[n] x, float[3000, 64] t) => (float[n, 64] y) { y = Gather(t, x) }", t=table
    )
    plain = stored("(int64[n] x) => (float[n, 64] y) { y = Gather(t, x) }", t=table)
    group = tieops.sessions({"out": out, "fed": fed, "plain": plain}, "cpu", memory=memory)
    np.testing.assert_array_equal(group["out"].run({"x": [1]})["t"], table)
    ones = np.ones_like(table)
    assert group["fed"].run({"x": [1], "t": ones})["y"].sum() == 64
    np.testing.assert_array_equal(group["fed"].run({"x": [1]})["y"], table[[1]])
    np.testing.assert_array_equal(group["plain"].run({"x": [1]})["y"], table[[1]])


# How long it lives.


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("kind", ["file", "model"])
def test_each_session_can_go_before_the_others(memory: Any, kind: str, tmp_path: Path) -> None:
    table = weight(3000, 64)
    made: dict[str, Any] = {"encoder": encoder(table), "decoder": decoder(table)}
    if kind == "file":
        for name, each in made.items():
            made[name] = tieops.to_onnx(each, tmp_path / f"{name}.onnx", external_data=True).path
    feeds = {"ids": [[1, 2]], "memory": np.zeros((1, 2, 64), np.float32)}
    group = tieops.sessions(made, "cpu", memory=memory)
    wanted = group["decoder"].run(feeds)["y"]
    group["encoder"].close()
    with pytest.raises(PreconditionError, match="the session is closed"):
        group["encoder"].run({"ids": [[1]]})
    np.testing.assert_array_equal(group["decoder"].run(feeds)["y"], wanted)
    last = group["decoder"]
    del group
    gc.collect()
    np.testing.assert_array_equal(last.run(feeds)["y"], wanted)


def test_a_with_block_closes_them_all_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = weight(3000, 64)
    with tieops.sessions({"encoder": encoder(table), "decoder": decoder(table)}, "cpu") as group:
        assert len(list(tmp_path.iterdir())) == 1
        assert list(group) == ["encoder", "decoder"]
        assert repr(group) == ("<Sessions on cpu: encoder, decoder; they share 1 weight, 768 kB>")
    for session in group.values():
        with pytest.raises(PreconditionError, match="the session is closed"):
            session.run({})
    assert list(tmp_path.iterdir()) == []


def test_threads_run_the_sessions_at_once() -> None:
    table = weight(3000, 64)
    group = tieops.sessions(
        {"encoder": encoder(table), "decoder": decoder(table)}, "cpu", memory="mapped", threads=1
    )
    wanted = ran(group, 3000)
    found: list[np.ndarray[Any, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.extend(ran(group, 3000) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(np.array_equal(each, wanted) for each in found)


@pytest.mark.parametrize("memory", ["packed", "mapped"])
@pytest.mark.parametrize("how", ["replace", "overwrite"])
def test_a_file_that_was_replaced_is_read_again(memory: Any, how: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    feeds = {"ids": [[1, 2]], "memory": np.zeros((1, 2, 64), np.float32)}
    data = tieops.to_onnx(decoder(weight(20_000, 64)), path, external_data=True).data_path
    assert data is not None
    old = tieops.session(path, "cpu", memory=memory)
    before = old.run(feeds)["y"]
    changed = tmp_path / "other.onnx"
    table = weight(20_000, 64, seed=9)
    source = tieops.to_onnx(decoder(table), changed, external_data=True).data_path
    assert source is not None
    if how == "replace":
        os.replace(source, data)
    else:
        data.write_bytes(source.read_bytes())
    new = tieops.session(path, "cpu", memory=memory)
    wanted = tieops.session(decoder(table), "cpu", memory="default").run(feeds)["y"]
    np.testing.assert_allclose(new.run(feeds)["y"], wanted, rtol=1e-5, atol=1e-6)
    if how == "replace":
        np.testing.assert_array_equal(old.run(feeds)["y"], before)


# What is refused.


@pytest.mark.parametrize("models", [{}, None, ["m.onnx"], "m.onnx"])
def test_no_models_no_sessions(models: Any) -> None:
    with pytest.raises(PreconditionError, match=r"at least one model|models by name"):
        tieops.sessions(models, "cpu")


def test_what_is_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    good = encoder(weight(100, 8))
    with pytest.raises(PreconditionError, match="unknown memory mode 'one'"):
        tieops.sessions({"a": good}, "cpu", memory="one")  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="unknown provider 'tpu'"):
        tieops.sessions({"a": good}, "tpu")  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="expected names that are strings, got 7"):
        tieops.sessions({7: good}, "cpu")  # type: ignore[dict-item]
    with pytest.raises(PreconditionError, match="there is no file"):
        tieops.sessions({"a": good, "b": tmp_path / "none.onnx"}, "cpu")
    opsets = '"" : 20, "other.domain" : 1'
    odd = tieops.from_onnx(
        parser.parse_model(f"""<ir_version: 8, opset_import: [{opsets}]>
            g (float[n] x) => (float[n] y) {{ y = other.domain.Odd(x) }}""")
    )
    with pytest.raises(
        UnsupportedModelError, match="does not know an operator of the model"
    ) as caught:
        tieops.sessions({"a": good, "odd": odd}, "cpu")
    assert "session: odd" in str(caught.value)
    del caught
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_cuda_means_cuda_and_auto_says_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"a": encoder(weight(3000, 64)), "b": encoder(weight(3000, 64))}
    for blocker in (Blocker("no NVIDIA GPU was found", "use another machine"), None):
        # None: the checks beforehand find nothing, and yet nothing can be uploaded.
        monkeypatch.setattr("tieops.runtime.group.find_blocker", lambda *_, found=blocker: found)
        with pytest.raises(ProviderError, match="the model cannot run on CUDA"):
            tieops.sessions(models, "cuda")
        group = tieops.sessions(models, "auto", memory="default")
        assert [session.provider for session in group.values()] == ["cpu", "cpu"]
        assert all(session.note.startswith("running on the CPU: ") for session in group.values())
        assert group.shared == ()
        assert len(tieops.sessions(models).shared) == 1


def test_an_uploaded_value_is_handed_over_as_a_reference() -> None:
    """What the sessions on CUDA rest upon, shown on the CPU: owned memory is refused, and lives."""
    array = weight(3, 4)
    owner = ort.OrtValue.ortvalue_from_shape_and_type([3, 4], np.float32)
    owner.update_inplace(array)
    settings = ort.SessionOptions()
    with pytest.raises(RuntimeError, match="must be owned by the user"):
        settings.add_initializer("t", owner)
    value = ort.OrtValue.from_dlpack(owner)
    assert value.data_ptr() == owner.data_ptr()
    del owner
    gc.collect()
    settings.add_initializer("t", value)
    look = stored("(int64[n] x) => (float[n, 4] y) { y = Gather(t, x) }", t=np.zeros_like(array))
    session = ort.InferenceSession(onnx_ir.to_proto(look.ir).SerializeToString(), settings)
    np.testing.assert_array_equal(session.run(None, {"x": np.arange(3)})[0], array)


def test_the_group_is_a_mapping_that_cannot_be_changed() -> None:
    group = tieops.sessions({"a": encoder(weight(100, 8))}, "cpu")
    assert len(group) == 1
    assert "a" in group
    assert group.get("b") is None
    with pytest.raises(TypeError):
        group["b"] = group["a"]  # type: ignore[index]
