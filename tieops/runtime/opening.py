"""Opening ONNX Runtime's own session, on the provider that was asked for or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tieops.errors import ProviderError, UnsupportedModelError
from tieops.runtime.providers import (
    CUDA,
    Blocker,
    find_blocker,
    first_line,
    library_error,
    not_on_cuda,
    onnxruntime_errors,
    onnxruntime_module,
)
from tieops.runtime.recipe import Recipe
from tieops.runtime.weights import Arranged, arrange

__all__ = ["blocker_of", "create", "open_recipe"]

_EXACT_WEIGHTS = "session.use_device_allocator_for_initializers"
"""Without it weights come out of an arena that grows in powers of two: up to twice their bytes."""


def open_recipe(recipe: Recipe, settings: Any) -> tuple[Any, Literal["cuda", "cpu"], str, Arranged]:
    """Open a session of ONNX Runtime on the provider that a recipe asks for.

    Args:
        recipe: What to open, and how.
        settings: The session's options; on the CPU, they get the tied weights.

    Returns:
        ONNX Runtime's session, what runs it, why, and what has to live as long as it does.

    Raises:
        ProviderError: If CUDA was asked for and would not run.
    """
    if recipe.provider == "cpu":
        return _open_on_cpu(recipe, settings, "")
    blocker = find_blocker()
    if blocker is None:
        try:
            inner = create(recipe.opened, settings, "cuda", recipe.options)
            note = "" if recipe.provider == "cuda" else "running on the GPU"
            return inner, "cuda", note, Arranged(recipe.opened)
        except ProviderError as error:
            if recipe.provider == "cuda":
                raise
            blocker = blocker_of(error)
    if recipe.provider == "cuda":
        raise not_on_cuda(blocker.what, blocker.fix)
    return _open_on_cpu(recipe, settings, f"running on the CPU: {blocker.what}")


def blocker_of(error: ProviderError) -> Blocker:
    """Return what an attempt to open a session on CUDA failed at."""
    return Blocker("; ".join(map(str, error.facts.values())) or error.what, error.fix or "")


def _open_on_cpu(
    recipe: Recipe, settings: Any, note: str
) -> tuple[Any, Literal["cuda", "cpu"], str, Arranged]:
    arranged = arrange(
        recipe.opened,
        settings,
        recipe.memory,
        recipe.options,
        optimize=recipe.optimize,
        limits=recipe.limits,
    )
    inner = create(arranged.opened, settings, "cpu", recipe.options)
    arranged.created()
    return inner, "cpu", note, arranged


def create(
    opened: str | bytes,
    settings: Any,
    provider: Literal["cuda", "cpu"],
    options: Mapping[str, str],
) -> Any:
    """Return ONNX Runtime's own session, on the provider that was asked for.

    Args:
        opened: The path, or the bytes of the model.
        settings: The session's options; on CUDA, weights are told to take their own size.
        provider: What runs it.
        options: Configuration entries that the user gave, which are left as they are.

    Raises:
        ProviderError: If CUDA was asked for and is not what runs.
        UnsupportedModelError: If ONNX Runtime refuses the model.
    """
    ort = onnxruntime_module()
    if provider == "cuda" and _EXACT_WEIGHTS not in options:
        settings.add_session_config_entry(_EXACT_WEIGHTS, "1")
    asked = [CUDA] * (provider == "cuda") + ["CPUExecutionProvider"]
    try:
        # Without enable_fallback=False it would print, and try again on the CPU.
        inner = ort.InferenceSession(opened, settings, providers=asked, enable_fallback=False)
    except onnxruntime_errors() as error:
        text = first_line(error)
        if provider == "cuda" and any(word in text.lower() for word in ("cuda", "cublas", "cudnn")):
            raise not_on_cuda(text) from error
        raise _refused(text, provider) from error
    if provider == "cuda" and CUDA not in inner.get_providers():
        # ONNX Runtime logs why it could not load CUDA, but goes on without raising.
        raise not_on_cuda(library_error() or "ONNX Runtime fell back to the CPU without a reason")
    return inner


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
