"""Count the copies of each weight in a session, from its optimized graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir

from tieops.arguments import expect
from tieops.errors import PreconditionError
from tieops.importers.onnx import from_onnx
from tieops.ir.operators.on_cuda import is_copied_by_cudnn
from tieops.ir.parameter import Parameter, Slot
from tieops.model import TiedModel
from tieops.progress import progress
from tieops.runtime.accounting.optimized import (
    Packed,
    initializers,
    packed_of,
    read_optimized,
    reading_of,
)
from tieops.runtime.accounting.probe import GRAPH, Probe, probe
from tieops.runtime.accounting.resident import Copy, Held, Place, ResidentBytes
from tieops.runtime.memory.single_copy import MIN_BYTES
from tieops.runtime.session_config import SessionConfig
from tieops.runtime.sessions import Session
from tieops.system.folders import temporary_folder
from tieops.system.mapping import can_give_back

__all__ = ["ledger_of", "resident_bytes"]


def resident_bytes(session: Session) -> ResidentBytes:
    """Count the copies of each weight that a session holds.

    The same session is opened twice more, in a process of its own: once to read that process's
    memory, once with ONNX Runtime writing the graph that it made, in which its copies are
    found and compared bit for bit. This costs the time of two loads, and room in the temporary
    folder for the weights and their packed copies.

    Args:
        session: An open session.

    Returns:
        Each parameter of 1 MB or more, and each tied one, with its copies and a verdict. Prints
        itself; ``to_dict()`` is for JSON.

    Raises:
        PreconditionError: If the session is closed, its file was replaced, or it could not be
            opened again.
        UnsupportedModelError: If tieops cannot read the model that the session runs, or not within
            the limits that the session was opened with.

    Example:
        >>> import numpy as np
        >>> from tieops.runtime.sessions import session
        >>> text = '<ir_version: 10, opset_import: ["": 20]> g (int64[n] x) => (float[n, 9000] y)'
        >>> text += "<float[1] w = {0}> { h = Gather(w, x) t = Transpose<perm = [1, 0]>(w) "
        >>> graph = onnx_ir.from_onnx_text(text + "y = MatMul(h, t) }")
        >>> weight = np.random.default_rng(0).standard_normal((9000, 32), np.float32)
        >>> graph.graph.initializers["w"].const_value = onnx_ir.tensor(weight, name="w")
        >>> graph.graph.initializers["w"].shape = onnx_ir.Shape(weight.shape)
        >>> for memory in ("mapped", "packed", "default"):
        ...     found = resident_bytes(session(TiedModel(graph), "cpu", memory=memory))
        ...     print(memory, found.ties[0].verdict, [copy.kind for copy in found.ties[0].copies])
        mapped kept ['original']
        packed kept ['original', 'prepacked']
        default prepacked ['original', 'prepacked']
    """
    expect(Session, session, "an open session", "open one: tieops.session(model)")
    if session.is_closed:
        raise PreconditionError("cannot inspect the session: it is closed", {}, "open a new one")
    if not session.is_current:
        raise PreconditionError(
            "cannot inspect the session: its file was replaced since it was opened",
            {"file": session.config.opened},
            "open a new one",
        )
    return ledger_of(session.config)


def ledger_of(config: SessionConfig) -> ResidentBytes:
    """Return what ``resident_bytes`` returns, for a session that need not be open.

    Args:
        config: What a session would be opened with.

    Raises:
        PreconditionError: If the file does not exist, or no session can be opened.
        UnsupportedModelError: If tieops cannot read the model within the config's limits.
    """
    model = from_onnx(config.opened, limits=config.limits)
    with temporary_folder() as folder, progress("measuring what ONNX Runtime holds"):
        found = probe(config, folder)
        held, others = _held(model, read_optimized(folder / GRAPH), config, found)
    return ResidentBytes(
        config.provider,
        config.memory,
        model.ledger.stored_bytes,
        held,
        others,
        found.measured,
        found.unmeasured,
    )


def _held(
    model: TiedModel, optimized: onnx_ir.Model, config: SessionConfig, found: Probe
) -> tuple[tuple[Held, ...], tuple[Copy, ...]]:
    slots: defaultdict[Parameter, list[Slot]] = defaultdict(list)
    for slot in model.slots:
        for parameter in dict.fromkeys(read.parameter for read in slot.reads):
            slots[parameter].append(slot)
    tied = {tie.parameter for tie in model.ties}
    looked_at = [p for p in model.parameters if p in tied or p.nbytes >= MIN_BYTES]
    stored = {parameter.name for parameter in model.parameters}
    made = {value: None for value in initializers(optimized) if value.name not in stored}
    equal: dict[Parameter, dict[onnx_ir.Value, str]] = {}
    for parameter in looked_at:
        mine = dict.fromkeys((v for v in initializers(optimized) if v.name == parameter.name), "")
        for value in made:
            if value.const_value is None:
                continue
            reading = reading_of(parameter, tuple(slots[parameter]), value.const_value)
            if reading is not None:
                mine[value] = reading
        made = {value: None for value in made if value not in mine}
        equal[parameter] = mine
    buffers = _buffers(model, equal)
    held = [
        Held(
            each.names,
            str(each),
            each.nbytes,
            each in tied,
            tuple(_copies(each, equal[each], buffers[each], optimized, config, found)),
        )
        for each in sorted(looked_at, key=lambda parameter: -parameter.nbytes)
    ]
    place: Place = "device" if config.provider == "cuda" else "private"
    others = [copy for value in made for copy in _computed(value, place, optimized)]
    return tuple(held), tuple(others)


def _computed(value: onnx_ir.Value, place: Place, optimized: onnx_ir.Model) -> Iterator[Copy]:
    """Yield the copies of an initializer that the runtime computed and that equals no view."""
    nbytes = 0 if value.const_value is None else int(value.const_value.nbytes)
    if nbytes < MIN_BYTES:
        return
    packed = packed_of(value)
    gone = _is_dropped(value, {each.op_type for each in packed}, optimized)
    yield Copy("folded", "dropped" if gone else place, value.name or "", "computed", nbytes)
    for each in packed:
        yield Copy("prepacked", place, each.key, "", each.nbytes)


def _buffers(
    model: TiedModel, equal: Mapping[Parameter, Mapping[onnx_ir.Value, str]]
) -> dict[Parameter, dict[str, tuple[Packed, ...]]]:
    """Return, for each parameter and each reading of it, the packed copies of that content.

    Tensors of equal content that are packed for one operator share one buffer, which ONNX Runtime
    lists with one of them alone.
    """
    found: dict[Parameter, dict[str, tuple[Packed, ...]]] = {}
    for parameter, values in equal.items():
        mine = found.setdefault(parameter, {})
        for value, reading in values.items():
            mine[reading] = (*mine.get(reading, ()), *packed_of(value))
    for duplicate in model.duplicates:
        same = [
            parameter
            for parameter, perm in zip(duplicate.parameters, duplicate.perms, strict=True)
            if perm == duplicate.perms[0] and parameter in found
        ]
        for reading in {reading for each in same for reading in found[each]}:
            shared = tuple(packed for each in same for packed in found[each].get(reading, ()))
            for each in same:
                if reading in found[each]:
                    found[each][reading] = shared
    return found


def _copies(
    parameter: Parameter,
    equal: Mapping[onnx_ir.Value, str],
    buffers: Mapping[str, tuple[Packed, ...]],
    optimized: onnx_ir.Model,
    config: SessionConfig,
    found: Probe,
) -> Iterator[Copy]:
    """Yield the copies of one parameter; ``equal`` has each initializer with its reading."""
    made: Place = "device" if config.provider == "cuda" else "private"
    if all(value.name != parameter.name for value in equal):
        yield Copy("original", "dropped", parameter.name, "", parameter.nbytes)
    for value, reading in equal.items():
        ops = {packed.op_type for packed in buffers[reading]}
        is_original = value.name == parameter.name
        place = made
        if is_original and config.provider == "cpu":
            place = _place_of_original(parameter, config, found, packed=bool(ops))
        if place != "given back" and _is_dropped(value, ops, optimized):
            place = "dropped"
        nbytes = 0 if value.const_value is None else int(value.const_value.nbytes)
        kind = "original" if is_original else "folded"
        yield Copy(kind, place, value.name or "", reading, nbytes)
        for op_type in _held_by_cudnn(value, found):
            yield Copy("prepacked", made, f"{op_type}+cuDNN {value.name}", "", nbytes)
    for packed in dict.fromkeys(each for group in buffers.values() for each in group):
        yield Copy("prepacked", made, packed.key, "", packed.nbytes)


def _held_by_cudnn(value: onnx_ir.Value, found: Probe) -> Iterator[str]:
    """Yield the operator of each node that has cuDNN read an initializer in a copy of its own."""
    for usage in value.uses():
        node = usage.node
        if usage.idx and is_copied_by_cudnn(node) and (node.name or "") in found.recurrent:
            yield node.op_type


def _place_of_original(
    parameter: Parameter, config: SessionConfig, found: Probe, *, packed: bool
) -> Place:
    if parameter.name in found.arranged:
        gone = config.memory == "packed" and packed and can_give_back()
        return "given back" if gone else "mapped"
    external = isinstance(parameter.tensor, onnx_ir.ExternalTensor)
    return "mapped" if external else "private"


def _is_dropped(value: onnx_ir.Value, ops: Iterable[str], optimized: onnx_ir.Model) -> bool:
    """Return whether the runtime frees an initializer: each reader has packed it for itself.

    Of initializers inside subgraphs it keeps the tensor all the same.
    """
    readers = [usage.node for usage in value.uses()]
    inside = value.graph is not optimized.graph
    return bool(readers) and not inside and all(node.op_type in {*ops} for node in readers)
