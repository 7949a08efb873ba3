"""Several models with one data file: each parameter once, all files whole whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import numpy_helper, parser

import tieops
from fixtures.torch_models import build
from tieops.errors import ExportError, PostconditionError, UnsupportedModelError
from tieops.exporters import model_files
from tieops.exporters.data_file_cleanup import DATA
from tieops.exporters.layout import PAGE_BYTES
from tieops.importers import onnx as importer
from tieops.untrusted.limits import UNLIMITED

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((5000, 64), np.float32)


def model(body: str, opset: int = 20, **tensors: np.ndarray[Any, Any]) -> tieops.TiedModel:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (int64[n] x) => (float[n, m] y) {body}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return tieops.from_onnx(proto)


def encoder(table: Any = TABLE, name: str = "table", opset: int = 20) -> tieops.TiedModel:
    own = np.random.default_rng(1).standard_normal((64, 64), np.float32)
    body = f"{{ h = Gather({name}, x)  l = MatMul(h, w)  y = Tanh(l) }}"
    return model(body, opset, **{name: table, "w": own})


def decoder(table: Any = TABLE, name: str = "table", opset: int = 20) -> tieops.TiedModel:
    own = np.random.default_rng(2).standard_normal((64, 64), np.float32)
    body = f"""{{ h = Gather({name}, x)  l = MatMul(h, w)
        t = Transpose<perm = [1, 0]>({name})  y = MatMul(l, t) }}"""
    return model(body, opset, **{name: table, "w": own})


def paths(folder: Path) -> list[Path]:
    return [folder / "encoder.onnx", folder / "decoder.onnx"]


def files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(folder.iterdir())}


def places(path: Path) -> dict[str, tuple[str, int]]:
    """Return each external tensor's file and offset."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = (entries["location"], int(entries["offset"]))
    return found


def answers(models: Any) -> list[np.ndarray[Any, Any]]:
    feeds = {"x": np.array([0, 7, 4999])}
    return [tieops.session(each, "cpu", memory="default").run(feeds)["y"] for each in models]


# What is written.


def test_what_two_models_have_in_common_is_on_the_disk_once(tmp_path: Path) -> None:
    made = [encoder(), decoder(name="lm_head")]
    written = tieops.to_onnx(made, paths(tmp_path))
    found = files(tmp_path)
    assert sorted(found) == ["decoder.onnx", "encoder.onnx", "encoder.onnx.data"]
    assert b"".join(found.values()).count(TABLE.tobytes()) == 1
    assert [each.path for each in written] == paths(tmp_path)
    for each, source in zip(written, made, strict=True):
        assert each.data_path == tmp_path / "encoder.onnx.data"
        assert each.stored_bytes == tieops.from_onnx(each).ledger.stored_bytes
        assert each.stored_bytes >= source.ledger.stored_bytes
        assert each.file_bytes == len(found[each.path.name]) + len(found["encoder.onnx.data"])
    data, offset = places(written[0].path)["table"]
    assert places(written[1].path)["lm_head"] == (data, offset)
    assert offset % PAGE_BYTES == 0
    # `w` is another matrix in each.
    assert places(written[0].path)["w"] != places(written[1].path)["w"]
    for one, other in zip(answers(made), answers(written), strict=True):
        np.testing.assert_array_equal(one, other)
    # A read of the table and one of its transpose: the tie of each file is its own.
    assert [len(tieops.from_onnx(each).ties) for each in written] == [0, 1]


def test_one_tensor_object_needs_no_comparison(tmp_path: Path) -> None:
    one = encoder()
    written = tieops.to_onnx((one, tieops.tie(one), one), [tmp_path / f"{n}.onnx" for n in "abc"])
    assert len({tuple(places(each.path).items()) for each in written}) == 1


