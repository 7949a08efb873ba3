"""Exported programs (``.pt2``) that make torch's own loader run code, or reach beyond their bytes.

Those of ``TRAPS`` are run by ``torch.export.load``, or when what it returns is made a module:
``tests/hostile/test_traps.py`` holds that torch does so, and tieops does not.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tieops
from tests.hostile.case import PREPARED, case
from tests.hostile.cases_archives import Trap
from tests.hostile.zips import Entry, zipped

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
TRAP = "__import__('os').system('touch hit')"
GUARD = f"True #\n, 'x')\n{TRAP}\ndef more(): #"
"""Ends the function that torch makes of guards: what follows runs when that is defined."""
TRAPS = (
    "q_expression_is_code",
    "q_guards_are_code",
    "q_sample_inputs_are_a_pickle",
    "q_weights_of_old",
    "q_constants_of_old",
    "q_weight_is_a_pickle",
)
LEAF = {"type": None, "context": None, "children_spec": []}


class Views(nn.Module):
    """An embedding tied to its head, and weights that are views of it."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(30, 8)
        self.fc = nn.Linear(8, 30, bias=False)
        self.fc.weight = self.emb.weight
        self.register_buffer("part", self.emb.weight.data[3:7])
        self.register_buffer("turned", self.emb.weight.data.T)
        self.register_buffer("wide", torch.ones(1).expand(5), persistent=False)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        hidden = self.emb(x) @ self.turned @ self.emb.weight
        return self.fc(hidden * self.part[0]) * scale + self.wide.sum()


@cache
def program() -> dict[str, bytes]:
    """Return the entries of a sound program, without their folder."""
    torch.set_num_threads(1)  # what is forked must not have threads
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Views().eval(),
        (torch.zeros(2, 5, dtype=torch.long),),
        {"scale": torch.ones(1)},
        dynamic_shapes={"x": {0: batch}, "scale": None},
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


PREPARED.append(program)


def archive(entries: Mapping[str, bytes]) -> bytes:
    return zipped(Entry(f"m/{name}", data) for name, data in entries.items())


def spoiled(
    *words: str, name: str | None = None, **options: Any
) -> Callable[[Callable[[dict[str, bytes]], None]], Any]:
    """Make a case of a function that changes the entries of a sound program."""

    def register(change: Callable[[dict[str, bytes]], None]) -> Any:
        def build(folder: Path) -> Path:
            entries = dict(program())
            change(entries)
            (folder / "m.pt2").write_bytes(archive(entries))
            return folder / "m.pt2"

        title = name or change.__name__
        return case(*words, name=title, read=tieops.from_torch, **options)(build)

    return register


def edited(file: str, *words: str, **options: Any) -> Any:
    """Make a case of a function that changes what a JSON file of the program holds."""

    def register(change: Callable[[Any], None]) -> Any:
        def change_entries(entries: dict[str, bytes]) -> None:
            data = json.loads(entries[file])
            change(data)
            entries[file] = json.dumps(data).encode()

        title = options.pop("name", change.__name__)
        return spoiled(*words, name=title, **options)(change_entries)

    return register


def _graph(data: Any) -> Any:
    return data["graph_module"]["graph"]


def _holds_views(model: tieops.TiedModel) -> None:
    (tie,) = [each for each in model.ties if "fc.weight" in each.names]
    assert {"emb.weight", "fc.weight", "part", "turned"} <= {*tie.names}, tie


@spoiled(name="p17_views", ok=True, holds=_holds_views, memory_mb=4096, clock_s=60)
def p17_views(entries: dict[str, bytes]) -> None:
    del entries


# Texts that are run


