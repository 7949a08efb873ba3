"""Run a torch module for a comparison; the only module here that imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from tieops.arguments import described
from tieops.errors import MissingDependencyError, PreconditionError, UnsupportedModelError
from tieops.ir.metadata.torch_inputs import TorchInputs
from tieops.untrusted.program_checks import is_safe_treespec

if TYPE_CHECKING:
    import torch

__all__ = ["as_array", "load_program", "run_module", "run_program"]

_Array: TypeAlias = np.ndarray[Any, Any]

# torch's float types that numpy has only through ml_dtypes.
_ML_DTYPES = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}


def load_program(
    path: str, *, trust: bool = False
) -> torch.export.ExportedProgram | torch.nn.Module:
    """Load a .pt2 of torch.export or, if it is trusted, a TorchScript file.

    Raises:
        MissingDependencyError: If torch is not installed.
        UntrustedFileError: If the file is neither, or would run code and is not trusted.
    """
    try:
        from tieops.importers.torch.program_files import read_torch_file
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reading {path} needs torch",
            {"import says": str(error)},
            "pip install 'tieops[torch]'",
        ) from error
    return read_torch_file(path, trust=trust)


def run_module(
    module: torch.nn.Module, feeds: Mapping[str, _Array], layout: TorchInputs | None = None
) -> list[_Array]:
    """Run a module in eval mode, and leave its training flags as they were.

    Args:
        module: The module.
        feeds: Arrays by the names of forward's parameters; if those are other names, in its order.
        layout: How forward nests them; for inputs that are tuples, lists or dicts, and for
            arguments that have no array.

    Returns:
        The tensors and numbers of whatever it returns, flattened, without None.

    Raises:
        PreconditionError: If the arrays do not fit forward's parameters.
        UnsupportedModelError: If the module returns what is neither tensor nor number.

    Example:
        >>> import torch
        >>> run_module(torch.nn.Flatten(0), {"input": np.eye(2)})
        [array([1., 0., 0., 1.])]
    """
    import torch

    signature = _signature(module)
    names = [
        each.name
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    tensors = {name: _tensor(name, array, device) for name, array in feeds.items()}
    nested = _nested(tensors, layout, signature)
    if nested is not None:
        with _eval_mode(module), _same_buffers(module), torch.no_grad():
            return _flat(_called(module, *nested))
    try:
        if set(tensors) <= set(names):
            bound = signature.bind(**tensors)
        else:
            _check_order(list(tensors), names, type(module).__name__)
            bound = signature.bind(*tensors.values())
    except TypeError as error:
        raise _misfit(list(tensors), names, type(module).__name__, str(error)) from error
    with _eval_mode(module), _same_buffers(module), torch.no_grad():
        return _flat(_called(module, bound.args, bound.kwargs))


def _signature(module: torch.nn.Module) -> inspect.Signature:
    """Return what forward takes; Python cannot look into that of TorchScript."""
    schema: Any = getattr(module.forward, "schema", None)
    if schema is None:
        return inspect.signature(module.forward)
    found = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=each.default_value if each.has_default_value() else inspect.Parameter.empty,
        )
        for each in schema.arguments[1:]
    ]
    return inspect.Signature(found)


_NO_LAYOUT = (
    ValueError, LookupError, TypeError, NotImplementedError, AttributeError, AssertionError,
    RecursionError,
)  # fmt: skip
"""What torch raises on layouts that it did not write."""


def _nested(
    tensors: Mapping[str, torch.Tensor], layout: TorchInputs | None, signature: inspect.Signature
) -> tuple[Any, Any] | None:
    """Return args and kwargs where names alone do not say which parameter gets what."""
    from torch.utils import _pytree as pytree

    # The layout may come from a file.
    if layout is None or not is_safe_treespec(layout.spec):
        return None
    takes_any = tensors.keys() - signature.parameters.keys() and any(
        each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in signature.parameters.values()
    )
    left = iter(tensors.values())
    try:
        spec: Any = pytree.treespec_loads(layout.spec)
        if spec.num_leaves != len(tensors) + len(layout.constants):
            return None  # inputs were removed
        arguments = [*spec.child(0).children(), *spec.child(1).children()]
        if not layout.constants and not takes_any and all(each.is_leaf() for each in arguments):
            return None  # one tensor for each parameter: names tell more than order
        leaves = [
            layout.constants[index] if index in layout.constants else next(left, None)
            for index in range(spec.num_leaves)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
    except _NO_LAYOUT:
        return None
    return (args, kwargs) if isinstance(args, tuple) and isinstance(kwargs, dict) else None


def module_of(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """Return the module that runs an exported program, whatever its tensors are called."""
    from tieops.importers.torch.program_names import ProgramNames

    return ProgramNames().neutral(program).module()


def run_program(
    program: torch.export.ExportedProgram, module: torch.nn.Module, feeds: Mapping[str, _Array]
) -> list[_Array]:
    """Run an exported program.

    Args:
        program: The program, which knows its inputs.
        module: What ``module_of`` made of it, which takes time.
        feeds: Arrays by the names of its user inputs; if those are other names, in its order.

    Returns:
        What `run_module` returns.

    Raises:
        PreconditionError: If there are more or fewer arrays than inputs.
        UnsupportedModelError: If it returns what is neither tensor nor number.
    """
    import torch
    from torch.utils import _pytree as pytree

    wanted = list(program.graph_signature.user_inputs)  # names, and constants such as None
    names = [each for each in wanted if isinstance(each, str)]
    tensors = {n: _tensor(n, array, torch.device("cpu")) for n, array in feeds.items()}
    if set(tensors) != set(names):
        _check_order(list(tensors), names, "ExportedProgram")
        if len(tensors) != len(names):
            raise _misfit(list(tensors), names, "ExportedProgram", "")
        tensors = dict(zip(names, tensors.values(), strict=True))
    leaves = [tensors[each] if isinstance(each, str) else each for each in wanted]
    layout: Any = program.call_spec.in_spec
    args, kwargs = pytree.tree_unflatten(leaves, layout)
    with torch.no_grad():
        return _flat(_called(module, args, kwargs))


_CALL_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, LookupError)
"""What modules raise on inputs that they were not made for."""


def _called(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        return module(*args, **kwargs)
    except _CALL_ERRORS as error:
        raise PreconditionError(
            f"{type(module).__name__} cannot run on these inputs",
            {"torch says": (str(error).strip().splitlines() or [type(error).__name__])[0]},
            "pass inputs=, or sizes= that it takes",
        ) from error


@contextmanager
def _same_buffers(module: torch.nn.Module) -> Generator[None]:
    """Put buffers back that the forward of a module writes to, as counters and caches."""
    before = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for owner, name, buffer, values in before:
            if not _equal(buffer, values):
                buffer.copy_(values)
            # In the table itself: an attribute of that name may be the class's own.
            owner._buffers[name] = buffer  # pyright: ignore[reportPrivateUsage]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def as_array(tensor: torch.Tensor) -> _Array:
    """Return a tensor's values, of bfloat16 and float8 too, as an array of its own.

    Example:
        >>> import torch
        >>> as_array(torch.ones(2, dtype=torch.bfloat16)).dtype
        dtype(bfloat16)
    """
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _ML_DTYPES:
        bits = torch.int16 if tensor.element_size() == 2 else torch.uint8
        return tensor.contiguous().view(bits).numpy().view(_ML_DTYPES[name]).copy()
    return tensor.numpy().copy()


def _tensor(name: str, array: _Array, device: torch.device) -> torch.Tensor:
    import torch

    # Copied in C order: the module may write into its inputs, and the arrays are used again.
    array = np.array(array, order="C")
    if array.dtype.name in _ML_DTYPES:
        bits = array.view(np.int16 if array.dtype.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits).view(getattr(torch, array.dtype.name)).to(device)
    try:
        return torch.from_numpy(array).to(device)
    except TypeError as error:
        raise PreconditionError(
            f"torch cannot take the input {name}",
            {"it says": str(error)},
            "pass numbers: torch has no tensors of this type",
        ) from error


def _check_order(given: Sequence[str], names: Sequence[str], what: str) -> None:
    """Raise if passing by position would hand a named array to another parameter."""
    for position, name in enumerate(given):
        if name in names and names.index(name) != position:
            raise _misfit(given, names, what, f"{name} is at another place, and not all are named")


def _misfit(given: Sequence[str], names: Sequence[str], what: str, why: str) -> PreconditionError:
    return PreconditionError(
        f"the inputs do not fit {what}'s parameters" + (f": {why}" if why else ""),
        {"inputs": ", ".join(given), "parameters": ", ".join(names)},
        "pass inputs={parameter: array, …} with the parameters' names",
    )


@contextmanager
def _eval_mode(module: torch.nn.Module) -> Generator[None]:
    flags = [(each, each.training) for each in module.modules()]
    # Not by eval(): a module may do more in it, and a program's refuses it.
    for each, flag in flags:
        if flag:
            each.training = False
    try:
        yield
    finally:
        for each, flag in flags:
            if flag:
                each.training = True


def _flat(outputs: object) -> list[_Array]:
    import torch
    from torch.utils import _pytree as pytree

    arrays: list[_Array] = []
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor):
            arrays.append(as_array(leaf))
        elif isinstance(leaf, (bool, int, float)):
            arrays.append(np.asarray(leaf))
        elif leaf is not None:
            raise UnsupportedModelError(
                f"the module returns {described(leaf)}",
                {},
                "wrap it in a module that returns tensors",
            )
    return arrays
