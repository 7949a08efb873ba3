"""Whether two models give the same answers: inputs, comparisons, a report.

Importing this loads neither torch nor onnxruntime.
"""

from tieops.verify.compare import OutputComparison, compare
from tieops.verify.inputs import InputSet, make_inputs, plan
from tieops.verify.report import Report, RunComparison, Verdict
from tieops.verify.sandbox import Sandbox
from tieops.verify.sides import Comparable
from tieops.verify.verify import verify

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
