"""``from_torch``: import modules, exported programs and files with every learnable and tie."""

from __future__ import annotations

import copy
import inspect
import io
import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import onnx
import onnx_ir
import onnx_ir.passes.common as common_passes
import torch
from torch.utils import _pytree as pytree

from tieops.arguments import described
from tieops.errors import ExportError, PreconditionError
from tieops.importers.onnx import from_onnx
from tieops.importers.torch.aliases import (
    make_values_distinct,
    places_of,
    record_calls,
    restore_values,
    separate_names,
)
from tieops.importers.torch.exported_graph import (
    name_apart,
    note_layout,
    note_learnables,
    note_padding,
    note_program,
    tidy,
)
from tieops.importers.torch.gradients import GradientGaps, gaps_in_graph, watching_gradients
from tieops.importers.torch.isolation import isolated, suppress_torch_logging
from tieops.importers.torch.lr_factors import lr_factors, note_lr_factors
from tieops.importers.torch.port_names import check_port_names, name_ports
from tieops.importers.torch.program_files import read_torch_file
from tieops.importers.torch.program_names import ProgramNames, exporting_names
from tieops.importers.torch.rnn import exporting_rnns, translations
from tieops.importers.torch.rnn_weights import pack_rnn_weights
from tieops.importers.torch.storages import plain_tensors, share
from tieops.ir.edit import (
    NameAuthority,
    copy_model,
    release_removed,
    rename_initializer,
    snapshot,
)
from tieops.ir.notation import printable
from tieops.ir.operators.identity import opset_version
from tieops.model import TiedModel
from tieops.progress import progress
from tieops.untrusted.limits import UNLIMITED

__all__ = ["from_torch"]


def from_torch(
    source: torch.nn.Module | torch.export.ExportedProgram | str | os.PathLike[str],
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    trust: bool = False,
    copy: bool = True,
) -> TiedModel:
    """Import a PyTorch program, in inference mode, with every learnable and every tie kept.

    Every parameter and persistent buffer that the program reads is stored under its FQN; a tied one
    once, under its first name in the module, with all its names. Nothing learnable is folded,
    sliced away or dropped, zero biases included. ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` become one
    ONNX node a layer, with batch and sequence length as dynamic as ``dynamic_shapes`` says.
    Learning-rate factors of a module's parameters come along (``tieops.torch.replace_head``).

    Args:
        source: A module, an exported program, a ``.pt2`` file of ``torch.export.save``, or a
            TorchScript archive of ``torch.jit.save``.
        args: Example inputs, as for ``source(*args)``, or the only one; an exported program has its
            own.
        kwargs: Example keyword inputs.
        dynamic_shapes: As for ``torch.export.export``, or plain names:
            ``{"x": {0: "batch", 1: "sequence"}}``.
        opset: The ONNX opset; the exporter's own by default, 17 for TorchScript.
        input_names: New names for the graph's inputs, in order; those past the last keep theirs.
        output_names: New names for the graph's outputs, in order.
        trust: A file may run code when it is opened, as TorchScript does, and a ``.pt2`` with
            pickles or custom operators. Checkpoints are refused all the same.
        copy: Copy the weights of a module or a program, so that the model does not follow what is
            done to them later, such as a step of an optimizer. ``False`` shares their memory: for
            what is too large to be held twice and is written at once.

    Returns:
        The imported model. A module is left as it was, its training flags included.

    Raises:
        ExportError: If torch cannot export the program; torch's own words are kept.
        UntrustedFileError: If a file is damaged, or would run code and is not trusted.
        PreconditionError: If example inputs are missing, or a parameter has two learning-rate
            factors.
        UnsupportedModelError: If weights that ONNX packs as one have different factors.

    Example:
        >>> class Tied(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.emb = torch.nn.Embedding(10, 4)
        ...         self.fc = torch.nn.Linear(4, 10, bias=False)
        ...         self.fc.weight = self.emb.weight
        ...     def forward(self, x):
        ...         return self.fc(self.emb(x))
        >>> model = from_torch(Tied(), (torch.zeros(2, 3, dtype=torch.long),))
        >>> print(model.ties)
        emb.weight = fc.weight: f32[10,4] (object)
          emb.weight
          fc.weight (transpose)
    """
    check_port_names(input_names, output_names)
    if isinstance(source, str | os.PathLike):
        source, copy = read_torch_file(source, trust=trust), False  # nobody else has its weights
    args = _positional(args)
    if isinstance(source, torch.jit.ScriptModule):
        model, apart = _from_torchscript(source, args, kwargs, dynamic_shapes, opset)
        stored = dict(model.graph.initializers.items())
        name_ports(model, input_names, output_names)
        tensors = _named_tensors(source)
        restore_values(stored, tensors, apart)
        share(model, tensors, stored)
        note_learnables(model, source)
        return _imported(model, copy=copy)
    is_module = isinstance(source, torch.nn.Module)
    if not is_module and not isinstance(source, torch.export.ExportedProgram):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PreconditionError(
            f"from_torch cannot read {described(source)}",
            {"takes": "an nn.Module, an ExportedProgram, or a path of a .pt2 or TorchScript file"},
            "load the state into its module, and pass that: values alone compute nothing"
            if isinstance(source, Mapping)
            else "call it in the forward of an nn.Module, and pass that"
            if callable(source)
            else "use from_onnx for ONNX",
        )
    if not is_module and (args or kwargs or dynamic_shapes):
        raise PreconditionError(
            "an exported program already has its inputs and sizes",
            {"given": "args, kwargs or dynamic_shapes"},
            "leave them out, or pass the module",
        )
    if args and isinstance(args[-1], Mapping) and not kwargs:
        args = (*args, {})  # else torch takes a last dict for keyword inputs
    if is_module and not args and not kwargs and _takes_inputs(source):
        raise PreconditionError(
            f"cannot export {type(source).__name__} without example inputs",
            {"args": "()", "kwargs": "{}"},
            "pass the tensors of one call: from_torch(module, (x,))",
        )
    if isinstance(source, torch.nn.Module):
        _check_is_initialized(source)
    factors = lr_factors(source) if isinstance(source, torch.nn.Module) else {}
    with progress(f"exporting {type(source).__name__}"):
        own_args, own_kwargs = _own((tuple(args), dict(kwargs or {})))
        program, names, gaps = _export(source, own_args, own_kwargs, dynamic_shapes, opset)
    model = program.model
    assert program.exported_program is not None
    exported = names.original(program.exported_program)
    if _SIGNATURE in model.graph.metadata_props:
        model.graph.metadata_props[_SIGNATURE] = str(exported.graph_signature)
    record_calls(model, exported)
    _check_what_came_out(model, type(source).__name__, opset)
    tensors = _named_tensors(source if is_module else exported)
    stored = _named_by_fqn(model, names)
    name_ports(model, input_names, output_names)
    name_apart(model)
    tidy(model)
    release_removed(model)
    share(model, tensors, stored, places_of(source) if is_module else None)
    pack_rnn_weights(model)
    note_lr_factors(model, factors)
    common_passes.RemoveUnusedNodesPass()(model)
    note_program(model)
    note_padding(model, exported)
    note_layout(model, exported)
    written = exported.graph_signature.buffers_to_mutate.values()
    note_learnables(model, source, [*gaps.notes()], written)
    # The exporter's own kind of value holds on to its recorder, which cannot be copied or pickled.
    return _imported(copy_model(model), copy=copy)


