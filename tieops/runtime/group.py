"""Sessions that share: one copy of every weight that several models have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tieops.arguments import expect
from tieops.errors import PreconditionError, ProviderError, UnsupportedModelError
from tieops.ir.notation import brief_bytes, counted, printable
from tieops.runtime.cuda.device import DeviceTensor
from tieops.runtime.cuda.provider_options import checked_options, device_of
from tieops.runtime.inference_session import blocker_of, create, open_on_cuda
from tieops.runtime.memory.mapped_weights import map_tensor
from tieops.runtime.memory.shared_weights import Opened, Shared, find_shared, open_all
from tieops.runtime.memory.single_copy import PreparedWeights, add_shared_initializers
from tieops.runtime.model_source import Folder, Runnable
from tieops.runtime.providers import (
    find_blocker,
    first_line,
    not_on_cuda,
    onnxruntime_errors,
    onnxruntime_module,
    out_of_memory,
    out_of_memory_error,
)
from tieops.runtime.session_arguments import Memory, Provider, check_choices
from tieops.runtime.session_config import SessionConfig, session_options
from tieops.runtime.sessions import Session
from tieops.untrusted.limits import Limits

__all__ = ["Sessions", "sessions"]

Prepare: TypeAlias = Callable[[str, Any], PreparedWeights]
"""What gives one session, by its name, what it shares: adds it to ONNX Runtime's options."""


_NAMED = 'give them names: sessions({"encoder": "encoder.onnx", "decoder": "decoder.onnx"})'


