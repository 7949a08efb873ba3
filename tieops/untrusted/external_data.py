"""Find external data inside the model's folder, check it once, and map it when it is read."""

from __future__ import annotations

import os
import stat

import onnx_ir

from tieops.errors import PreconditionError, UntrustedFileError
from tieops.ir.notation import brief, printable
from tieops.ir.storage.external_tensors import CheckedTensor, DataFile
from tieops.system.file_names import is_inside, leads_out, steps_back
from tieops.system.opening import open_below
from tieops.untrusted.limits import Limits, raising
from tieops.untrusted.onnx_file import ModelFile

__all__ = ["DataFolder", "check_range"]


class DataFolder:
    """Where a model's data may lie.

    A location is a relative path without steps back. What it leads to must be inside of the real
    folder that the model was read from. In the cache of the Hugging Face hub the model and its data
    are links to neighbours elsewhere: where the model's path is itself a link, data may also be
    inside of the folder of the file that the model's link leads to.

    Args:
        base_dir: The folder.
        source: The model's file, if it was read from one.
        limits: What data files may be.
        keep: Whether tensors keep the folder that they have, where ``base_dir`` is None.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str] | None,
        source: ModelFile | None,
        limits: Limits,
        *,
        keep: bool = False,
    ) -> None:
        self._base_dir = None if base_dir is None else os.path.abspath(base_dir)
        self._source = source
        self._limits = limits
        self._keep = keep
        self._files: dict[tuple[str, str], DataFile] = {}

    def checked(self, tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
        """Return the tensor, bound to its file if that is external.

        Raises:
            PreconditionError: If nobody said in which folder it is.
            UntrustedFileError: With the tensor, the file and what is wrong with it.
        """
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            return tensor
        if isinstance(tensor, CheckedTensor) and self._base_dir is None:
            return tensor
        name = printable((tensor.name or "a tensor")[:200])
        base = self._base_dir
        if base is None:
            if not self._keep:
                raise PreconditionError(
                    f"{name} is external data, but its folder is unknown",
                    {"location": _short(str(tensor.location))},
                    "pass base_dir=",
                )
            base = os.path.abspath(tensor.base_dir)
        location = str(tensor.location)
        key = base, location
        if key not in self._files:
            self._files[key] = self._file(name, base, location)
        data = self._files[key]
        check_range(tensor, name, printable(data.path), data.size)
        bound = CheckedTensor(tensor, data)
        bound.base_dir = base
        return bound

    def _file(self, name: str, base: str, location: str) -> DataFile:
        real = _real_path(name, base, location)
        roots = [os.path.realpath(base)]
        if self._source is not None and os.path.dirname(self._source.path) == base:
            roots.append(os.path.dirname(self._source.real))
        root = next((root for root in roots if is_inside(real, root)), None)
        if root is None:
            raise _outside(name, location, roots[0])
        try:
            self._check_status(name, real, os.stat(real))  # opening a device can do things
            descriptor = open_below(root, real)
        except OSError as error:
            raise _missing(name, real, error) from error
        try:
            self._check_status(name, real, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return DataFile.of(real, descriptor)

    def _check_status(self, name: str, real: str, status: os.stat_result) -> None:
        file = printable(real)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedFileError(
                f"the external data of {name} is not a regular file",
                {"file": file},
                "copy the data file beside the model",
            )
        source = self._source
        if source is not None and (status.st_dev, status.st_ino) == (source.device, source.inode):
            raise UntrustedFileError(
                f"the external data of {name} is the model itself",
                {"file": file},
                "export the model again",
            )
        if status.st_nlink > 1 and not self._limits.hard_links:
            raise UntrustedFileError(
                f"the external data of {name} has other names (hard links)",
                {"file": file, "links": status.st_nlink},
                "copy the file, so that nobody can change it from outside of the folder; if you "
                f"trust who made the links: {raising('hard_links')}",
            )
        if status.st_size > self._limits.data_bytes:
            raise UntrustedFileError(
                f"the external data of {name} is larger than the limit",
                {"file": file, "size": status.st_size, "limit": self._limits.data_bytes},
                f"if you trust the file: {raising('data_bytes')}",
            )


def _real_path(name: str, base: str, location: str) -> str:
    if leads_out(location) or os.path.isabs(location):
        raise _outside(name, location, base)
    if steps_back(location):
        raise UntrustedFileError(
            f"{name} has a location with '..', which leads elsewhere through a link",
            {"location": _short(location)},
            "export the model again",
        )
    try:
        return os.path.realpath(os.path.join(base, location), strict=True)
    except (OSError, ValueError) as error:
        raise _missing(name, os.path.join(base, location), error) from error


def check_range(tensor: onnx_ir.ExternalTensor, name: str, file: str, size: int) -> None:
    """Refuse a tensor whose bytes are not where it says, or not as many.

    Args:
        tensor: The tensor.
        name: What it is called, to be shown.
        file: What its file is called, to be shown.
        size: The file's bytes.

    Raises:
        UntrustedFileError: With both sizes.
    """
    need, offset = int(tensor.nbytes), tensor.offset or 0
    if tensor.length is not None and tensor.length != need:
        raise UntrustedFileError(
            f"{name} has an external length that does not match its shape",
            {"length": tensor.length, name: f"{brief(tensor.dtype, tensor.shape)}, {need} bytes"},
            "export the model again",
        )
    if offset < 0 or offset + need > size:
        raise UntrustedFileError(
            f"{name} lies past the end of its external data",
            {
                "range": f"{offset}..{offset + need}",
                "file": f"{file}, {size} bytes",
            },
            "copy the data file again",
        )


def _short(text: str) -> str:
    return printable(text if len(text) <= 200 else f"{text[:200]}…")


def _outside(name: str, location: str, folder: str) -> UntrustedFileError:
    return UntrustedFileError(
        f"{name} lies outside of the model's folder",
        {"location": _short(location), "folder": printable(folder)},
        "copy the data beside the model",
    )


def _missing(name: str, path: str, error: OSError | ValueError) -> UntrustedFileError:
    says = error.strerror if isinstance(error, OSError) else str(error)
    return UntrustedFileError(
        f"the external data of {name} is missing",
        {"file": _short(path), "the system says": says},
        "copy the data file beside the model",
    )
