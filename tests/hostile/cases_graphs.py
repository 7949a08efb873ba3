"""Graphs and functions that readers read differently, or that ask too much (E and F)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import tieops
from tests.hostile.case import case
from tests.hostile.models import WEIGHT, message, model, node, save, small, tensor
from tieops.untrusted.limits import Limits


def _changed(name: str, *words: str, ok: bool = False, **options: Any) -> Callable[..., Any]:
    """Make a case of a change of the small model."""

    def register(change: Callable[[onnx.ModelProto], object]) -> Callable[..., Any]:
        def build(folder: Path) -> Path:
            proto = small()
            change(proto)
            return save(folder, proto)

        case(*words, name=name, ok=ok, **options)(build)
        return change

    return register


def _text(name: str, text: str, *words: str, ok: bool = False, **options: Any) -> None:
    """Make a case of the text of a graph."""
    case(*words, name=name, ok=ok, **options)(lambda folder: save(folder, model(text)))


IO = "(float[4] x) => (float[4] y)"
_text("e01_cycle", IO + "{ a = Add(x, b)  b = Relu(a)  y = Neg(b) }", "has a cycle")
_text("e01_self_cycle", IO + "{ y = Add(x, y) }", "has a cycle")
_text("e01_cycle_through_a_branch", """(bool b, float[4] x) => (float[4] y) { y = If(b) <
    then_branch = t () => (float[4] p) { p = Neg(y) },
    else_branch = e () => (float[4] q) { q = Neg(x) }> }""", "has a cycle")  # fmt: skip
_text("e01_cycle_of_two_branches", """(bool b, float[4] x) => (float[4] y, float[4] z) {
    y = If(b) <then_branch = t () => (float[4] p) { p = Neg(z) },
               else_branch = e () => (float[4] q) { q = Neg(x) }>
    z = If(b) <then_branch = u () => (float[4] r) { r = Neg(y) },
               else_branch = f () => (float[4] s) { s = Neg(x) }> }""", "has a cycle")  # fmt: skip
_text("e03_unsorted", IO + "{ y = Relu(h)  h = Neg(x) }", ok=True)
_text("e06_dup_output", IO + "{ y = Relu(x)  y = Neg(x) }", "duplicate", "y")
_text("e06_input_and_output", IO + "{ x = Relu(x)  y = Neg(x) }", "duplicate", "x")
_text("e10_dangling", IO + "{ y = Add(x, nothing) }", "nothing defines nothing")
_text("e11_output_missing", "(float[4] x) => (float[4] y, float[4] z) { y = Neg(x) }", "output z")
_text("e12_dup_graph_output", "(float[4] x) => (float[4] y, float[4] y) { y = Neg(x) }",
      "duplicate output")  # fmt: skip
_text("e12_dup_input", "(float[4] x, float[4] x) => (float[4] y) { y = Neg(x) }", "input of g: x")
_text("e13_passthrough", "(float[4] x) => (float[4] x, float[2] w) <float[2] w = {1, 2}> { }",
      ok=True)  # fmt: skip
_text("e16_output_lie", "(float[4] x) => (int64[3] y) { y = Relu(x) }", "y is declared with a type",
      "declared: i64")  # fmt: skip
_text("e16_through_two", "(float[4] x) => (int64[3] y) { h = Relu(x)  y = Neg(h) }", "y is decl")
_text("e16_shape_is_i64", "(float[4] x) => (float[1] y) { y = Shape(x) }", "given: i64")
_text("e22_if_no_branch", "(bool b) => (float[4] y) { y = If(b) }", "no attribute else_branch")
_text("e22_loop_no_body", "(int64 n, bool b) => (float[4] y) { y = Loop(n, b) }", "no attribute b")
_text("e23_matmul_of_one", IO + "{ y = MatMul(x) }", "wrong number of inputs")
_text("e23_relu_of_two", IO + "{ y = Relu(x, x) }", "wrong number of inputs")
_text("e23_gather_of_none", IO + "{ y = Gather() }", "wrong number of inputs")
_text("e23_empty_input", IO + '{ y = MatMul("", x) }', "lacks an input")
_text("e23_two_outputs", "(float[4] x) => (float[4] y, float[4] z) { y, z = Relu(x) }",
      "wrong number of outputs")  # fmt: skip
_text("e23_perm_of_floats", IO + "{ y = Transpose<perm = [0.0]>(x) }", "another type")
_text("e23_perm_out_of_range", IO + "{ y = Transpose<perm = [7, -9]>(x) }")
_text("e23_axis_out_of_range", IO + "{ y = Softmax<axis = 99999>(x) }")
_text("e23_perm_huge", IO + f"{{ y = Transpose<perm = {[2**62] * 50}>(x) }}")
_text("e26_no_nodes", "(float[4] x) => (float[4] x) { }", ok=True)
_text("e26_no_inputs", "() => (float[1] y) { y = Constant<value = float[1] {1}>() }", ok=True)
_text("e28_shadow", """(bool b, float[4] h) => (float[4] y) { y = If(b) <
    then_branch = t () => (float[4] p) { h = Neg(h)  p = Relu(h) },
    else_branch = e () => (float[4] q) { q = Relu(h) }> }""", "read in t before")  # fmt: skip
_text("e28_shadow_later", """(bool b, float[4] h) => (float[4] y) { y = If(b) <
    then_branch = t () => (float[4] p) { a = Neg(h)  h = Relu(a)  p = Relu(h) },
    else_branch = e () => (float[4] q) { q = Relu(h) }> }""", "read in t before")  # fmt: skip
_text("e28_shadow_first", """(bool b, float[4] h) => (float[4] y) { y = If(b) <
    then_branch = t () => (float[4] p) { k = Constant<value = float[4] {1, 2, 3, 4}>() p = Add(h, k)
    }, else_branch = e () => (float[4] q) { k = Relu(h) q = Neg(k) }> }""", ok=True)  # fmt: skip
_text("e29_branch_of_another", """(bool b, float[4] h) => (float[4] y) { y = If(b) <
    then_branch = t () => (float[4] p) { p = Neg(h) },
    else_branch = e () => (float[4] q) { q = Relu(p) }> }""", "nothing defines p")  # fmt: skip


@_changed("e04_dup_initializer", "duplicate initializer of g: w")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(-WEIGHT, "w"))


@_changed("e07_init_and_output", "duplicate", "w")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, node("Neg", "x", "w"))


@_changed("e09_empty_name_init", "initializers without a name")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, ""))


@_changed("e09_empty_name_input", "input without a name")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input.add().CopyFrom(proto.graph.input[0])
    proto.graph.input[1].name = ""


@_changed("e09_empty_name_output", "defines its output ?")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = ""


@_changed("e14_optional_outputs", ok=True)
def _(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Dropout", ["x"], ["d", ""]))


@_changed("e15_value_info_lie", ok=True)  # ONNX Runtime takes the stored tensor for what it is
def _(proto: onnx.ModelProto) -> None:
    proto.graph.value_info.append(helper.make_tensor_value_info("w", 1, [10**9]))


@_changed("e15_input_lie", "w is declared with a type")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [3, 5]))


@_changed("e15_input_type_lie", "w is declared with a type")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT64, [3, 4]))


@_changed("e15_input_with_default", ok=True)
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, ["n", 4]))


@_changed("e15_two_value_infos", "two conflicting declarations")
def _(proto: onnx.ModelProto) -> None:
    for size in (1, 2):
        proto.graph.value_info.append(helper.make_tensor_value_info("h", 1, [size]))


@_changed("e17_unknown_type", "a type that tieops cannot keep", "999")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 999


@_changed("e17_map", "a type that tieops cannot keep", "map")
def _(proto: onnx.ModelProto) -> None:
    kind = proto.graph.input.add(name="m").type.map_type
    kind.key_type = TensorProto.INT64
    kind.value_type.tensor_type.elem_type = 1


@_changed("e17_sequence_of_nothing", "a type that tieops cannot keep")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input.add(name="m").type.sequence_type.SetInParent()


@_changed("e17_sequences", "a type that tieops cannot keep")
def _(proto: onnx.ModelProto) -> None:
    kind = proto.graph.input.add(name="m").type
    for _ in range(20):
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = 1


@_changed("e17_huge_sizes", ok=True)
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("m", 1, [2**62, 2**62, -1, 0]))


@_changed("e17_no_type", ok=True)
def _(proto: onnx.ModelProto) -> None:
    proto.graph.input.add(name="m")


def _nest(count: int) -> bytes:
    """Return the bytes of a model of Ifs within Ifs, which protobuf could not write itself."""
    result = helper.make_tensor_value_info("y", 1, [4]).SerializeToString()
    end = node("Neg", "x", "y").SerializeToString()
    body = message(1, end) + message(12, result)
    for _ in range(count):
        branches = b"".join(
            message(5, message(1, name), message(6, body), b"\xa0\x01\x05")
            for name in (b"then_branch",)  # two would double the file at each level
        )
        outer = message(1, b"b") + message(2, b"y") + message(4, b"If") + branches
        body = message(1, outer) + message(12, result)
    graph = model("(bool b, float[4] x) => (float[4] y) { y = Neg(x) }").graph
    del graph.node[:]
    del graph.output[:]
    return b"\x08\x0a" + message(8, b"\x10\x14") + message(7, graph.SerializeToString(), body)


def _nested(name: str, count: int, *words: str) -> None:
    def build(folder: Path) -> Path:
        (folder / "m.onnx").write_bytes(_nest(count))
        return folder / "m.onnx"

    case(*words, name=name)(build)


_nested("e18_nest40", 40, "graphs within graphs")
_nested("e18_nest200", 200, "graphs within graphs")
_nested("e19_nest20000", 2000, "graphs within graphs")


@case(ok=True)
def e20_nest20(_: Path) -> onnx.ModelProto:
    """Twenty Ifs within each other are read, written and read again."""
    body = model("(float[4] x) => (float[4] y) { y = Neg(x) }").graph
    for depth in range(20):
        del body.input[:]
        body.name = f"g{depth}"
        other = model("(float[4] x) => (float[4] y) { y = Relu(x) }").graph
        del other.input[:]
        made = helper.make_node("If", ["b"], ["y"], then_branch=body, else_branch=other)
        body = model("(bool b, float[4] x) => (float[4] y) { y = Neg(x) }").graph
        del body.node[:]
        body.node.append(made)
    proto = small()
    proto.graph.CopyFrom(body)
    return proto


# Attributes


def _attribute(name: str, *words: str, **fields: Any) -> None:
    def build(folder: Path) -> Path:
        proto = model(
            "(float[4] x) => (float[4] y) { y = other.Op(x) }", "", '"" : 20, "other" : 1'
        )
        made = proto.graph.node[0].attribute.add(name="a")
        for key, value in fields.items():
            if isinstance(value, list):
                getattr(made, key).extend(value)
            elif isinstance(value, TensorProto | onnx.GraphProto):
                getattr(made, key).CopyFrom(value)
            else:
                setattr(made, key, value)
        return save(folder, proto)

    case(*words, name=name)(build)


_attribute("e21_attr_type_lie", "holds another type", type=AttributeProto.GRAPH,
           t=tensor("t", (1,), float_data=[1.0]))  # fmt: skip
_attribute("e21_graph_missing", "without a value", type=AttributeProto.GRAPH)
_attribute("e21_tensor_missing", "without a value", type=AttributeProto.TENSOR)
_attribute("e21_two_values", "holds another type", type=AttributeProto.INT, i=1, ints=[2])
_attribute("e21_no_type", "cannot keep", "UNDEFINED", i=1)
_attribute("e21_unknown_type", "cannot keep", type=AttributeProto.SPARSE_TENSOR)
_attribute("e21_refers_to_none", "refers to none", type=AttributeProto.INT, ref_attr_name="b")
_attribute("e21_not_utf8", "not UTF-8", type=AttributeProto.STRINGS, strings=[b"\xff"])
_attribute("e21_tensors_short", "holds other data", type=AttributeProto.TENSORS, tensors=[tensor()])


@_changed("e21_two_of_one_name", "two attributes of one name: a")
def _(proto: onnx.ModelProto) -> None:
    for value in (1, 2):
        proto.graph.node[0].attribute.append(helper.make_attribute("a", value))


@_changed("e21_bytes_that_are_no_text")
def _(proto: onnx.ModelProto) -> None:
    """Custom operators keep bytes in strings."""
    proto.graph.node[0].attribute.append(helper.make_attribute("a", b"\xff\xfe"))


# Scale


def _listed(path: Path) -> str:
    """Read and look, as ``tieops inspect`` does; tie and write take as long again."""
    return str(tieops.from_onnx(path))


def holds_one_tie(text: str) -> None:
    assert "tied    1 parameter, read in 10000 slots" in text


@case(ok=True, holds=holds_one_tie, read=_listed, clock_s=60)
def e24_fanout(folder: Path) -> Path:
    proto = small()
    del proto.graph.node[:]
    proto.graph.node.extend(node("MatMul", "x w", f"y{i}" if i else "y") for i in range(10_000))
    return save(folder, proto)


@case("nodes", "limit", "Limits(nodes=...)", clock_s=60, memory_mb=2048)
def e24_too_many_nodes(folder: Path) -> Path:
    proto = small()
    proto.graph.node.extend(node("Neg", "x", f"h{i}") for i in range(260_000))
    return save(folder, proto)


@case("protobuf fields", "limit", "Limits(fields=...)", clock_s=60)
def e24_empty_nodes(folder: Path) -> Path:
    """Two bytes of the file each, 76 in memory."""
    path = folder / "m.onnx"
    path.write_bytes(b"\x08\x0a" + message(7, b"\x0a\0" * 11_000_000))
    return path


@case("protobuf fields", clock_s=60)
def e24_empty_attributes(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(b"\x08\x0a" + message(7, message(1, b"\x2a\0" * 11_000_000)))
    return path


@case(ok=True, clock_s=60, read=_listed)
def e25_many_equal(folder: Path) -> Path:
    proto = small()
    data = bytes(1024)
    proto.graph.initializer.extend(tensor(f"w{i}", (256,), raw_data=data) for i in range(10_000))
    return save(folder, proto)


@_changed("e27_quant_annotation", "would be lost")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.quantization_annotation.add(tensor_name="nothing")


@_changed("e27_two_annotations", "would be lost")
def _(proto: onnx.ModelProto) -> None:
    for _ in range(2):
        proto.graph.quantization_annotation.add(tensor_name="w")


def keeps_the_annotation(read: tieops.TiedModel) -> None:
    written = tieops.to_onnx(read, Path("../out/again.onnx"))
    (found,) = onnx.load(written.path).graph.quantization_annotation
    assert found.tensor_name == "w"


@_changed("e27_annotation_kept", ok=True, holds=keeps_the_annotation)
def _(proto: onnx.ModelProto) -> None:
    each = proto.graph.quantization_annotation.add(tensor_name="w")
    each.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="x")


# Names


def _named(name: str, value: str, *words: str, ok: bool = False) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].name = proto.graph.node[0].input[1] = value
        proto.graph.node[0].name = value

    _changed(name, *words, ok=ok)(change)


_named("e30_name_of_10_mb", "w" * 10_000_000, "bytes of a name", "Limits(name_bytes=...)")
_named("e30_long_name", "w" * 60_000, ok=True)
_named("e30_control", "w\x1b[31m\x07\r\n", ok=True)
_named("e30_bidi", "\u202ew\u2066", ok=True)
_named("e30_nul", "w\0x", ok=True)
_named("e30_slashes", "../../w", ok=True)
_named("e30_markup", "<script>alert(1)</script>", ok=True)
_named("e30_rich", "[red]w[/red][/]", ok=True)
_named("e30_format", "{w}%s%n{0}", ok=True)


@case("not valid UTF-8")
def e31_name_not_utf8(folder: Path) -> Path:
    data = small().SerializeToString().replace(b"\x12\x01w", b"\x12\x01\xff").replace(
        b"\x42\x01w", b"\x42\x01\xff"
    )  # fmt: skip
    (folder / "m.onnx").write_bytes(data)
    return folder / "m.onnx"


@case("not valid UTF-8")
def e31_surrogate(_: Path) -> bytes:
    return b"\x08\x0a" + message(2, b"\xed\xa0\x80")


@case("not valid UTF-8")
def e31_proto_not_utf8(_: Path) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(
        small().SerializeToString() + message(14, message(1, b"k\xff"), message(2, b"v"))
    )


# Functions

OPSETS = '"" : 20, "local" : 1'


def _calls(bodies: dict[str, str]) -> onnx.ModelProto:
    """Return a model of functions, each a chain of calls; "-" is Neg."""
    proto = model("(float[n] x) => (float[n] y) { y = local.f0(x) }", "", OPSETS)
    for name, body in bodies.items():
        callees = body.split()
        nodes = [
            helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"])
            if callee == "-"
            else helper.make_node(callee, [f"v{i}"], [f"v{i + 1}"], domain="local")
            for i, callee in enumerate(callees)
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
        ends = ["v0"], [f"v{len(callees)}"]
        proto.functions.append(helper.make_function("local", name, *ends, nodes, opsets))
    return proto


def _functions(name: str, bodies: dict[str, str], *words: str, ok: bool = False) -> None:
    case(*words, name=name, ok=ok)(lambda folder: save(folder, _calls(bodies)))


_functions("f00_functions", {"f0": "- f1 f1", "f1": "- -"}, ok=True)
_functions("f01_recursive_function", {"f0": "f0"}, "function f0 calls itself")
_functions("f02_mutual_recursion", {"f0": "- f1", "f1": "f2", "f2": "f1"}, "calls itself")
_functions("f02_unused_recursion", {"f0": "-", "f1": "f1"}, "f1 calls itself")
_functions("f03_function_bomb",
           {f"f{i}": f"f{i + 1} f{i + 1}" if i < 39 else "- -" for i in range(40)},
           "calls of 40 functions", "Limits(nodes=...)")  # fmt: skip
_functions("f03_wide_bomb", {f"f{i}": " ".join(["-" if i == 3 else f"f{i + 1}"] * 100)
                             for i in range(4)}, "calls of 4 functions")  # fmt: skip
_functions("f03_unused_bomb", {"f0": "-", **{f"f{i}": f"f{i + 1} f{i + 1}" if i < 39 else "-"
                               for i in range(1, 40)}}, ok=True)  # fmt: skip
_functions("f03_long_chain", {f"f{i}": f"f{i + 1}" if i < 5000 else "-" for i in range(5001)},
           "functions that call functions")  # fmt: skip
_functions("f03_long_circle", {f"f{i}": f"f{(i + 1) % 3000}" for i in range(3000)}, "calls itself")


@case("duplicate function: local::f0")
def f04_dup_function(folder: Path) -> Path:
    proto = _calls({"f0": "-"})
    proto.functions.add().CopyFrom(proto.functions[0])
    return save(folder, proto)


@case("the domain of ONNX's own operators")
def f05_function_shadows_operator(folder: Path) -> Path:
    proto = small()
    body = [helper.make_node("Neg", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 20)]
    proto.functions.append(helper.make_function("", "MatMul", ["a"], ["b"], body, opsets))
    return save(folder, proto)


@case("more inputs than the function")
def f13_call_of_too_many(folder: Path) -> Path:
    proto = _calls({"f0": "-"})
    proto.graph.node[0].input.append("x")
    return save(folder, proto)


@case("defines its output v9")
def f14_function_without_result(folder: Path) -> Path:
    proto = _calls({"f0": "-"})
    proto.functions[0].output[0] = "v9"
    return save(folder, proto)


@case("nothing defines x")
def f14_function_reads_the_graph(folder: Path) -> Path:
    proto = _calls({"f0": "-"})
    proto.functions[0].node[0].input[0] = "x"
    return save(folder, proto)


# Versions and domains


@_changed("f06_no_opset", "imports no opset")
def _(proto: onnx.ModelProto) -> None:
    del proto.opset_import[:]


def _opset(name: str, *imports: tuple[str, int], words: tuple[str, ...]) -> None:
    def change(proto: onnx.ModelProto) -> None:
        del proto.opset_import[:]
        proto.opset_import.extend(helper.make_opsetid(*each) for each in imports)

    _changed(name, *words)(change)


_opset("f07_dup_opset", ("", 17), ("", 7), words=("duplicate opset import: ai.onnx",))
_opset("f07_dup_alias", ("", 17), ("ai.onnx", 7), words=("duplicate opset import",))
_opset("f08_opset_zero", ("", 0), words=("imports opset 0",))
_opset("f09_opset_huge", ("", 10**12), words=("imports opset 1000000000000",))
_opset("f09_opset_negative", ("", -1), words=("imports opset -1",))
_opset("f09_opset_newer", ("", 10**9), words=("upgrade onnx",))
_opset("f09_custom_huge", ("", 20), ("other", 2**60), words=("of other",))
_opset("f06_not_the_default", ("other", 1), words=("no opset is imported for the domain ai.onnx",))


def _ir(name: str, version: int, *words: str) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.ir_version = version

    _changed(name, *words)(change)


_ir("f10_ir0", 0, "ir_version 0")
_ir("f10_ir_negative", -1, "ir_version -1")
_ir("f11_ir99", 99, "ir_version 99", "upgrade onnx")


@_changed("f10_ir_missing", "ir_version 0")
def _(proto: onnx.ModelProto) -> None:
    proto.ClearField("ir_version")


@_changed("f12_unknown_domain", "no opset is imported for the domain evil")
def _(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "evil"


@_changed("f12_unknown_domain_imported", ok=True)
def _(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].domain = "evil"
    proto.opset_import.append(helper.make_opsetid("evil", 1))


@_changed("f15_training", "training_info")
def _(proto: onnx.ModelProto) -> None:
    proto.training_info.add().algorithm.name = "step"


# Limits are options

for _limits, _words in {
    Limits(nodes=0): "nodes",
    Limits(tensors=0): "tensors",
    Limits(file_bytes=10): "larger than the limit",
    Limits(fields=5): "protobuf fields",
    Limits(rank=1): "axes of w",
    Limits(name_bytes=0): "bytes of a name",
}.items():
    case(_words, name=f"l01_{_words.split()[0]}_{_limits.nodes}", options={"limits": _limits})(
        lambda folder: save(folder, small())
    )


def holds_the_weight(read: tieops.TiedModel) -> None:
    np.testing.assert_array_equal(read.parameters[0].numpy(), WEIGHT)


case(name="l02_just_enough", ok=True, holds=holds_the_weight,
     options={"limits": Limits(nodes=1, tensors=1, rank=2, depth=0, call_depth=0, name_bytes=6)})(
         lambda folder: save(folder, small()))  # fmt: skip


@case(ok=True)
def e15_inference_fails(_: Path) -> onnx.ModelProto:
    """Sizes that contradict a branch: shapes stay unknown where ONNX's inference gives up."""
    proto = model("""(bool[] b, float[2, 3] x) => (float[2, 63] y, float[a, b] z) { y = If(b) <
        then_branch = t () => (float[2, 4] p) { p = MatMul(x, w) },
        else_branch = e () => (float[2, 4] q) <float[3, 4] v = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
        12}> { q = MatMul(x, v) }>  z = MatMul(x, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return proto