def test_models_of_different_opsets(tmp_path: Path) -> None:
    made = [encoder(opset=13), decoder(opset=21)]
    written = tieops.to_onnx(made, paths(tmp_path))
    assert places(written[0].path)["table"] == places(written[1].path)["table"]
    for one, other in zip(answers(made), answers(written), strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_name_and_other_values_are_two_tensors(tmp_path: Path) -> None:
    other = TABLE.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(9))
    written = tieops.to_onnx([encoder(), decoder(other)], paths(tmp_path))
    assert places(written[0].path)["table"] != places(written[1].path)["table"]
    again = tieops.from_onnx(written[1])
    found = next(each for each in again.parameters if each.name == "table")
    np.testing.assert_array_equal(found.numpy(), other)


def test_equal_tensors_of_one_model_stay_two(tmp_path: Path) -> None:
    """Fresh biases are equal by chance: one range of bytes would tie them."""
    zeros = np.zeros(5000, np.float32)
    body = "{ h = Gather(table, x)  i = Add(h, b1)  y = Mul(i, b2) }"
    tensors = {"table": RNG.standard_normal((7, 5000), np.float32), "b1": zeros, "b2": zeros}
    swapped = body.replace("b1", "b0").replace("b2", "b1").replace("b0", "b2")
    written = tieops.to_onnx([model(body, **tensors), model(swapped, **tensors)], paths(tmp_path))
    one, other = (places(each.path) for each in written)
    assert one["b1"] != one["b2"]
    assert one == other  # the same name first
    for each in written:
        assert tieops.tie(tieops.from_onnx(each)).ties[:] == ()


