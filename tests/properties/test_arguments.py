"""No verb changes what it was given, and no model follows what is done to its source later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

import tieops
from tests.properties.argument_models import MODELS, embedding
from tieops.errors import TieopsError
from tieops.ir.walk import all_graphs, stored_values
from tieops.passes.dead_branches import RemoveDeadBranchesPass
from tieops.passes.disconnected_outputs import RemoveDisconnectedOutputsPass
from tieops.passes.lower import LowerTiedReadsPass
from tieops.passes.replace_head import ReplaceHeadPass
from tieops.passes.tie import TiePass
from tieops.passes.untie import UntiePass

Verb = Callable[[tieops.TiedModel, Path], object]


def _every_output_first(model: tieops.TiedModel, _: Path) -> object:
    names = [str(output.name) for output in model.ir.graph.outputs]
    return tieops.remove_disconnected_outputs(model, keep=names[:1])


def _tied_again(model: tieops.TiedModel, _: Path) -> object:
    return tieops.tie(tieops.untie(model), include_small=True)


def _changed_twice(model: tieops.TiedModel, _: Path) -> object:
    small = tieops.replace_head(model, out_features=5, name="other")
    return tieops.replace_head(tieops.tie(small, include_small=True), out_features=3)


def _written_beside(model: tieops.TiedModel, folder: Path) -> object:
    paths = [folder / "one.onnx", folder / "two.onnx"]
    return tieops.to_onnx([model, tieops.untie(model)], paths)


def _parted(model: tieops.TiedModel, _: Path) -> object:
    parts = [tieops.extract(model, outputs=[str(o.name)]) for o in model.ir.graph.outputs]
    return parts, tieops.extract(model, inputs=[str(v.name) for v in model.inputs])


def _renamed(model: tieops.TiedModel, _: Path) -> object:
    names = [str(value.name) for value in (*model.ir.graph.outputs, *model.inputs)]
    names += [layer.name for layer in model.layers]
    return tieops.rename(model, {name: f"{name} anew" for name in names})


def _frozen(model: tieops.TiedModel, _: Path) -> object:
    stored = [v for v in model.ir.graph.inputs if v.is_initializer()]
    return tieops.freeze_inputs(model, [str(value.name) for value in stored])


VERBS: dict[str, Verb] = {
    "extract": _parted,
    "rename": _renamed,
    "freeze_inputs": _frozen,
    "remove_layers": lambda model, _: [
        tieops.remove_layers(model, layer.name) for layer in model.layers[-3:]
    ],
    "print": lambda model, _: (str(model), repr(model), tieops.analyze(model).to_dict()),
    "tie": lambda model, _: tieops.tie(model),
    "tie_small": lambda model, _: tieops.tie(model, include_small=True),
    "untie": lambda model, _: tieops.untie(model),
    "untie_and_tie": _tied_again,
    "replace_head": lambda model, _: tieops.replace_head(model, out_features=5),
    "replace_heads": _changed_twice,
    "remove_outputs": lambda model, _: tieops.remove_disconnected_outputs(
        model, unused_inputs=True
    ),
    "keep_one_output": _every_output_first,
    "remove_branches": lambda model, _: tieops.remove_dead_branches(model),
    "pipeline": lambda model, _: tieops.Pipeline(
        [
            RemoveDeadBranchesPass(),
            UntiePass(),
            TiePass(include_small=True),
            RemoveDisconnectedOutputsPass(),
        ]
    )(model),
    "to_onnx": lambda model, folder: tieops.to_onnx(model, folder / "m.onnx"),
    "to_onnx_inline": lambda model, folder: tieops.to_onnx(
        model, folder / "m.onnx", external_data=False
    ),
    "to_onnx_several": _written_beside,
    "to_torch": lambda model, _: tieops.to_torch(model),
    "diff": lambda model, _: str(tieops.diff(model, tieops.untie(model))),
    "render": lambda model, folder: tieops.render(model, folder / "m.svg"),
    "from_onnx": lambda model, _: tieops.from_onnx(model.ir),
}


def _in_session(source: Any) -> object:
    with tieops.session(source) as opened:
        return tieops.resident_bytes(opened)


def _in_sessions(source: Any) -> object:
    with tieops.sessions({"one": source, "two": source}) as opened:
        return list(opened)


RUNNING: dict[str, Callable[[Any], object]] = {
    "session": _in_session,
    "sessions": _in_sessions,
    "verify": lambda source: tieops.verify(source, against=source, raises=False),
}


def bits(model: onnx.ModelProto | onnx_ir.Model) -> bytes:
    """Return the bytes that a model serializes to."""
    proto = model if isinstance(model, onnx.ModelProto) else onnx_ir.to_proto(model)
    return proto.SerializeToString(deterministic=True)


def do(verb: Verb, model: tieops.TiedModel, folder: Path) -> None:
    """Run a verb; one that refuses a model must leave it alone as well."""
    with suppress(TieopsError):
        verb(model, folder)


def messages(proto: onnx.ModelProto) -> Iterator[Any]:
    """Yield every message within a proto, inner ones first."""
    stack: list[tuple[Any, bool]] = [(proto, False)]
    while stack:
        message, is_done = stack.pop()
        if is_done:
            yield message
            continue
        stack.append((message, True))
        for field, held in message.ListFields():
            if field.message_type is not None:
                some = held if field.is_repeated else [held]
                stack += [(each, False) for each in some]


def spoil_proto(proto: onnx.ModelProto) -> None:
    """Change all that a proto holds, from the inside out."""
    for message in messages(proto):
        if isinstance(message, onnx.TensorProto):
            message.name += "_spoiled"
            message.doc_string = "spoiled"
            message.dims.append(1)
            if message.HasField("raw_data"):
                message.raw_data = bytes(len(message.raw_data))
            for numbers in (message.float_data, message.int32_data, message.int64_data):
                for index in range(len(numbers)):
                    numbers[index] = 0
            for index in range(len(message.string_data)):
                message.string_data[index] = b"spoiled"
        elif isinstance(message, onnx.StringStringEntryProto):
            message.value = "spoiled"
        elif isinstance(message, onnx.AttributeProto):
            message.ints.append(7)
            message.i = 7
    proto.Clear()


def spoil_tensor(tensor: onnx_ir.TensorProtocol) -> None:
    tensor.metadata_props["spoiled"] = "yes"
    if not isinstance(tensor, onnx_ir.serde.TensorProtoTensor):
        tensor.doc_string = "spoiled"
    if isinstance(tensor, onnx_ir.Tensor) and tensor.numpy().flags.writeable:
        tensor.numpy()[...] = 0


def spoil_value(value: onnx_ir.Value) -> None:
    value.metadata_props["spoiled"] = "yes"
    value.doc_string = "spoiled"
    for held in value.meta.values():
        if isinstance(held, dict):
            held["spoiled"] = "yes"
    if isinstance(value.type, onnx_ir.TensorType):
        value.type.denotation = "spoiled"
    if value.type is not None:
        value.dtype = onnx_ir.DataType.INT8
    if value.shape is not None and not value.shape.frozen and value.shape.rank():
        value.shape[0] = 77
    value.name = f"{value.name}_spoiled"


def spoil_node(node: onnx_ir.Node) -> None:
    node.name, node.doc_string, node.domain = "spoiled", "spoiled", "spoiled"
    node.metadata_props["spoiled"] = "yes"
    for attr in node.attributes.values():
        attr.name, attr.doc_string = "spoiled", "spoiled"


def spoil_graph(model: onnx_ir.Model) -> None:
    """Change all that can be changed on the objects of a graph."""
    model.metadata_props["spoiled"] = "yes"
    model.opset_imports["spoiled"] = 1
    for tensor in filter(None, [value.const_value for value in stored_values(model)]):
        spoil_tensor(tensor)
    for graph in all_graphs(model):
        graph.doc_string = "spoiled"
        graph.metadata_props["spoiled"] = "yes"
        values = [*graph.inputs, *graph.initializers.values()]
        values += [output for node in graph for output in node.outputs]
        for value in values:
            spoil_value(value)
        for node in graph:
            spoil_node(node)


@pytest.mark.parametrize("name", MODELS)
def test_no_verb_changes_a_model_or_the_proto_that_it_came_from(name: str, tmp_path: Path) -> None:
    for verb in VERBS:
        proto = MODELS[name]()
        original = bits(proto)
        model = tieops.from_onnx(proto)
        before = bits(model.ir)
        folder = tmp_path / verb
        folder.mkdir()
        do(VERBS[verb], model, folder)
        assert bits(proto) == original, verb
        assert bits(model.ir) == before, verb


@pytest.mark.parametrize("name", MODELS)
def test_no_verb_changes_a_graph_of_the_caller(name: str, tmp_path: Path) -> None:
    for verb in VERBS:
        proto = MODELS[name]()
        original = bits(proto)
        graph = onnx_ir.from_proto(proto)
        before = bits(graph)
        folder = tmp_path / verb
        folder.mkdir()
        do(VERBS[verb], tieops.from_onnx(graph), folder)
        do(VERBS[verb], tieops.TiedModel(graph), folder)
        assert bits(graph) == before, verb
        assert bits(proto) == original, verb


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedding", "branches_of_one_name"])
@pytest.mark.parametrize("verb", RUNNING)
def test_no_verb_that_runs_a_model_changes_it(name: str, verb: str) -> None:
    proto = MODELS[name]()
    graph = onnx_ir.from_proto(MODELS[name]())
    model = tieops.from_onnx(proto)
    sources = (proto, graph, model)
    before = [bits(proto), bits(graph), bits(model.ir)]
    for source in sources:
        with suppress(TieopsError):
            RUNNING[verb](source)
    assert [bits(proto), bits(graph), bits(model.ir)] == before


PASSES = (
    TiePass(include_small=True),
    UntiePass(),
    ReplaceHeadPass(out_features=5),
    RemoveDisconnectedOutputsPass(),
    RemoveDeadBranchesPass(),
    LowerTiedReadsPass(),
)


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_in_place_leaves_clones_and_the_proto_alone(name: str) -> None:
    for each in PASSES:
        proto = MODELS[name]()
        original = bits(proto)
        graph = onnx_ir.from_proto(proto)
        twin = graph.clone()
        before = bits(twin)
        with suppress(TieopsError):
            each(graph)
        assert bits(proto) == original, each
        assert bits(twin) == before, each


@pytest.mark.parametrize("name", MODELS)
def test_a_model_does_not_follow_its_proto(name: str) -> None:
    proto = MODELS[name]()
    model, before = tieops.from_onnx(proto), bits(tieops.from_onnx(MODELS[name]()).ir)
    spoil_proto(proto)
    assert bits(model.ir) == before


@pytest.mark.parametrize("name", MODELS)
def test_a_model_does_not_follow_the_graph_it_came_from(name: str) -> None:
    proto = MODELS[name]()
    graph = onnx_ir.from_proto(proto)
    for value in [*stored_values(graph)]:  # as who makes a graph by hand
        tensor = value.const_value
        is_plain = isinstance(tensor, onnx_ir.serde.TensorProtoTensor)
        if value.is_initializer() and is_plain and tensor.dtype.bitwidth >= 8:
            value.const_value = onnx_ir.Tensor(np.array(tensor.numpy()), name=tensor.name)
    model = tieops.from_onnx(graph)
    before = bits(model.ir)
    spoil_graph(graph)
    assert bits(model.ir) == before
    spoil_proto(proto)
    assert bits(model.ir) == before


def test_external_and_embedded_data_stay_as_they_are(tmp_path: Path) -> None:
    proto = embedding(rows=20_000)
    onnx.save(proto, tmp_path / "embedded.onnx")
    onnx.save(proto, tmp_path / "beside.onnx", save_as_external_data=True, location="w.bin")
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in (tmp_path / "embedded.onnx", tmp_path / "beside.onnx"):
        for name, verb in VERBS.items():
            model = tieops.from_onnx(path)
            before = bits(model.ir)
            folder = tmp_path / f"{path.stem}_{name}"
            folder.mkdir()
            do(verb, model, folder)
            assert bits(model.ir) == before, name
    external = onnx.load(tmp_path / "beside.onnx", load_external_data=False)
    original = bits(external)
    model = tieops.from_onnx(external, base_dir=tmp_path)
    before = bits(model.ir)
    for verb in VERBS.values():
        folder = tmp_path / "others"
        folder.mkdir(exist_ok=True)
        do(verb, model, folder)
        assert (bits(external), bits(model.ir)) == (original, before)
    spoil_proto(external)
    assert bits(model.ir) == before
    assert {path: path.read_bytes() for path in files} == files


def test_the_bytes_of_a_model_are_not_copied(tmp_path: Path) -> None:
    onnx.save(embedding(rows=50_000), tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    model = tieops.from_onnx(data)
    (table,) = [each for each in model.parameters if each.name == "embed.weight"]
    assert np.shares_memory(table.numpy(), np.frombuffer(data, np.uint8))
    again = tieops.from_onnx(model.ir)
    untied = tieops.untie(tieops.tie(again))
    for other in (again, untied):
        (same,) = [each for each in other.parameters if each.name == "embed.weight"]
        assert np.shares_memory(same.numpy(), table.numpy())
