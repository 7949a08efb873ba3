"""torch's own remarks, kept from the user while tieops calls it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["quiet"]

_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch._subclasses.fake_tensor", "onnxscript",
            "onnx_ir")  # fmt: skip


@contextmanager
def quiet() -> Generator[None]:
    """Keep torch's remarks about absent packages and its own deprecations from the user."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
