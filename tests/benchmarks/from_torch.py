"""What from_torch costs beside torch.onnx.export(dynamo=True) of the same module.

    python -m tests.benchmarks.from_torch [rounds]

The limit is a ratio of 1.25 of the medians.
"""

from __future__ import annotations

import logging
import sys
import warnings

import torch

import tieops
from fixtures.torch_models import Case, build
from tests.benchmarks.timing import interleaved, medians, versions

LIMIT = 1.25
MODELS = {"gpt2": (5000, 256), "bert": (5000, 256), "t5": (5000, 256), "autoencoder": (784, 196)}


def _plain(case: Case) -> object:
    # The same care for attention as from_torch takes: without it torch fails on T5.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.onnx.export(
            case.module,
            (),
            kwargs=case.inputs,
            dynamic_shapes=case.dynamic_shapes,
            dynamo=True,
            verbose=False,
        )


def _tied(case: Case) -> object:
    return tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)


def main(rounds: int = 5) -> None:
    """Print one row a model: both medians in seconds and their ratio."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    print(versions())
    print(f"| model | torch.onnx.export, s | from_torch, s | ratio (limit {LIMIT}) |")
    print("|---|---|---|---|")
    for name, (vocab, width) in MODELS.items():
        case = build(name, vocab, width)
        found = medians(
            interleaved({"plain": lambda: _plain(case), "tied": lambda: _tied(case)}, rounds)  # noqa: B023 - called at once
        )
        ratio = found["tied"] / found["plain"]
        print(f"| {name} | {found['plain']:.2f} | {found['tied']:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