def sessions(
    models: Mapping[str, Runnable],
    provider: Provider = "auto",
    *,
    memory: Memory = "packed",
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
    threads: int | None = None,
    limits: Limits | None = None,
    provider_options: Mapping[str, object] | None = None,
) -> Sessions:
    """Load several models into ONNX Runtime; weights that they have in common are held once.

    Weights are in common where dtype, shape and every bit agree, in one file or in several, under
    one name or under two. One model may be given several times.

    Args:
        models: What `session` takes, by the name that its session gets. A model that has its
            weights inside is written to a temporary folder, with a data file, for as long as the
            sessions live.
        provider: As for `session`; all sessions run on the same one.
        memory: What the CPU holds of weights that are in common, or tied in one model. "packed":
            each session packs its own copy for speed, and the original is mapped once and given
            back when all sessions are made. "mapped": one mapping of the file and no private copy,
            at the cost of speed that `session` describes. "default": ONNX Runtime's own, for each
            session apart. On CUDA such weights are uploaded once, whatever is asked for here.
        options: Session configuration entries of ONNX Runtime, for all sessions.
        optimize: False turns every graph optimization of ONNX Runtime off.
        threads: How many threads one operator may use; None leaves it to ONNX Runtime.
        limits: As for `session`, for each model; one that asks for more shares nothing.
        provider_options: As for `session`; all sessions run on one GPU.

    Returns:
        The sessions, by name. Each can be closed alone; the others go on.

    Raises:
        MissingDependencyError: If onnxruntime is not installed.
        ProviderError: If CUDA was asked for and would not run; names the library or device missing.
        PreconditionError: If there are no models, a name is no text, a file does not exist, or the
            provider or memory mode is unknown.
        UntrustedFileError: As for `session`.
        UnsupportedModelError: If ONNX Runtime refuses a model.
        ExportError: If a model that has its weights inside cannot be written to a temporary folder.

    Example:
        >>> import onnx_ir
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
        >>> neg = onnx_ir.from_onnx_text(text + " { y = Neg(x) }")
        >>> absolute = onnx_ir.from_onnx_text(text + " { y = Abs(x) }")
        >>> with sessions({"neg": neg, "abs": absolute}, "cpu") as both:
        ...     [float(both[name].run({"x": [-2.0]})["y"][0]) for name in both]
        [2.0, 2.0]
    """
    check_choices(provider, memory, options, threads)
    on_provider = checked_options(provider_options, provider)
    device = device_of(on_provider)
    expect(Mapping, models, "models by name", _NAMED)
    if not models:
        raise PreconditionError("expected at least one model, got none", None, _NAMED)
    if bad := [name for name in models if not isinstance(name, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PreconditionError(
            f"expected names that are strings, got {bad[0]!r}",
            None,
            "pass strings as the keys of the mapping",
        )
    on_gpu = provider != "cpu"
    blocker = find_blocker(device) if on_gpu else None
    if provider == "cuda" and blocker is not None:
        raise not_on_cuda(blocker.what, blocker.fix)

    given = {key: str(value) for key, value in (options or {}).items()}
    folder = Folder()
    try:
        on_gpu = on_gpu and blocker is None
        apart = memory != "default" or on_gpu
        opened = open_all(models, folder.path, apart=apart, limits=limits)
        # The path and the limits are each session's own.
        config = SessionConfig(
            "", provider, memory, given, optimize, threads, provider_options=on_provider
        )
        group = _Group(models, opened, folder, config)
        if on_gpu:
            try:
                return group.on_cuda(device)
            except ProviderError as error:
                if provider == "cuda":
                    raise
                blocker = blocker_of(error)
        return group.on_cpu(f"running on the CPU: {blocker.what}" if blocker else "")
    except BaseException:
        folder.remove()
        raise


class Sessions(Mapping[str, Session]):
    """Sessions by name, which hold what their models have in common once; made by `sessions`.

    Attributes:
        shared: What is held once, the largest first.

    Example:
        >>> import onnx_ir
        >>> text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y)'
        >>> model = onnx_ir.from_onnx_text(text + " { y = Neg(x) }")
        >>> sessions({"a": model, "b": model}, "cpu")
        <Sessions on cpu: a, b; they share nothing>
    """

    def __init__(self, members: Mapping[str, Session], shared: tuple[Shared, ...]) -> None:
        self._members = dict(members)
        self.shared = shared

    def __getitem__(self, name: str) -> Session:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "nothing"
        if self.shared:
            size = brief_bytes(sum(each.nbytes for each in self.shared))
            what = f"{counted(len(self.shared), 'weight')}, {size}"
        provider = next(iter(self._members.values())).provider
        return f"<Sessions on {provider}: {', '.join(map(printable, self))}; they share {what}>"

    def close(self) -> None:
        """Close all sessions; running one after that raises."""
        for member in self._members.values():
            member.close()


@dataclass(frozen=True)
class _Group:
    """The sessions of one call while they are made.

    Args:
        models: What the caller gave, by name.
        opened: The files that they are in.
        folder: Where models were written that were in no file.
        config: What all sessions have in common.
    """

    models: Mapping[str, Runnable]
    opened: Mapping[str, Opened]
    folder: Folder
    config: SessionConfig

    def on_cpu(self, note: str) -> Sessions:
        """Make all on the CPU; weights in common are mapped."""
        config = replace(self.config, provider="cpu")
        shared = () if config.memory == "default" else find_shared(self.opened, "cpu")
        mappings = [(each, map_tensor(each.tensor, config.memory)) for each in shared]
        # A session changes the message that it is made of: a second one of the model reads it anew.
        messages = {id(each): each.message for each in self.opened.values()}

        def prepare(name: str, settings: Any) -> PreparedWeights:
            path, model = self.opened[name].path, self.opened[name].model
            if config.memory == "default" or model is None or isinstance(path, bytes):
                return PreparedWeights(path)
            mine = {own: mapped for each, mapped in mappings for own in each.names_in(name)}
            file = self.opened[name]
            return add_shared_initializers(
                path, settings, config.memory, config.options, mine,
                optimize=config.optimize, limits=file.limits, message=messages.pop(id(file), None),
            )  # fmt: skip

        return Sessions(self._made(config, note, prepare), shared)

    def on_cuda(self, device: int) -> Sessions:
        """Make all on one GPU; weights in common are uploaded once."""
        shared = find_shared(self.opened, "cuda")
        uploads = [(each, _uploaded(each, device)) for each in shared]

        def prepare(name: str, settings: Any) -> PreparedWeights:
            mine = {own: pair for each, pair in uploads for own in each.names_in(name)}
            for own, (_, value) in mine.items():
                settings.add_initializer(own, value)
            return PreparedWeights(self.opened[name].path, alive=tuple(mine.values()))

        return Sessions(self._made(self.config, "", prepare), shared)

    def _made(self, config: SessionConfig, note: str, prepare: Prepare) -> dict[str, Session]:
        members: dict[str, Session] = {}
        arranged: dict[str, PreparedWeights] = {}
        for name, model in self.models.items():
            file = self.opened[name]
            own = replace(config, opened=file.path, limits=file.limits)
            settings = session_options(own)
            arranged[name] = prepare(name, settings)
            try:
                if own.provider == "cpu":
                    inner, said = create(arranged[name].opened, settings, "cpu"), note
                else:
                    inner, said = open_on_cuda(own, arranged[name].opened, settings, file.message)
            except UnsupportedModelError as error:
                error.facts = {"session": printable(name), **error.facts}
                raise
            ran = replace(own, provider="cpu" if own.provider == "cpu" else "cuda")
            members[name] = Session(inner, model, said, self.folder, arranged[name], ran)
        # Not before: what one gives back is what the next one is about to pack.
        for each in arranged.values():
            each.created()
        return members


def _uploaded(shared: Shared, device: int) -> tuple[DeviceTensor, Any]:
    """Return a weight on the GPU, and its value: sessions read it there and make no copy."""
    mapped = map_tensor(shared.tensor, "upload")
    try:
        there = DeviceTensor(mapped.array, shared.tensor.dtype, device)
        # add_initializer refuses a value that owns its memory; this one refers to it.
        return there, onnxruntime_module().OrtValue.from_dlpack(there)
    except (OSError, *onnxruntime_errors()) as error:
        says = out_of_memory(str(error))
        raise (out_of_memory_error(says) if says else not_on_cuda(first_line(error))) from error
    finally:
        mapped.give_back()
