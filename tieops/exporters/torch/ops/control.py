"""If, Loop and Scan: their graphs become submodules, called with the outer values that they read.

They become Python control flow, which torch.compile and torch.export cannot trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from tieops.errors import UnsupportedModelError
from tieops.exporters.torch.ops.literals import Numbers, one
from tieops.exporters.torch.ops.registry import op


@op("If", literals=(0,), many=True)
class If(nn.Module):
    """One of two graphs, as a condition says."""

    def __init__(self, *, then_branch: nn.Module, else_branch: nn.Module) -> None:
        super().__init__()
        self.then_branch, self.else_branch = then_branch, else_branch

    def forward(
        self,
        condition: Numbers,
        *,
        then_branch: Sequence[Any] = (),
        else_branch: Sequence[Any] = (),
    ) -> tuple[Any, ...]:
        """Return the outputs of one branch; each is handed what it reads of the graph around."""
        if one(condition):
            return self.then_branch(*then_branch)
        return self.else_branch(*else_branch)


@op("Loop", literals=(0, 1), many=True)
class Loop(nn.Module):
    """A body that runs a number of times, or while a condition holds."""

    def __init__(self, *, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(
        self,
        trips: Numbers | None,
        condition: Numbers | None = None,
        *states: Any,
        body: Sequence[Any] = (),
    ) -> tuple[Any, ...]:
        """Return the states at the end, and what each round appends, stacked."""
        limit = None if trips is None else one(trips)
        goes = True if condition is None else bool(one(condition))
        rounds, count = 0, len(states)
        rows: list[tuple[Any, ...]] = []
        given = (each.device for each in (*states, *body) if isinstance(each, Tensor))
        device = next(given, None)
        while goes and (limit is None or rounds < limit):
            begin = (torch.tensor(number, device=device) for number in (rounds, goes))
            found = self.body(*begin, *states, *body)
            goes, states = bool(found[0]), found[1 : 1 + count]
            rows.append(found[1 + count :])
            rounds += 1
        _check_rounds(rounds, self.body, 1 + count)
        return (*states, *(torch.stack(column) for column in zip(*rows, strict=True)))


@op("Scan", since=9, many=True)
class Scan(nn.Module):
    """A body that runs once for each entry of its inputs along an axis."""

    def __init__(
        self,
        *,
        body: nn.Module,
        num_scan_inputs: int,
        scan_input_axes: Sequence[int] = (),
        scan_input_directions: Sequence[int] = (),
        scan_output_axes: Sequence[int] = (),
        scan_output_directions: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.body, self.count = body, num_scan_inputs
        self.input_axes, self.input_directions = scan_input_axes, scan_input_directions
        self.output_axes, self.output_directions = scan_output_axes, scan_output_directions

    def forward(self, *inputs: Tensor, body: Sequence[Any] = ()) -> tuple[Tensor, ...]:
        """Return the states at the end, and what each step appends, stacked."""
        states, scanned = inputs[: -self.count], inputs[-self.count :]
        columns = [
            each.unbind(self.input_axes[i] if self.input_axes else 0)
            for i, each in enumerate(scanned)
        ]
        for i, direction in enumerate(self.input_directions):
            columns[i] = columns[i][::-1] if direction else columns[i]
        _check_rounds(len(columns[0]), self.body, len(states))
        rows: list[tuple[Tensor, ...]] = []
        for entries in zip(*columns, strict=True):
            found = self.body(*states, *entries, *body)
            states = found[: len(states)]
            rows.append(found[len(states) :])
        stacks: list[Tensor] = []
        for i, column in enumerate(zip(*rows, strict=True)):
            back = self.output_directions and self.output_directions[i]
            axis = self.output_axes[i] if self.output_axes else 0
            stacks.append(torch.stack(column[::-1] if back else column, axis))
        return (*states, *stacks)


def _check_rounds(rounds: int, body: nn.Module, states: int) -> None:
    """Refuse to stack what no round made: nobody knows its shape."""
    if rounds or not isinstance(body, fx.GraphModule):
        return
    (output,) = body.graph.find_nodes(op="output")
    made = output.args[0]
    if isinstance(made, tuple) and len(made) > states:
        raise UnsupportedModelError(
            "a Loop or Scan with zero iterations has no outputs to stack",
            {"outputs to stack": len(made) - states},
            "call the module with inputs that give at least one iteration",
        )
