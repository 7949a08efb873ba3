"""Following the fix of a problem removes it, as a call and as a command."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import tieops
from tieops.cli import main
from tieops.ir.problem import Problem

info = helper.make_tensor_value_info
W = np.random.default_rng(0).standard_normal((70, 70), dtype=np.float32)
BIG = np.random.default_rng(1).standard_normal((600, 600), dtype=np.float32)


def save(
    folder: Path, body: str, ir_version: int = 10, listed: bool = False, **tensors: object
) -> Path:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {14 if ir_version > 6 else 8}]> g {body}'
    )
    proto.ir_version = ir_version
    for name, array in tensors.items():
        tensor = numpy_helper.from_array(np.asarray(array), name)
        proto.graph.initializer.append(tensor)
        if listed:
            proto.graph.input.append(info(name, tensor.data_type, list(tensor.dims)))
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


TWO = "(float[n, 70] x) => (float[n, 70] y) { h = MatMul(x, w)  y = MatMul(h, v) }"


def duplicates(folder: Path) -> Path:
    return save(folder, TWO, w=W, v=W)


def transposed(folder: Path) -> Path:
    return save(folder, TWO, w=W, v=W.T)


def old_inputs(folder: Path) -> Path:
    return save(folder, TWO, 3, listed=True, w=W, v=W)


def old_unneeded(folder: Path) -> Path:
    body = "(float[n, 70] x) => (float[n, 70] y) { y = MatMul(x, w) }"
    return save(folder, body, 3, listed=True, w=W, dead=W + 1)


def overridable(folder: Path) -> Path:
    return save(folder, TWO, 8, listed=True, w=W, v=W)


def unneeded(folder: Path) -> Path:
    body = "(float[n, 70] x, float[n] z) => (float[n, 70] y, float[70, 70] c) "
    body += "{ y = MatMul(x, w)  d = MatMul(x, v)  c = Transpose(u) }"
    return save(folder, body, w=W, v=W + 1, u=W + 2)


def folded(folder: Path) -> Path:
    body = "(int64[n] x) => (float[n, 600] y) "
    body += "{ h = Gather(w, x)  t = Transpose<perm = [1, 0]>(w)  y = MatMul(h, t) }"
    return save(folder, body, w=BIG)


def cut_data(folder: Path) -> Path:
    """A data file with room before, between and behind the tensors, two of one range."""
    path = save(folder, TWO.replace("70", "600"), w=BIG, v=BIG + 1)
    proto = onnx.load(path)
    data = (
        bytearray(9000) + BIG.tobytes() + bytearray(50_000) + (BIG + 1).tobytes() + bytearray(7000)
    )
    (folder / "m.data").write_bytes(data)
    for tensor, offset in zip(proto.graph.initializer, (9000, 59_000 + BIG.nbytes), strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": "m.data", "offset": offset, "length": BIG.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
    onnx.save(proto, path)
    return path


CASES: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "duplicates": (duplicates, {"duplicate"}),
    "transposed": (transposed, {"duplicate"}),
    "weights of IR 3": (old_inputs, {"duplicate"}),
    "unneeded weights of IR 3": (old_unneeded, {"unneeded"}),
    "weights that a caller may override": (overridable, set()),
    "unneeded": (unneeded, {"unneeded", "disconnected output", "unused input"}),
    "folded": (folded, {"folded copy"}),
    "unread data": (cut_data, {"unread data"}),
}


def problems(path: Path) -> dict[str, Problem]:
    return {each.kind: each for each in tieops.from_onnx(path).analysis.problems}


@pytest.mark.parametrize("case", CASES)
def test_following_the_fix_removes_the_problem(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, kinds = CASES[case]
    path = make(tmp_path)
    assert set(problems(path)) == kinds
    for number, (kind, problem) in enumerate(problems(path).items()):
        # In Python, and from there to a file.
        place = tmp_path / f"call{number}"
        place.mkdir()
        monkeypatch.chdir(place)
        found = eval(problem.call, {"tieops": tieops, "model": tieops.from_onnx(path)})
        fixed = tieops.from_onnx(found) if hasattr(found, "path") else found
        assert kind not in {each.kind for each in fixed.analysis.problems}, problem.call
        # In a shell, into another folder and over the file itself.
        for target in ("out.onnx", "m.onnx"):
            shell = tmp_path / f"command{number}{target}"
            shell.mkdir()
            for each in tmp_path.glob("m.*"):
                shutil.copy(each, shell)
            monkeypatch.chdir(shell)
            command = problem.command.replace("MODEL", "m.onnx").replace("OUT", target)
            monkeypatch.setattr(sys, "argv", shlex.split(command))
            with pytest.raises(SystemExit) as end:
                main()
            assert end.value.code == 0, command
            assert kind not in problems(shell / target), command


def test_waste_is_what_mending_saves(tmp_path: Path) -> None:
    """A range that copies share counts once; what two models share is no waste of one of them."""
    path = cut_data(tmp_path)
    model = tieops.from_onnx(path)
    assert model.analysis.totals.wasted_bytes == 9000 + 50_000 + 7000
    proto = onnx.load(path, load_external_data=False)
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    onnx.save(other, tmp_path / "other.onnx")
    assert tieops.from_onnx(path).analysis.totals.wasted_bytes == 0
    (tmp_path / "other.onnx").unlink()
    # A third name on the range of the first, and a copy of both elsewhere.
    third = proto.graph.initializer.add()
    third.CopyFrom(proto.graph.initializer[0])
    third.name = "third"
    copy = proto.graph.initializer.add()
    copy.CopyFrom(numpy_helper.from_array(BIG, "copy"))
    proto.graph.node[1].output[0] = "y1"
    proto.graph.node.append(helper.make_node("MatMul", ["y1", "third"], ["y2"]))
    proto.graph.node.append(helper.make_node("MatMul", ["y2", "copy"], ["y"]))
    onnx.save(proto, path)
    model = tieops.from_onnx(path)
    (found,) = model.duplicates
    assert len(found.parameters) == 3
    assert found.wasted_bytes == BIG.nbytes
    tied = tieops.to_onnx(tieops.tie(model), tmp_path / "tied.onnx", external_data=True)
    saved = model.ledger.stored_bytes - tieops.from_onnx(tied).ledger.stored_bytes
    assert saved == found.wasted_bytes


def test_weights_of_ir_3_are_constants_as_in_the_runtime(tmp_path: Path) -> None:
    model = tieops.from_onnx(old_inputs(tmp_path))
    assert [value.name for value in model.ir.graph.inputs] == ["x"]
    tied = tieops.tie(model)
    assert len(tied.ties) == 1
    assert tieops.verify(tied, against=tmp_path / "m.onnx")
    written = tieops.to_onnx(model, tmp_path / "again.onnx", tie_form="portable")
    assert not tieops.diff(model, tieops.from_onnx(written))
    again = onnx.load(written.path)
    onnx.checker.check_model(again, full_check=True)
    assert again.ir_version == 3
    assert [value.name for value in again.graph.input] == ["x", "w", "v"]
    assert [entry.key for entry in again.metadata_props] == ["tieops.version"]
