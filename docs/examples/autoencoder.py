"""The tied autoencoder of MATLAB's "Weight Tying Using Nested Layer", at full size.

It is trained in two ways that agree to the last bit, compared with an untied network of the same
shape, plotted, written as ONNX and run. The page beside this file goes through it step by step.

    python docs/examples/autoencoder.py                            # minutes
    python docs/examples/autoencoder.py --images 500 --epochs 3    # seconds
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch

import tieops
from tieops.examples.autoencoder import (
    Autoencoder,
    NestedAutoencoder,
    draw_data,
    predict,
    rmse,
    tie_decoder,
    train,
)
from tieops.examples.pictures import save_reconstructions, save_training


def main(images: int, epochs: int, folder: Path, provider: str) -> dict[str, dict[str, float]]:
    """Run the example; return what the last table prints."""
    folder.mkdir(parents=True, exist_ok=True)
    data, validation, test = draw_data(images)
    print(f"{len(data)} images to train, {len(validation)} to validate, {len(test)} to test")

    nested = NestedAutoencoder()
    tied = tie_decoder(Autoencoder())
    untied = tieops.torch.untie(copy.deepcopy(tied))  # begins with the same values
    print(tieops.torch.find_ties(tied))
    histories = {
        name: train(net, data, validation, epochs=epochs)
        for name, net in (("nested", nested), ("tied", tied), ("untied", untied))
    }
    if histories["nested"] != histories["tied"]:
        raise SystemExit("the two ways of tying do not agree")
    print(f"nested and tied: the same loss in all {len(histories['tied'].loss)} iterations")

    table: dict[str, dict[str, float]] = {}
    for name, net in (("tied", tied), ("untied", untied)):
        model = tieops.from_torch(net, (data[:2],), dynamic_shapes={"images": {0: "batch"}})
        written = tieops.to_onnx(model, folder / f"{name}.onnx")
        session = tieops.session(written.path, provider=provider)
        report = tieops.verify(session, against=net, inputs=[{"images": test.numpy()}])
        print(f"{name}.onnx on {session.provider}: {report.verdict}")
        table[name] = {
            "parameters": sum(each.numel() for each in net.parameters()),
            "bytes stored": written.stored_bytes,
            "training RMSE": histories[name].rmse[-1],
            "validation RMSE": histories[name].validation_rmse[-1],
            "test RMSE": rmse(predict(net, test), test),
        }

    chosen = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:5]]
    rows = {"original": chosen, "tied": predict(tied, chosen), "untied": predict(untied, chosen)}
    save_training(folder / "training.png", {name: histories[name] for name in table})
    save_reconstructions(
        folder / "reconstructions.png", {name: each.numpy() for name, each in rows.items()}
    )
    print(f"\n{'':16}{'tied':>12}{'untied':>12}")
    for what in table["tied"]:
        values = [table[name][what] for name in ("tied", "untied")]
        texts = [f"{each:,}" if isinstance(each, int) else f"{each:.4f}" for each in values]
        print(f"{what:16}{texts[0]:>12}{texts[1]:>12}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("autoencoder"))
    parser.add_argument("--provider", default="auto", choices=("auto", "cuda", "cpu"))
    chosen = parser.parse_args()
    main(chosen.images, chosen.epochs, chosen.folder, chosen.provider)