def _imported(model: onnx_ir.Model, *, copy: bool) -> TiedModel:
    if copy:
        snapshot(model)
    return TiedModel(model)


def _check_what_came_out(model: onnx_ir.Model, name: str, opset: int | None) -> None:
    if opset is not None and opset_version(model.opset_imports) != opset:
        raise ExportError(
            f"torch cannot export {name} to opset {opset}",
            {"asked for": opset, "came out": opset_version(model.opset_imports)},
            "leave opset= out, or convert the file with onnx.version_converter",
        )
    if not model.graph.outputs:
        raise ExportError(
            f"expected a forward that returns a tensor, got none from {name}",
            {"inputs": ", ".join(str(each.name) for each in model.graph.inputs) or "none"},
            "return what the forward computes: what it stores elsewhere is not an output",
        )


def _positional(args: object) -> tuple[Any, ...]:
    """Return example inputs as a tuple; one tensor stands for itself, None for no inputs."""
    if args is None:
        return ()
    if isinstance(args, torch.Tensor):
        return (args,)
    if isinstance(args, tuple | list):
        return tuple(args)
    raise PreconditionError(
        f"expected a tuple of example inputs, got {described(args)}",
        None,
        "pass keyword inputs as kwargs={...}"
        if isinstance(args, Mapping)
        else "pass the tensors of one call: from_torch(module, (x,))",
    )


def _check_is_initialized(module: torch.nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise PreconditionError(
                f"expected initialized parameters, got a lazy {name} in {type(module).__name__}",
                None,
                "call the module once on example inputs, so that it takes its shapes from them",
            )


def _takes_inputs(module: torch.nn.Module | torch.export.ExportedProgram) -> bool:
    try:
        return bool(inspect.signature(module.forward).parameters)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType]
    except ValueError:
        return True


