"""Suppress torch's own log messages and warnings while tieops calls it."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

__all__ = ["quiet"]

_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch._subclasses.fake_tensor", "onnxscript",
            "onnx_ir")  # fmt: skip

_lock = threading.Lock()
_depth = 0
_restore = ExitStack()


@contextmanager
def quiet() -> Generator[None]:
    """Keep torch's remarks about absent packages and its own deprecations from the user.

    Filters and levels are those of the process. So of several threads in here the first sets them
    and the last puts them back: one that put back what it found would leave another's.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _silence(_restore)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _restore.close()


def _silence(stack: ExitStack) -> None:
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
