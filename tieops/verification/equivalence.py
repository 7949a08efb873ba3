"""``tieops.verify``: check that one model computes what another one does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tieops.errors import PreconditionError, VerificationError
from tieops.ir.metadata.torch_inputs import torch_inputs_of
from tieops.progress import advance, progress
from tieops.runtime import Port, Provider
from tieops.runtime.feeds import check_feeds, fitted
from tieops.untrusted.limits import Limits
from tieops.verification import torch_side
from tieops.verification.array_comparison import OutputComparison, check_tolerances
from tieops.verification.input_sets import InputSet, check_plan, plan
from tieops.verification.nested_values import Value, compare_values, leaves_of
from tieops.verification.sandbox import Sandbox
from tieops.verification.sandboxed_sides import open_sandboxed
from tieops.verification.sides import Comparable, OnnxSide, TorchSide, open_side
from tieops.verification.verification_report import Report, RunComparison, Verdict

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Inputs", "verify"]

_Array: TypeAlias = np.ndarray[Any, Any]
_Side: TypeAlias = OnnxSide | TorchSide
Inputs: TypeAlias = "Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike]]"
"""Arrays by input name, for one run or for several."""


def verify(
    candidate: Comparable,
    *,
    against: Comparable,
    inputs: Inputs | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    provider: Provider = "cpu",
    optimize: bool = True,
    trust: bool = False,
    limits: Limits | None = None,
    sandbox: bool | Sandbox = False,
    raises: bool = True,
) -> Report:
    """Run two models on the same inputs and compare every output.

    Outputs of two ONNX models are matched by name, all others by order. Inputs are matched by name;
    a torch module whose forward has other names gets them in order. Modules run in eval mode.

    Args:
        candidate: The model to verify: nn.Module, ExportedProgram, TiedModel, onnx_ir.Model,
            ModelProto, serialized bytes, Session, or the path of an .onnx or .pt2 file.
        against: The reference: any of these.
        inputs: Named arrays for one run, or a list of them; None makes them from the ONNX side's
            signature, at several sizes and over all rows of the tables that they index.
        sizes: Sizes for symbols of the input shapes, where the inputs are made.
        seed: What the inputs are made from.
        rtol: Tolerance relative to each element of the reference.
        atol: Absolute tolerance. With both 0, every byte has to be equal.
        provider: What runs the ONNX sides; a Session keeps its own.
        optimize: False turns ONNX Runtime's graph optimizations off.
        trust: As for ``from_torch``: a PyTorch file may run code when it is opened.
        limits: As for ``from_onnx``: what an ONNX file may hold; by default a Session
            keeps its own.
        sandbox: Open and run what is not this process's own (files, bytes, graphs) each in a
            process of its own, with an end to its memory and time; `Sandbox` says how much.
        raises: False returns a report of unequal or incomparable models instead of raising.

    Returns:
        The report, true if and only if the models are equal.

    Raises:
        VerificationError: If the models differ or have random outputs (unless ``raises`` is false);
            and always if there is nothing to compare: no outputs in common, another number of
            them, no input sets, no elements.
        PreconditionError: If the inputs, sizes or tolerances do not fit the models.
        UnsupportedModelError: If a model or its inputs are beyond what can be run or made.
        ProviderError: If the provider would not run the models.
        UntrustedFileError: If a model reached a limit of its sandbox, or crashed in it.

    Example:
        >>> import onnx_ir
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
        >>> neg = onnx_ir.from_onnx_text(text + " { y = Neg(x) }")
        >>> sub = onnx_ir.from_onnx_text(text + " <float z = {0}> { y = Sub(z, x) }")
        >>> verify(sub, against=neg).verdict
        'equal bitwise'
    """
    check_tolerances(rtol, atol)
    check_plan(sizes, seed)
    with ExitStack() as stack:
        opening = partial(
            open_side, provider=provider, optimize=optimize, trust=trust, limits=limits
        )
        if sandbox:
            held = Sandbox() if sandbox is True else sandbox
            opening = partial(open_sandboxed, **opening.keywords, sandbox=held)
        left = stack.enter_context(closing(opening(candidate)))
        right = stack.enter_context(closing(opening(against)))
        _pass_layout(left, right)
        names = _common_outputs(left, right)
        sets = _input_sets(left, right, inputs, sizes, seed)
        comparison = _Comparison(left, right, names, rtol, atol)
        random = _random(left, right)
        if not random:
            with progress("comparing outputs", unit="steps"):
                comparison.run(sets)
        report = Report(
            verdict=_verdict(comparison.runs, comparison.random or random),
            candidate=left.label,
            reference=right.label,
            candidate_provider=left.provider,
            reference_provider=right.provider,
            rtol=rtol,
            atol=atol,
            seed=seed if inputs is None else None,
            runs=tuple(comparison.runs),
            missing_outputs=_only_in(right, left),
            extra_outputs=_only_in(left, right),
            random_nodes=comparison.random or random,
            coverage=comparison.coverage(),
        )
    if raises and not report:
        raise report.error()
    return report


class _Comparison:
    """The runs of two sides, and what they indexed."""

    def __init__(
        self, left: _Side, right: _Side, names: list[str] | None, rtol: float, atol: float
    ) -> None:
        self.left, self.right, self.names = left, right, names
        self.rtol, self.atol = rtol, atol
        self.runs: list[RunComparison] = []
        self.random: tuple[str, ...] = ()
        self.indexed: dict[str, tuple[set[int], int]] = {}

    def run(self, sets: Iterable[InputSet]) -> None:
        """Compare on every set; stop at the first if a torch side does not answer alike twice."""
        for each in sets:
            found = [side.run(each.arrays, self.names) for side in (self.left, self.right)]
            if not self.runs:
                self._repeat(each, found)
                if self.random:
                    return
            advance(1)
            self.runs.append(RunComparison(each.sizes, self._compared(*found)))
            for name, rows in each.tables.items():
                seen, _ = self.indexed.get(name, (set[int](), rows))
                self.indexed[name] = (seen | set(each.arrays[name].ravel().tolist()), rows)
        if not self.runs:
            raise VerificationError(
                "nothing was compared: there are no input sets", {}, "pass at least one"
            )
        outputs = [output for run in self.runs for output in run.outputs]
        if not any(output.elements or output.mismatch for output in outputs):
            raise VerificationError(
                "nothing was compared: every output is empty on every input set",
                {"outputs": ", ".join(dict.fromkeys(output.name for output in outputs)) or "none"},
                "choose inputs= or sizes= that give outputs with elements",
            )

    def coverage(self) -> dict[str, tuple[int, int]]:
        """Return how many rows of how many each input indexed."""
        return {name: (len(seen), rows) for name, (seen, rows) in self.indexed.items()}

    def _repeat(self, inputs: InputSet, found: list[list[Value]]) -> None:
        # A graph shows its random operators; a module's code does not, so it is asked twice.
        for side, first in zip((self.left, self.right), found, strict=True):
            if isinstance(side, TorchSide):
                again = side.run(inputs.arrays, None)
                if len(again) != len(first) or not all(
                    compare_values(b, a, name="", rtol=self.rtol, atol=self.atol or 1e-5).ok
                    for a, b in zip(first, again, strict=True)
                ):
                    self.random += (f"{side.label} (other outputs for the same inputs)",)

    def _compared(self, left: list[Value], right: list[Value]) -> tuple[OutputComparison, ...]:
        names = self.names or self.right.output_names or self.left.output_names
        names = names or [f"output {position}" for position in range(len(right))]
        if isinstance(self.left, TorchSide) or isinstance(self.right, TorchSide):
            # What a module returns is flat, and None is not among it.
            left, _ = _flat(left, names)
            right, names = _flat(right, names)
        if len(left) != len(right) or not left:
            raise VerificationError(
                f"{self.left.label} has {len(left)} outputs, {self.right.label} has {len(right)}",
                {
                    self.left.label: _listed(left, self.left),
                    f"{self.right.label} (reference)": _listed(right, self.right),
                },
                "compare models with the same outputs, at least one",
            )
        return tuple(
            compare_values(a, b, name=name, rtol=self.rtol, atol=self.atol)
            for name, a, b in zip(names, left, right, strict=True)
        )


def _flat(values: Sequence[Value], names: Sequence[str]) -> tuple[list[Value], list[str]]:
    found: list[Value] = []
    called: list[str] = []
    for position, value in enumerate(values):
        name = names[position] if position < len(names) else f"output {position}"
        for leaf, array in leaves_of(name, value):
            found.append(array)
            called.append(leaf)
    return found, called


def _pass_layout(left: _Side, right: _Side) -> None:
    """Pass on to a torch side how a model that was imported from torch nests its inputs."""
    for one, other in ((left, right), (right, left)):
        if isinstance(one, TorchSide) and isinstance(other, OnnxSide):
            one.layout = torch_inputs_of(other.ir)


def _common_outputs(left: _Side, right: _Side) -> list[str] | None:
    """Return the names to compare, or None where outputs go by order."""
    if left.output_names is None or right.output_names is None:
        return None
    common = [name for name in right.output_names if name in left.output_names]
    if not common:
        raise VerificationError(
            f"nothing to compare: {left.label} and {right.label} have no output in common",
            {
                "candidate": ", ".join(left.output_names) or "no outputs",
                "reference": ", ".join(right.output_names) or "no outputs",
            },
            "rename the outputs, or compare another model",
        )
    return common


def _only_in(one: _Side, other: _Side) -> tuple[str, ...]:
    if one.output_names is None or other.output_names is None:
        return ()
    return tuple(name for name in one.output_names if name not in other.output_names)


def _random(left: _Side, right: _Side) -> tuple[str, ...]:
    sides = [side for side in (left, right) if isinstance(side, OnnxSide)]
    return tuple(dict.fromkeys(chain.from_iterable(side.random for side in sides)))


def _verdict(runs: Sequence[RunComparison], random: tuple[str, ...]) -> Verdict:
    outputs = [output for run in runs for output in run.outputs]
    if random:
        return "not comparable"
    if not all(output.ok for output in outputs):
        return "different"
    return (
        "equal bitwise" if all(output.bitwise for output in outputs) else "equal within tolerance"
    )


def _input_sets(
    left: _Side,
    right: _Side,
    inputs: Inputs | None,
    sizes: Mapping[str, int] | None,
    seed: int,
) -> Iterable[InputSet]:
    if inputs is not None:
        if sizes:
            raise PreconditionError(
                "sizes= has no effect when inputs= is given", {}, "leave one of the two out"
            )
        sets = inputs if isinstance(inputs, list | tuple) else (inputs,)
        given = [check_feeds(each) for each in sets]
        return [InputSet({}, _arrays(each, left, right), {}) for each in given]
    for side in (right, left):
        if isinstance(side, OnnxSide):
            return plan(side.ir, sizes=sizes, seed=seed)
    raise PreconditionError(
        "cannot make inputs: neither side is an ONNX graph, whose inputs have dtypes and shapes",
        {},
        "pass inputs={name: array, …}",
    )


def _arrays(feeds: Mapping[str, ArrayLike], left: _Side, right: _Side) -> dict[str, _Array]:
    """Return the given inputs as arrays, in the dtypes and order of the ONNX sides' inputs."""
    tensors: Mapping[str, Any] = feeds
    feeds = {
        name: torch_side.as_array(value) if hasattr(value, "detach") else value
        for name, value in tensors.items()
    }
    ports: dict[str, Port] = {port.name: port for side in (left, right) for port in side.ports}
    # An exporter may have dropped an input that the module still has.
    torch_only = any(isinstance(side, TorchSide) for side in (left, right))
    rest = {name: value for name, value in feeds.items() if torch_only and name not in ports}
    known = {name: value for name, value in feeds.items() if name not in rest}
    arrays = fitted(known, list(ports.values())) | {n: np.asarray(v) for n, v in rest.items()}
    order = list(feeds) if rest else [name for name in ports if name in arrays]
    return {name: arrays[name] for name in order}


def _listed(values: list[Value], side: _Side) -> str:
    flat, names = _flat(values, side.output_names or ())
    shown = [
        f"{n} {a.dtype}{list(a.shape)}" for n, a in zip(names, map(np.asarray, flat), strict=False)
    ]
    return ", ".join(shown) or "no outputs"
