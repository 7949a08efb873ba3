"""``find_ties``: list which names of a live module share parameters, and which calls read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tieops.importers import from_torch
from tieops.importers.torch.storages import find_aliases
from tieops.ir.evidence import Evidence
from tieops.ir.listing import Listing
from tieops.ir.notation import printable
from tieops.ir.tie import Tie
from tieops.ir.view import View
from tieops.torch.places import Place, brief_tensor, check_module, places
from tieops.torch.shared_elements import shared

__all__ = ["ModuleTie", "Reader", "find_ties"]


@dataclass(frozen=True)
class Reader:
    """A name that a tied parameter is read by."""

    name: str
    view: View | None
    """How it is read; None if two tensors overlap in a way that no view expresses."""

    def __str__(self) -> str:
        view = "overlaps" if self.view is None else str(self.view)
        return printable(self.name) + (f" ({view})" if view else "")


@dataclass(frozen=True)
class ModuleTie:
    """One parameter that a module reads in several places.

    Args:
        names: Its names in ``named_parameters(remove_duplicate=False)`` and ``state_dict``.
        readers: Where it is read, and how.
        what: Its dtype and shape, as in ``f32[1000,300]``.
        evidence: Why it is believed to be one: the same object, or the same storage.
    """

    names: tuple[str, ...]
    readers: tuple[Reader, ...]
    what: str
    evidence: Evidence

    def __str__(self) -> str:
        names = " = ".join(map(printable, self.names))
        return "\n  ".join([f"{names}: {self.what} ({self.evidence})", *map(str, self.readers)])


def find_ties(
    module: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any] | torch.Tensor | None = None,
) -> Listing[ModuleTie]:
    """Find which parameters and buffers of a module are shared.

    Without inputs the module is only looked at: what is one object under several names, what are
    overlapping views of one storage, and what ``tieops.torch.tie`` made. A tie that is in the code
    of ``forward`` (``F.linear(x, self.emb.weight)``, a layer called twice) has one name, and shows
    only when a call is traced.

    Args:
        module: The module; left as it is.
        example_inputs: The inputs of one call, positional or by name, to trace it with
            ``tieops.from_torch``. Readers are the slots of the traced program then; a layer's
            second call is ``layer@1``. Ties that the call does not read come last.

    Returns:
        The ties, which print themselves.

    Raises:
        UnsupportedModelError: If it is no live module.
        ExportError: If the call cannot be traced.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
        >>> from tieops.torch import tie
        >>> _ = tie(net, "1.weight", "0.weight", transpose=True)
        >>> print(find_ties(net))
        0.weight = 1.weight_transposed: f32[2,4] (object)
          0.weight
          1.weight (transpose)
    """
    check_module(module)
    looked = [_tie(group) for group in shared(places(module, buffers=True))]
    if example_inputs is None:
        return Listing(looked, "tie", _names)
    args = () if isinstance(example_inputs, Mapping) else example_inputs
    kwargs = example_inputs if isinstance(example_inputs, Mapping) else None
    traced = [_from_graph(tie) for tie in from_torch(module, args, kwargs).ties]
    seen = {name for tie in traced for name in tie.names}
    unseen = (tie for tie in looked if seen.isdisjoint(tie.names))
    return Listing([*traced, *unseen], "tie", _names)


def _names(tie: ModuleTie) -> tuple[str, ...]:
    return tie.names


def _tie(group: Sequence[Place]) -> ModuleTie:
    tensors = {place.stored_name: place.tensor for place in group}
    aliases = {alias.name: alias for alias in find_aliases(tensors)}
    bases = [place for place in group if place.stored_name not in aliases]
    largest = max(bases, key=lambda place: place.tensor.numel())
    readers: list[Reader] = []
    for place in group:
        alias = aliases.get(place.stored_name)
        base = alias.base if alias else place.stored_name
        if base != largest.stored_name and place.tensor is not largest.tensor:
            readers.append(Reader(place.name, None))
            continue
        view = alias.view if alias else View(tuple(place.tensor.shape))
        readers.append(Reader(place.name, place.view(view)))
    same = len({id(place.tensor) for place in group}) == 1
    return ModuleTie(
        tuple(tensors),
        tuple(readers),
        brief_tensor(largest.tensor),
        Evidence.OBJECT if same else Evidence.STORAGE,
    )


def _from_graph(tie: Tie) -> ModuleTie:
    _, _, what = str(tie.parameter).rpartition(": ")
    readers = tuple(Reader(slot.name, slot.view) for slot in tie.slots)
    return ModuleTie(tie.names, readers, what, tie.evidence)
