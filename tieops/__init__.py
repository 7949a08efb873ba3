"""tieops: weight tying across PyTorch, ONNX and ONNX Runtime; found, shown, made and verified.

    import tieops
    model = tieops.from_torch(net, (tokens,))     # or tieops.from_onnx("model.onnx")
    print(model)                                  # layers, ties, duplicates, ledger
    tieops.to_onnx(tieops.tie(model), "tied.onnx")
    tieops.verify("tied.onnx", against=net)

Importing tieops loads neither torch nor ONNX Runtime: each comes with the verb that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tieops._version import __version__ as __version__
from tieops.errors import TieopsError

# Not by name below: packages are called render and verify too, and the functions have to win.
from tieops.render.render import render
from tieops.tied_model import TiedModel
from tieops.verify.verify import verify

if TYPE_CHECKING:
    from tieops.exporters.onnx import to_onnx
    from tieops.importers import from_torch
    from tieops.importers.onnx import from_onnx
    from tieops.passes.disconnected_outputs import remove_disconnected_outputs
    from tieops.passes.replace_head import replace_head
    from tieops.passes.tie import tie
    from tieops.passes.untie import untie
    from tieops.pipeline import Pipeline
    from tieops.runtime import session

__all__ = [
    "Pipeline",
    "TiedModel",
    "TieopsError",
    "from_onnx",
    "from_torch",
    "remove_disconnected_outputs",
    "render",
    "replace_head",
    "session",
    "tie",
    "to_onnx",
    "untie",
    "verify",
]

_HOMES = {
    "Pipeline": "tieops.pipeline",
    "from_onnx": "tieops.importers.onnx",
    "from_torch": "tieops.importers",
    "remove_disconnected_outputs": "tieops.passes.disconnected_outputs",
    "replace_head": "tieops.passes.replace_head",
    "session": "tieops.runtime",
    "tie": "tieops.passes.tie",
    "to_onnx": "tieops.exporters.onnx",
    "untie": "tieops.passes.untie",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tieops' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
