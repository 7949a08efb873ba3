"""Give each name of a parameter an object during export, so that each name keeps its readers.

``torch.export`` gives one placeholder to all names of one Parameter, and nothing in the program
tells afterwards which of them an operator read. So each further place that holds a Parameter gets
one of its own for the time of the export, over the same storage. After it, which names a node
reads is recorded on the node.

torch's older exporter stores equal parameters once, and its graph does not record that they were
separate: all fresh norms have gains of ones. There, each gets distinct values during the export.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Container, Generator, Mapping
from contextlib import contextmanager

import onnx_ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

from tieops.analysis.trace import trace
from tieops.ir.readers.module_calls import record_call
from tieops.ir.readers.readers import record_reads
from tieops.ir.walk import scope_of

__all__ = [
    "make_values_distinct",
    "places_of",
    "record_calls",
    "record_names",
    "restore_values",
    "separate_names",
]

_lock = threading.RLock()


def places_of(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return, for every parameter's name, all names of the place that holds it.

    A place is one module and one attribute of it. It has several names where the module is held
    under several, and all of them are read by the same code.

    Example:
        >>> first = nn.Linear(2, 2, bias=False)
        >>> places_of(nn.Sequential(first, first, nn.Linear(2, 2, bias=False)))
        {'0.weight': ('0.weight', '1.weight'), '1.weight': ('0.weight', '1.weight'), \
'2.weight': ('2.weight',)}
    """
    found: dict[tuple[int, str], list[str]] = {}
    for path, each in module.named_modules(remove_duplicate=False):
        for name, parameter in each._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if parameter is not None:
                full = f"{path}.{name}" if path else name
                found.setdefault((id(each), name), []).append(full)
    return {name: tuple(names) for names in found.values() for name in names}


@contextmanager
def separate_names(module: nn.Module) -> Generator[None]:
    """Give each place that holds a shared Parameter an object of its own over the same storage.

    The first place keeps the object, for whoever else holds it (a list, a closure). A module that
    is held under several names stays one. Subclasses of Parameter are left shared: what they do
    when they are made anew is theirs to say.
    """
    changed: list[tuple[nn.Module, str, nn.Parameter]] = []
    with _lock:  # another export of the same module must not take what is here for its own
        try:
            seen: set[int] = set()
            for each in list(module.modules()):
                for name, held in list(each._parameters.items()):  # pyright: ignore[reportPrivateUsage]
                    if held is None or type(held) is not nn.Parameter:
                        continue
                    if id(held) not in seen:
                        seen.add(id(held))
                        continue
                    changed.append((each, name, held))
                    # By setattr: recurrent layers keep their weights in a list beside.
                    setattr(each, name, _over_same_storage(held))
            yield
        finally:
            for each, name, held in changed:
                setattr(each, name, held)


def record_names(
    model: onnx_ir.Model,
    stored: Mapping[str, onnx_ir.Value],
    shared: Container[str],
    places: Mapping[str, tuple[str, ...]],
) -> None:
    """Record on every node that reads a shared parameter under which names it does.

    Args:
        model: The exported graph, in which every place of a module still has a tensor of its own.
        stored: The tensor of each name that the exporter stored one for.
        shared: The names that share a tensor with another one.
        places: What ``places_of`` found in the module.
    """
    names = {value: places.get(name, (name,)) for name, value in stored.items() if name in shared}
    if not names:
        return
    for value, uses in trace(model).uses.items():
        for use in uses if value in names else ():
            if not use.path:  # a body serves many calls, which may read under many names
                record_reads(use.node, use.index, names[value])


def record_calls(model: onnx_ir.Model, exported: torch.export.ExportedProgram | None) -> None:
    """Record which call of its module a node belongs to, where a layer may depend on it.

    That is in modules that are called more than once; and in those that compute by themselves,
    which may read their own tensor several times in one call.
    """
    if exported is None:
        return
    calls: dict[str, tuple[str, int]] = {}
    for node in exported.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", ()))
        key, _, number = str(stack[-1]).partition("@") if stack else ("", "", "")
        if key and (not number or number.isdecimal()):
            calls[node.name] = key, int(number or 0)
    again = {key for key, number in calls.values() if number}
    for node in model.graph.all_nodes():
        scope = scope_of(node)
        key, number = calls.get(scope.fx_name, ("", 0)) if scope is not None else ("", 0)
        if key in again or (key and scope is not None and not scope.is_torch):
            record_call(node, number)


def _over_same_storage(parameter: nn.Parameter) -> nn.Parameter:
    with torch.no_grad():
        other = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    for name, noted in vars(parameter).items():  # by user code
        setattr(other, name, noted)
    return other


def make_values_distinct(module: nn.Module) -> frozenset[str]:
    """Give every parameter of a module that is thrown away values that no other one has.

    Returns:
        The names of the parameters that have other values now. A parameter of a loaded archive is
        a plain tensor, so its type does not tell it from a buffer.
    """
    numbers = torch.Generator().manual_seed(0)
    named = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=numbers, dtype=torch.float64)
                parameter.copy_(noise.to(parameter.dtype))
    return frozenset(name for name, each in named.items() if each.is_floating_point())


def restore_values(
    stored: Mapping[str, onnx_ir.Value],
    tensors: Mapping[str, torch.Tensor],
    names: Collection[str],
) -> None:
    """Store a module's own values again in the graph of its copy.

    Args:
        stored: The initializers of the graph.
        tensors: The module's parameters and buffers.
        names: What ``make_values_distinct`` returned.
    """
    for name in stored.keys() & names:
        tensor = tensors[name].detach().clone().contiguous()
        stored[name].const_value = TorchTensor(tensor, name=name)
