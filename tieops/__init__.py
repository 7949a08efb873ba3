"""tieops: find, show, make and verify weight tying across PyTorch, ONNX and ONNX Runtime.

    import tieops
    model = tieops.from_torch(net, (tokens,))     # or tieops.from_onnx("model.onnx")
    print(model)                                  # what is tied, wasted, wrong; layers
    tieops.to_onnx(tieops.tie(model), "tied.onnx")
    tieops.verify("tied.onnx", against=net)

``tieops.torch`` has verbs on live modules, for those who stay in PyTorch.

Importing tieops loads neither torch nor ONNX Runtime: each comes with the verb that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The first of the package: what the command line loads takes most of a second.
from tieops import _interrupt as _interrupt
from tieops._lazy import lazy
from tieops._version import __version__ as __version__
from tieops.errors import TieopsError

if TYPE_CHECKING:
    from tieops import torch as torch
    from tieops.analysis.diff.graphs import diff
    from tieops.exporters import to_torch
    from tieops.exporters.onnx import to_onnx
    from tieops.importers import from_torch
    from tieops.importers.onnx import from_onnx
    from tieops.model import TiedModel, analyze
    from tieops.passes.dead_branches import remove_dead_branches
    from tieops.passes.disconnected_outputs import remove_disconnected_outputs
    from tieops.passes.extract import extract
    from tieops.passes.freeze_inputs import freeze_inputs
    from tieops.passes.remove_layers import remove_layers
    from tieops.passes.rename import rename
    from tieops.passes.replace_head import replace_head
    from tieops.passes.tie import tie
    from tieops.passes.untie import untie
    from tieops.pipeline import Pipeline
    from tieops.rendering.formats import render
    from tieops.runtime import resident_bytes, session
    from tieops.runtime.group import sessions
    from tieops.scanning.models import scan
    from tieops.torch.optimizer_groups import param_groups
    from tieops.untrusted.limits import Limits
    from tieops.verification.equivalence import verify
    from tieops.verification.sandbox import Sandbox

__all__ = [
    "Limits",
    "Pipeline",
    "Sandbox",
    "TiedModel",
    "TieopsError",
    "analyze",
    "diff",
    "extract",
    "freeze_inputs",
    "from_onnx",
    "from_torch",
    "param_groups",
    "remove_dead_branches",
    "remove_disconnected_outputs",
    "remove_layers",
    "rename",
    "render",
    "replace_head",
    "resident_bytes",
    "scan",
    "session",
    "sessions",
    "tie",
    "to_onnx",
    "to_torch",
    "untie",
    "verify",
]

_HOMES = {
    "Limits": "tieops.untrusted.limits",
    "Pipeline": "tieops.pipeline",
    "Sandbox": "tieops.verification.sandbox",
    "TiedModel": "tieops.model",
    "analyze": "tieops.model",
    "diff": "tieops.analysis.diff.graphs",
    "extract": "tieops.passes.extract",
    "freeze_inputs": "tieops.passes.freeze_inputs",
    "from_onnx": "tieops.importers.onnx",
    "from_torch": "tieops.importers",
    "param_groups": "tieops.torch",
    "remove_dead_branches": "tieops.passes.dead_branches",
    "remove_disconnected_outputs": "tieops.passes.disconnected_outputs",
    "remove_layers": "tieops.passes.remove_layers",
    "rename": "tieops.passes.rename",
    "render": "tieops.rendering.formats",
    "replace_head": "tieops.passes.replace_head",
    "resident_bytes": "tieops.runtime",
    "scan": "tieops.scanning.models",
    "session": "tieops.runtime",
    "sessions": "tieops.runtime.group",
    "tie": "tieops.passes.tie",
    "to_onnx": "tieops.exporters.onnx",
    "to_torch": "tieops.exporters",
    "untie": "tieops.passes.untie",
    "verify": "tieops.verification.equivalence",
}


_look_up = lazy(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "torch":  # not in __all__: a star import must not hide torch itself
        return importlib.import_module("tieops.torch")
    return _look_up(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "torch"})
