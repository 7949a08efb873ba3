"""Turn a model into what ONNX Runtime opens: a path, or bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir

from tieops.arguments import described
from tieops.errors import PreconditionError
from tieops.importers.onnx import Message
from tieops.ir.edit import copy_model
from tieops.ir.notation import printable
from tieops.ir.walk import all_graphs
from tieops.model import TiedModel
from tieops.remote.urls import is_url, shown
from tieops.untrusted.limits import UNLIMITED, Limits

__all__ = ["Folder", "Runnable", "check_file", "file_identity", "limits_for", "source"]

Runnable: TypeAlias = TiedModel | str | os.PathLike[str] | bytes | onnx.ModelProto | onnx_ir.Model
"""What a session can be made from: a model, its path, or its bytes."""

# Protobuf ends at 2 GiB; well below that, weights go to a file of their own.
_INLINE_BYTES = 1_000_000_000


class Folder:
    """A temporary folder that goes when nobody refers to it any more.

    Example:
        >>> folder = Folder()
        >>> path = folder.path
        >>> del folder
        >>> path.exists()
        False
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="tieops-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def source(
    model: Runnable, folder: Path, *, apart: bool = False
) -> tuple[str | bytes, Message | None]:
    """Return the path or bytes to open; what has neither is written into the folder first.

    A tied model is read again when it is written; what was read then is returned as well.

    Args:
        model: The model.
        folder: Where to write what has to be written.
        apart: Write weights to a data file, so that they can be mapped.

    Raises:
        PreconditionError: If the path is not a file, or the model is none of these.
        ExportError: If a tied model cannot be written.
    """
    if isinstance(model, bytes):
        return model, None
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString(), None
    if isinstance(model, (str, os.PathLike)):
        check_file(model)
        return str(Path(model)), None
    path = folder / "model.onnx"
    if isinstance(model, TiedModel):
        # Imported late: only who runs a tied model needs the exporter.
        from tieops.exporters.onnx import write_and_read

        return str(path), write_and_read(model, path, apart or None)[1]
    if not isinstance(model, onnx_ir.Model):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PreconditionError(
            f"ONNX Runtime cannot run {described(model)}",
            {"it runs": "a TiedModel, a path, bytes, a ModelProto, an onnx_ir.Model"},
            "make a TiedModel of it first: tieops.from_torch(net, example_inputs)",
        )
    held = [v.const_value for g in all_graphs(model) for v in g.initializers.values()]
    large = sum(each.nbytes for each in held if each is not None) > _INLINE_BYTES or any(
        isinstance(each, onnx_ir.ExternalTensor) for each in held
    )
    onnx_ir.save(copy_model(model), path, external_data="model.onnx.data" if large else None)
    return str(path), None


def limits_for(model: Runnable, limits: Limits | None) -> Limits:
    """Return what the file of a model may ask for.

    Args:
        model: The model.
        limits: What the caller allows a file; None for the defaults.

    Returns:
        The caller's limits; none for the file that `source` writes of a model that was read before.
    """
    if isinstance(model, (TiedModel, onnx_ir.Model)):
        return UNLIMITED
    return Limits() if limits is None else limits


def file_identity(opened: str | bytes) -> tuple[int, ...] | None:
    """Return what identifies a file even if its name is reused; None for bytes and no file."""
    if isinstance(opened, bytes):
        return None
    try:
        status = os.stat(opened)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is no file of this machine.

    Raises:
        PreconditionError: With what is there, or that nothing is.
    """
    if is_url(path):
        raise PreconditionError(
            f"expected a local file, got the URL {shown(str(path))}",
            None,
            "pass tieops.from_onnx(url): it is copied to a temporary file",
        )
    if not Path(path).is_file():
        name = printable(str(path))
        found = Path(path).exists()
        what = f"{name} is not a regular file" if found else f"there is no file {name}"
        raise PreconditionError(what, {}, "check the path")
