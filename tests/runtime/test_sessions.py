"""Sessions: what goes in and out, and that the provider is the one asked for."""

import ctypes
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from tieops.errors import (
    MissingDependencyError,
    PreconditionError,
    ProviderError,
    UnsupportedModelError,
)
from tieops.model import TiedModel
from tieops.runtime import Port, cuda_blocker, environment, providers, session

HEAD = '<ir_version: 10, opset_import: ["": 20, "odd": 1]> '
NEG = "f (float[n] x) => (float[n] y) { y = Neg(x) }"


def graph(text: str) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(HEAD + text)


LOOKUP = """f (int64[batch, 2] x, float[2] b) => (float[batch, 2, 2] y, float[2] z)
    <float[3, 2] w = {0, 1, 2, 3, 4, 5}> { g = Gather(w, x) y = Add(g, b) z = Neg(b) }"""


def has_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_named_arrays_in_and_out():
    with session(graph(LOOKUP), "cpu") as sess:
        out = sess.run({"b": [10.0, 20.0], "x": [[2, 0]]})
        assert list(out) == ["y", "z"]
        np.testing.assert_array_equal(out["y"], np.float32([[[14, 25], [10, 21]]]))
        assert out["y"].dtype == np.float32
        assert list(sess.run({"x": [[1, 1]], "b": [0, 0]}, ["z"])) == ["z"]
        assert sess.run({"x": [[1, 1]], "b": [0, 0]}, []) == {}
        assert sess.inputs == (
            Port("x", "int64", ("batch", 2)),
            Port("b", "float32", (2,)),
        )
        assert (sess.provider, sess.note) == ("cpu", "")
        assert sess.providers == ("CPUExecutionProvider",)
        assert repr(sess).startswith("<Session on cpu: (x: i64[batch,2], b: f32[2]) -> y: ")


def test_every_kind_of_model_runs(tmp_path):
    model = graph(LOOKUP)
    path = tmp_path / "m.onnx"
    onnx_ir.save(model, path)
    proto = onnx_ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    feeds = {"x": [[2, 0]], "b": [0.0, 0.0]}
    for each in (model, path, str(path), proto, proto.SerializeToString()):
        assert session(each, "cpu").run(feeds)["y"].ravel().tolist() == [4, 5, 0, 1]


def test_weights_outside_of_the_file_are_found(tmp_path):
    path = tmp_path / "m.onnx"
    onnx_ir.save(graph(LOOKUP), path, external_data="m.data", size_threshold_bytes=0)
    loaded = onnx_ir.load(path)
    assert isinstance(loaded.graph.initializers["w"].const_value, onnx_ir.ExternalTensor)
    for each in (path, loaded):
        assert session(each, "cpu").run({"x": [[2, 0]], "b": [0, 0]})["y"].sum() == 10
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.data", "m.onnx"]


def test_models_beyond_protobuf_are_written_with_a_data_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tieops.runtime.model_source._INLINE_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = graph("f (float[n, 100] x) => (float[n, 3] y) { y = MatMul(x, w) }")
    weight = onnx_ir.tensor(np.ones((100, 3), np.float32))
    table = onnx_ir.Value(name="w", const_value=weight)
    model.graph.register_initializer(table)
    model.graph.node(0).replace_input_with(1, table)
    with session(model, "cpu") as sess:
        assert {each.name for each in tmp_path.glob("*/*")} == {"model.onnx", "model.onnx.data"}
        assert sess.run({"x": np.ones((2, 100), np.float32)})["y"].tolist() == [[100.0] * 3] * 2
    assert table.const_value is weight


def test_a_tied_model_goes_through_the_exporter():
    with session(TiedModel(graph(LOOKUP)), "cpu") as sess:
        assert sess.run({"x": [[2, 0]], "b": [0, 0]})["y"].sum() == 10


def test_its_temporary_files_go_with_the_session(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sess = session(graph(LOOKUP), "cpu")
    assert list(tmp_path.iterdir())
    sess.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(PreconditionError, match="the session is closed"):
        sess.run({"x": [[0, 0]], "b": [0, 0]})
    with pytest.raises(UnsupportedModelError):
        session(b"not a model", "cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"x": [[0, 1]]}, "b is missing"),
        ({"x": [[0, 1]], "b": [0, 0], "c": 1}, "no input is named c"),
        ({"x": np.float32([[0, 1]]), "b": [0, 0]}, "x is float32, not int64"),
        ({"x": [[0.0, 1.0]], "b": [0, 0]}, "x is float64, not int64"),
        ({"x": [[0, 1]], "b": np.float64([0, 0])}, "b is float64, not float32"),
        ({"x": [[0, 1]], "b": np.int64([0, 0])}, "b is int64, not float32"),
        ({"x": [0, 1], "b": [0, 0]}, r"x has shape \[2\]"),
        ({"x": [[0, 1, 2]], "b": [0, 0]}, r"x has shape \[1, 3\]"),
        ({"x": [[0], [1, 2]], "b": [0, 0]}, "x setting an array element"),
    ],
)
def test_misfits_are_named_with_what_is_wanted(feeds, text):
    with pytest.raises(PreconditionError, match=text) as caught:
        session(graph(LOOKUP), "cpu").run(feeds)
    assert "inputs: x: i64[batch,2], b: f32[2]" in str(caught.value)