def test_tensors_of_one_range_and_two_shapes_keep_their_shapes(tmp_path: Path) -> None:
    path = tieops.to_onnx(encoder(), tmp_path / "a.onnx", external_data=True).path
    proto = onnx.load(path, load_external_data=False)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(next(each for each in proto.graph.initializer if each.name == "table"))
    twin.name, twin.dims[:] = "flat", [64 * 5000]
    proto.graph.node.append(onnx.helper.make_node("Identity", ["flat"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, None))
    source = tieops.from_onnx(proto, base_dir=tmp_path)
    for to in (tmp_path / "b.onnx", [tmp_path / "c.onnx"]):
        several = isinstance(to, list)
        found = tieops.to_onnx([source] if several else source, to)
        path = found[0].path if several else found.path
        at = places(path)
        assert at["flat"] == at["table"]
        z = tieops.session(path, "cpu").run({"x": [1]}, ["z"])["z"]
        np.testing.assert_array_equal(z, TABLE.ravel())


def test_small_models_have_no_data_file(tmp_path: Path) -> None:
    small = model("{ y = Gather(t, x) }", t=np.ones((2, 2), np.float32))
    written = tieops.to_onnx([small, small], paths(tmp_path))
    assert sorted(files(tmp_path)) == ["decoder.onnx", "encoder.onnx"]
    assert [each.data_path for each in written] == [None, None]


@pytest.mark.slow
def test_the_encoder_of_a_t5_and_all_of_it(tmp_path: Path) -> None:
    case = build("t5", 4000, 64)
    ids = {"input_ids": case.inputs["input_ids"]}
    shapes = {"input_ids": {0: "batch", 1: "sequence"}}
    whole = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
    part = tieops.from_torch(case.module.get_encoder(), (), ids, dynamic_shapes=shapes)
    written = tieops.to_onnx([part, whole], paths(tmp_path))
    # All of the encoder's weights are the whole's: the data is hardly larger than the whole's.
    data = written[0].data_path
    assert data is not None
    assert data.stat().st_size <= whole.ledger.stored_bytes + 16 * PAGE_BYTES
    assert [tie.names for tie in tieops.from_onnx(written[1]).ties] == [
        tie.names for tie in whole.ties
    ]
    assert tieops.verify(written[1], against=case.module)
    assert tieops.verify(written[0], against=case.module.get_encoder())


# What was there before.


def test_saving_over_the_sources(tmp_path: Path) -> None:
    made = [encoder(), decoder()]
    wanted = answers(made)
    tieops.to_onnx(made, paths(tmp_path))
    for _ in range(3):
        sources = [tieops.from_onnx(path) for path in paths(tmp_path)]
        tieops.to_onnx(sources, paths(tmp_path))
        assert len(files(tmp_path)) == 3
        for one, other in zip(wanted, answers(paths(tmp_path)), strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(wanted, answers(sources), strict=True):
            np.testing.assert_array_equal(one, other)  # mapped still


def test_data_goes_with_the_last_model_that_reads_it(tmp_path: Path) -> None:
    for first, last in (("encoder", "decoder"), ("decoder", "encoder")):
        tieops.to_onnx([encoder(), decoder()], paths(tmp_path))
        (shared,) = {at for at, _ in places(tmp_path / "encoder.onnx").values()}
        alone = {"encoder": encoder, "decoder": decoder}
        tieops.to_onnx(alone[first](), tmp_path / f"{first}.onnx", external_data=True)
        assert shared in files(tmp_path)
        answers(paths(tmp_path))
        tieops.to_onnx(alone[last](), tmp_path / f"{last}.onnx", external_data=True)
        assert shared not in files(tmp_path)
        assert len(files(tmp_path)) == 4
        answers(paths(tmp_path))
        for each in tmp_path.iterdir():
            each.unlink()


def test_a_mark_names_no_file_that_is_not_a_models_data(tmp_path: Path) -> None:
    written = tieops.to_onnx(encoder(), tmp_path / "m.onnx", external_data=True)
    assert written.data_path is not None
    victim = tmp_path / "letter.data"
    written.data_path.rename(victim)
    proto = onnx.load(written.path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "letter.data"
    mark = proto.metadata_props.add()
    mark.key, mark.value = DATA, "letter.data"
    written.path.write_bytes(proto.SerializeToString())
    tieops.to_onnx(encoder(), tmp_path / "m.onnx", external_data=True)
    assert victim.exists()


# When it does not work.


def broken(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("at", ["write_data", "_check_written", "sync", "first", "second"])
def test_an_error_in_the_middle_leaves_all_old_files(
    at: str, exists: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if exists:
        tieops.to_onnx([encoder(), decoder()], paths(tmp_path))
    before = files(tmp_path)
    original, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == {"first": 1, "second": 2}[at]:
            broken()
        return original(self, target)

    with monkeypatch.context() as patch:
        if at in ("first", "second"):
            patch.setattr(Path, "replace", replace)
        elif at == "sync":
            patch.setattr("os.fsync", broken)
        else:
            patch.setattr(model_files, at, broken)
        with pytest.raises(ExportError, match="No space left on device"):
            tieops.to_onnx([encoder(TABLE + 1), decoder(TABLE + 1)], paths(tmp_path))
    assert files(tmp_path) == before


def test_a_folder_in_the_place_of_the_second_file(tmp_path: Path) -> None:
    paths(tmp_path)[1].mkdir()
    with pytest.raises(ExportError, match="cannot write"):
        tieops.to_onnx([encoder(), decoder()], paths(tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == ["decoder.onnx"]


def test_the_second_is_read_again_before_the_first_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tieops.to_onnx([encoder(), decoder()], paths(tmp_path))
    before = files(tmp_path)
    original, calls = model_files.read_message, []

    def once(path: Path, **options: Any) -> tieops.TiedModel:
        calls.append(path)
        if len(calls) == 2:
            raise UnsupportedModelError("no")
        return original(path, **options)

    monkeypatch.setattr(model_files, "read_message", once)
    with pytest.raises(PostconditionError, match="a model that it cannot read"):
        tieops.to_onnx([encoder(TABLE + 1), decoder(TABLE + 1)], paths(tmp_path))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["a.onnx"], "several models need one path each"),
        (["a.onnx", "b.onnx", "c.onnx"], "several models need one path each"),
        ("a.onnx", "several models need one path each"),
        (["a.onnx", "a.onnx"], "two models cannot be written to one file"),
        (["a.onnx", "./a.onnx"], "two models cannot be written to one file"),
        (["a.onnx", "sub/b.onnx"], "models that share a data file lie in one folder"),
    ],
)
def test_paths_that_do_not_fit(
    names: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(ExportError, match=what):
        tieops.to_onnx([encoder(), decoder()], names)
    assert [each.name for each in tmp_path.iterdir()] == ["sub"]


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="several models need one path each"):
        tieops.to_onnx([], [])
    with pytest.raises(ExportError, match="several models need one path each"):
        tieops.to_onnx(encoder(), paths(tmp_path))  # type: ignore[call-overload]
    with pytest.raises(UnsupportedModelError, match="expected a TiedModel, got a str"):
        tieops.to_onnx([encoder(), "b.onnx"], paths(tmp_path))  # type: ignore[list-item]
    with pytest.raises(ExportError, match="models written together share one data file"):
        tieops.to_onnx([encoder(), decoder()], paths(tmp_path), external_data=False)
    assert list(tmp_path.iterdir()) == []


def test_tensors_without_values_are_an_error(tmp_path: Path) -> None:
    with torch.device("meta"):
        net = torch.nn.Linear(64, 64)
    empty = tieops.from_torch(net, (torch.zeros(2, 64, device="meta"),))
    for made, to in (([empty, empty], paths(tmp_path)), (empty, tmp_path / "m.onnx")):
        with pytest.raises(ExportError, match="a tensor has no values that can be stored"):
            tieops.to_onnx(made, to, external_data=True)
    assert list(tmp_path.iterdir()) == []


# What could not be read again.


def nested(depth: int) -> tieops.TiedModel:
    """Return a model of an If within an If, and so on."""

    def defined(node: onnx_ir.Node, name: str) -> onnx_ir.Value:
        output = node.outputs[0]
        output.name, output.type = name, onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        output.shape = onnx_ir.Shape([2])
        return output

    x = onnx_ir.val("x", onnx_ir.DataType.FLOAT, [2])
    condition = onnx_ir.val("c", onnx_ir.DataType.BOOL, [])
    deep = onnx_ir.node("Identity", [x])
    for level in range(depth):
        nodes = {"then_branch": deep, "else_branch": onnx_ir.node("Neg", [x])}
        branches = {
            branch: onnx_ir.Graph(
                [], [defined(node, f"{branch}_{level}")], nodes=[node], name=f"{branch}{level}"
            )
            for branch, node in nodes.items()
        }
        deep = onnx_ir.node("If", [condition], branches)
    graph = onnx_ir.Graph(
        [x, condition], [defined(deep, "y")], nodes=[deep], opset_imports={"": 17}, name="g"
    )
    return tieops.TiedModel(onnx_ir.Model(graph, ir_version=8))


def test_graphs_as_deep_as_readers_take_are_written(tmp_path: Path) -> None:
    path = tieops.to_onnx(nested(31), tmp_path / "m.onnx").path
    onnx.checker.check_model(path)
    feeds = {"x": np.ones(2, np.float32), "c": np.array(True)}
    assert tieops.session(path, "cpu").run(feeds)["y"].tolist() == [1, 1]


@pytest.mark.parametrize("depth", [32, 200, 3000])
def test_graphs_that_nobody_could_read_again_are_refused(depth: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nest too deeply to be read back"):
        tieops.to_onnx(nested(depth), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


# Limits are for the files of strangers.


def test_a_model_beyond_the_limits_of_readers_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = decoder()  # more nodes, tensors and so on than the limits that are set now
    small = tieops.Limits(
        data_bytes=1, fields=1, numbers=1, nodes=1, tensors=1, call_depth=0, rank=1, name_bytes=1
    )
    monkeypatch.setattr(importer, "Limits", lambda: small)
    written = tieops.to_onnx(large, tmp_path / "m.onnx", external_data=True)
    with pytest.raises(UnsupportedModelError, match="more than the limit"):
        tieops.from_onnx(written)
    again = tieops.from_onnx(written, limits=UNLIMITED)
    assert again.ledger.stored_bytes == written.stored_bytes


def test_hard_links_that_were_allowed_are_reused(tmp_path: Path) -> None:
    tieops.to_onnx(encoder(), tmp_path / "m.onnx", external_data=True)
    (tmp_path / "other").hardlink_to(tmp_path / "m.onnx.data")
    model = tieops.from_onnx(tmp_path / "m.onnx", limits=tieops.Limits(hard_links=True))
    written = tieops.to_onnx(model, tmp_path / "again.onnx", external_data="reuse")
    assert written.data_paths == (tmp_path / "m.onnx.data",)
