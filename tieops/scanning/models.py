"""``tieops.scan``: scan many models in bounded memory; a bad file costs only its own record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tieops.arguments import expect
from tieops.errors import PreconditionError
from tieops.progress import advance, progress
from tieops.remote.remote_files import list_remote
from tieops.remote.urls import is_url, local_path
from tieops.scanning.journal import Journal
from tieops.scanning.model_record import Failure, ScanRecord
from tieops.scanning.one_model import look
from tieops.scanning.workers import WorkerPool
from tieops.system.processes import processors
from tieops.untrusted.limits import Limits

__all__ = ["scan"]

PathLike = str | os.PathLike[str]


def scan(
    paths: PathLike | Iterable[PathLike],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    out: PathLike | None = None,
    whole: bool = False,
    ordered: bool = False,
    timeout_s: float | None = None,
    max_memory_bytes: int | None = None,
    max_in_flight: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> Iterator[ScanRecord]:
    """Look at many ONNX models: ties, duplicates, wasted bytes.

    Args:
        paths: Files, folders (all .onnx files in them and below), URLs of files, and URLs of
            folders, which end with a slash.
        executor: What runs it, such as ``dask.distributed``'s ``client.get_executor()``; its
            workers have to see the same files. By default, processes of this machine, each of
            which may die or hang without harm to the others.
        workers: How many such processes; as many as there are processors.
        out: A file of JSON lines to write, one a model. If it is there the scan goes on: a model
            whose files have the same size and time is not read again, one with an error is.
        whole: Of remote models read large tensors whole where they may be equal. Otherwise what
            is equal in all samples counts as likely (``likely_wasted_bytes``).
        ordered: Give records in the order of the paths, not as they come.
        timeout_s: How long one model may take.
        max_memory_bytes: How much memory one process may take, mapped files not counted.
        max_in_flight: How many models are handed to the executor at a time.
        storage_options: What the file systems of URLs need, for fsspec.
        limits: As for ``from_onnx``: what a model may hold.

    Returns:
        Records as they come. A model that cannot be read has the error in its record.

    Raises:
        PreconditionError: If there are no models, ``out`` is no such file, or a limit is given
            that this executor cannot keep.
        ExportError: If the disk of ``out`` is full, while records come.

    Example:
        >>> import onnx_ir, tempfile
        >>> graph = onnx_ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 20]>
        ... g (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1,2,3,4}>
        ... { h = MatMul(x, w)
        ...   y = MatMul(h, w) }''')
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     onnx_ir.save(graph, os.path.join(folder, "m.onnx"))
        ...     [(len(record.ties), record.stored_bytes) for record in scan(folder, workers=1)]
        [(1, 16)]
    """
    if executor is not None and (timeout_s, max_memory_bytes, workers) != (None, None, None):
        raise PreconditionError(
            "workers, timeout_s and max_memory_bytes cannot be combined with executor",
            {"executor": type(executor).__name__},
            "leave them out, or leave executor out",
        )
    for name, number in {"workers": workers, "timeout_s": timeout_s,
                         "max_memory_bytes": max_memory_bytes,
                         "max_in_flight": max_in_flight}.items():  # fmt: skip
        if number is not None and number <= 0:
            raise PreconditionError(f"{name} is not positive", {name: number})
    expect((str, os.PathLike, Iterable), paths, "paths to scan", "give files, folders or URLs")
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    for each in given:
        expect((str, os.PathLike), each, "paths to scan", "give files, folders or URLs")
    targets = list(dict.fromkeys(_targets(given, storage_options or {})))
    if not targets:
        named = {"looked in": ", ".join(str(each) for each in given) or "nothing"}
        raise PreconditionError(
            "there are no models to scan", named, "name .onnx files, or folders"
        )
    runs = _Runs(executor, workers or processors(), timeout_s, max_memory_bytes)
    journal = None if out is None else Journal(out)
    one = partial(look, whole=whole, options=storage_options, limits=limits)
    limit = max_in_flight or 4 * (workers or processors())
    return _scan(targets, runs, journal, one, limit, ordered)


def _targets(given: Iterable[PathLike], options: Mapping[str, Any]) -> Iterator[str]:
    for each in given:
        text = os.fspath(each)
        path = local_path(text) if is_url(text) else Path(text)
        if path is None and text.endswith("/"):
            yield from list_remote(text, options)
        elif path is None:
            yield text
        elif path.is_dir():
            yield from _models(path)
        else:
            yield str(path)


def _models(folder: Path) -> Iterator[str]:
    """Yield the .onnx files below a folder in the order of their names; and what hides some."""
    hidden: list[str] = []
    for place, inner, names in os.walk(folder, onerror=lambda error: hidden.append(error.filename)):
        inner.sort()
        yield from (
            os.path.join(place, name) for name in sorted(names) if name.lower().endswith(".onnx")
        )
    yield from hidden


class _Runs:
    """An executor, and one to go on with if it breaks."""

    def __init__(
        self,
        executor: Executor | None,
        workers: int,
        timeout_s: float | None,
        max_memory_bytes: int | None,
    ) -> None:
        self._given = executor
        self._make = partial(WorkerPool, workers, timeout_s, max_memory_bytes)
        self._own = self._make() if executor is None else None

    def submit(self, work: partial[ScanRecord]) -> Future[ScanRecord]:
        if self._own is None and self._given is not None:
            try:
                return self._given.submit(work)
            except BrokenExecutor:
                pass
        return self.submit_again(work)

    def submit_again(self, work: partial[ScanRecord]) -> Future[ScanRecord]:
        """Run it where nothing that dies takes others along."""
        if self._own is None:
            self._own = self._make()
        return self._own.submit(work)

    def close(self) -> None:
        if self._own is not None:
            self._own.shutdown(cancel_futures=True)


def _scan(
    targets: list[str],
    runs: _Runs,
    journal: Journal | None,
    one: partial[ScanRecord],
    limit: int,
    ordered: bool,
) -> Iterator[ScanRecord]:
    flight = _Flight(targets, runs, journal, one)
    with ExitStack() as stack:
        stack.callback(runs.close)
        stack.callback(flight.cancel)
        if journal is not None:
            stack.callback(journal.close)
        stack.enter_context(progress("scanning", len(targets), "steps"))
        waiting: dict[int, tuple[ScanRecord, bool]] = {}
        following = 0
        while following < len(targets) or waiting:
            flight.fill(limit - len(waiting))
            waiting |= flight.landed()
            while waiting and (following in waiting or not ordered):
                record, is_new = waiting.pop(following if ordered else next(iter(waiting)))
                following += 1
                if journal is not None and is_new:
                    journal.add(record)
                yield record


class _Flight:
    """The models that are being looked at: no more than a few of thousands."""

    def __init__(
        self,
        targets: list[str],
        runs: _Runs,
        journal: Journal | None,
        one: partial[ScanRecord],
    ) -> None:
        self._targets = targets
        self._runs = runs
        self._journal = journal
        self._one = one
        self._next = 0
        self._futures: dict[Future[ScanRecord], tuple[int, partial[ScanRecord]]] = {}

    def fill(self, limit: int) -> None:
        while self._next < len(self._targets) and len(self._futures) < limit:
            target = self._targets[self._next]
            known = None if self._journal is None else self._journal.known(target)
            work = partial(self._one, target, known=known)
            self._futures[self._runs.submit(work)] = self._next, work
            self._next += 1

    def landed(self) -> dict[int, tuple[ScanRecord, bool]]:
        """Wait for the next records; return them, and if they are new, by their model's number."""
        records: dict[int, tuple[ScanRecord, bool]] = {}
        for future in wait(self._futures, return_when=FIRST_COMPLETED).done:
            number, work = self._futures.pop(future)
            try:
                record = future.result()
            except BrokenExecutor:
                # Perhaps this one broke it, perhaps another: each is tried where it harms no other.
                self._futures[self._runs.submit_again(work)] = number, work
                continue
            except Exception as error:  # the pool's, or the executor's, such as KilledWorker
                record = ScanRecord(self._targets[number], error=Failure.of(error))
            advance(1)
            records[number] = record, record != work.keywords["known"]
        return records

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()
