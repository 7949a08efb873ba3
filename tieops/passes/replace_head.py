"""Replace a head: new classes for a model whose other layers stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir

from tieops.arguments import expect, whole_number
from tieops.errors import PreconditionError, SelectionError
from tieops.ir.dataflow.liveness import Liveness
from tieops.ir.edit import (
    NameAuthority,
    add_initializer,
    permute,
    rename_initializer,
    replace_value,
)
from tieops.ir.layer import Layer
from tieops.ir.metadata.keys import is_generated_name, set_lr_factor
from tieops.ir.notation import brief, printable
from tieops.ir.operators.identity import opset_version
from tieops.ir.parameter import Slot
from tieops.ir.readers.readers import Reader, Readers
from tieops.model import Model, TiedModel, as_model
from tieops.passes.base import Change, Plan, Preserves, Rewrite, SurgeryPass, adopt, run
from tieops.passes.detach import give_up_names
from tieops.passes.head import Head, as_head, find_head
from tieops.passes.initialise import check_head_options, head_values
from tieops.passes.inline import drafted, inline_layers
from tieops.passes.node_builder import NodeBuilder
from tieops.passes.shape_propagation import ResizePlan, plan_resize

__all__ = ["ReplaceHeadPass", "ReplaceHeadPlan", "replace_head"]

Array = np.ndarray[Any, Any]
BROADCASTING = 7
"""The first opset whose Gemm and Add spread a bias over rows by themselves."""
GEMM_WITHOUT_BIAS = 11
"""The first opset whose Gemm can do without one."""
_FLOATS = {
    onnx_ir.DataType.FLOAT: np.dtype(np.float32),
    onnx_ir.DataType.DOUBLE: np.dtype(np.float64),
    onnx_ir.DataType.FLOAT16: np.dtype(np.float16),
    onnx_ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


def replace_head(
    model: Model,
    head: str | Layer | Mapping[str, int] | None = None,
    out_features: int | None = None,
    *,
    lr_factor: float = 1.0,
    bias_lr_factor: float | None = None,
    init: str | Array = "kaiming_uniform",
    bias: bool | Array = True,
    seed: int = 0,
    name: str | None = None,
) -> TiedModel:
    """Replace the head by a new one of another size; a tied one leaves its tie first.

    The other readers of a shared weight keep it: an embedding has the same values, name and size
    afterwards. Shapes downstream follow; where one cannot, nothing changes. A call that holds the
    head, and calls behind it, are inlined; other calls of these functions stay.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone.
        head: The layer to replace, by its own name, that of its parameter or that of the output
            that it is the last layer on the way to; by default the last layer with learnables on
            the way to the outputs. Or several, each with the number of outputs of the new layer.
        out_features: How many outputs the new layer has.
        lr_factor: Factor of the learning rate of the new weight, stored in the file.
        bias_lr_factor: The same for the new bias; ``lr_factor`` by default.
        init: ``"kaiming_uniform"`` (torch's own for Linear and Conv2d), ``"xavier_uniform"``,
            ``"normal"``, ``"zeros"``, or an array of shape (out_features, in_features) or
            (out_features, channels, *kernel).
        bias: Whether the new layer has a bias; or its values, of shape (out_features,).
        seed: Seed of the new values.
        name: What to call the new layer; the old one's name by default. Its tensors are called
            after it, by default as the old one's own were (``fc.weight``).

    Returns:
        A new model. Everything upstream of the head computes the same bits.

    Raises:
        PreconditionError: If the head is ambiguous, has no size to replace, has a dtype that cannot
            be initialised, or a node downstream depends on its size, and is named; if the
            opset is older than 7 and a matrix would have a bias.
        SelectionError: If no layer is named ``head``.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[n, 2] x) => (float[n, 3] y) <float[2, 3] w = {1,2,3,4,5,6}>
        ... { h = MatMul(x, w)
        ...   y = Softmax(h) }''')
        >>> small = replace_head(TiedModel(graph), out_features=15, lr_factor=10, name="fcNew")
        >>> [str(parameter) for parameter in small.parameters]
        ['fcNew.weight: f32[15,2]', 'fcNew.bias: f32[15]']
    """
    if name is not None:
        expect(str, name, "a name for the new layer", 'give a text: name="fcNew"')
    replaced = as_model(model)
    for each, size in _sizes(head, out_features, name):
        surgery = ReplaceHeadPass(
            head=each,
            out_features=_int_if_whole(size),
            lr_factor=lr_factor,
            bias_lr_factor=bias_lr_factor,
            init=init,
            bias=bias,
            seed=_int_if_whole(seed),
            name=name,
        )
        replaced, _ = run(surgery, replaced)
    return replaced


def _sizes(
    head: str | Layer | Mapping[str, int] | None, out_features: int | None, name: str | None
) -> list[tuple[str | None, Any]]:
    """Return the heads, each with its new size."""
    if not isinstance(head, Mapping):
        return [(head.name if isinstance(head, Layer) else head, out_features)]
    if out_features is not None or name is not None or not head:
        raise PreconditionError(
            "expected heads with their sizes, and neither out_features nor a name for one of them",
            {"heads": ", ".join(map(str, head)) or "none"},
            'give them alone: replace_head(model, {"age": 8, "kind": 15})',
        )
    return list(head.items())


def _int_if_whole(number: Any) -> Any:
    found = whole_number(number)
    return number if found is None else found


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplaceHeadPlan(Plan):
    """The head, what comes in its place, and what changes behind it.

    Args:
        model: A draft, which is edited and takes the place of the graph in the end: with all calls
            inlined that the head is behind, and the shapes that hand-written and older files lack.
        inlined: The calls that are inlined in it.
        head: The head, in the draft.
        weight: The new weight, of shape (out_features, *in_features).
        bias: The new bias, if there is one.
        resize: What has to follow the new size.
    """

    inlined: tuple[Change, ...]
    head: Head
    weight: Array = field(repr=False)
    bias: Array | None = field(repr=False)
    resize: ResizePlan


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplaceHeadPass(SurgeryPass[ReplaceHeadPlan]):
    """Replace the head by one of another size; see ``tieops.replace_head``.

    Args:
        head: The layer to replace; the last one by default.
        out_features: How many outputs the new head has.
        lr_factor: Learning-rate factor of the new weight.
        bias_lr_factor: The same for the new bias; that of the weight by default.
        init: kaiming_uniform, xavier_uniform, normal or zeros; in Python also an array.
        bias: Whether the new head has a bias; in Python also its values.
        seed: Seed of the new values.
        name: What to call the new head; the old name by default.
    """

    preserves: ClassVar[Preserves] = Preserves(0)
    head: str | None = None
    out_features: int
    lr_factor: float = 1.0
    bias_lr_factor: float | None = None
    init: str | Array = "kaiming_uniform"
    bias: bool | Array = True
    seed: int = 0
    name: str | None = None

    def plan(self, model: TiedModel) -> ReplaceHeadPlan:
        """Find the head, make its values and propagate its size."""
        check_head_options(self.out_features, self.seed, self.lr_factor, self.bias_lr_factor)
        draft = drafted(model)
        draft, (layer,), inlined = inline_layers(draft, [find_head(draft, self.head)], behind=True)
        head = as_head(draft, layer)
        weight, bias = _values(head, self)
        opset = _opset(draft.ir)
        if bias is not None and not head.is_conv and opset < BROADCASTING:
            raise PreconditionError(
                f"opset {opset} cannot broadcast a bias over rows, and ONNX Runtime has no "
                "kernels for it",
                {"opset": opset, "needed": BROADCASTING},
                f"convert it first: onnx.version_converter.convert_version(model, {BROADCASTING}); "
                "or pass bias=False",
            )
        resize = plan_resize(head.out, head.axis, head.out_features, self.out_features)
        taken = {layer.name for layer in draft.layers} - {head.layer.name}
        if self.name in taken:
            raise SelectionError(
                f"a layer named {self.name} already exists", None, "choose another name"
            )
        return ReplaceHeadPlan(
            model=draft, inlined=inlined, head=head, weight=weight, bias=bias, resize=resize
        )

    def apply(self, model: onnx_ir.Model, plan: ReplaceHeadPlan) -> Rewrite:
        """Replace the head."""
        done = _replace(plan, self)
        adopt(model, plan.model)
        return Rewrite((*plan.inlined, *done.changes), done.skips)


def _opset(model: onnx_ir.Model) -> int:
    return opset_version(model.opset_imports) or 1


def _values(head: Head, options: ReplaceHeadPass) -> tuple[Array, Array | None]:
    seen = head.weight.node.inputs[head.weight.index]
    return head_values(
        (options.out_features, *head.in_features),
        _dtype(head, seen),
        init=options.init,
        bias=options.bias,
        seed=options.seed,
    )


def _dtype(head: Head, seen: onnx_ir.Value | None) -> np.dtype[Any]:
    dtype = head.weight.parameter.dtype if seen is None or seen.dtype is None else seen.dtype
    for step in head.weight.view.steps:
        dtype = getattr(step, "dtype", dtype)
    if head.x.dtype is not None:
        dtype = head.x.dtype  # a quantized weight is read in the dtype of what it is multiplied by
    if dtype not in _FLOATS:
        raise PreconditionError(
            f"the weight of {printable(head.layer.name)} cannot be initialised",
            {"dtype": dtype.name, "can": ", ".join(d.name for d in _FLOATS)},
            "replace the head before the model is quantized",
        )
    return _FLOATS[dtype]


def _replace(plan: ReplaceHeadPlan, options: ReplaceHeadPass) -> Rewrite:
    tied, head = plan.model, plan.head
    model, name = tied.ir, options.name or head.layer.name
    parameters = {
        read.parameter.value: read.parameter for slot in head.layer.slots for read in slot.reads
    }
    shared = {value: parameter.name for value, parameter in parameters.items()}
    gone = {value: _DetachedReaders(tied.readers(each), head) for value, each in parameters.items()}
    weight_name, bias_name = _titles(head, gone, options.name)
    node = head.weight.node
    graph = node.graph
    assert isinstance(graph, onnx_ir.Graph)
    names = NameAuthority(model)
    liveness = Liveness(model)
    _apply(model, plan.resize, names)
    for value, detached in gone.items():
        if detached.staying:
            give_up_names(
                parameters[value], detached.readers, detached.names, detached.staying, names
            )
    _free_names(tied, head, [weight_name, bias_name], names)
    stored = _stored(model, names.take(weight_name), plan.weight, options.lr_factor)
    factor = options.lr_factor if options.bias_lr_factor is None else options.bias_lr_factor
    offset = None
    if plan.bias is not None:
        offset = _stored(model, names.take(bias_name), plan.bias, factor)
    build = NodeBuilder(name, node, names, layer=head.layer.name)
    if head.is_conv:
        out = build("Conv", [head.x, stored, *([offset] if offset else [])], dict(node.attributes))
    elif head.axis == 1 and (offset is not None or _opset(model) >= GEMM_WITHOUT_BIAS):
        flags = {"transA": 1, "transB": 1} if head.is_transposed else {"transB": 1}
        out = build("Gemm", [head.x, stored, *([offset] if offset else [])], flags)
    else:
        x = build("Transpose", [head.x], {"perm": [1, 0]}) if head.is_transposed else head.x
        out = build("MatMul", [x, permute(stored, (1, 0), names)])
        out = out if offset is None else build("Add", [out, offset])
    last = head.out.producer()
    assert last is not None
    graph.insert_before(last, build.nodes)
    replace_value(head.out, out)
    liveness.remove_newly_dead()
    unread = [
        Change(f"initializer {each}", "nothing reads it")
        for value, each in shared.items()
        if not (value.uses() or value.is_graph_output() or value.is_graph_input())
    ]
    new = [brief(stored.dtype, plan.weight.shape)]
    new += [] if offset is None else [brief(offset.dtype, offset.shape)]
    what = f"{head.out_features} → {options.out_features} features as {name} ({', '.join(new)})"
    return Rewrite((Change(head.layer.name, what), *unread))


class _DetachedReaders:
    """What becomes of the readers of a tensor, and of its names, when a head leaves it."""

    def __init__(self, readers: Readers, head: Head) -> None:
        mine = {(slot.path, slot.node, slot.index) for slot in head.layer.slots}
        self.readers = readers
        self._leaving: list[Reader] = []
        self.staying: list[Reader] = []
        for reader in readers.all:
            leaves = all((slot.path, slot.node, slot.index) in mine for slot in reader.slots)
            (self._leaving if leaves else self.staying).append(reader)
        held = {name for reader in self.staying for name in reader.names}
        self.names = [n for reader in self._leaving for n in reader.names if n not in held]


def _titles(
    head: Head, detached: Mapping[onnx_ir.Value, _DetachedReaders], name: str | None
) -> tuple[str, str]:
    """Return what the new weight and bias are called: as the old ones were, where that is known."""
    weight, bias = f"{name or head.layer.name}.weight", f"{name or head.layer.name}.bias"
    if name is not None:
        return weight, bias
    known = _owned(head.weight, detached)
    if known is not None:
        weight = known
        module, _, role = known.rpartition(".")
        bias = f"{module}.bias" if role == "weight" and module else bias
    if head.bias is not None:
        bias = _owned(head.bias, detached) or bias
    return weight, bias


def _owned(slot: Slot, detached: Mapping[onnx_ir.Value, _DetachedReaders]) -> str | None:
    """Return the name under which a slot's module holds what it reads, and nobody else does."""
    found = [each for each in detached[slot.parameter.value].names if "." in each]
    return next((each for each in found if not is_generated_name(each)), None)


def _free_names(tied: TiedModel, head: Head, wanted: Sequence[str], names: NameAuthority) -> None:
    """Move what the old head alone reads, or what has a name of its, out of the new one's way."""
    for parameter in tied.parameters:
        if parameter.name in wanted and parameter.value.is_initializer():
            # An exporter stored a copy for the head, and what the others read under its name.
            readers = tied.readers(parameter)
            if parameter.name in readers.unread and not parameter.is_overridable:
                rename_initializer(parameter.value, readers.all[0].title, names)
    for slot in head.layer.slots:
        value = slot.parameter.value
        if value.name is None or value.name not in wanted or value.producer() is not None:
            continue
        if all(use.node in (slot.node, *slot.reads[0].nodes) for use in value.uses()):
            rename_initializer(value, f"{value.name}_old", names)


def _apply(model: onnx_ir.Model, resize: ResizePlan, names: NameAuthority) -> None:
    for value, (axis, size) in resize.sizes.items():
        if value.shape is not None:
            sizes = list(value.shape.dims)
            sizes[axis] = size
            value.shape = onnx_ir.Shape(sizes)
    for (node, index), numbers in resize.operands.items():
        name = names.take(f"{node.name or node.op_type}_sizes")
        value = add_initializer(model, name, np.array(numbers, np.int64))
        node.replace_input_with(index, value)


def _stored(model: onnx_ir.Model, name: str, array: Array, factor: float) -> onnx_ir.Value:
    value = add_initializer(model, name, array)
    if factor != 1.0:
        set_lr_factor(value, factor)
    return value
