"""Opening ONNX Runtime's own session, on the provider that was asked for or not at all."""

from __future__ import annotations

from typing import Any, Literal

from tieops.errors import ProviderError, UnsupportedModelError
from tieops.runtime.providers import (
    CUDA,
    cuda_blocker,
    first_line,
    library_error,
    not_on_cuda,
    onnxruntime_errors,
    onnxruntime_module,
)
from tieops.runtime.recipe import Recipe
from tieops.runtime.weights import Arranged, arrange

__all__ = ["create", "open_recipe"]


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
    blocker = cuda_blocker()
    if blocker is None:
        try:
            inner = create(recipe.opened, settings, "cuda")
            note = "" if recipe.provider == "cuda" else "running on the GPU"
            return inner, "cuda", note, Arranged(recipe.opened)
        except ProviderError as error:
            if recipe.provider == "cuda":
                raise
            blocker = "; ".join(map(str, error.facts.values())) or error.what
    if recipe.provider == "cuda":
        raise not_on_cuda(blocker)
    return _open_on_cpu(recipe, settings, f"running on the CPU: {blocker}")


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
    inner = create(arranged.opened, settings, "cpu")
    arranged.created()
    return inner, "cpu", note, arranged


def create(opened: str | bytes, settings: Any, provider: Literal["cuda", "cpu"]) -> Any:
    """Return ONNX Runtime's own session, on the provider that was asked for.

    Raises:
        ProviderError: If CUDA was asked for and is not what runs.
        UnsupportedModelError: If ONNX Runtime refuses the model.
    """
    ort = onnxruntime_module()
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
