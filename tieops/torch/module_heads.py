"""``replace_head`` for a live module: a new number of outputs, with a shared weight left alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn

from tieops.errors import PreconditionError, SelectionError, UnsupportedModelError
from tieops.importers.torch.lr_factors import set_lr_factor
from tieops.passes.initialise import check_head_options, head_values
from tieops.torch.places import check_module
from tieops.torch.transposed_weight import plain_class

__all__ = ["replace_head"]

Array = np.ndarray[Any, Any]
_FLOATS: dict[torch.dtype, type[Any]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def replace_head(
    module: nn.Module,
    head: str | None = None,
    *,
    out_features: int,
    lr_factor: float = 1.0,
    bias_lr_factor: float | None = None,
    init: str | Array | torch.Tensor = "kaiming_uniform",
    bias: bool | Array | torch.Tensor = True,
    seed: int = 0,
) -> nn.Module:
    """Replace the head of a module by a new layer of another size, in place.

    The new ``nn.Linear`` or convolution has the old one's name, device, dtype and training flag.
    It shares nothing: whoever reads the old weight keeps it. Its values are those that
    ``tieops.replace_head`` gives the imported model with the same options, bit for bit. Sizes that
    the module remembers elsewhere (``config.num_labels``) are yours to change.

    Args:
        module: The module; edited.
        head: The name of the ``nn.Linear`` or convolution to replace; by default the last layer
            with parameters, in the order in which the module was built.
        out_features: How many outputs the new layer has.
        lr_factor: Factor of the learning rate of the new weight, which ``param_groups`` and
            ``from_torch`` read.
        bias_lr_factor: The same for the new bias; ``lr_factor`` by default.
        init: ``"kaiming_uniform"`` (torch's own for these layers), ``"xavier_uniform"``,
            ``"normal"``, ``"zeros"``, or values of shape (out_features, in_features) or
            (out_features, channels, *kernel).
        bias: Whether the new layer has a bias; or its values, of shape (out_features,).
        seed: Seed of the new values.

    Returns:
        The module.

    Raises:
        SelectionError: If no layer is named ``head``.
        PreconditionError: If the last layer with parameters is no head, or an option is wrong.
        UnsupportedModelError: If the head is a grouped convolution or a layer of another kind, or
            ``module`` is not a live module.

    Example:
        >>> net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))
        >>> net[1].weight = net[0].weight
        >>> _ = replace_head(net, out_features=15, lr_factor=10)
        >>> net[1], net[0].weight.shape
        (Linear(in_features=8, out_features=15, bias=True), torch.Size([50, 8]))
    """
    check_module(module)
    check_head_options(out_features, seed, lr_factor, bias_lr_factor)
    name, old = _named(module, head) if head is not None else _last(module)
    _check_kind(name, old)
    weight, offset = head_values(
        (out_features, *old.weight.shape[1:]),
        np.dtype(_FLOATS[old.weight.dtype]),
        init=_array(init),
        bias=_array(bias),
        seed=seed,
    )
    new = _made(old, out_features, weight, offset)
    for key, factor in (
        ("weight", lr_factor),
        ("bias", lr_factor if bias_lr_factor is None else bias_lr_factor),
    ):
        if factor != 1.0 and getattr(new, key) is not None:
            set_lr_factor(new, key, factor)
    # One layer may have two names; all of them are the head.
    for path in [
        path for path, part in module.named_modules(remove_duplicate=False) if part is old
    ]:
        parent, _, attribute = path.rpartition(".")
        setattr(module.get_submodule(parent), attribute, new)
    return module


def _named(module: nn.Module, head: str) -> tuple[str, Any]:
    known = {path: part for path, part in module.named_modules(remove_duplicate=False) if path}
    if head in known:
        return head, known[head]
    heads = [path for path, part in known.items() if _is_head(part)]
    raise SelectionError(
        f"no layer is named {head}", {"heads": ", ".join(heads) or "none"}, "name one of these"
    )


def _last(module: nn.Module) -> tuple[str, Any]:
    owners = [
        (path, part)
        for path, part in module.named_modules()
        if next(part.parameters(recurse=False), None) is not None
    ]
    path, last = owners[-1] if owners else ("", module)
    if path and _is_head(last):
        return path, last
    heads = [path for path, part in owners if path and _is_head(part)]
    raise PreconditionError(
        "cannot find the head: the last layer with parameters is not a Linear or a convolution",
        {"last": path or type(last).__name__, "could be": ", ".join(heads[-4:]) or "none"},
        'name it: replace_head(module, "fc", ...)',
    )


def _is_head(part: Any) -> bool:
    return plain_class(part) in (nn.Linear, *_CONVOLUTIONS) and getattr(part, "groups", 1) == 1


def _check_kind(name: str, old: Any) -> None:
    if not _is_head(old):
        groups = getattr(old, "groups", 1)
        raise UnsupportedModelError(
            f"expected a Linear or an ungrouped convolution, got {name}",
            {"it is": type(old).__name__ + (f" of {groups} groups" if groups != 1 else "")},
            "replace it by hand, or remove its parametrizations first",
        )
    if isinstance(old.weight, nn.UninitializedParameter) or old.weight.dtype not in _FLOATS:
        raise UnsupportedModelError(
            f"the weight of {name} cannot be initialised",
            {"dtype": old.weight.dtype},
            "call a lazy module once; replace the head before the module is quantized",
        )


def _array(values: Any) -> Any:
    if not isinstance(values, torch.Tensor):
        return values
    exact = values.detach().cpu()
    return (exact.float() if exact.dtype == torch.bfloat16 else exact).numpy()


def _made(old: Any, out_features: int, weight: Array, bias: Array | None) -> nn.Module:
    like: dict[str, Any] = {"bias": bias is not None, "device": "meta", "dtype": old.weight.dtype}
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, out_features, **like)
    else:
        kept = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        options = {key: getattr(old, key) for key in kept}
        new = plain_class(old)(old.in_channels, out_features, **options, **like)
    new.weight = nn.Parameter(_tensor(weight, old.weight))
    if bias is not None:
        new.bias = nn.Parameter(_tensor(bias, old.weight))
    return new.train(old.training)


def _tensor(values: Array, like: torch.Tensor) -> torch.Tensor:
    # numpy has no bfloat16 that torch takes; float32 holds each of its values.
    exact = values.astype(np.float32) if values.dtype.kind == "V" else values
    return torch.tensor(exact, dtype=like.dtype, device=like.device)
