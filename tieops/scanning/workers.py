"""Worker processes for untrusted models: one that dies or hangs costs only its own task.

``concurrent.futures.ProcessPoolExecutor`` abandons all tasks when one of its processes dies, and
cannot stop one that hangs. Here a thread communicates with each process, and replaces a dead one.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO, ParamSpec, TypeVar

from tieops.errors import PreconditionError, UnsupportedModelError
from tieops.ir.notation import brief_bytes
from tieops.system.processes import cannot_limit_memory, limit_data

__all__ = ["WorkerPool", "serve"]

P = ParamSpec("P")
T = TypeVar("T")
GRACE_S = 2.0
ATTEMPTS = 2
"""A process may be killed for what another one took of the memory: its task gets a second one."""
_START = (
    "import sys; sys.path[:] = {path!r}; from tieops.scanning.workers import serve; serve({limit})"
)


class WorkerPool(Executor):
    """An executor over processes of its own.

    Args:
        workers: How many.
        timeout_s: How long a task may take; None for as long as it does.
        max_memory_bytes: How much memory a process may take, the mapped pages of files not counted;
            None for as much as there is.

    Raises:
        PreconditionError: If this system cannot limit memory.

    A task raises UnsupportedModelError if it takes too long, or its process dies twice.

    Example:
        >>> with WorkerPool(1) as pool:
        ...     pool.submit(len, "abc").result()
        3
    """

    def __init__(
        self, workers: int, timeout_s: float | None = None, max_memory_bytes: int | None = None
    ) -> None:
        system = None if max_memory_bytes is None else cannot_limit_memory()
        if system is not None:
            raise PreconditionError(
                "only Linux can limit the memory of a process without its mapped files",
                {"system": system},
                "leave max_memory_bytes out",
            )
        self._timeout_s = timeout_s
        self._limit = max_memory_bytes
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="tieops-scan")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function, which has to be importable, in a process.

        Args:
            fn: The function.
            args: Its arguments.
            kwargs: Its named arguments.
        """
        return self._threads.submit(self._run, pickle.dumps((fn, args, kwargs)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; at once if futures are cancelled.

        Args:
            wait: Wait for tasks that run.
            cancel_futures: Drop tasks that wait, and kill those that run.
        """
        if cancel_futures:
            self._closed = True
            for process in list(self._busy):
                process.kill()
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        while self._idle:
            self._idle.pop().kill()

    def _run(self, task: bytes) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            process = self._process()
            self._busy.add(process)
            try:
                failed, result = process.ask(task, self._timeout_s)
            except EOFError as error:
                process.kill(GRACE_S)
                if attempt == ATTEMPTS or process.timed_out or self._closed:
                    raise self._died(process) from error
                continue
            finally:
                self._busy.discard(process)
            self._idle.append(process)
            if failed:
                raise result
            return result
        raise AssertionError  # the last attempt returns or raises

    def _process(self) -> _Process:
        try:
            return self._idle.pop()
        except IndexError:
            return _Process(self._limit)

    def _died(self, process: _Process) -> UnsupportedModelError:
        if process.timed_out:
            return UnsupportedModelError(
                "it took too long", {"limit": f"{self._timeout_s:g} s"}, "allow it more time"
            )
        limit = {} if self._limit is None else {"memory limit": brief_bytes(self._limit)}
        return UnsupportedModelError(
            "the process that was reading it died",
            {"how": process.death(), **limit},
            "read it alone, with more memory; if it dies again, please report this",
        )


class _Process:
    """One process that takes tasks on its standard input."""

    def __init__(self, limit: int | None) -> None:
        code = _START.format(path=sys.path, limit=limit)
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.timed_out = False
        self._is_ready = False

    def ask(self, task: bytes, timeout_s: float | None) -> tuple[bool, Any]:
        """Return whether a task failed, and its result or error; EOFError if the process died."""
        timer = threading.Timer(timeout_s or 0, self._stop)
        timer.daemon = True
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            if not self._is_ready:  # to start is not the task's time
                self._is_ready = pickle.load(self._child.stdout)
            if timeout_s is not None:
                timer.start()
            self._child.stdin.write(task)
            self._child.stdin.flush()
            return pickle.load(self._child.stdout)
        except Exception as error:  # whatever it is, who sent it cannot be talked to any more
            raise EOFError from error
        finally:
            timer.cancel()

    def _stop(self) -> None:
        self.timed_out = True
        self._child.kill()

    def kill(self, grace_s: float = 0.0) -> None:
        """End the process; one that is dying by itself gets time, so that it is known of what."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(grace_s)
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def death(self) -> str:
        code = self._child.returncode
        if code >= 0:
            return f"exit code {code}"
        with suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"


def _failed(error: Exception) -> bytes:
    answer = pickle.dumps((True, error))
    try:
        pickle.loads(answer)
    except Exception:  # not every error can be made again from its arguments
        return pickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer


def serve(limit: int | None = None) -> None:
    """Take tasks from standard input until it ends, and answer each on standard output.

    Args:
        limit: Bytes of memory that this process may take.
    """
    if limit is not None:
        limit_data(limit)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is not an answer
    answers.write(pickle.dumps(True))
    answers.flush()
    tasks: BinaryIO = sys.stdin.buffer
    while True:
        try:
            function, args, kwargs = pickle.load(tasks)
        except EOFError:
            return
        try:
            answer = pickle.dumps((False, function(*args, **kwargs)))
        except Exception as error:
            answer = _failed(error)
        answers.write(answer)
        answers.flush()
