"""Make an export depend only on the module, and leave no traces.

torch's exporter reads state of the process: caches of operator results, autocast, the grad mode. It
also changes state: marks on example tensors, attributes of modules whose forward assigns them, and
the patches that it applies while it traces. Its log messages and warnings are suppressed.
"""

from __future__ import annotations

import logging
import random
import threading
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch._dynamo.config
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["isolated", "suppress_torch_logging"]

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)

_export_lock = threading.RLock()
"""torch patches its own modules while it exports: two exports at a time undo each other's."""


@contextmanager
def isolated(module: torch.nn.Module | None) -> Generator[None]:
    """Export in here: in the same state whatever the caller's is, which is put back afterwards.

    Put back are the module's attributes, hooks, flags and the plain containers that it holds, the
    attributes of its tensors, and the states of the random generators.

    Args:
        module: What is exported; None for a program, which torch does not run.
    """
    with _export_lock, ExitStack() as stack:
        stack.enter_context(suppress_torch_logging())
        if module is not None:
            stack.enter_context(_kept_modules(module))
            tensors = [*module.parameters(), *module.buffers()]
            stack.enter_context(_kept_attributes(tensors))
        stack.enter_context(_kept_generators())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_without_autocast())
        # The fused attention kernels of the exporting machine leave strides that the decomposed
        # program does not have, and torch then fails on a view of them (T5 with dynamic sizes).
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # The backend is not part of the key under which torch remembers an operator's strides, so
        # what another export left there would be found, and what is left here by the next one.
        stack.enter_context(torch._dynamo.config.patch(fake_tensor_cache_enabled=False))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage, reportAttributeAccessIssue]
        yield


@contextmanager
def _without_autocast() -> Generator[None]:
    # torch.autocast(enabled=False) is one more region in the program; the plain switch is not.
    devices = {"cpu", "cuda", torch.get_default_device().type} - {"meta"}
    before = {device: torch.is_autocast_enabled(device) for device in devices}
    for device in devices:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device, enabled in before.items():
            torch.set_autocast_enabled(device, enabled)


@contextmanager
def _kept_generators() -> Generator[None]:
    # numpy's legacy generator too: a forward may draw from any of them while it is traced.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _kept_attributes(tensors: list[torch.Tensor]) -> Generator[None]:
    """Put back the attributes of tensors, as torch marks those whose sizes are to vary."""
    before = [(tensor, dict(vars(tensor))) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, attributes in before:
            _restore(vars(tensor), attributes)


@contextmanager
def _kept_modules(module: torch.nn.Module) -> Generator[None]:
    """Put back what modules hold: class, attributes, and the items of plain containers in them."""
    before: dict[int, tuple[Any, Any]] = {}
    classes = [(each, type(each)) for each in module.modules()]
    for each, _ in classes:
        for container in _containers(vars(each)):
            before.setdefault(id(container), (container, _copied(container)))
    try:
        yield
    finally:
        for each, kind in classes:
            if type(each) is not kind:
                each.__class__ = kind
        for container, items in before.values():
            _restore(container, items)


def _containers(root: Any) -> Iterator[Any]:
    seen: set[int] = set()
    stack = [root]
    while stack:
        current = stack.pop()
        if type(current) not in _CONTAINERS or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        stack += current.values() if isinstance(current, dict) else current


def _copied(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else type(container)(container)


def _restore(container: Any, items: Any) -> None:
    """Give a container its items again, if it has others; it stays the object that it is."""
    if isinstance(container, dict):
        same = [*container] == [*items] and all(container[key] is items[key] for key in items)
    elif isinstance(container, set):
        same = container == items
    else:
        same = len(container) == len(items) and all(
            one is other for one, other in zip(container, items, strict=True)
        )
    if same:
        return
    container.clear()
    if isinstance(container, dict | set):
        container.update(items)
    else:
        container.extend(items)


_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch._subclasses.fake_tensor", "onnxscript",
            "onnx_ir")  # fmt: skip

_lock = threading.Lock()
_depth = 0
_settings = ExitStack()


@contextmanager
def suppress_torch_logging() -> Generator[None]:
    """Keep torch's remarks about absent packages and its own deprecations from the user.

    Filters and levels are those of the process. So of several threads in here the first sets them
    and the last puts them back: one that put back what it found would leave another's.
    """
    global _depth
    with _lock:
        if _depth == 0:
            _silence(_settings)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _settings.close()


def _silence(stack: ExitStack) -> None:
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