def test_conversions_change_no_value():
    sess = session(graph("f (int32[n] i, float[n] f) => (int32[n] j, float[n] g) "
                         "{ j = Identity(i) g = Identity(f) }"), "cpu")  # fmt: skip
    out = sess.run({"i": np.int64([-1, 2**31 - 1]), "f": np.float16([0.5, 2])})
    assert out["j"].tolist() == [-1, 2**31 - 1]
    assert out["g"].tolist() == [0.5, 2]
    for bad in (np.int64([2**31]), np.uint32([2**32 - 1])):
        with pytest.raises(PreconditionError, match="not int32"):
            sess.run({"i": bad, "f": [0.0]})


def test_an_unknown_output_is_named():
    with pytest.raises(PreconditionError, match="no output is named logits") as caught:
        session(graph(LOOKUP), "cpu").run({}, ["logits"])
    assert "y: f32[batch,2,2]" in str(caught.value)


def test_what_onnx_runtime_says_is_kept():
    with pytest.raises(PreconditionError, match="could not run") as caught:
        session(graph(LOOKUP), "cpu").run({"x": [[0, 3]], "b": [0, 0]})
    assert "indices element out of data bounds, idx=3" in str(caught.value)
    bad = graph("f (float[n] x) => (float[n] y) { y = Nonsense(x) }")
    with pytest.raises(UnsupportedModelError, match="Nonsense"):
        session(bad, "cpu")
    with pytest.raises(PreconditionError, match=r"there is no file .*missing\.onnx"):
        session("missing.onnx", "cpu")
    with pytest.raises(PreconditionError, match="cannot run a list"):
        session([], "cpu")
    with pytest.raises(PreconditionError, match="unknown provider 'gpu'"):
        session(graph(LOOKUP), "gpu")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e5m2", ml_dtypes.float8_e5m2),
        ("float16", np.float16),
        ("bool", np.bool_),
        ("uint16", np.uint16),
        ("double", np.float64),
    ],
)
def test_every_dtype_goes_through(name, dtype):
    model = graph(f"f ({name}[n, m] x, int64[k] i) => ({name}[n, m] y, int64[k] j) "
                  "{ y = Identity(x) j = Identity(i) }")  # fmt: skip
    x = np.arange(6).reshape(2, 3).astype(dtype)
    out = session(model, "cpu").run({"x": x.T, "i": [7]})
    assert out["y"].dtype == x.dtype
    assert out["y"].tobytes() == x.T.tobytes()
    assert out["j"].tolist() == [7]
    empty = session(model, "cpu").run({"x": x[:0], "i": [7]})["y"]
    assert empty.shape == (0, 3)


def test_strings_and_scalars():
    model = graph("f (string[n] s, float x) => (string[n] t, float y) "
                  "{ t = Identity(s) y = Neg(x) }")  # fmt: skip
    out = session(model, "cpu").run({"s": ["a", "été"], "x": 2.0})
    assert out["t"].tolist() == ["a", "été"]
    assert out["y"] == -2
    assert session(model, "cpu").run({"s": np.array(["b"]), "x": 2})["t"].tolist() == ["b"]


def test_an_initializer_that_is_an_input_need_not_be_fed():
    model = graph("f (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> "
                  "{ y = Add(x, w) }")  # fmt: skip
    sess = session(model, "cpu")
    assert [port.name for port in sess.inputs] == ["x"]
    assert sess.run({"x": [0, 0]})["y"].tolist() == [1, 2]
    assert sess.run({"x": [0, 0], "w": [5, 5]})["y"].tolist() == [5, 5]


def test_options_reach_onnx_runtime():
    model = graph("f (float[2] x) => (float[2] y) { a = Identity(x) b = Identity(a) y = Neg(b) }")
    options = {"session.disable_prepacking": "1"}
    sess = session(model, "cpu", options=options, optimize=False, threads=1)
    used = sess._inner.get_session_options()
    assert used.get_session_config_entry("session.disable_prepacking") == "1"
    assert used.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert used.intra_op_num_threads == 1


