"""Whether two models give the same answers: inputs, comparisons, a report.

Importing this loads neither torch nor onnxruntime.
"""

from typing import TYPE_CHECKING

from tieops._lazy import lazy

if TYPE_CHECKING:
    from tieops.verification.equivalence import verify
    from tieops.verification.inputs import InputSet, make_inputs, plan
    from tieops.verification.outputs import OutputComparison, compare
    from tieops.verification.report import Report, RunComparison, Verdict
    from tieops.verification.sandbox import Sandbox
    from tieops.verification.sides import Comparable

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
        "InputSet": "tieops.verification.inputs",
        "OutputComparison": "tieops.verification.outputs",
        "Report": "tieops.verification.report",
        "RunComparison": "tieops.verification.report",
        "Sandbox": "tieops.verification.sandbox",
        "Verdict": "tieops.verification.report",
        "compare": "tieops.verification.outputs",
        "make_inputs": "tieops.verification.inputs",
        "plan": "tieops.verification.inputs",
        "verify": "tieops.verification.equivalence",
    },
)
