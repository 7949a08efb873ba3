"""The form of each name of a stored tensor: which part of it, with which order of axes.

A module may hold a transposed view or a slice of another tensor's storage as a separate parameter.
Both are stored once, and the second name stands for a view of the stored tensor. Without this
record (``tieops.forms``), ``to_torch`` and ``untie`` would store the whole tensor, or one with
permuted axes, under a name whose module expects something else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

import onnx_ir

from tieops.ir.metadata.keys import AXES
from tieops.ir.metadata.parsing import parsed
from tieops.ir.view import Reshape, Shape, Slice, Step, Transpose, View

__all__ = ["after", "as_read", "form_of", "keep_forms", "set_forms", "stored_axes"]

FORMS = "tieops.forms"
"""On a stored tensor: by name, the steps from what is stored to what the name stands for."""
MAX_STEPS = 8
"""A form is a slice, a transpose, a reshape; a longer one is not one of ours."""


def form_of(value: onnx_ir.Value, name: str) -> View:
    """Return the view of a stored tensor that one of its names stands for.

    Example:
        >>> value = onnx_ir.Value(name="w", const_value=onnx_ir.tensor([[1, 2, 3], [4, 5, 6]]))
        >>> set_forms(value, {"w.T": View((2, 3)).then(Transpose((1, 0)))})
        >>> str(form_of(value, "w.T")), form_of(value, "w").is_identity
        ('transpose', True)
    """
    return _recorded(value).get(name) or _default(value)


def set_forms(value: onnx_ir.Value, forms: Mapping[str, View]) -> None:
    """Record what names stand for: slices, transposes and reshapes of what is stored."""
    if not forms:
        return
    default = _default(value)
    found = {**_recorded(value), **forms}
    _write(value, {name: view for name, view in found.items() if view != default})


def after(view: View, form: View) -> View:
    """Return a form of what a view reads as one of what the view reads it of."""
    for step in form.steps:
        view = view.then(step)
    return view


def as_read(form: View, order: Shape) -> View:
    """Return a form of a tensor as one of another, whose axes in this order make the tensor."""
    source = [0] * len(order)
    for axis, size in zip(order, form.source, strict=True):
        source[axis] = size
    return after(View(tuple(source)).then(Transpose(tuple(order))), form)


def keep_forms(value: onnx_ir.Value, names: Iterable[str]) -> None:
    """Forget the forms of all names but these: the others have left the tensor."""
    known = set(names)
    _write(value, {name: view for name, view in _recorded(value).items() if name in known})


def stored_axes(value: onnx_ir.Value) -> Shape | None:
    """Return in which order of axes a tensor is stored, beside the one its names stand for."""
    perm = parsed(value.metadata_props.get(AXES))
    if not isinstance(perm, list) or not all(type(axis) is int for axis in perm):
        return None
    return tuple(perm) if sorted(perm) == list(range(len(_shape(value)))) else None


def _shape(value: onnx_ir.Value) -> Shape:
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape.numpy())


def _default(value: onnx_ir.Value) -> View:
    view, axes = View(_shape(value)), stored_axes(value)
    return view if axes is None else view.then(Transpose(_inverse(axes)))


def _inverse(perm: Shape) -> Shape:
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def _write(value: onnx_ir.Value, forms: Mapping[str, View]) -> None:
    if not forms:
        value.metadata_props.pop(FORMS, None)
        return
    written = {name: [_written(step) for step in view.steps] for name, view in forms.items()}
    value.metadata_props[FORMS] = json.dumps(written)


def _written(step: Step) -> dict[str, object]:
    match step:
        case Transpose(perm):
            return {"transpose": perm}
        case Slice(ranges):
            return {"slice": ranges}
        case Reshape(sizes):
            return {"reshape": sizes}
        case _:
            raise ValueError(f"a name cannot stand for {step}")


def _recorded(value: onnx_ir.Value) -> dict[str, View]:
    """Return what is recorded of each name, without what makes no sense for the tensor."""
    found = parsed(value.metadata_props.get(FORMS))
    if not isinstance(found, dict):
        return {}
    views = {name: _read(steps, _shape(value)) for name, steps in found.items()}
    return {name: view for name, view in views.items() if view is not None}


def _read(steps: object, shape: Shape) -> View | None:
    if not isinstance(steps, list) or len(steps) > MAX_STEPS:
        return None
    view = View(shape)
    for each in steps:
        kind, about = (
            next(iter(each.items())) if isinstance(each, dict) and len(each) == 1 else ("", None)
        )
        step = _step(kind, about, view.shape)
        if step is None:
            return None
        view = view.then(step)
    return view


def _step(kind: str, about: object, shape: Shape) -> Step | None:
    """Return a step that a tensor of this shape can go through; None if it makes no sense."""
    match kind:
        case "transpose":
            perm = _numbers(about, len(shape))
            return Transpose(perm) if perm and sorted(perm) == list(range(len(shape))) else None
        case "reshape":
            sizes = _numbers(about)
            if sizes is None or min(sizes, default=0) < 0:
                return None
            return Reshape(sizes) if math.prod(sizes) == math.prod(shape) else None
        case "slice":
            if not isinstance(about, list) or len(about) != len(shape):
                return None
            ranges = [_numbers(each, 3) for each in about]
            inside = [
                r is not None and 0 <= r[0] < r[1] <= size and r[2] > 0
                for r, size in zip(ranges, shape, strict=True)
            ]
            return Slice(tuple((r[0], r[1], r[2]) for r in ranges if r)) if all(inside) else None
        case _:
            return None


def _numbers(found: object, count: int | None = None) -> Shape | None:
    if not isinstance(found, list) or not all(type(each) is int for each in found):
        return None
    return tuple(found) if count is None or len(found) == count else None
