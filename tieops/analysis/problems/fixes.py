"""Write a fix as a shell command and as a call in Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from tieops.ir.notation import printable
from tieops.ir.parameter import Slot

__all__ = ["outputs_fix", "shown_slots", "untie_fix"]


def shown_slots(slots: Sequence[Slot]) -> str:
    """Return the first of some slots by name, and how many more there are."""
    more = f" and {len(slots) - 1} more" if len(slots) > 1 else ""
    return printable(slots[0].name) + more


def untie_fix(targets: Sequence[str]) -> tuple[str, str]:
    r"""Return the command and the call that untie slots; names are quoted for each.

    Example:
        >>> untie_fix(["fc.weight", "a b"])
        ("tieops untie MODEL OUT -t fc.weight -t 'a b'", 'tieops.untie(model, "fc.weight", "a b")')
    """
    command = "".join(f" -t {shlex.quote(printable(target))}" for target in targets)
    call = "".join(f", {json.dumps(target)}" for target in targets)
    return f"tieops untie MODEL OUT{command}", f"tieops.untie(model{call})"


def outputs_fix(*, keep: Sequence[str] = (), unused_inputs: bool = False) -> tuple[str, str]:
    r"""Return the command and the call that remove what no output needs.

    Args:
        keep: The outputs that stay; by default those that an input reaches.
        unused_inputs: Remove inputs that nothing reads, too.

    Example:
        >>> outputs_fix(keep=["y"])
        ('tieops remove-outputs MODEL OUT --keep y',
         'tieops.remove_disconnected_outputs(model, keep=["y"])')
    """
    command = "".join(f" --keep {shlex.quote(printable(name))}" for name in keep)
    call = f", keep={json.dumps(list(keep))}" if keep else ""
    if unused_inputs:
        command, call = f"{command} --unused-inputs", f"{call}, unused_inputs=True"
    return (
        f"tieops remove-outputs MODEL OUT{command}",
        f"tieops.remove_disconnected_outputs(model{call})",
    )
