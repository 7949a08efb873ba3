"""The cases of fixtures/graphs."""

from __future__ import annotations

from pathlib import Path

import onnx_ir

GRAPHS = Path(__file__).parents[2] / "fixtures" / "graphs"


CASES = sorted(folder.name for folder in GRAPHS.iterdir())


def load(case: str, which: str) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text((GRAPHS / case / f"{which}.onnxtxt").read_text())