@edited(MODEL, "an expression of Python")
def q_expression_is_code(data: Any) -> None:
    _graph(data)["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = TRAP


@edited(MODEL, "an expression of Python")
def q_expression_of_a_tensor_called_metadata(data: Any) -> None:
    value = json.loads(json.dumps(_graph(data)["tensor_values"]["x"]))
    value["sizes"][0]["as_expr"]["expr_str"] = TRAP
    _graph(data)["tensor_values"]["metadata"] = value


@edited(MODEL, "an expression of Python")
def q_expression_of_attributes(data: Any) -> None:
    sizes = _graph(data)["tensor_values"]["x"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "Symbol('s77').__class__.__init__.__globals__"


@edited(MODEL, "an expression of Python")
def q_expression_is_a_power_tower(data: Any) -> None:
    _graph(data)["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = "9**9**9**9"


@edited(MODEL, "an expression of Python")
def q_expression_is_a_shift(data: Any) -> None:
    text = "LShift(Integer(1), Integer(99999999999))"
    _graph(data)["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text


@edited(MODEL, "an expression of Python")
def q_expression_is_deep(data: Any) -> None:
    text = "(" * 4000 + "s77" + ")" * 4000
    _graph(data)["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text


@edited(MODEL, "a size that is no symbol")
def q_a_symbol_of_a_huge_number(data: Any) -> None:
    data["range_constraints"]["u99999999999"] = {"min_val": 2, "max_val": 9}


@edited(MODEL, "an operator that may be anything")
def q_target_is_a_function_of_python(data: Any) -> None:
    node = _graph(data)["nodes"][0]
    node["target"] = "torch.serialization.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": "touch hit"}, "kind": 1}]


@edited(MODEL, "an operator that may be anything")
def q_target_is_a_method(data: Any) -> None:
    _graph(data)["nodes"][0]["target"] = "torch.ops.aten.__class__"


@edited(MODEL, "an operator that may be anything")
def q_target_reads_a_file(data: Any) -> None:
    _graph(data)["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


@edited(MODEL, "an operator that may be anything")
def q_target_writes_a_file(data: Any) -> None:
    _graph(data)["nodes"][0]["target"] = "torch.ops.aten.save.default"


@edited(MODEL, "an operator that may be anything")
def q_target_is_an_extension(data: Any) -> None:
    _graph(data)["nodes"][0]["target"] = "#mine:anything"


@edited(MODEL, "a function of Python")
def q_operator_as_an_argument(data: Any) -> None:
    arg = {"as_operator": "torch.serialization.os.system"}
    _graph(data)["nodes"][0]["inputs"][0]["arg"] = arg


@edited(MODEL, "a function of Python")
def q_operator_as_an_argument_called_metadata(data: Any) -> None:
    arg = {"as_string_to_argument": {"metadata": {"as_operator": "torch.serialization.os.system"}}}
    _graph(data)["nodes"][0]["inputs"][0]["arg"] = arg


@edited(MODEL, "an improper name")
def q_name_is_code(data: Any) -> None:
    for each in _graph(data)["inputs"]:
        if each["as_tensor"]["name"] == "x":
            each["as_tensor"]["name"] = f"x={TRAP}"


@edited(MODEL, "an improper name")
def q_name_is_code_without_quotes(data: Any) -> None:
    _graph(data)["nodes"][0]["name"] = "x=exit()"


@edited(MODEL, "an improper name")
def q_keyword_is_code(data: Any) -> None:
    _graph(data)["nodes"][0]["inputs"][0]["name"] = "weight=exit(), weight"


@edited(MODEL, "an improper name")
def q_parameter_name_ends_its_quotes(data: Any) -> None:
    (first, *_) = data["graph_module"]["signature"]["input_specs"]
    first["parameter"]["parameter_name"] = f'emb", {TRAP}, "x'


@edited(MODEL, "an improper name")
def q_argument_name_is_code(data: Any) -> None:
    call = data["graph_module"]["module_call_graph"][0]["signature"]
    call["forward_arg_names"] = [f"x={TRAP}"]


def _spec(node: Any) -> str:
    return json.dumps([1, node])


@edited(MODEL, "a type to be imported")
def q_inputs_import_a_factory(data: Any) -> None:
    call = data["graph_module"]["module_call_graph"][0]["signature"]
    context = {"default_factory_module": "this", "default_factory_name": "s", "dict_context": []}
    call["out_spec"] = _spec(LEAF | {"type": "collections.defaultdict", "context": context})


@edited(MODEL, "a type to be imported")
def q_inputs_import_an_enum(data: Any) -> None:
    call = data["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}])
    call["out_spec"] = _spec(LEAF | {"type": "builtins.dict", "context": context})


@edited(MODEL, "a type to be imported")
def q_inputs_have_code_as_keywords(data: Any) -> None:
    call = data["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = _spec(LEAF | {"type": "builtins.dict", "context": json.dumps(["x=exit()"])})


@edited(MODEL, ok=True, memory_mb=4096, clock_s=60)
def q_guards_are_code(data: Any) -> None:
    data["guards_code"] = [GUARD]


# Pickles and native code in the archive


@spoiled(ok=True, memory_mb=4096, clock_s=60)
def q_sample_inputs_are_a_pickle(entries: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    entries["data/sample_inputs/model.pt"] = buffer.getvalue()


def _pickled(entries: dict[str, bytes], file: str, kind: str, *, said: bool) -> None:
    config = json.loads(entries[file])
    meta = next(iter(json.loads(entries[WEIGHTS])["config"].values()))["tensor_meta"]
    config["config"]["trap"] = {
        "path_name": kind, "is_param": False, "use_pickle": said, "tensor_meta": meta,
    }  # fmt: skip
    entries[file] = json.dumps(config).encode()
    entries[f"{file.rpartition('/')[0]}/{kind}"] = pickle.dumps(Trap())


@spoiled("a pickled object", "trap")
def q_weight_is_a_pickle(entries: dict[str, bytes]) -> None:
    _pickled(entries, WEIGHTS, "weight_7", said=True)


@spoiled("more than a program and its weights", "opaque_obj_0")
def q_constant_is_a_pickle_and_says_no(entries: dict[str, bytes]) -> None:
    _pickled(entries, CONSTANTS, "opaque_obj_0", said=False)


@spoiled("more than a program and its weights", "custom_obj_0")
def q_constant_is_a_script_object(entries: dict[str, bytes]) -> None:
    _pickled(entries, CONSTANTS, "custom_obj_0", said=False)


@spoiled("more than a program and its weights", "data/weights/model.pt")
def q_weights_of_old(entries: dict[str, bytes]) -> None:
    entries["data/weights/model.pt"] = pickle.dumps(Trap())


@spoiled("more than a program and its weights", "data/constants/model.pt")
def q_constants_of_old(entries: dict[str, bytes]) -> None:
    entries["data/constants/model.pt"] = pickle.dumps(Trap())


@spoiled("more than a program and its weights", "data/aotinductor")
def q_a_compiled_library(entries: dict[str, bytes]) -> None:
    entries["data/aotinductor/model/model.so"] = b"\x7fELF"


@spoiled("more than a program and its weights", "models/other.json")
def q_two_programs(entries: dict[str, bytes]) -> None:
    entries["models/other.json"] = entries[MODEL]


# Weights that reach beyond their bytes


def _meta(config: Any) -> Any:
    return next(iter(config["config"].values()))["tensor_meta"]


def _numbers(*sizes: int) -> list[dict[str, int]]:
    return [{"as_int": size} for size in sizes]


@edited(WEIGHTS, "a tensor that its bytes do not fill", name="q_weight_shape_lie")
def _(config: Any) -> None:
    _meta(config).update(sizes=_numbers(1_000_000), strides=_numbers(1))


@edited(WEIGHTS, "a tensor that its bytes do not fill", name="q_weight_stride_bomb")
def _(config: Any) -> None:
    _meta(config).update(sizes=_numbers(10**6, 10**6), strides=_numbers(0, 0))


@edited(WEIGHTS, "a tensor that its bytes do not fill", name="q_weight_offset_lie")
def _(config: Any) -> None:
    _meta(config)["storage_offset"] = {"as_int": 1 << 62}


@edited(WEIGHTS, "a tensor that its bytes do not fill", name="q_weight_negative")
def _(config: Any) -> None:
    _meta(config).update(sizes=_numbers(-2, -2), strides=_numbers(1, 1))


@edited(WEIGHTS, name="q_weight_just_beyond")
def _(config: Any) -> None:
    _meta(config)["storage_offset"] = {"as_int": 1}


@edited(WEIGHTS, name="q_weight_of_another_dtype", memory_mb=4096)
def _(config: Any) -> None:
    _meta(config)["dtype"] = 8


@edited(WEIGHTS, "a weight that is not there", name="q_weight_not_there")
def _(config: Any) -> None:
    next(iter(config["config"].values()))["path_name"] = "weight_99"


@edited(WEIGHTS, "another file", name="q_weight_elsewhere")
def _(config: Any) -> None:
    next(iter(config["config"].values()))["path_name"] = "../../models/model.json"


@spoiled("a tensor that its bytes do not fill", memory_mb=4096)
def q_weight_of_no_bytes(entries: dict[str, bytes]) -> None:
    entries["data/weights/weight_0"] = b""


# JSON


@spoiled("damaged", "json says")
def q_not_json(entries: dict[str, bytes]) -> None:
    entries[MODEL] = b"{"


@spoiled("damaged", "json says")
def q_deep_json(entries: dict[str, bytes]) -> None:
    entries[MODEL] = b"[" * 100_000


@spoiled("damaged", "stands twice")
def q_a_key_twice(entries: dict[str, bytes]) -> None:
    entries[MODEL] = entries[MODEL][:-1] + b', "graph_module": {}}'


for _text in (b"{}", b"[]", b"null", b"7", b'{"graph_module": 7}'):

    @spoiled(name=f"q_json_{_text.decode()}")
    def _(entries: dict[str, bytes], _text: bytes = _text) -> None:
        entries[MODEL] = _text


@spoiled("damaged", "missing")
def q_no_weights(entries: dict[str, bytes]) -> None:
    del entries[WEIGHTS]


@edited(MODEL, name="q_name_of_a_megabyte")
def _(data: Any) -> None:
    _graph(data)["nodes"][0]["name"] = "x" * 10**6


@case("is TorchScript", "trust=True", read=tieops.from_torch)
def q_torchscript(folder: Path) -> Path:
    entries = {"data.pkl": b"", "constants.pkl": b"", "code/__torch__.py": b"", "version": b"3\n"}
    (folder / "m.pt").write_bytes(archive(entries))
    return folder / "m.pt"
