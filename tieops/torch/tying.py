"""``tie`` and ``untie`` for parameters of a live module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from tieops.errors import PreconditionError, TieMismatchError, UnsupportedModelError
from tieops.importers.torch.lr_factors import drop_lr_factor, lr_factors, set_lr_factor
from tieops.torch.places import Place, brief_tensor, check_module, place_of, places
from tieops.torch.shared_elements import shared
from tieops.torch.transposed_weight import SUFFIX, register_transposed, release_transposed

__all__ = ["tie", "untie"]


def tie(module: nn.Module, name: str, to: str, *, transpose: bool = False) -> nn.Module:
    """Make one parameter of a module another one, in place.

    ``name`` gives its own Parameter up and becomes the Parameter of ``to``, as by assignment; the
    values, ``requires_grad`` and learning-rate factor of ``to`` stay. With ``transpose=True``
    ``name`` is its transpose from now on: computed each time it is read, never stored, with
    gradients that reach the one Parameter there is. Whatever keeps torch's own ties keeps these:
    ``deepcopy``, ``.to()``, ``state_dict``, ``torch.save``, ``torch.export``.

    Tie before the optimizer is made: one that is there keeps the Parameter that was given up.

    Args:
        module: The module; edited.
        name: The parameter to give up, such as ``"fc.weight"``.
        to: The parameter that both are then, such as ``"emb.weight"``.
        transpose: Whether ``name`` is ``to`` with its first two axes swapped.

    Returns:
        The module.

    Raises:
        SelectionError: If the module has no parameter of a name; the nearest are listed.
        TieMismatchError: If shape, dtype or device differ; nothing has changed then.
        PreconditionError: If a name is a buffer or computed, or both are one place.
        UnsupportedModelError: If a recurrent layer's weight would have to be read transposed, or
            ``module`` is not a live module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
        >>> _ = tie(net, "1.weight", "0.weight", transpose=True)
        >>> torch.equal(net[1].weight, net[0].weight.t())
        True
        >>> [name for name, _ in net.named_parameters()]
        ['0.weight']
    """
    check_module(module)
    place, source = place_of(module, name), place_of(module, to)
    if place.slot == source.slot:
        raise PreconditionError(
            f"cannot tie {name} to {to}: they are the same parameter",
            None,
            "name two parameters; a tensor that equals its own transpose cannot be stored",
        )
    if transpose and source.seen.dim() < 2:
        raise PreconditionError(
            f"cannot transpose {to}", {to: brief_tensor(source.seen)}, "leave transpose= out"
        )
    wanted = source.seen.transpose(0, 1) if transpose else source.seen
    _check_alike(place, name, wanted, to, transpose)
    transposed = transpose != source.transposed  # the transpose of a transpose is the thing itself
    if place.tensor is source.tensor and place.transposed == transposed:
        return module
    if transposed and not place.transposed:
        _check_can_transpose(place)
    drop_lr_factor(place.owner, place.key)
    _put(place, _parameter(source), transposed=transposed)
    return module


def untie(module: nn.Module, *names: str) -> nn.Module:
    """Give parameters of a module values of their own, in place.

    A name that leaves gets a new Parameter with the values that it read, in its own order of axes,
    with ``requires_grad`` and the learning-rate factor of the shared one. Buffers stay as they are.
    Make the optimizer afterwards: one that is there does not know the new Parameters.

    Args:
        module: The module; edited.
        names: The parameters that leave their ties. Without names all ties come apart, and the
            first name of each keeps the Parameter.

    Returns:
        The module. Without names, its ``state_dict`` has the keys of a module that was never tied.

    Raises:
        SelectionError: If the module has no parameter of a name.
        PreconditionError: If a name is not tied, or is the parameter of one layer that has two
            names in the module; if a tied parameter has two learning-rate factors.
        UnsupportedModelError: If ``module`` is no live module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
        >>> _ = untie(tie(net, "1.weight", "0.weight", transpose=True), "1.weight")
        >>> [name for name, _ in net.named_parameters()]
        ['0.weight', '1.weight']
    """
    check_module(module)
    found = list(places(module, buffers=True))
    groups = shared(found)
    if names:
        leaving = [_tied_place(place_of(module, name), groups) for name in names]
    else:
        leaving = [each for group in groups for each in _all_but_one(group)]
        leaving += [each for each in found if each.transposed and not _group_of(each, groups)]
    leaving += _left_alone(leaving, groups)
    _check_owners(leaving, groups)
    factors = lr_factors(module)
    for place in {each.slot: each for each in leaving}.values():
        factor = factors.get(place.stored_name)
        drop_lr_factor(place.owner, place.key)
        values = place.seen.detach().clone(memory_format=torch.contiguous_format)
        _put(place, nn.Parameter(values, place.tensor.requires_grad), transposed=False)
        if factor is not None:
            set_lr_factor(place.owner, place.attribute, factor)
    return module


def _check_alike(place: Place, name: str, wanted: torch.Tensor, to: str, transpose: bool) -> None:
    seen = place.seen
    differs = [
        what
        for what, one, other in (
            ("shapes", seen.shape, wanted.shape),
            ("dtypes", seen.dtype, wanted.dtype),
            ("devices", seen.device, wanted.device),
        )
        if one != other
    ]
    if not differs:
        return
    devices = seen.device != wanted.device
    sides = {
        name: brief_tensor(seen) + (f" on {seen.device}" if devices else ""),
        f"{to} transposed" if transpose else to: brief_tensor(wanted)
        + (f" on {wanted.device}" if devices else ""),
    }
    turned = wanted.dim() > 1 and wanted.transpose(0, 1).shape == seen.shape
    fix = "tie parameters that are alike, or convert one of them first"
    if differs == ["shapes"] and turned:
        fix = "leave transpose= out" if transpose else "pass transpose=True"
    raise TieMismatchError(f"cannot tie {name} to {to}: {' and '.join(differs)} differ", sides, fix)


def _check_can_transpose(place: Place) -> None:
    if isinstance(place.owner, nn.RNNBase):
        raise UnsupportedModelError(
            f"cannot read {place.name} transposed",
            {"its layer": type(place.owner).__name__},
            "a recurrent layer packs its weights: swap the two names",
        )
    if hasattr(place.owner, place.attribute + SUFFIX):
        raise PreconditionError(
            f"cannot store the transpose of {place.name}: an attribute has its name",
            {"taken": place.name + SUFFIX},
            "rename that attribute",
        )


def _parameter(place: Place) -> nn.Parameter:
    assert isinstance(place.tensor, nn.Parameter)
    return place.tensor


def _put(place: Place, parameter: nn.Parameter, *, transposed: bool) -> None:
    if place.transposed and transposed:
        setattr(place.owner, place.key, parameter)
    elif transposed:
        register_transposed(place.owner, place.attribute, parameter)
    elif place.transposed:
        release_transposed(place.owner, place.attribute, parameter)
    else:
        setattr(place.owner, place.attribute, parameter)


def _group_of(place: Place, groups: Sequence[Sequence[Place]]) -> Sequence[Place]:
    """Return those that share with a place, itself included; nobody if it shares nothing."""
    return next((group for group in groups if any(p.slot == place.slot for p in group)), ())


def _tied_place(place: Place, groups: Sequence[Sequence[Place]]) -> Place:
    if place.transposed or _group_of(place, groups):
        return place
    raise PreconditionError(
        f"{place.name} is not tied", {"ties": len(groups)}, "see tieops.torch.find_ties(module)"
    )


def _all_but_one(group: Sequence[Place]) -> list[Place]:
    """Return who leaves when a tie comes apart: a buffer never, and one parameter stays."""
    if not all(each.is_parameter for each in group):
        return [each for each in group if each.is_parameter]
    stays = next((each for each in group if not each.transposed), group[0])
    return [each for each in group if each is not stays]


def _left_alone(leaving: Sequence[Place], groups: Sequence[Sequence[Place]]) -> list[Place]:
    """Return those that would be the transpose of what nobody else has: they get values too."""
    gone = {each.slot for each in leaving}
    rests = [[each for each in group if each.slot not in gone] for group in groups]
    return [rest[0] for rest in rests if len(rest) == 1 and rest[0].transposed]


def _check_owners(leaving: Iterable[Place], groups: Sequence[Sequence[Place]]) -> None:
    for place in leaving:
        same = [each.name for each in _group_of(place, groups) if each.slot == place.slot]
        if len(same) > 1:
            raise PreconditionError(
                f"cannot untie {same[0]} from {same[1]}: they are one layer under two names",
                {"layer": type(place.owner).__name__},
                "give the module a second layer: copy.deepcopy the one it has",
            )
