"""Open ONNX Runtime's session on the requested provider, or fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from tieops.errors import PreconditionError, ProviderError, UnsupportedModelError
from tieops.importers.onnx import Message
from tieops.ir.notation import printable
from tieops.runtime.cuda.cuda_nodes import check_nodes, missing_cudnn
from tieops.runtime.cuda.provider_options import uses_cuda_graph
from tieops.runtime.memory.single_copy import (
    PreparedWeights,
    limit_constant_folding,
    prepare_weights,
)
from tieops.runtime.providers import (
    CUDA,
    Blocker,
    find_blocker,
    first_line,
    library_error,
    not_on_cuda,
    onnxruntime_errors,
    onnxruntime_module,
    out_of_memory,
    out_of_memory_error,
)
from tieops.runtime.session_config import SessionConfig

__all__ = ["blocker_of", "create", "open_on_cuda", "open_session"]

_EXACT_WEIGHTS = "session.use_device_allocator_for_initializers"
"""Without it weights come out of an arena that grows in powers of two: up to twice their bytes."""
_ABOUT_OPTION = re.compile(r'(?:Unknown provider option:|Failed to parse provider option) "(.*?)"')


def open_session(
    config: SessionConfig, settings: Any, message: Message | None = None
) -> tuple[Any, Literal["cuda", "cpu"], str, PreparedWeights]:
    """Open a session of ONNX Runtime on the provider that a config asks for.

    Args:
        config: What to open, and how.
        settings: The session's options; on the CPU, they get the tied weights.
        message: What was read of the model already, if it was; changed.

    Returns:
        ONNX Runtime's session, what runs it, why, and what has to live as long as it does.

    Raises:
        ProviderError: If CUDA was asked for and would not run.
    """
    if config.provider == "cpu":
        return _open_on_cpu(config, settings, "", message)
    blocker = find_blocker(config.device)
    if blocker is None:
        try:
            inner, note = open_on_cuda(config, config.opened, settings, message)
            return inner, "cuda", note, PreparedWeights(config.opened)
        except ProviderError as error:
            if config.provider == "cuda":
                raise
            blocker = blocker_of(error)
    if config.provider == "cuda":
        raise not_on_cuda(blocker.what, blocker.fix)
    return _open_on_cpu(config, settings, f"running on the CPU: {blocker.what}", message)


def open_on_cuda(
    config: SessionConfig, opened: str | bytes, settings: Any, message: Message | None = None
) -> tuple[Any, str]:
    """Open a session of ONNX Runtime on CUDA, where nothing is known to keep it from that.

    Args:
        config: What to open, and how.
        opened: The path or the bytes to open.
        settings: The session's options.
        message: What was read of the model already, if it was.

    Returns:
        ONNX Runtime's session; and a note that it runs there if "auto" was asked for, and of nodes
        with weights that do not.

    Raises:
        ProviderError: If it would not run on CUDA.
    """
    options = dict(config.provider_options)
    if _EXACT_WEIGHTS not in config.options:
        if "gpu_mem_limit" in options:  # a limit of the arena: weights have to come out of it
            options.setdefault("arena_extend_strategy", "kSameAsRequested")
        else:
            settings.add_session_config_entry(_EXACT_WEIGHTS, "1")
    if config.optimize:
        limit_constant_folding(opened, settings, config.options, config.limits, message)
    inner = create(opened, settings, "cuda", options)
    on_gpu = "" if config.provider == "cuda" else "running on the GPU"
    return inner, "; ".join(filter(None, (on_gpu, check_nodes(inner))))


def blocker_of(error: ProviderError) -> Blocker:
    """Return what an attempt to open a session on CUDA failed at."""
    return Blocker("; ".join(map(str, error.facts.values())) or error.what, error.fix or "")


def _open_on_cpu(
    config: SessionConfig, settings: Any, note: str, message: Message | None
) -> tuple[Any, Literal["cuda", "cpu"], str, PreparedWeights]:
    arranged = prepare_weights(
        config.opened,
        settings,
        config.memory,
        config.options,
        optimize=config.optimize,
        limits=config.limits,
        message=message,
    )
    inner = create(arranged.opened, settings, "cpu")
    arranged.created()
    return inner, "cpu", note, arranged


def create(
    opened: str | bytes,
    settings: Any,
    provider: Literal["cuda", "cpu"],
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """Return ONNX Runtime's own session, on the provider that was asked for.

    Args:
        opened: The path, or the bytes of the model.
        settings: The session's options.
        provider: What runs it.
        provider_options: Options of the CUDA provider.

    Raises:
        ProviderError: If CUDA was asked for and is not what runs.
        PreconditionError: If the provider refuses one of its options.
        UnsupportedModelError: If ONNX Runtime refuses the model.
    """
    ort = onnxruntime_module()
    on_cuda: list[Any] = [(CUDA, dict(provider_options or {}))] if provider == "cuda" else []
    asked = [*on_cuda, "CPUExecutionProvider"]
    try:
        # Without enable_fallback=False it would print, and try again on the CPU.
        inner = ort.InferenceSession(opened, settings, providers=asked, enable_fallback=False)
    except onnxruntime_errors() as error:
        text = first_line(error)
        _refuse_options(str(error), provider_options or {}, error)
        says = out_of_memory(str(error))
        if provider == "cuda" and says:
            raise out_of_memory_error(says) from error
        if provider == "cuda" and (why := missing_cudnn(error)):
            raise not_on_cuda(why) from error
        if provider == "cuda" and any(word in text.lower() for word in ("cuda", "cublas", "cudnn")):
            raise not_on_cuda(text) from error
        raise _refused(text, provider) from error
    if provider == "cuda" and CUDA not in inner.get_providers():
        # ONNX Runtime logs why it could not load CUDA, but goes on without raising.
        raise not_on_cuda(library_error() or "ONNX Runtime fell back to the CPU without a reason")
    return inner


def _refuse_options(text: str, options: Mapping[str, str], error: Exception) -> None:
    """Raise if an error is about an option of the provider, and not about CUDA or the model."""
    if about := _ABOUT_OPTION.search(text):
        name = about[1]
        raise PreconditionError(
            f"the CUDA provider does not take the option {printable(name)}",
            {"given": printable(f"{name}={options.get(name, '')}"), "it says": about[0]},
            "see ONNX Runtime's page on its CUDA provider for names and values",
        ) from error
    if uses_cuda_graph(options) and "graph" in text.lower() and "CUDA" in text:
        raise PreconditionError(
            "the model cannot be captured into a CUDA graph",
            {"it says": first_line(error)},
            "leave enable_cuda_graph out",
        ) from error


def _refused(text: str, provider: str) -> UnsupportedModelError:
    """Return the error for a model that ONNX Runtime does not open, by what it says."""
    facts = {"it says": text}
    if "NOT_IMPLEMENTED" in text:
        where = "the CPU" if provider == "cpu" else "this provider"
        return UnsupportedModelError(
            f"ONNX Runtime has no kernel on {where} for an operator in its dtype",
            facts,
            "run it on a provider that has one, or export the model in another dtype (float32 has "
            "kernels everywhere)",
        )
    if "not a registered function/op" in text:
        return UnsupportedModelError(
            "ONNX Runtime does not know an operator of the model",
            facts,
            "export the model without it, or with a function for it; a newer ONNX Runtime may know "
            "more",
        )
    return UnsupportedModelError(
        "ONNX Runtime refuses the model", facts, "check it with onnx.checker"
    )