def _export(
    source: torch.nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    opset: int | None,
) -> tuple[torch.onnx.ONNXProgram, ProgramNames, GradientGaps]:
    module = source if isinstance(source, torch.nn.Module) else None
    with ExitStack() as stack:
        stack.enter_context(isolated(module))
        if module is not None:
            stack.enter_context(_inference(module))
            stack.enter_context(exporting_rnns(module))
            stack.enter_context(separate_names(module))
            gaps = stack.enter_context(watching_gradients(module))
        else:
            assert isinstance(source, torch.export.ExportedProgram)
            gaps = gaps_in_graph(source)
        names = stack.enter_context(exporting_names())
        try:
            program = torch.onnx.export(
                source,  # pyright: ignore[reportArgumentType] - its stub forgets ExportedProgram
                args,
                kwargs=kwargs,
                dynamic_shapes=dynamic_shapes,
                opset_version=opset,
                custom_translation_table=translations(),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, IndexError) as error:
            gist = _gist(names.text(str(error)))
            # An IndexError is of an axis that an input lacks; torch wraps those of a forward.
            about_sizes = dynamic_shapes is not None and (
                "dynamic_shapes" in gist or isinstance(error, IndexError)
            )
            raise ExportError(
                f"torch cannot export {type(source).__name__}",
                {"torch says": gist},
                "name forward's arguments and their axes in dynamic_shapes, or leave it out"
                if about_sizes
                else "make the module work under torch.export.export first",
            ) from error
    if program is None:
        raise ExportError(f"torch exported nothing for {type(source).__name__}")
    return program, names, gaps


_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
MAX_GIST_LINES = 4


def _gist(message: str) -> str:
    """Return what torch's exporter says went wrong, without its advice, colours and traces."""
    text = _ANSI.sub("", message)
    _, found, summary = text.partition("## Exception summary")
    lines = [line.strip() for line in (summary if found else text).splitlines() if line.strip()]
    return printable(" ".join(lines[:MAX_GIST_LINES]))


def _own(inputs: Any) -> Any:
    """Return the inputs with a tensor object of its own for each place.

    torch takes tensors that are one object for one input, and reads it for all of them; it also
    marks those whose sizes are to vary.  The elements are shared.
    """

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().requires_grad_(tensor.requires_grad)

    return pytree.tree_map_only(torch.Tensor, own, inputs)


@contextmanager
def _inference(module: torch.nn.Module) -> Generator[None]:
    # Not by eval(): a module may do more in it (merge its adapters), and a program's refuses it.
    training = [each for each in module.modules() if each.training]
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True


def _named_tensors(
    source: torch.nn.Module | torch.export.ExportedProgram,
) -> dict[str, torch.Tensor]:
    """Return every parameter and buffer under every name it has, in the module's order."""
    if isinstance(source, torch.nn.Module):
        tensors: dict[str, torch.Tensor] = dict(source.named_parameters(remove_duplicate=False))
        tensors.update(source.named_buffers(remove_duplicate=False))
    else:
        tensors = {
            name: tensor
            for name, tensor in {**source.state_dict, **source.constants}.items()
            if isinstance(tensor, torch.Tensor)
        }
    return plain_tensors(tensors)


def _named_by_fqn(model: onnx_ir.Model, names: ProgramNames) -> dict[str, onnx_ir.Value]:
    """Give each parameter and buffer its FQN; return the initializer of each.

    Where an input or another value has that name already, it gets the next one that is free.
    """
    found: dict[str, onnx_ir.Value] = {}
    authority = NameAuthority(model)
    for value in list(model.graph.initializers.values()):
        fqn = names.fqn(value.name or "")
        found[fqn] = value
        if fqn != value.name:
            rename_initializer(value, fqn, authority)
    return found


def _from_torchscript(
    module: torch.jit.ScriptModule,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    opset: int | None,
) -> tuple[onnx_ir.Model, frozenset[str]]:
    """Export a TorchScript program by the only exporter that still takes one.

    Returns:
        The graph, and the names of the tensors in it whose values have to be put back.
    """
    if not args or kwargs:
        raise PreconditionError(
            "cannot export a TorchScript program without positional example inputs",
            {"args": len(args), "kwargs": ", ".join(kwargs or ()) or "none"},
            "pass all inputs of one call in order: from_torch(path, (x, state))",
        )
    names = [str(v.debugName()).split(".")[0] for v in list(module.graph.inputs())[1:]]
    names = names[: len(args)]
    buffer = io.BytesIO()
    passing = copy.deepcopy(module)  # torch leaves its marks on what it exports
    apart = make_values_distinct(passing)
    with suppress_torch_logging(), _inference(passing), progress("exporting TorchScript"):
        try:
            torch.onnx.export(
                passing,
                tuple(args),
                buffer,  # pyright: ignore[reportArgumentType] - its stub forgets buffers
                dynamo=False,
                do_constant_folding=False,
                input_names=names,
                dynamic_axes=_dynamic_axes(dynamic_shapes, names),
                opset_version=opset or 17,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
            raise ExportError(
                "torch cannot export this TorchScript program",
                {"torch says": _gist(str(error))},
                "export the original module with torch.export.save and pass the .pt2",
            ) from error
    return from_onnx(onnx.load_from_string(buffer.getvalue()), limits=UNLIMITED).ir, apart


def _dynamic_axes(dynamic_shapes: Any, names: Sequence[str]) -> dict[str, dict[int, str]]:
    if not dynamic_shapes:
        return {}
    if not isinstance(dynamic_shapes, Mapping):
        dynamic_shapes = dict(zip(names, dynamic_shapes, strict=False))
    return {
        str(name): {axis: str(getattr(dim, "__name__", dim)) for axis, dim in axes.items()}
        for name, axes in dynamic_shapes.items()
        if axes
    }
