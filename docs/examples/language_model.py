"""MATLAB's "Neural Network Weight Tying" with training: words first, then 15 classes.

A tied language model is trained and written as ONNX. Then its head is replaced by one of 15 classes
with ten times the learning rate, in two ways that agree: on the live module, and from the ONNX file
alone. The page beside this file goes through it step by step.

    python docs/examples/language_model.py                                # minutes
    python docs/examples/language_model.py --sentences 300 --epochs 1 --words 200 --width 32
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import tieops
from tieops.examples.language import Language
from tieops.examples.language_model import (
    LanguageModel,
    accuracy,
    draw_sentences,
    perplexity,
    train_classes,
    train_words,
)
from tieops.examples.pictures import save_transfer

FACTORS = {"lr_factor": 10.0, "bias_lr_factor": 10.0}
DYNAMIC = {"x": {0: "batch", 1: "length"}}


def main(
    sentences: int, epochs: int, words: int, width: int, folder: Path, provider: str
) -> dict[str, float]:
    """Run the example; return what it prints at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    language = Language(words)
    data, _ = draw_sentences(language, sentences, seed=1)
    validation, _ = draw_sentences(language, 500, seed=2)
    classes = draw_sentences(language, 600, length=12, seed=3)
    unseen = draw_sentences(language, 500, length=12, seed=4)

    net = LanguageModel(words, width)
    print(tieops.torch.find_ties(net))
    before = perplexity(net, validation)
    history = train_words(net, data, validation, epochs=epochs)
    after = history.validation_perplexity[-1]
    print(f"perplexity {before:.0f} -> {after:.2f}; the language itself: {language.perplexity:.2f}")

    model = tieops.from_torch(net, (data[:2],), dynamic_shapes=DYNAMIC)
    tied = tieops.to_onnx(model, folder / "tied.onnx")
    untied = tieops.to_onnx(tieops.untie(model), folder / "untied.onnx")
    for each in (tied, untied):
        session = tieops.session(each.path, provider=provider)
        report = tieops.verify(session, against=net, inputs=[{"x": validation.numpy()}])
        print(
            f"{each.path.name} on {session.provider}: {each.stored_bytes:,} bytes, {report.verdict}"
        )

    live = tieops.torch.replace_head(copy.deepcopy(net), out_features=15, seed=0, **FACTORS)
    file = tieops.from_onnx(tied.path)
    new = tieops.replace_head(file, out_features=15, name="fcNew", seed=0, **FACTORS)
    from_file = tieops.to_torch(new)
    plain = tieops.torch.replace_head(copy.deepcopy(net), out_features=15, seed=0)
    print(f"one step moves the head {_reach(live, 'fc.weight', classes):.2f} times as far")
    trained = {
        name: train_classes(module, *classes, unseen)
        for name, module in (("10x", live), ("1x", plain), ("file", from_file))
    }
    apart = max(
        abs(one - other)
        for one, other in zip(
            trained["10x"].validation_accuracy, trained["file"].validation_accuracy, strict=True
        )
    )
    print(f"from the module and from the file: accuracies at most {apart:.3f} apart")
    for name, module in (("module", live), ("file", from_file)):
        path = folder / f"classes_{name}.onnx"
        again = tieops.from_torch(module.eval(), (data[:2],), dynamic_shapes=DYNAMIC)
        session = tieops.session(tieops.to_onnx(again, path).path, provider=provider)
        report = tieops.verify(session, against=module, inputs=[{"x": unseen[0].numpy()}])
        print(f"{path.name}: accuracy {accuracy(module, *unseen):.3f}, {report.verdict}")
    save_transfer(
        folder / "transfer.png", history, language.perplexity,
        {name: trained[name] for name in ("10x", "1x")},
    )  # fmt: skip
    return {
        "perplexity before": before,
        "perplexity": after,
        "accuracy at 10x": trained["10x"].validation_accuracy[-1],
        "accuracy at 1x": trained["1x"].validation_accuracy[-1],
        "apart": apart,
    }


def _reach(net: nn.Module, head: str, classes: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return how many times as far one SGD step moves the head, for its gradient, as the body."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(tieops.param_groups(net, lr=1e-2))
    was = {name: each.detach().clone() for name, each in net.named_parameters()}
    sentences, topics = classes
    functional.nll_loss(net(sentences)[:, -1].log(), topics).backward()
    optimizer.step()
    moved = {
        name: float((each.detach() - was[name]).norm() / each.grad.norm())
        for name, each in net.named_parameters()
        if each.grad is not None
    }
    return moved[head] / moved["lstm.weight_hh_l0"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sentences", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--words", type=int, default=1000)
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("language_model"))
    parser.add_argument("--provider", default="auto", choices=("auto", "cuda", "cpu"))
    chosen = vars(parser.parse_args())
    main(**chosen)
