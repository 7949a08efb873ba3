"""``tieops demo``: the main job, from PyTorch to a verified tied ONNX model, in a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tieops
from tieops.arguments import file_path
from tieops.cli.shared_options import (
    Json,
    ProviderName,
    as_record,
    discard_message,
    print_json,
    refuse_unused,
)
from tieops.cli.streams import check_file
from tieops.errors import MissingDependencyError
from tieops.ir.notation import brief_bytes
from tieops.system.folders import temporary_folder

if TYPE_CHECKING:
    import torch

    from tieops.model import TiedModel

__all__ = ["demo"]

VOCAB, WIDTH = 1000, 300
SIZES = ((1, 1), (1, 7), (4, 16), (3, 50))
"""(batch, sequence) at which the ONNX model is compared with PyTorch."""


def demo(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Keep the model here; a temporary folder.",
            parser=file_path,
            metavar="PATH",
        ),
    ] = None,
    provider: ProviderName = "auto",
    train: Annotated[
        bool, typer.Option("--train", help="Train a tied autoencoder on digits instead.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="With --train: number of epochs.")] = 5,
    images: Annotated[int, typer.Option(min=10, help="With --train: number of images.")] = 2000,
    plots: Annotated[
        Path | None, typer.Option(help="With --train: folder for plots; default: a temporary one.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="With --train: open the plots.")] = False,
    as_json: Json = False,
) -> None:
    """Build a tied LSTM language model in PyTorch, convert, run and verify it.

    Embedding(1000, 300) -> LSTM(300) -> Linear(300, 1000) tied to the embedding -> softmax: the
    network of MATLAB's "Neural Network Weight Tying". With --train, train, plot, convert, run and
    verify the autoencoder of its "Weight Tying Using Nested Layer" instead.
    """
    check_file(out, "a model")
    if not train:
        refuse_unused(context, ("epochs", "images", "plots", "show"), "without --train")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the demo builds its network in PyTorch, which is not installed",
            None,
            'pip install "tieops[gpu,torch]"',
        ) from error

    if train:
        from tieops.cli.train import train_autoencoder

        train_autoencoder(out, provider, epochs, images, plots, show=show, as_json=as_json)
        return
    torch.manual_seed(0)
    module = _language_model()
    say = discard_message if as_json else typer.echo
    head = f"Linear({WIDTH}, {VOCAB}) tied to the embedding -> softmax"
    say(f"Embedding({VOCAB}, {WIDTH}) -> LSTM({WIDTH}) -> {head}\n")
    example = torch.zeros(2, 5, dtype=torch.long)
    model = tieops.from_torch(module, (example,), dynamic_shapes={"x": {0: "batch", 1: "sequence"}})
    say(str(model))
    with temporary_folder() as folder:
        written = tieops.to_onnx(model, out or Path(folder, "tied.onnx"))
        session = tieops.session(written.path, provider=provider)
        say(f"\n{session.note or f'running on {session.provider}'}")
        tokens = [torch.randint(0, VOCAB, size) for size in SIZES]
        sizes = ", ".join(f"{batch}x{length}" for batch, length in SIZES)
        say(f"comparing with PyTorch at batch x length {sizes}")
        report = tieops.verify(
            session, against=module, inputs=[{"x": each.numpy()} for each in tokens]
        )
        say(f"\n{report}\n")
        copies = {
            "tieops": _copies(tieops.from_onnx(written.path)),
            **_plain_exports(module, example, Path(folder)),
        }
        if as_json:
            print_json(
                {
                    "model": as_record(model),
                    "written": str(written.path),
                    "stored_bytes": written.stored_bytes,
                    "provider": session.provider,
                    "note": session.note,
                    "verified": report.to_dict(),
                    "copies": copies,
                }
            )
            return
        say(f"copies of [{VOCAB}, {WIDTH}] in the file, {brief_bytes(VOCAB * WIDTH * 4)} each:")
        for name, count in copies.items():
            say(f"  {count}  {name}")
        say(f"\n{model.ledger}" + (f"; wrote {written}" if out else ""))


def _language_model() -> torch.nn.Module:
    import torch
    from torch import nn

    class TiedLanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(VOCAB, WIDTH)
            self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
            self.fc = nn.Linear(WIDTH, VOCAB)
            self.fc.weight = self.emb.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden, _ = self.lstm(self.emb(x))
            return torch.softmax(self.fc(hidden), dim=-1)

    return TiedLanguageModel().eval()


def _copies(model: TiedModel) -> int:
    """Count the stored tensors that hold the embedding, as it is or transposed."""
    sizes = {VOCAB, WIDTH}
    return sum(1 for parameter in model.parameters if {*parameter.shape} == sizes)


def _plain_exports(module: Any, example: Any, folder: Path) -> dict[str, int]:
    """Export with torch's own exporters, as they come, and count what they leave."""
    import torch

    from tieops.importers.torch.isolation import suppress_torch_logging

    counts: dict[str, int] = {}
    for dynamo in (True, False):
        path = folder / f"plain_{dynamo}.onnx"
        with suppress_torch_logging():
            torch.onnx.export(module, (example,), path, dynamo=dynamo, verbose=False)
        counts[f"torch.onnx.export(dynamo={dynamo})"] = _copies(tieops.from_onnx(path))
    return counts