def test_cuda_means_cuda(capfd):
    if has_gpu():
        sess = session(graph(LOOKUP), "cuda")
        assert sess.provider == "cuda"
        assert sess.providers[0] == "CUDAExecutionProvider"
        assert sess.run({"x": [[2, 0]], "b": [0, 0]})["y"].sum() == 10
        return
    with pytest.raises(ProviderError, match="cannot run on CUDA") as caught:
        session(graph(LOOKUP), "cuda")
    assert "missing: no NVIDIA GPU was found" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_auto_says_what_it_took_and_why(capfd):
    sess = session(graph(LOOKUP))
    if has_gpu():
        assert (sess.provider, sess.note) == ("cuda", "running on the GPU")
    else:
        assert sess.provider == "cpu"
        assert sess.note == "running on the CPU: no NVIDIA GPU was found"
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_a_silent_fallback_is_caught(monkeypatch):
    # The checks beforehand find nothing; ONNX Runtime all the same runs on the CPU.
    monkeypatch.setattr("tieops.runtime.inference_session.find_blocker", lambda *_: None)
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"]
    )
    with pytest.raises(ProviderError) as caught:
        session(graph(LOOKUP), "cuda")
    text = str(caught.value)
    assert "cannot open shared object file" in text or "without a reason" in text
    sess = session(graph(LOOKUP), "auto")
    assert sess.provider == "cpu"
    assert sess.note.startswith("running on the CPU: ")


def test_a_driver_without_a_gpu_is_a_blocker(monkeypatch):
    class Driver:
        def cuInit(self, flags):
            return 100

    monkeypatch.setattr(ctypes, "CDLL", lambda name, **options: Driver())
    assert cuda_blocker() == "the NVIDIA driver shows no GPU (CUDA error 100, 0 devices)"


def test_a_missing_library_behind_the_driver_is_named(monkeypatch):
    def load(name, **options):
        if name.endswith("libonnxruntime_providers_cuda.so"):
            raise OSError("libcublasLt.so.13: cannot open shared object file")
        return Driver()

    class Driver:
        def cuInit(self, flags):
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = 1
            return 0

    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("noise"))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert cuda_blocker() == "libcublasLt.so.13: cannot open shared object file"


def test_a_library_that_only_waits_for_its_host_is_no_blocker(monkeypatch):
    def load(name):
        raise OSError("libonnxruntime_providers_cuda.so: undefined symbol: Provider_GetHost")

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert providers.library_error() is None


def test_a_build_without_cuda_is_a_blocker(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "was built without CUDA" in str(cuda_blocker())


def test_a_missing_runtime_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"tieops\[gpu\].*tieops\[cpu\]"):
        session(graph(LOOKUP))
    assert "needs onnxruntime" in environment()["cuda"]


def test_environment():
    found = environment()
    assert found["onnx"] == onnx.__version__
    assert found["onnx_ir"] == onnx_ir.__version__
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["cpu"] == "loads"
    assert found["cuda"] == ("loads" if has_gpu() else "no NVIDIA GPU was found")


def test_importing_loads_neither_onnxruntime_nor_torch():
    code = (
        "import sys, tieops.runtime, tieops.verification\n"
        "print([name for name in ('torch', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"options": 5}, "expected options to map names of configuration entries to values"),
        ({"options": {3: 4}}, "expected options to map names of configuration entries to values"),
        ({"threads": "2"}, "threads must be a non-negative integer or None, got '2'"),
        ({"threads": True}, "threads must be a non-negative integer or None, got True"),
        ({"threads": -1}, "threads must be a non-negative integer or None, got -1"),
        ({"threads": 2**40}, "threads must be a non-negative integer"),
    ],
)
def test_what_no_session_can_be_opened_with_is_refused(given, words):
    with pytest.raises(PreconditionError, match=words) as caught:
        session(graph(NEG), "cpu", **given)
    assert caught.value.fix


@pytest.mark.parametrize("feeds", [None, [1.0], np.zeros(2, np.float32), 5])
def test_feeds_without_names_are_refused(feeds):
    with pytest.raises(PreconditionError, match="expected a dict of inputs by name") as caught:
        session(graph(NEG), "cpu").run(feeds)
    assert caught.value.fix == 'pass a dict: {"x": array}'


def test_outputs_are_names_and_one_may_come_as_it_is():
    opened = session(graph(NEG), "cpu")
    assert opened.run({"x": [1.0]}, "y")["y"] == [-1.0]
    for outputs in (5, [None]):
        with pytest.raises(PreconditionError, match="expected outputs to be a list of names"):
            opened.run({"x": [1.0]}, outputs)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("f (bfloat16[n] x) => (bfloat16[n] y) { y = Relu(x) }", "no kernel on the CPU",
         "another dtype"),
        ("f (float[n] x) => (float[n] y) { y = odd.Foo(x) }", "does not know an operator",
         "export the model without it"),
        ("f (float[n] x) => (float[n] y) { y = Relu(x, x) }", "refuses the model",
         "check it with onnx.checker"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_opened_says_why(text, what, fix):
    with pytest.raises(UnsupportedModelError, match=what) as caught:
        session(graph(text), "cpu")
    assert fix in str(caught.value.fix)
