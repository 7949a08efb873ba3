"""Run an untrusted model in a separate process with limits on memory and time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn, TypeAlias

import numpy as np

from tieops import errors
from tieops.arguments import expect
from tieops.errors import PreconditionError, TieopsError, UntrustedFileError
from tieops.ir.metadata.torch_inputs import TorchInputs
from tieops.ir.notation import brief_bytes, printable
from tieops.system.processes import cannot_limit_memory, ended_by_time
from tieops.verification.nested_values import Value, unflatten
from tieops.verification.sandbox_messages import receive, send

__all__ = ["Sandbox", "SandboxedModel"]

_Array: TypeAlias = np.ndarray[Any, Any]

_CHILD = "from tieops.verification.sandbox_child import main; main()"
_NO_MEMORY = re.compile(r"bad.?alloc|allocate memory|out of memory|MemoryError|Cannot allocate|"
                        r"can't allocate|failed to allocate|array is too big|DefaultCPUAllocator",
                        re.IGNORECASE)  # fmt: skip
_STDERR_BYTES = 4000


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """How much a model may take while it is opened and run.

    Attributes:
        memory_bytes: What its process may ask for beyond what it has before it opens the model:
            address space, so that it counts what is reserved and not used too.
        seconds: How long it may take, opening and all runs together.

    Raises:
        PreconditionError: If one is not positive, or the system cannot hold a process to it.
    """

    memory_bytes: int = 4_000_000_000
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for number in (self.memory_bytes, self.seconds):
            expect(Real, number, "limits in numbers", "pass numbers above 0")
        if not (self.memory_bytes > 0 and 0 < self.seconds < 1e6):
            raise PreconditionError(
                "expected positive limits for the sandbox",
                {"memory_bytes": self.memory_bytes, "seconds": self.seconds},
                "pass numbers above 0",
            )
        system = cannot_limit_memory()
        if system is not None:
            raise PreconditionError(
                f"{system} cannot limit the memory of a process",
                None,
                "run it on Linux, in a container or a virtual machine",
            )


class SandboxedModel:
    """A model that is open in a process of its own, which ends with it.

    Args:
        path: The model: an ``.onnx`` file, a ``.pt2``, or TorchScript that is trusted.
        label: What errors call it.
        sandbox: The limits.
        options: ``optimize`` and ``trust``, as for ``verify``.

    Attributes:
        about: What the child says of the model: inputs and outputs.
    """

    def __init__(self, path: str, label: str, sandbox: Sandbox, options: Mapping[str, Any]) -> None:
        self._label, self._sandbox = printable(label), sandbox
        self._left_s = float(sandbox.seconds)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        self._expired = False
        search = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            # Each of glibc's arenas reserves address space, and there is one a thread.
            env={**os.environ, "PYTHONPATH": search, "MALLOC_ARENA_MAX": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        limits = {"memory_bytes": sandbox.memory_bytes, "seconds": sandbox.seconds}
        try:
            ready, _ = self._answer({"path": path, "parent": os.getpid(), **limits, **options}, ())
            self.about: dict[str, Any] = ready
        except BaseException:
            self.close()
            raise

    def run(
        self,
        feeds: Mapping[str, _Array],
        outputs: Sequence[str] | None = None,
        layout: TorchInputs | None = None,
    ) -> list[Value]:
        """Return the outputs: those named, or all in order.

        Args:
            feeds: An array for each input, by name.
            outputs: The outputs of an ONNX model to return.
            layout: What a call of a PyTorch program takes.

        Raises:
            UntrustedFileError: If the model reached a limit, or its process crashed.
            TieopsError: What running it raises in its process.
        """
        wanted = None if outputs is None else list(outputs)
        nesting = None if layout is None else [layout.spec, list(layout.constants.items())]
        request = {"names": list(feeds), "outputs": wanted, "layout": nesting}
        answer, arrays = self._answer(request, list(feeds.values()))
        try:
            found = unflatten(answer.get("outputs"), iter(arrays))
            if isinstance(found, list):
                return found
            why = "no list of outputs"
        except (ValueError, TypeError) as error:
            why = str(error)
        raise self._no_answer(why)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _answer(
        self, request: Mapping[str, Any], arrays: Sequence[_Array]
    ) -> tuple[dict[str, Any], list[_Array]]:
        """Ask, and return what the child says before its time is over."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        start = time.monotonic()
        timer = threading.Timer(max(0.0, self._left_s), self._expire)
        timer.start()
        try:
            send(stdin, request, arrays)  # pyright: ignore[reportArgumentType]
            answer, found = receive(stdout, self._sandbox.memory_bytes)  # pyright: ignore[reportArgumentType]
        except (OSError, EOFError):
            self._raise_end()
        except (ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
            raise self._no_answer(str(error)) from error
        finally:
            timer.cancel()
            timer.join()
            self._left_s -= time.monotonic() - start
        if "error" in answer:
            self._raise(answer["error"])
        return answer, found

    def _no_answer(self, why: str) -> UntrustedFileError:
        return UntrustedFileError(
            f"the sandbox of {self._label} returned an invalid answer",
            {"why": printable(why)[:200]},
            "do not use this model",
        )

    def _expire(self) -> None:
        self._expired = True
        self._process.kill()

    def _raise_end(self) -> NoReturn:
        """Raise the error that says why the process ended."""
        code = self._process.wait()
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _STDERR_BYTES))
        text = self._stderr.read().decode("utf-8", "replace")
        lines = [printable(line)[:300] for line in text.splitlines() if line.strip()]
        told = lines[-1] if lines else "nothing"
        if self._expired or ended_by_time(code):
            raise UntrustedFileError(
                f"{self._label} reached the sandbox's time limit",
                {"limit": f"{self._sandbox.seconds:g} s"},
                "if you trust it, give it more: Sandbox(seconds=…), --seconds",
            )
        if _NO_MEMORY.search(text):
            raise self._no_memory(told)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise UntrustedFileError(
            f"{self._label} crashed the process that ran it: {how}",
            {"it said": told},
            "do not run it outside of a sandbox",
        )

    def _raise(self, told: Mapping[str, Any]) -> NoReturn:
        """Raise the error that the child reports."""
        facts = {printable(str(k)): printable(str(v)) for k, v in dict(told["facts"]).items()}
        what, fix = printable(str(told["what"])), printable(str(told["fix"] or ""))
        text = " ".join((what, *facts.values()))
        if _NO_MEMORY.search(text):
            raise self._no_memory(text)
        known = {name: getattr(errors, name) for name in errors.__all__}
        kind: type[TieopsError] = known.get(str(told["type"]), UntrustedFileError)
        raise kind(what, facts, fix or None)

    def _no_memory(self, told: str) -> UntrustedFileError:
        return UntrustedFileError(
            f"{self._label} reached the sandbox's memory limit",
            {"limit": brief_bytes(self._sandbox.memory_bytes), "it said": told[:300]},
            "if you trust it, give it more: Sandbox(memory_bytes=…), --memory-limit",
        )
