"""Which nodes run on CUDA, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_cuda import FakeCuda
from tests.support.files import written
from tests.support.graphs import stored, weight
from tests.support.heads import head
from tieops.runtime.placement import PlacedNode, Placement

OPENED = """
import warnings, tieops
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    try:
        session = tieops.session(sys.argv[1], sys.argv[2])
    except tieops.TieopsError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit()
print(json.dumps({
    "provider": session.provider, "note": session.note, "placement": str(session.placement()),
    "fell": [[node.op_type, node.computes_shapes] for node in session.placement().fell],
    "said": [[str(each.message), each.filename] for each in said],
}))
"""
GRU = "y, h = GRU<hidden_size = 4>(x, w, r)"


@pytest.fixture
def gru(tmp_path: Path) -> Path:
    """A network with a GRU that CUDA has no kernel for, and another node."""
    text = f"(float[a, b, 3] x) => (float[a, 1, b, 4] z) {{ {GRU} z = Neg(y) }}"
    model = stored(text, w=weight(1, 12, 3), r=weight(1, 12, 4))
    return written(model, tmp_path / "gru.onnx")[0]


@pytest.mark.fake_cuda
def test_nodes_that_compute_shapes_fall_on_purpose_and_are_listed_as_such(
    cuda: FakeCuda, tmp_path: Path
):
    found = cuda.run(OPENED, written(head(20, 4), tmp_path / "m.onnx")[0], "cuda")
    assert (found["provider"], found["note"], found["said"]) == ("cuda", "", [])
    assert found["fell"]
    assert all(of_shapes for _, of_shapes in found["fell"])
    assert "on the CPU on purpose, for they compute shapes:\n  " in found["placement"]
    assert "not on CUDA" not in found["placement"]


@pytest.mark.fake_cuda
@pytest.mark.slow
def test_a_node_with_weights_on_the_cpu_is_said_aloud(cuda: FakeCuda, gru: Path):
    found = cuda.run(OPENED, gru, "cuda")
    assert found["note"] == "on the CPU, for want of a CUDA kernel: GRU"
    assert found["said"] == [
        ["a session on CUDA has nodes with weights on the CPU, for want of a CUDA kernel: GRU",
         "<string>"]  # who opened the session
    ]  # fmt: skip
    assert "not on CUDA:\n  GRU" in found["placement"]
    found = cuda.run(OPENED, gru, "auto")
    assert found["note"] == "running on the GPU; on the CPU, for want of a CUDA kernel: GRU"
    code = OPENED.replace("tieops.session(sys.argv[1], sys.argv[2])",
                          "tieops.sessions({'a': sys.argv[1]}, sys.argv[2])['a']")  # fmt: skip
    assert cuda.run(code, gru, "cuda")["said"][0][1] == "<string>"


@pytest.mark.fake_cuda
def test_a_session_of_which_no_node_runs_on_cuda_is_an_error(cuda: FakeCuda, tmp_path: Path):
    text = f"(float[a, b, 3] x) => (float[a, 1, b, 4] y) {{ {GRU} }}"
    model = stored(text, w=weight(1, 12, 3), r=weight(1, 12, 4))
    path, _ = written(model, tmp_path / "gru.onnx")
    assert "a CUDA kernel for none of the nodes: GRU" in cuda.run(OPENED, path, "cuda")["error"]
    found = cuda.run(OPENED, path, "auto")
    assert found["provider"] == "cpu"
    assert found["note"].startswith("running on the CPU: ONNX Runtime has a CUDA kernel for none")


LOST = """
import onnxruntime, tieops
onnxruntime.InferenceSession.get_providers = lambda self: ["CPUExecutionProvider"]
try:
    tieops.session(sys.argv[1], "cuda")
except tieops.TieopsError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.fake_cuda
def test_a_session_that_lost_its_provider_is_an_error(cuda: FakeCuda, gru: Path):
    assert "fell back to the CPU without a reason" in cuda.run(LOST, gru)


def test_an_operator_of_another_domain_is_none_of_shapes():
    assert PlacedNode("n", "Slice", "", "CPU").computes_shapes
    assert not PlacedNode("n", "Slice", "mine", "CPU").computes_shapes
    assert not PlacedNode("n", "NonZero", "", "CPU").computes_shapes
    placed = Placement("cuda", (PlacedNode("n", "Slice", "", "CPU"),))
    assert placed.to_dict()["fell"][0]["computes_shapes"] is True
