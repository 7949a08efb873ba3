"""``tieops demo --train``: train the tied autoencoder for a few epochs, plot it and run it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

import tieops
from tieops.cli.shared_options import as_record, discard_message, print_json
from tieops.errors import ExportError
from tieops.runtime.session_arguments import Provider
from tieops.system.folders import temporary_folder

__all__ = ["train_autoencoder"]

SHOWN = 5
"""How many images are drawn beside their reconstructions."""


def train_autoencoder(
    out: Path | None,
    provider: Provider,
    epochs: int,
    images: int,
    plots: Path | None,
    *,
    show: bool,
    as_json: bool,
) -> None:
    """Train, plot, convert, run and verify the tied autoencoder, and say so."""
    from tieops.examples.autoencoder import (
        SIZES,
        Autoencoder,
        draw_data,
        predict,
        rmse,
        tie_decoder,
        train,
    )
    from tieops.examples.pictures import save_reconstructions, save_training

    folder = _folder(plots)
    say = discard_message if as_json else typer.echo
    data, validation, test = draw_data(images)
    net = tie_decoder(Autoencoder())
    say(f"encoder {' -> '.join(map(str, SIZES))}, decoder with the same weights, transposed\n")
    say(f"{tieops.torch.find_ties(net)}\n")
    say(f"training on {len(data)} images of digits, {epochs} epochs")
    history = train(net, data, validation, epochs=epochs)
    error = rmse(predict(net, test), test)
    say(f"RMSE {error:.4f} on {len(test)} test images")

    rows = {"original": test[:SHOWN], "rebuilt": predict(net, test[:SHOWN])}
    pictures = [
        save_training(folder / "training.png", {"tied": history}),
        save_reconstructions(
            folder / "reconstructions.png", {name: each.numpy() for name, each in rows.items()}
        ),
    ]
    for picture in pictures:
        say(f"wrote {picture}")
        if show:
            typer.launch(str(picture))

    model = tieops.from_torch(net, (data[:2],), dynamic_shapes={"images": {0: "batch"}})
    with temporary_folder() as temporary:
        written = tieops.to_onnx(model, out or Path(temporary, "autoencoder.onnx"))
        session = tieops.session(written.path, provider=provider)
        say(f"\n{session.note or f'running on {session.provider}'}")
        report = tieops.verify(session, against=net, inputs=[{"images": test.numpy()}])
        say(f"{report}\n\n{model.ledger}" + (f"; wrote {written}" if out else ""))
    if as_json:
        print_json(
            {
                "model": as_record(model),
                "written": str(written.path),
                "stored_bytes": written.stored_bytes,
                "provider": session.provider,
                "note": session.note,
                "verified": report.to_dict(),
                "test_rmse": error,
                "plots": [str(picture) for picture in pictures],
            }
        )


def _folder(plots: Path | None) -> Path:
    """Return the folder of the plots, made before the training and not after it."""
    if plots is None:
        return Path(tempfile.mkdtemp(prefix="tieops-"))
    try:
        plots.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"cannot write plots to {plots}", {"why": error.strerror}, "give another folder"
        ) from error
    return plots
