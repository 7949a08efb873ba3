"""A model in a sandbox: the same answers, and one clear error for each limit and crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import tieops
from tieops.errors import PreconditionError, UntrustedFileError
from tieops.verification import Sandbox
from tieops.verification.sandbox import SandboxedModel
from tieops.verification.sandboxed_sides import SandboxedOnnx

SMALL = Sandbox(memory_bytes=1_000_000_000, seconds=60)

BOMBS = {
    "ConstantOfShape": """(float[n] x) => (float[a,b,c] y) <int64[3] s = {100000,100000,100}>
        { y = ConstantOfShape(s) }""",
    "Range": """(float[n] x) => (int64[a] y)
        <int64 s = {0}, int64 e = {1000000000000}, int64 d = {1}> { y = Range(s, e, d) }""",
    "Expand": """(float[n] x) => (float[a,b] y) <int64[2] s = {1000000,1000000}>
        { z = ReduceSum(x) y = Expand(z, s) }""",
}
LOOP = """(float[n] x) => (float y) <int64 t = {9223372036854775807}, bool c = {1}, float a = {0}>
    { y = Loop(t, c, a) <body = b (int64 i, bool k, float v) => (bool k2, float v2)
    { k2 = Identity(k) v2 = Identity(v) }> }"""


def saved(path: Path, text: str) -> Path:
    onnx.save(parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g {text}'), path)
    return path


@pytest.fixture
def negative(tmp_path) -> Path:
    return saved(tmp_path / "neg.onnx", "(float[n] x) => (float[n] y) { y = Neg(x) }")


def children() -> list[str]:
    tasks = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return tasks.read_text("ascii").split()


def test_the_verdict_is_the_one_without_a_sandbox(negative):
    before = children()
    report = tieops.verify(negative, against=negative.read_bytes(), sandbox=SMALL)
    assert report == tieops.verify(negative, against=negative.read_bytes())
    assert children() == before


def test_a_live_module_stays_here(negative):
    torch = pytest.importorskip("torch")

    class Negative(torch.nn.Module):
        def forward(self, x):
            return -x

    assert tieops.verify(negative, against=Negative(), sandbox=SMALL)


def test_dtypes_and_strings_come_through(tmp_path):
    text = """(bfloat16[n] a, string[n] b, bool[n] c) => (bfloat16[n] d, string[n] e, bool[n] f)
        { d = Identity(a) e = Identity(b) f = Not(c) }"""
    path = saved(tmp_path / "m.onnx", text.replace("bfloat16[n] a, string", "float16[n] a, string")
                 .replace("(bfloat16[n] d", "(float16[n] d"))  # fmt: skip
    assert tieops.verify(path, against=path, sandbox=SMALL).verdict == "equal bitwise"


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_reaches_the_memory_limit(bomb, tmp_path):
    before = children()
    path = saved(tmp_path / "m.onnx", BOMBS[bomb])
    with pytest.raises(UntrustedFileError, match=r"m\.onnx reached the sandbox's memory") as caught:
        tieops.verify(path, against=path, sandbox=SMALL)
    assert "1.00 GB" in str(caught.value)
    assert children() == before


@pytest.mark.slow
def test_a_loop_without_end_reaches_the_time_limit(tmp_path):
    before = children()
    path = saved(tmp_path / "m.onnx", LOOP)
    with pytest.raises(UntrustedFileError, match=r"m\.onnx reached the sandbox's time") as caught:
        tieops.verify(path, against=path, sandbox=Sandbox(seconds=8))
    assert "8 s" in str(caught.value)
    assert children() == before


def test_a_crash_is_told_by_its_signal(negative):
    before = children()
    side = SandboxedOnnx(negative, SMALL)
    (child,) = set(children()) - set(before)
    os.kill(int(child), signal.SIGSEGV)
    with pytest.raises(UntrustedFileError, match="crashed the process that ran it: SIGSEGV"):
        side.run({"x": np.ones(3, np.float32)}, None)
    side.close()
    assert children() == before


def test_errors_come_through_as_they_are(negative, tmp_path):
    side = SandboxedOnnx(negative, SMALL)
    with pytest.raises(PreconditionError, match="the inputs do not fit"):
        side.run({"x": np.ones((3, 3), np.int64)}, None)
    assert side.run({"x": np.ones(3, np.float32)}, None)[0].tolist() == [-1, -1, -1]
    side.close()
    with pytest.raises(tieops.TieopsError, match="file"):
        SandboxedModel(str(tmp_path / "none.onnx"), "none.onnx", SMALL, {"optimize": True})


@pytest.mark.slow
def test_the_child_ends_with_its_parent(negative):
    code = (
        "import sys, time; from tieops.verification import Sandbox\n"
        "from tieops.verification.sandboxed_sides import SandboxedOnnx\n"
        "side = SandboxedOnnx(sys.argv[1], Sandbox())\n"
        "print(side._model._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(negative)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        assert child.exists()
        parent.kill()
    end = time.monotonic() + 20
    while child.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.exists()


def test_limits_are_numbers_above_zero():
    with pytest.raises(PreconditionError, match="expected positive limits for the sandbox"):
        Sandbox(seconds=0)
    with pytest.raises(PreconditionError, match="expected positive limits for the sandbox"):
        Sandbox(memory_bytes=-1)


def test_a_sandbox_runs_on_the_cpu(negative):
    with pytest.raises(PreconditionError, match="a sandboxed model runs on the CPU"):
        tieops.verify(negative, against=negative, provider="cuda", sandbox=True)


def test_inputs_that_no_memory_holds_are_refused(tmp_path):
    path = saved(
        tmp_path / "m.onnx", "(float[1000000,1000000] x) => (float y) { y = ReduceSum(x) }"
    )
    with pytest.raises(tieops.TieopsError, match="cannot make the input x") as caught:
        tieops.verify(path, against=path)
    assert "2.00 GB" in str(caught.value)


def test_a_size_that_is_a_tower_of_powers_is_a_name(tmp_path):
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Neg(x) }'
    )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "9**9**9**9"
    assert tieops.verify(proto, against=proto)
