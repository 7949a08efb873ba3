"""``Session``: a model loaded into ONNX Runtime, on the provider that was requested."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tieops.errors import PreconditionError
from tieops.importers.onnx import Message
from tieops.ir.notation import printable
from tieops.progress import advance, silent
from tieops.progress import progress as show_progress
from tieops.runtime.batches import batch_size_of, batches, check_joinable, joined
from tieops.runtime.cuda.cuda_graph import CapturedRun
from tieops.runtime.cuda.provider_options import checked_options, stream_of, uses_cuda_graph
from tieops.runtime.feeds import Port, check_feeds, fitted
from tieops.runtime.inference_session import open_session
from tieops.runtime.memory.single_copy import PreparedWeights
from tieops.runtime.model_source import Folder, Runnable, file_identity, limits_for, source
from tieops.runtime.ort_values import raw_array
from tieops.runtime.placement import Placement, placement_of
from tieops.runtime.providers import onnxruntime_module
from tieops.runtime.running import errors_with_feeds, run_arrays, run_bound
from tieops.runtime.session_arguments import Memory, Provider, check_choices
from tieops.runtime.session_config import SessionConfig, session_options
from tieops.runtime.tensors import (
    device_value,
    is_on_device,
    is_torch,
    tensors_of,
    to_host,
    torch_module,
)
from tieops.untrusted.limits import Limits

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike


__all__ = ["Session", "session", "session_of"]


def session(
    model: Runnable,
    provider: Provider = "auto",
    *,
    memory: Memory = "packed",
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
    threads: int | None = None,
    limits: Limits | None = None,
    provider_options: Mapping[str, object] | None = None,
) -> Session:
    """Load a model into ONNX Runtime.

    Args:
        model: A tied model, a path, a serialized model, a ModelProto or an onnx_ir model.
        provider: "cuda" runs on an NVIDIA GPU or raises; "cpu" runs on the CPU; "auto" runs on the
            GPU if it can, else on the CPU, and says which and why in ``provider`` and ``note``.
        memory: How many copies of tied weights the CPU holds, where they lie in a data file.
            "packed": one private copy, packed for speed; the file's pages are given back. "mapped":
            none, the file's pages are shared with other sessions and processes; a session is made
            at once, and 4 to 64 rows take longer. "default": ONNX Runtime's own, two copies. On
            CUDA the runtime holds one by itself.
        options: Session configuration entries of ONNX Runtime, such as
            ``{"session.disable_prepacking": "1"}``.
        optimize: False turns every graph optimization of ONNX Runtime off.
        threads: How many threads one operator may use; None leaves it to ONNX Runtime.
        limits: What a file may ask for, as for ``from_onnx``, which tieops reads to prepare its
            weights. One that asks for more is opened with ONNX Runtime's own copies of them. An
            imported model has been held to limits before, and is to none here.
        provider_options: Options of ONNX Runtime's CUDA provider, such as ``{"device_id": 1,
            "use_tf32": 0, "gpu_mem_limit": 2**30}``; without effect where "auto" takes the CPU.
            With ``enable_cuda_graph`` runs are captured, which needs fixed sizes; with
            ``user_compute_stream`` (an address, or torch's stream) they go to that stream.

    Returns:
        The session. With "cuda", single nodes for which ONNX Runtime has no CUDA kernel still run
        on the CPU: the promise is about the session, not about each node. If one of them has
        weights, ``note`` and a UserWarning say so.

    Raises:
        MissingDependencyError: If onnxruntime is not installed.
        ProviderError: If CUDA was asked for and would not run; names the library or device missing.
        PreconditionError: If the file does not exist, the provider is none of the three, it refuses
            an option, or sizes vary and runs were to be captured.
        UntrustedFileError: If external data is missing, too short, outside of its folder, or not
            what ``limits`` allow: its size, hard links.
        UnsupportedModelError: If ONNX Runtime refuses the model.

    Example:
        >>> import onnx_ir
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
        >>> model = onnx_ir.from_onnx_text(text + " { y = Neg(x) }")
        >>> session(model, "cpu").run({"x": [1.0, -2.0]})
        {'y': array([-1.,  2.], dtype=float32)}
    """
    return session_of(
        model,
        None,
        provider,
        memory=memory,
        options=options,
        optimize=optimize,
        threads=threads,
        limits=limits,
        provider_options=provider_options,
    )


def session_of(
    model: Runnable,
    message: Message | None,
    provider: Provider = "auto",
    *,
    memory: Memory = "packed",
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
    threads: int | None = None,
    limits: Limits | None = None,
    provider_options: Mapping[str, object] | None = None,
) -> Session:
    """As `session`, of a model that may have been read already: it is not read a second time.

    Args:
        model: As for `session`.
        message: What was read of it; changed, where weights are handed over.
        provider: As for `session`.
        memory: As for `session`.
        options: As for `session`.
        optimize: As for `session`.
        threads: As for `session`.
        limits: As for `session`.
        provider_options: As for `session`.
    """
    onnxruntime_module()
    check_choices(provider, memory, options, threads)
    on_provider = checked_options(provider_options, provider)
    folder = Folder()
    try:
        apart = memory != "default" and provider != "cuda"
        opened, read = source(model, folder.path, apart=apart)
        given = {key: str(value) for key, value in (options or {}).items()}
        allowed = limits_for(model, limits)
        config = SessionConfig(
            opened, provider, memory, given, optimize, threads, allowed, on_provider
        )
        inner, chosen, note, arranged = open_session(
            config, session_options(config), message or read
        )
    except BaseException:
        folder.remove()
        raise
    return Session(inner, model, note, folder, arranged, replace(config, provider=chosen))


class Session:
    """A model loaded into ONNX Runtime; make one with `session`.

    Attributes:
        model: What the session was made from.
        provider: "cuda" or "cpu": what runs it.
        note: Why "auto" took that one; empty if it was asked for by name.
        providers: ONNX Runtime's own names of what runs it, the first choice first.
        config: What it was opened with.
        inputs: What `run` has to be fed.
        outputs: What `run` can return, in the graph's order.

    Example:
        >>> import onnx_ir
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
        >>> with session(onnx_ir.from_onnx_text(text + " { y = Neg(x) }"), "cpu") as sess:
        ...     print(*sess.inputs, sess.provider)
        x: f32[n] cpu
    """

    def __init__(
        self,
        inner: Any,
        model: Runnable,
        note: str,
        folder: Folder,
        arranged: PreparedWeights,
        config: SessionConfig,
    ) -> None:
        self._inner = inner
        self._arranged = arranged
        # ONNX Runtime may map the weights' file for as long as the session lives.
        self._folder: Folder | None = folder
        self.model = model
        self.config = config
        self._mark = file_identity(config.opened)
        self.provider: Literal["cuda", "cpu"] = "cuda" if config.provider == "cuda" else "cpu"
        self.note = note
        self.providers: tuple[str, ...] = tuple(inner.get_providers())
        self.inputs = tuple(_port(each) for each in inner.get_inputs())
        self.outputs = tuple(_port(each) for each in inner.get_outputs())
        # An initializer that is a graph input too may be fed, and need not be.
        self._defaults = tuple(
            _port(each)
            for each in inner.get_overridable_initializers()
            if each.name not in arranged.names
        )
        self._captured: CapturedRun | None = None
        if self.provider == "cuda" and uses_cuda_graph(config.provider_options):
            self._captured = CapturedRun(inner, self.inputs, self.outputs, config.device)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(map(str, self.inputs))
        return f"<Session on {self.provider}: ({names}) -> {', '.join(map(str, self.outputs))}>"

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self._inner is None

    @property
    def is_current(self) -> bool:
        """Whether the file it was opened from is still the one that has this name."""
        return file_identity(self.config.opened) == self._mark

    def placement(self) -> Placement:
        """Return which nodes run on which provider, and which fell back to the CPU.

        Returns:
            The nodes of the graph as ONNX Runtime divided it among providers, after its basic
            optimizations and before the fusions that each provider's own kernels allow.

        Raises:
            PreconditionError: If the session is closed, or ONNX Runtime is too old to report it.

        Example:
            >>> import onnx_ir
            >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
            >>> print(session(onnx_ir.from_onnx_text(text + " { y = Neg(x) }"), "cpu").placement())
            CPUExecutionProvider: 1 node
        """
        with self._in_use() as inner:
            return placement_of(inner, self.provider)

    def close(self) -> None:
        """Free the session's memory and files; running it after that raises."""
        self._inner = None
        self._captured = None
        self._arranged = PreparedWeights("")
        self._folder = None

    def run(
        self, feeds: Mapping[str, ArrayLike], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model once.

        Args:
            feeds: An array, a torch tensor, an ``onnxruntime.OrtValue`` or anything that speaks
                DLPack for each input, by name. Python lists are converted, and arrays where no
                value changes (int32 to int64, float16 to float32); never a float to an int. Tensors
                on the GPU have to fit as they are; there nothing is copied.
            outputs: The names to return, in that order; None returns them all.

        Returns:
            An array for each output. bfloat16 and float8 come back as ml_dtypes arrays; they
            cannot be fed or returned together with strings, and 4-bit types not at all: ONNX
            Runtime has no way to hand them over.

        Raises:
            PreconditionError: If a name, dtype or shape does not fit, the session is closed, or
                ONNX Runtime fails on these arrays.

        Example:
            >>> import onnx_ir
            >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
            >>> sess = session(onnx_ir.from_onnx_text(text + " { y = Neg(x) }"), "cpu")
            >>> sess.run({"inputs": [1.0]})
            Traceback (most recent call last):
            tieops.errors.PreconditionError: the inputs do not fit: x is missing; no input is ...
              inputs: x: f32[n]    fed: inputs
              fix: feed exactly these names, in these dtypes and shapes
        """
        with self._in_use() as inner:
            arrays, names, fed = self._checked(feeds, outputs)
            if not names:
                return {}
            if self._captured is not None:
                found = self._values(inner, arrays, names, fed, "cpu")
                return {name: raw_array(value) for name, value in found.items()}
            stream = stream_of(self.config.provider_options)
            return run_arrays(inner, arrays, names, (*fed, *self.outputs), stream)

    def predict(
        self,
        feeds: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        batch_size: int = 128,
        progress: bool = False,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model on many rows, a batch at a time, and join what comes out.

        Args:
            feeds: As for ``run``, of any number of rows. The name of the first free first axis is
                the batch: inputs whose first axis has that name are cut along it, all others are
                fed whole each time.
            outputs: The names to return, in that order; None returns them all.
            batch_size: Rows a batch; the last may have fewer.
            progress: Show on a terminal how far it is.

        Returns:
            An array for each output, with a row for each row that was fed.

        Raises:
            PreconditionError: As ``run``; and if no input has a free first axis, the inputs have
                different numbers of rows, or an output has no row for each of them.

        Example:
            >>> import onnx_ir
            >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
            >>> sess = session(onnx_ir.from_onnx_text(text + " { y = Neg(x) }"), "cpu")
            >>> sess.predict({"x": [0.0, 1.0, 2.0]}, batch_size=2)
            {'y': array([-0., -1., -2.], dtype=float32)}
        """
        size = batch_size_of(batch_size)
        given = {name: to_host(name, value) for name, value in check_feeds(feeds).items()}
        wanted = self._wanted(outputs)
        count, parts = batches(given, self.inputs, size)
        check_joinable([port for port in self.outputs if port.name in wanted], self.inputs)
        found: list[dict[str, np.ndarray[Any, Any]]] = []
        with show_progress("running", count, "steps") if progress else silent():
            for part in parts:
                found.append(self.run(part, wanted))
                advance(1)
        return joined(found)

    def run_tensors(
        self, feeds: Mapping[str, ArrayLike], outputs: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Run the model once and return torch tensors, on the GPU where the session runs there.

        Args:
            feeds: As for ``run``. A torch tensor on the session's device is not copied, nor is
                anything else there that speaks DLPack; it has to be in C order for that.
            outputs: The names to return, in that order; None returns them all.

        Returns:
            A tensor for each output, over the memory that ONNX Runtime wrote it to. On the CPU
            float8 is copied; on the GPU it cannot be returned.

        Raises:
            PreconditionError: As ``run``; and if an output is not a tensor of numbers.
            MissingDependencyError: If torch is not installed.

        Example:
            >>> import onnx_ir, torch
            >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
            >>> sess = session(onnx_ir.from_onnx_text(text + " { y = Neg(x) }"), "cpu")
            >>> sess.run_tensors({"x": torch.tensor([1.0, -2.0])})
            {'y': tensor([-1.,  2.])}
        """
        torch_module()
        found = self.run_values(feeds, outputs)
        return dict(zip(found, tensors_of(found.values()), strict=True))

    def run_values(
        self, feeds: Mapping[str, ArrayLike], outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Run the model once and return ONNX Runtime's own values, on the session's device.

        An ``onnxruntime.OrtValue`` speaks DLPack, so that other libraries than torch read it where
        it lies; fed to another session, it stays on the device.

        Args:
            feeds: As for ``run``.
            outputs: The names to return, in that order; None returns them all.

        Raises:
            PreconditionError: As ``run``; and if an output is not a tensor of numbers.

        Example:
            >>> import onnx_ir
            >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
            >>> sess = session(onnx_ir.from_onnx_text(text + " { y = Neg(x) }"), "cpu")
            >>> once = sess.run_values({"x": [1.0, -2.0]})["y"]
            >>> sess.run({"x": once})
            {'y': array([ 1., -2.], dtype=float32)}
        """
        with self._in_use() as inner:
            arrays, names, fed = self._checked(feeds, outputs)
            odd = [port for port in self.outputs if port.name in names and not port.is_tensor]
            if odd:
                raise PreconditionError(
                    "some outputs cannot be returned as tensors",
                    {"not": ", ".join(map(str, odd))},
                    "use run for these",
                )
            return self._values(inner, arrays, names, fed, self.provider) if names else {}

    def _values(
        self,
        inner: Any,
        arrays: Mapping[str, Any],
        names: Sequence[str],
        fed: Sequence[Port],
        device: str,
    ) -> dict[str, Any]:
        with errors_with_feeds(arrays):
            if self._captured is not None:
                found = self._captured.run(arrays, names, device)
            else:
                place = device, self.config.device
                stream = stream_of(self.config.provider_options)
                found = run_bound(inner, arrays, names, fed, place, stream)
        return dict(zip(names, found, strict=True))

    def _there(self, value: Any) -> Any:
        """Return what lies on the GPU and is not torch's as ONNX Runtime's value."""
        if is_torch(value) or not is_on_device(value):
            return value
        return device_value(value, stream_of(self.config.provider_options))

    @contextmanager
    def _in_use(self) -> Generator[Any]:
        """Hold ONNX Runtime's session and its weights, though another thread may close it."""
        arranged, inner = self._arranged, self._inner
        if inner is None:
            raise PreconditionError("cannot run: the session is closed", {}, "open a new one")
        yield inner
        arranged.has_run()

    def _wanted(self, outputs: Sequence[str] | None) -> list[str]:
        """Return the names of the outputs that were asked for."""
        known = [port.name for port in self.outputs]
        names = known if outputs is None else _names(outputs)
        if unknown := [name for name in names if name not in known]:
            raise PreconditionError(
                f"no output is named {', '.join(map(printable, unknown))}",
                {"outputs": ", ".join(map(str, self.outputs))},
                "name some of these",
            )
        return names

    def _checked(
        self, feeds: Mapping[str, ArrayLike], outputs: Sequence[str] | None
    ) -> tuple[dict[str, Any], list[str], tuple[Port, ...]]:
        """Return the fed arrays as they are wanted, the outputs to return, and all input ports."""
        if isinstance(outputs, Mapping):
            raise PreconditionError(
                "expected the inputs first, then names of outputs; got the order of ONNX Runtime",
                None,
                "call run(feeds), or run(feeds, outputs)",
            )
        check_feeds(feeds)
        names = self._wanted(outputs)
        if self.provider == "cpu":
            feeds = {name: to_host(name, value) for name, value in feeds.items()}
        else:
            feeds = {name: self._there(value) for name, value in feeds.items()}
        fed = (*self.inputs, *self._defaults)
        return fitted(feeds, self.inputs, self._defaults), names, fed


def _names(outputs: object) -> list[str]:
    """Return the outputs that were named; one may come as it is."""
    names = [outputs] if isinstance(outputs, str) else outputs
    if isinstance(names, Iterable):
        names = [*names]
        if all(isinstance(name, str) for name in names):
            return names
    raise PreconditionError(
        "expected outputs to be a list of names",
        {"given": type(outputs).__name__},
        'pass names: ["y", "z"]',
    )


def _port(arg: Any) -> Port:
    text = str(arg.type)
    inner = text.removeprefix("tensor(").removesuffix(")") if text.startswith("tensor(") else text
    dtype = {"float": "float32", "double": "float64"}.get(inner) or inner
    return Port(arg.name, dtype, tuple(arg.shape))
