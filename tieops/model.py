"""TiedModel: an ONNX graph together with what its layers share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir

from tieops.analysis.analysis import Analysis, analysis_of
from tieops.analysis.duplicates.by_content import find_duplicates
from tieops.analysis.layers import find_layers, parameters_of
from tieops.analysis.problems.quantization import quantizer_problems
from tieops.analysis.trace import Trace, trace
from tieops.arguments import described
from tieops.errors import UnsupportedModelError
from tieops.ir.edit import copy_model, release_removed, snapshot
from tieops.ir.layer import Layer
from tieops.ir.learnables.accidental import modules_apart
from tieops.ir.listing import Listing
from tieops.ir.metadata.keys import aliases_of
from tieops.ir.notation import brief, counted, printable
from tieops.ir.overlap import sharing_groups
from tieops.ir.parameter import Parameter, Slot
from tieops.ir.pickling import content_of, model_of
from tieops.ir.readers.readers import Readers, readers_of
from tieops.ir.storage.byte_ranges import stored_bytes
from tieops.ir.storage.external_tensors import hold_files
from tieops.ir.tie import Duplicate, Ledger, Tie
from tieops.ir.view import Slice
from tieops.system.gc_paused import gc_paused

__all__ = ["Model", "TiedModel", "analyze", "as_model", "check_model"]


class TiedModel:
    """A model whose ties can be seen, made and undone: a thin, immutable value over one graph.

    The graph (``model.ir``, an ``onnx_ir.Model``) is the single source of truth. Everything else is
    derived from it when it is first asked for, and never stored beside it. Verbs such as
    ``tieops.tie`` return a new TiedModel; do not edit ``model.ir`` in place.

    It can be pickled, sent to other processes and copied. A pickle holds the weights, each once,
    wherever they lie now: it needs no file to be where it was. A deep copy shares what cannot
    change, such as the mapped data of a file.

    Args:
        ir: The graph.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 3] y) <float[3, 3] emb = {1,2,3,4,5,6,7,8,9}>
        ... { h = Gather(emb, x)
        ...   t = Transpose<perm = [1, 0]>(emb)
        ...   y = MatMul(h, t) }''')
        >>> print(TiedModel(graph).ties)
        emb: f32[3,3] (storage)
          Gather_h.weight
          MatMul_y.weight (transpose)
    """

    def __init__(self, ir: onnx_ir.Model) -> None:
        release_removed(ir)
        self._ir = ir
        hold_files(ir)

    @property
    def ir(self) -> onnx_ir.Model:
        """The graph that everything here is derived from."""
        return self._ir

    @cached_property
    @gc_paused()
    def trace(self) -> Trace:
        """Where every stored tensor goes."""
        return trace(self._ir)

    @cached_property
    def parameters(self) -> Listing[Parameter]:
        """What is stored and learnable, or a table: every name, shape and dtype."""
        return Listing(parameters_of(self.trace).values(), "parameter", lambda each: each.names)

    @cached_property
    @gc_paused()
    def layers(self) -> Listing[Layer]:
        """Layers in the order of the graph: learnable ones and plain operators."""
        return Listing(find_layers(self._ir, self.trace), "layer", _own_name)

    @cached_property
    @gc_paused()
    def slots(self) -> Listing[Slot]:
        """Every place where a layer reads a parameter."""
        return Listing((slot for layer in self.layers for slot in layer.slots), "slot", _own_name)

    @cached_property
    def _slots_of(self) -> dict[onnx_ir.Value, tuple[Parameter, list[Slot]]]:
        found: dict[onnx_ir.Value, tuple[Parameter, list[Slot]]] = {}
        for slot in self.slots:
            for parameter in dict.fromkeys(read.parameter for read in slot.reads):
                found.setdefault(parameter.value, (parameter, []))[1].append(slot)
        return found

    def readers(self, parameter: Parameter, chosen: Sequence[tuple[str, Slot]] = ()) -> Readers:
        """Return who reads a parameter, and which of its names each of them owns.

        Args:
            parameter: The parameter.
            chosen: Names and whose they are, where a caller has chosen.
        """
        _, slots = self._slots_of.get(parameter.value, (parameter, []))
        return readers_of(parameter, slots, chosen)

    @cached_property
    @gc_paused()
    def ties(self) -> Listing[Tie]:
        """Parameters that two or more slots share elements of, the largest saving first.

        A parameter that a torch module holds under two names is tied too, even if the program reads
        it once (BERT's ``predictions.bias`` and ``predictions.decoder.bias``). Slots that read
        disjoint slices of one stored tensor (a packed projection) share nothing.
        """
        return Listing(self._ties[0], "tie", lambda tie: tie.names)

    @cached_property
    def accidental_ties(self) -> Listing[Tie]:
        """Parameters that an exporter stored once because they began equal; no module shares them.

        The gains of fresh norms are all ones. Torch's exporters store them once, which is harmless
        until the model is trained: ``to_torch`` gives each module its own again, and so does
        ``tieops.untie(model, accidental=True)``. They are not in ``ties``.
        """
        return Listing(self._ties[1], "accidental tie", lambda tie: tie.names)

    @cached_property
    @gc_paused()
    def _ties(self) -> tuple[list[Tie], list[Tie]]:
        """The ties that are meant and those that are not, the largest saving first."""
        meant: list[Tie] = []
        accidental: list[Tie] = []
        for parameter, slots in self._slots_of.values():
            if not self.trace.learnables.is_shareable(parameter.value):
                continue
            for group in _overlapping(parameter, slots):
                modules = modules_apart(parameter, group)
                if not modules:
                    meant.append(Tie(parameter, group))
                    continue
                accidental.append(Tie(parameter, group, modules))
                # The calls of one module share what is its own.
                meant += [
                    Tie(parameter, g) for each in modules for g in _overlapping(parameter, each)
                ]
        for ties in (meant, accidental):
            ties.sort(key=lambda tie: -tie.saved_bytes)
        return meant, accidental

    @cached_property
    def duplicates(self) -> Listing[Duplicate]:
        """Stored tensors of equal content that are not tied, the largest waste first."""
        return Listing(
            find_duplicates(self.parameters),
            "duplicate",
            lambda found: [name for each in found.parameters for name in each.names],
        )

    @cached_property
    @gc_paused()
    def ledger(self) -> Ledger:
        """Where the bytes are: read by the slots, and stored."""
        logical = sum(slot.logical_bytes for slot in self.slots)
        return Ledger(logical, stored_bytes(self._ir))

    @cached_property
    def warnings(self) -> Listing[str]:
        """What other tools are known to break in this model, each with what to do about it."""
        return Listing([str(each) for each in quantizer_problems(self.ties)], "warning")

    @cached_property
    @gc_paused()
    def analysis(self) -> Analysis:
        """All of the above in one value, with shapes and problems; see ``tieops.analyze``."""
        return analysis_of(
            self._ir,
            self.layers,
            self.parameters,
            self.ties,
            self.accidental_ties,
            self.duplicates,
            self.ledger,
            self.trace.learnables,
            [(each, self.readers(each)) for each in dict.fromkeys(t.parameter for t in self.ties)],
        )

    @cached_property
    def inputs(self) -> Listing[onnx_ir.Value]:
        """The graph's inputs that a caller must feed: those without a stored value."""
        fed = (value for value in self._ir.graph.inputs if not value.is_initializer())
        return Listing(fed, "input", _name_of_value, _text_of_value)

    @cached_property
    def outputs(self) -> Listing[onnx_ir.Value]:
        """The graph's outputs."""
        return Listing(self._ir.graph.outputs, "output", _name_of_value, _text_of_value)

    @gc_paused()
    def clone(self) -> onnx_ir.Model:
        """Return a copy of the graph that shares the weights: it costs the graph alone."""
        return copy_model(self._ir)

    # Where its tensors lie is nothing that a copy can rely on, so a pickle has their content; and a
    # graph is a chain of objects that pickle itself would follow until Python's stack ends.
    def __reduce__(self) -> tuple[Any, ...]:
        return _of_content, content_of(self._ir)

    def __copy__(self) -> TiedModel:
        return TiedModel(self._ir)

    def __deepcopy__(self, memo: dict[int, Any]) -> TiedModel:
        ir = copy_model(self._ir)
        snapshot(ir)
        return TiedModel(ir)

    def __str__(self) -> str:
        return str(self.analysis)

    def _repr_html_(self) -> str:
        return self.analysis._repr_html_()  # pyright: ignore[reportPrivateUsage] - IPython's name

    def __repr__(self) -> str:
        return (
            f"<TiedModel: {counted(len(self.layers), 'layer')}, "
            f"{counted(len(self.parameters), 'parameter')}, "
            f"{counted(len(self.ties), 'tie')}, {self.ledger}>"
        )


def _own_name(found: Layer | Slot) -> tuple[str, ...]:
    return (found.name,)


def _name_of_value(value: onnx_ir.Value) -> tuple[str, ...]:
    return (value.name or "",)


def _text_of_value(value: onnx_ir.Value) -> str:
    return f"{printable(value.name or '')}: {brief(value.dtype, value.shape)}"


def _of_content(graph: bytes, arrays: Sequence[np.ndarray[Any, Any]]) -> TiedModel:
    return TiedModel(model_of(graph, arrays))


Model: TypeAlias = TiedModel | str | os.PathLike[str] | bytes | onnx.ModelProto | onnx_ir.Model
"""What a verb takes as a model: an imported one, or what ``tieops.from_onnx`` imports."""


def analyze(model: Model) -> Analysis:
    """Look at a model: layers with shapes and learnables, ties, duplicates, problems and totals.

    Args:
        model: The model, or what ``from_onnx`` imports; left alone. Its weights are read only where
            two may be equal.

    Returns:
        What was found. Prints itself, is a table in a notebook; ``records()`` and ``to_dict()``
        are for programs.

    Raises:
        TieopsError: If it is neither, or cannot be imported.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 3] y, float[2, 3] w) <float[3, 2] emb = {1,2,3,4,5,6}>
        ... { h = Gather(emb, x)
        ...   w = Transpose<perm = [1, 0]>(emb)
        ...   y = MatMul(h, w) }''')
        >>> found = analyze(TiedModel(graph))
        >>> [str(row.learnables[0]) for row in found.rows if row.learnables]
        ['weight f32[3,2] (tied, 2 readers)', 'weight f32[2,3] (tied to emb, transposed)']
        >>> print(found.problems[0])
        no input reaches the output w: it is the same on every run; fix it with
        tieops.remove_disconnected_outputs(model)
    """
    return as_model(model).analysis


def as_model(model: object) -> TiedModel:
    """Return the model that a verb was given, imported if it is not one yet.

    Raises:
        TieopsError: If it is nothing that ``from_onnx`` imports, or cannot be imported.

    Example:
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[2] x) => (float[2] y) { y = Relu(x) }''')
        >>> as_model(graph).outputs
        1 output
          y: f32[2]
    """
    if isinstance(model, str | os.PathLike | bytes | onnx.ModelProto | onnx_ir.Model):
        # By name, for importers are made of models: nothing here may import them.
        return importlib.import_module("tieops.importers.onnx").from_onnx(model)
    check_model(model)
    assert isinstance(model, TiedModel)
    return model


def check_model(model: object) -> None:
    """Refuse what is not a TiedModel, with the way to make one.

    Raises:
        UnsupportedModelError: If it is something else.
    """
    if not isinstance(model, TiedModel):
        raise UnsupportedModelError(
            f"expected a TiedModel, got {described(model)}",
            None,
            "import it first: tieops.from_onnx(path) or tieops.from_torch(module, inputs)",
        )


def _overlapping(parameter: Parameter, slots: Sequence[Slot]) -> Iterator[tuple[Slot, ...]]:
    """Split the readers of one parameter into those that share elements with each other."""
    if len({slot.reader for slot in slots}) == 1:
        if len(aliases_of(parameter.value)) > 1:
            yield tuple(slots)
        return
    views = {
        slot: [read.view for read in slot.reads if read.parameter is parameter] for slot in slots
    }
    if not any(isinstance(s, Slice) for v in views.values() for view in v for s in view.steps):
        yield tuple(slots)  # the usual case, without comparing pairs
        return
    ground = np.empty(parameter.shape, np.uint8)
    prints = [[view.footprint(ground) for view in views[slot]] for slot in slots]
    for group in sharing_groups(prints, ground):
        found = tuple(slots[index] for index in group)
        if len({slot.reader for slot in found}) > 1:
            yield found
