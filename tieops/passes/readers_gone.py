"""Names of readers that a pass removes: they leave the tensors that other readers keep."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from tieops.ir.edit import NameAuthority
from tieops.ir.metadata.keys import names_of
from tieops.ir.parameter import Parameter
from tieops.ir.readers.readers import Reader, Readers
from tieops.ir.walk import all_nodes, stored_values
from tieops.model import TiedModel
from tieops.passes.detach import give_up_names

__all__ = ["ReadersBefore"]


class ReadersBefore:
    """Who read the tensors of several names before a pass removed some of the readers.

    A tied head that is removed with its output takes its name along: a state_dict of what is left
    must not have ``fc.weight``, and ``tieops check --expect-tie`` must not find the tie.

    Args:
        tied: The model, before anything is removed; left alone. It is traced only if a tensor has
            several names.
    """

    def __init__(self, tied: TiedModel) -> None:
        self._shared: list[tuple[Parameter, Readers]] = []
        if all(len(names_of(value)) < 2 for value in stored_values(tied.ir)):
            return
        known = [(each, tied.readers(each)) for each in tied.parameters if len(each.names) > 1]
        self._shared = [(each, readers) for each, readers in known if len(readers.all) > 1]

    def release_names(self, model: onnx_ir.Model) -> None:
        """Take off each tensor the names of its readers that are gone, in place.

        Args:
            model: What is left of the model.
        """
        if not self._shared:
            return
        present = {*all_nodes(model)}
        # A call or a loop that lost an argument is a new node under its old name.
        titles = {node.name for node in present}
        names = NameAuthority(model)
        for parameter, readers in self._shared:
            staying = [
                reader
                for reader in readers.all
                if any(
                    slot.node in present
                    and all(call in present or call.name in titles for call in slot.path)
                    for slot in reader.slots
                )
            ]
            if 0 < len(staying) < len(readers.all):
                gone = _owned_by_others(readers, staying)
                give_up_names(parameter, readers, gone, staying, names)


def _owned_by_others(readers: Readers, staying: Sequence[Reader]) -> list[str]:
    held = {name for reader in staying for name in reader.names}
    gone = (name for reader in readers.all for name in reader.names if reader not in staying)
    return [name for name in dict.fromkeys(gone) if name not in held]
