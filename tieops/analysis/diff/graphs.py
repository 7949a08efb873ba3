"""``tieops.diff``: list what an edit changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir

from tieops.analysis.diff.difference import SUBJECTS, Diff, Difference, Subject
from tieops.analysis.diff.layer_pairs import layer_changes, layer_pairs
from tieops.analysis.diff.parameter_pairs import Pairs, matched, parameter_changes
from tieops.analysis.report.sections import readers
from tieops.ir.notation import brief, brief_bytes
from tieops.ir.operators.identity import domain_of, domain_title, opset_version
from tieops.ir.parameter import Parameter
from tieops.ir.tie import Tie
from tieops.model import Model, TiedModel, as_model
from tieops.system.gc_paused import gc_paused

__all__ = ["diff"]


@gc_paused()
def diff(before: Model, after: Model) -> Diff:
    """List what differs between two models: signature, ties, parameters, layers and bytes.

    Nothing is run; ``tieops.verify`` checks that two models compute the same. A parameter is the
    same one if it has the same name, shares one of its names, or has the same content. Values are
    compared bit for bit.

    Args:
        before: The first model.
        after: The second one.

    Returns:
        The differences; false if there are none. Prints itself; ``to_dict()`` is for JSON.

    Raises:
        UnsupportedModelError: If one of them is no TiedModel.

    Example:
        >>> from tieops.passes.untie import untie
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (int64[n] x) => (float[n, 3] y) <float[3, 3] emb = {1,2,3,4,5,6,7,8,9}>
        ... { h = Gather(emb, x)
        ...   t = Transpose<perm = [1, 0]>(emb)
        ...   y = MatMul(h, t) }''')
        >>> model = TiedModel(graph)
        >>> print(diff(model, untie(model)))
        signature   the same
        ties        1 -> 0
          - emb: f32[3,3] by Gather_h.weight, MatMul_y.weight (transposed)
        parameters  1 -> 2
          + MatMul_y.weight: f32[3,3]
        layers      2 -> 2
          ~ MatMul_y weight reads: emb (transpose) -> MatMul_y.weight
        operators   0 -> 0
        bytes       36 B -> 72 B stored
        >>> bool(diff(model, model))
        False
    """
    before, after = as_model(before), as_model(after)
    pairs = matched(before.parameters, after.parameters)
    layers = layer_pairs(before.layers, after.layers, pairs)
    renamed = {old.name: new.name for old, new in layers.items()}
    changes = [
        *_signature(before.ir, after.ir),
        *_ties(before.ties, after.ties, pairs, renamed),
        *parameter_changes(before.parameters, after.parameters, pairs),
        *layer_changes(before.layers, after.layers, pairs, layers),
        *_bytes(before, after),
    ]
    changes.sort(key=lambda each: SUBJECTS.index(each.subject))
    stored = before.ledger.stored_bytes, after.ledger.stored_bytes
    return Diff(tuple(changes), stored, tuple(_counts(before, after)))


def _counts(before: TiedModel, after: TiedModel) -> Iterator[tuple[Subject, int, int]]:
    learnable = [sum(layer.is_learnable for layer in each.layers) for each in (before, after)]
    plain = len(before.layers) - learnable[0], len(after.layers) - learnable[1]
    yield "tie", len(before.ties), len(after.ties)
    yield "parameter", len(before.parameters), len(after.parameters)
    yield "layer", learnable[0], learnable[1]
    yield "operator", *plain


def _signature(old: onnx_ir.Model, new: onnx_ir.Model) -> Iterator[Difference]:
    for what, before, after in (
        ("input", old.graph.inputs, new.graph.inputs),
        ("output", old.graph.outputs, new.graph.outputs),
    ):
        types = [{v.name or "": brief(v.dtype, v.shape) for v in side} for side in (before, after)]
        for name in dict.fromkeys((*types[0], *types[1])):
            sides = [side.get(name, "") for side in types]
            if sides[0] != sides[1]:
                change = "retyped" if all(sides) else "removed" if sides[0] else "added"
                yield Difference("signature", f"{what} {name}", change, *sides)
        common = types[0].keys() & types[1]
        orders = [[name for name in side if name in common] for side in types]
        if orders[0] != orders[1]:
            texts = (", ".join(order) for order in orders)
            yield Difference("signature", f"{what}s", "in another order", *texts)
    for domain in sorted({domain_of(each) for each in (*old.opset_imports, *new.opset_imports)}):
        found = (opset_version(each.opset_imports, domain) for each in (old, new))
        versions = [str(each or "") for each in found]
        if versions[0] != versions[1]:
            yield Difference("signature", f"opset {domain_title(domain)}", "version", *versions)


def _ties(
    old: Sequence[Tie], new: Sequence[Tie], pairs: Pairs, renamed: dict[str, str]
) -> Iterator[Difference]:
    """Yield ties that came, went, or have other readers; of one parameter, the likest pair."""
    left = dict.fromkeys(new)
    ties: dict[Parameter, list[Tie]] = {}
    for tie in new:
        ties.setdefault(tie.parameter, []).append(tie)
    for tie in old:
        parameter = pairs.get(tie.parameter)
        readers = {_name(slot.layer, slot.role, renamed) for slot in tie.slots}
        same = [] if parameter is None else ties.get(parameter, [])
        alike = [each for each in same if each in left]
        if not alike:
            yield Difference("tie", tie.parameter.name, "removed", _told(tie))
            continue
        other = max(alike, key=lambda each: len(readers & {slot.name for slot in each.slots}))
        del left[other]
        if readers != {slot.name for slot in other.slots}:
            yield Difference("tie", other.parameter.name, "read by", _told(tie), _told(other))
    for tie in left:
        yield Difference("tie", tie.parameter.name, "added", "", _told(tie))


def _name(layer: str, role: str, renamed: dict[str, str]) -> str:
    layer = renamed.get(layer, layer)
    return f"{layer}.{role}" if layer else role


def _told(tie: Tie) -> str:
    return f"{brief(tie.parameter.dtype, tie.parameter.shape)} by {readers(tie)}"


def _bytes(before: TiedModel, after: TiedModel) -> Iterator[Difference]:
    sizes = before.ledger.stored_bytes, after.ledger.stored_bytes
    if sizes[0] != sizes[1]:
        yield Difference("bytes", "stored", "changed", *map(brief_bytes, sizes))
