"""The sandboxed process: set the limits, then open and run the model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from tieops.errors import TieopsError
from tieops.importers import TORCH_SUFFIXES
from tieops.ir.metadata.torch_inputs import TorchInputs
from tieops.runtime import session
from tieops.runtime.providers import onnxruntime_module
from tieops.system.processes import confine
from tieops.verification.nested_values import flatten
from tieops.verification.sandbox_messages import receive, send
from tieops.verification.sides import TorchSide
from tieops.verification.torch_side import load_program

__all__ = ["main"]


def main() -> None:
    """Answer on stdout what is asked on stdin: once to open a model, then to run it."""
    asked = sys.stdin.buffer
    # What native code prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request, _ = receive(asked, 0)
    path = str(request["path"])
    is_torch = Path(path).suffix.lower() in TORCH_SUFFIXES
    if is_torch:
        import torch

        torch.set_num_threads(1)
    else:
        onnxruntime_module()
    confine(int(request["parent"]), int(request["memory_bytes"]), float(request["seconds"]))
    try:
        model: Any = _open_torch(path, request) if is_torch else _open_onnx(path, request)
        send(answers, {"inputs": _ports(model, "inputs"), "outputs": _ports(model, "outputs")})
    except BaseException as error:
        _tell(answers, error)
        return
    while True:
        try:
            request, arrays = receive(asked, sys.maxsize)
        except EOFError:
            return
        try:
            if is_torch:
                nesting = request["layout"]
                model.layout = nesting and TorchInputs(nesting[0], dict(nesting[1]))
            feeds = dict(zip(request["names"], arrays, strict=True))
            found = model.run(feeds, request["outputs"])
            tensors: list[Any] = []
            forms = flatten(list(found.values()) if isinstance(found, dict) else found, tensors)
            send(answers, {"outputs": forms}, tensors)
        except BaseException as error:
            _tell(answers, error)


def _open_onnx(path: str, request: dict[str, Any]) -> Any:
    return session(path, "cpu", memory="default", optimize=bool(request["optimize"]))


def _open_torch(path: str, request: dict[str, Any]) -> TorchSide:
    return TorchSide(Path(path).name, load_program(path, trust=bool(request["trust"])))


def _ports(model: Any, which: str) -> list[dict[str, Any]]:
    return [
        {"name": each.name, "dtype": each.dtype, "shape": each.shape}
        for each in getattr(model, which, ())
    ]


def _tell(answers: BinaryIO, error: BaseException) -> None:
    what = error.what if isinstance(error, TieopsError) else f"{type(error).__name__}: {error}"
    facts = error.facts if isinstance(error, TieopsError) else {}
    reported = {
        "type": type(error).__name__,
        "what": what,
        "facts": {str(key): str(value) for key, value in facts.items()},
        "fix": error.fix if isinstance(error, TieopsError) else None,
    }
    send(answers, {"error": reported})
