"""PyTorch files: programs are opened, pickles are refused and never executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tieops
from tieops.errors import PreconditionError, UntrustedFileError
from tieops.importers.torch.program_files import read_torch_file

TOKENS = torch.arange(10).reshape(2, 5)

# torch calls its own TorchScript deprecated, each time one of its functions is used.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(30, 8)
        self.fc = nn.Linear(8, 30, bias=False)
        self.fc.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.emb(x))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.system, (f"touch '{self.marker}'",))


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return Tied().eval()


def refused(path: Path, *, why: str, way_out: str = "") -> str:
    with pytest.raises(UntrustedFileError) as caught:
        tieops.from_torch(path, (TOKENS,))
    text = str(caught.value)
    first, *rest = text.splitlines()
    assert why in first
    assert path.name in first
    assert way_out in "\n".join(rest)
    return text


# Programs


def test_an_exported_program(module, tmp_path):
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(module, (TOKENS,)), path)
    assert isinstance(read_torch_file(path), torch.export.ExportedProgram)
    model = tieops.from_torch(path)
    assert [set(tie.names) for tie in model.ties] == [{"emb.weight", "fc.weight"}]


def test_the_suffix_does_not_matter(module, tmp_path):
    path = tmp_path / "m.pth"
    torch.export.save(torch.export.export(module, (TOKENS,)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)
    assert len(tieops.from_torch(path).ties) == 1


@pytest.mark.parametrize("how", ["traced", "scripted"])
def test_torchscript(how, module, tmp_path):
    path = tmp_path / "m.pt"
    program = torch.jit.trace(module, TOKENS) if how == "traced" else torch.jit.script(module)
    program.save(str(path))
    assert isinstance(read_torch_file(path, trust=True), torch.jit.ScriptModule)
    shapes = {"x": {0: "batch", 1: "sequence"}}
    model = tieops.from_torch(path, (TOKENS,), dynamic_shapes=shapes, trust=True)
    (tie,) = model.ties
    assert set(tie.names) == {"emb.weight", "fc.weight"}
    assert {slot.name: str(slot.view) for slot in tie.slots} == {
        "emb.weight": "",
        "fc.weight": "transpose",
    }
    assert [str(size) for size in model.ir.graph.inputs[0].shape.dims] == ["batch", "sequence"]
    written = tieops.to_onnx(model, tmp_path / "m.onnx")
    assert written.stored_bytes <= 30 * 8 * 4 + 64
    assert tieops.verify(written, against=module, rtol=1e-4)


def test_torchscript_needs_example_inputs(module, tmp_path):
    path = tmp_path / "m.pt"
    torch.jit.script(module).save(str(path))
    with pytest.raises(PreconditionError, match="without positional example inputs") as caught:
        tieops.from_torch(path, trust=True)
    assert "from_torch(path, (x, state))" in str(caught.value)


def test_torchscript_has_to_be_trusted(module, tmp_path):
    path = tmp_path / "m.pt"
    torch.jit.script(module).save(str(path))
    refused(path, why="is TorchScript, which runs code", way_out="trust=True")
    with pytest.raises(UntrustedFileError, match="TorchScript"):
        tieops.verify(path, against=module, inputs={"x": TOKENS})
    assert tieops.verify(path, against=module, inputs={"x": TOKENS}, trust=True)


# Pickles


def test_a_pickled_module_is_refused(module, tmp_path):
    path = tmp_path / "m.pt"
    torch.save(module, path)
    refused(path, why="is a pickle", way_out="torch.export.save")


def test_a_checkpoint_is_refused(module, tmp_path):
    path = tmp_path / "m.pt"
    torch.save(module.state_dict(), path)
    refused(path, why="is a pickle", way_out="load_state_dict(torch.load(path, weights_only=True))")


def test_a_pickle_of_old_is_refused(module, tmp_path):
    path = tmp_path / "m.pt"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)
    refused(path, why="a pickle from before PyTorch 1.6", way_out="torch.export.save")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_trap_in_a_pickle_does_not_go_off(zipped, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "m.pt"
    torch.save({"w": Trap(marker)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, why="pickle")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))  # that it would have gone off, had it been loaded
    assert marker.exists()


def _rewritten(source: Path, target: Path, change: dict[str, bytes]) -> None:
    """Copy an archive with other contents under the names that end as given."""
    changed = set()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            for tail, other in change.items():
                if name.endswith(tail):
                    data = other
                    changed.add(tail)
            new.writestr(name, data)
    assert changed == set(change)


def _trap_bytes(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Trap(marker), buffer)
    return buffer.getvalue()


def _spoiled_config(good: Path, bad: Path, marker: Path) -> None:
    """Say of a weight that it is a pickle, and put a trap there."""
    with zipfile.ZipFile(good) as archive:
        names = [n for n in archive.namelist() if n.endswith("model_weights_config.json")]
        config = json.loads(archive.read(names[0]))
        for weight in config["config"].values():
            weight["use_pickle"] = True
        tail = next(n for n in archive.namelist() if n.endswith("/" + weight["path_name"]))
    change = {
        names[0].partition("/")[2]: json.dumps(config).encode(),
        tail.partition("/")[2]: _trap_bytes(marker),
    }
    _rewritten(good, bad, change)


def test_a_trap_in_the_weights_of_a_program_goes_off_only_if_it_is_trusted(module, tmp_path):
    marker, good, bad = tmp_path / "marker", tmp_path / "good.pt2", tmp_path / "bad.pt2"
    torch.export.save(torch.export.export(module, (TOKENS,)), good)
    _spoiled_config(good, bad, marker)
    refused(bad, why="holds a pickled object", way_out="trust=True")
    assert not marker.exists()
    with pytest.raises(UntrustedFileError):
        read_torch_file(bad, trust=True)
    assert marker.exists()


def test_an_expression_that_is_code_runs_only_if_it_is_trusted(module, tmp_path):
    marker, good, bad = tmp_path / "marker", tmp_path / "good.pt2", tmp_path / "bad.pt2"
    shapes = {"x": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(module, (TOKENS,), dynamic_shapes=shapes), good)
    with zipfile.ZipFile(good) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("models/model.json")]
        program = json.loads(archive.read(name))
    size = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]
    size["expr_str"] = f"open({str(marker)!r}, 'w').close()"
    _rewritten(good, bad, {"models/model.json": json.dumps(program).encode()})
    refused(bad, why="a size that is an expression of Python", way_out="trust=True")
    assert not marker.exists()
    with pytest.raises(UntrustedFileError):
        read_torch_file(bad, trust=True)
    assert marker.exists()


# What is no PyTorch file


@pytest.mark.parametrize("content", [b"not a model\n", b"<!DOCTYPE html><html>", bytes(4096)])
def test_what_is_no_archive_is_refused(content, tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    refused(path, why="is not a zip archive", way_out=".pt2 of torch.export.save")


def test_another_zip_is_refused(tmp_path):
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, why="none that PyTorch wrote", way_out="readme.txt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_truncated_archive_is_refused(kept, module, tmp_path):
    whole, path = tmp_path / "whole.pt2", tmp_path / "m.pt2"
    torch.export.save(torch.export.export(module, (TOKENS,)), whole)
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refused(path, why="damaged", way_out="copy the file again")


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none.pt2", why="does not exist", way_out=str(tmp_path))


def test_a_fifo_is_refused_at_once(tmp_path):
    path = tmp_path / "m.pt2"
    os.mkfifo(path)
    refused(path, why="not a regular file")


def test_a_folder_is_refused(tmp_path):
    path = tmp_path / "m.pt2"
    path.mkdir()
    refused(path, why="not a regular file")


@pytest.mark.parametrize("name", ["M.PT2", "weights and more.pt2", "größe.pt2"])
def test_any_name_will_do(name, module, tmp_path):
    torch.export.save(torch.export.export(module, (TOKENS,)), tmp_path / "m.pt2")
    (tmp_path / "m.pt2").rename(tmp_path / name)
    assert len(tieops.from_torch(tmp_path / name).ties) == 1


def test_sample_inputs_are_not_looked_at(module, tmp_path):
    marker, good, bad = tmp_path / "marker", tmp_path / "good.pt2", tmp_path / "bad.pt2"
    torch.export.save(torch.export.export(module, (TOKENS,)), good)
    _rewritten(good, bad, {"data/sample_inputs/model.pt": _trap_bytes(marker)})
    assert read_torch_file(bad).example_inputs is None
    assert len(tieops.from_torch(bad).ties) == 1
    assert not marker.exists()


def test_an_archive_that_ends_after_an_inner_archive_is_called_damaged(module, tmp_path):
    """The end of an inner .pt must not be taken for the end of the .pt2."""
    whole, path = tmp_path / "whole.pt2", tmp_path / "m.pt2"
    torch.export.save(torch.export.export(module, (TOKENS,)), whole)
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.9)])
    refused(path, why="damaged", way_out="copy the file again")
