"""Verify that two models give the same outputs: inputs, comparisons, a report.

Read ``equivalence`` first: it is ``tieops.verify``. ``sides`` opens the two models, ``input_sets``
generates inputs, ``array_comparison`` and ``nested_values`` compare outputs, and
``verification_report`` is the result. ``sandbox`` runs an untrusted model in a separate process.
Importing this package loads neither torch nor onnxruntime.
"""

from typing import TYPE_CHECKING

from tieops._lazy import lazy

if TYPE_CHECKING:
    from tieops.verification.array_comparison import OutputComparison, compare
    from tieops.verification.equivalence import verify
    from tieops.verification.input_sets import InputSet, make_inputs, plan
    from tieops.verification.sandbox import Sandbox
    from tieops.verification.sides import Comparable
    from tieops.verification.verification_report import Report, RunComparison, Verdict

__all__ = [
    "Comparable",
    "InputSet",
    "OutputComparison",
    "Report",
    "RunComparison",
    "Sandbox",
    "Verdict",
    "compare",
    "make_inputs",
    "plan",
    "verify",
]

__getattr__ = lazy(
    __name__,
    {
        "Comparable": "tieops.verification.sides",
        "InputSet": "tieops.verification.input_sets",
        "OutputComparison": "tieops.verification.array_comparison",
        "Report": "tieops.verification.verification_report",
        "RunComparison": "tieops.verification.verification_report",
        "Sandbox": "tieops.verification.sandbox",
        "Verdict": "tieops.verification.verification_report",
        "compare": "tieops.verification.array_comparison",
        "make_inputs": "tieops.verification.input_sets",
        "plan": "tieops.verification.input_sets",
        "verify": "tieops.verification.equivalence",
    },
)
