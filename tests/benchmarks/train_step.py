"""What a training step of a converted module costs beside the original's, and what it keeps.

    python -m tests.benchmarks.train_step [rounds]

A step is forward, cross entropy, backward and AdamW. Both modules are in train() mode without
dropout, on the same batch. The limit is a ratio of 1.2 of the medians. Bytes are those of the
parameters, gradients and optimizer states that are alive after a step, each storage once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

import tieops
from fixtures.torch_models import build
from tests.benchmarks.timing import interleaved, medians, versions

LIMIT = 1.2
MODELS = {"gpt2": (5000, 256), "lstm": (5000, 256), "bert": (5000, 256)}
BATCH, LENGTH = 8, 32


def stepper(module: nn.Module, tokens: Tensor) -> tuple[Callable[[], object], torch.optim.AdamW]:
    """Return a function that trains one step, and its optimizer."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        found = module(tokens)
        scores = found if isinstance(found, Tensor) else found[0]
        functional.cross_entropy(scores.flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()

    return step, optimizer


def stored(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all storages of these tensors."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def kept(module: nn.Module, optimizer: torch.optim.AdamW) -> int:
    """Return the bytes of parameters, gradients and optimizer states."""
    tensors = [*module.parameters(), *(p.grad for p in module.parameters() if p.grad is not None)]
    states = [t for state in optimizer.state.values() for t in state.values()]
    return stored([*tensors, *states])


def main(rounds: int = 15) -> None:
    """Print one row a model: both medians in milliseconds, their ratio, and the bytes kept."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    print(versions(), f"{torch.get_num_threads()} threads")
    print(
        f"| model | original, ms | converted, ms | ratio (limit {LIMIT}) | kept, MB | converted |"
    )
    print("|---|---|---|---|---|---|")
    for name, (vocab, width) in MODELS.items():
        case = build(name, vocab, width)
        model = tieops.from_torch(case.module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
        net = tieops.to_torch(model)
        tokens = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) * 7 % vocab
        for each in case.module.modules():
            if isinstance(each, nn.Dropout):
                each.p = 0.0
        sides = {"original": case.module.train(), "converted": net.train()}
        steps = {side: stepper(module, tokens) for side, module in sides.items()}
        contenders = {side: step for side, (step, _) in steps.items()}
        found = medians(interleaved(contenders, rounds, warm_up=2))
        bytes_kept = {side: kept(sides[side], steps[side][1]) / 1e6 for side in sides}
        ratio = found["converted"] / found["original"]
        print(
            f"| {name} | {found['original'] * 1e3:.1f} | {found['converted'] * 1e3:.1f} | "
            f"{ratio:.2f} | {bytes_kept['original']:.2f} | {bytes_kept['converted']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
