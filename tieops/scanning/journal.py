"""The file that a scan writes and resumes from: one line of JSON per model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tieops.errors import ExportError, PreconditionError, printable
from tieops.scanning.model_record import ScanRecord
from tieops.system.write_targets import check_target

__all__ = ["Journal"]

_BEGINNING = b'{"path": '
"""How every line begins. A file that begins otherwise is not ours to write to."""


class Journal:
    """Records on disk; what is known of a model is its last line.

    Args:
        path: The file. One that is there is read; what it ends with after a crash is dropped.

    Raises:
        PreconditionError: If it cannot be written, is a directory, a FIFO or the like, or is no
            record of a scan.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lines: dict[str, int] = {}
        try:
            check_target(self._path)
            self._file = self._path.open("a+b")
            end = self._read()
            self._file.truncate(end)
        except ExportError as error:
            raise PreconditionError(error.what, error.facts, error.fix) from error
        except OSError as error:
            raise PreconditionError(
                f"cannot write {self._path}", {"the system says": error.strerror}, "name another"
            ) from error

    def _read(self) -> int:
        """Note where the line of each model begins; return where whole lines end."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(_lines(self._file)):
            record = _parsed(line)
            whole = line.endswith(b"\n")
            ours = record is not None if whole else _BEGINNING.startswith(line[: len(_BEGINNING)])
            if not ours and number == 0:
                self._file.close()
                raise PreconditionError(
                    f"{self._path} was not written by a scan",
                    {"it begins with": repr(line[:40])},
                    "name another file; this one is unchanged",
                )
            if not whole:
                break
            if record is not None:
                self._lines[record.path] = end
            end += len(line)
        return end

    def known(self, path: str) -> ScanRecord | None:
        """Return what is known of a model.

        Args:
            path: Its path or URL.
        """
        at = self._lines.get(path)
        if at is None:
            return None
        self._file.seek(at)
        return _parsed(self._file.readline())

    def add(self, record: ScanRecord) -> None:
        """Write a record, so that it is there if the next one is not.

        Args:
            record: The record.

        Raises:
            ExportError: If the disk is full or broken. A line that is cut off is dropped when the
                file is opened again.
        """
        try:
            self._file.write(json.dumps(record.to_dict()).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise ExportError(
                f"cannot write {printable(str(self._path))}",
                {"the system says": error.strerror},
                "free disk space and scan again: finished records are kept",
            ) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what could not be written was told when it was added
            self._file.close()


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(64 << 20):  # the limit is for what is not a record at all
        yield line


def _parsed(line: bytes) -> ScanRecord | None:
    try:
        return ScanRecord.from_dict(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
