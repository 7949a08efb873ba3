"""Reopen a session in a separate process, to measure its memory and dump its graph.

The process opens the session once with the original configuration, and reads its own memory before
and after. Then it opens it once more, and has ONNX Runtime write the optimized graph with its
packed weights. The memory of the calling process affects neither.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx.defs

from tieops.errors import PreconditionError, TieopsError
from tieops.ir.operators.on_cuda import is_copied_by_cudnn
from tieops.runtime.cuda.device import used_bytes
from tieops.runtime.cuda.provider_options import elsewhere
from tieops.runtime.inference_session import open_session
from tieops.runtime.placement import recorded_placement
from tieops.runtime.providers import CUDA
from tieops.runtime.session_config import SessionConfig, session_options
from tieops.system.memory import process_memory, trim_heap
from tieops.untrusted.limits import Limits

__all__ = ["Measured", "Probe", "main", "probe"]

GRAPH = "optimized.onnx"
_DATA = "optimized.data"
_REQUEST, _FOUND, _BYTES = "request.json", "found.json", "model.bytes"
_CHILD = "import sys; from tieops.runtime.accounting.probe import main; main(sys.argv[1])"
_SAVED_BYTES = 1024
"""Initializers from this size on are written apart, where their packed copies are listed."""


@dataclass(frozen=True)
class Measured:
    """Memory that opening a session took, in a fresh process, above that of an empty session.

    Attributes:
        private_bytes: Anonymous memory (RssAnon): what no other process shares.
        file_bytes: Mapped from files and touched (RssFile): reclaimable, shared between processes.
        proportional_bytes: Both, shared pages divided by their users (Pss).
        device_bytes: Memory of the GPU in use, including that of other processes.
    """

    private_bytes: int | None = None
    file_bytes: int | None = None
    proportional_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class Probe:
    """What the process found.

    Attributes:
        measured: The memory, if the system reports it.
        unmeasured: Why a figure is missing; empty where none is.
        arranged: The weights that ``memory=`` took care of.
        recurrent: The name of each node whose weights cuDNN has a copy of.
    """

    measured: Measured
    unmeasured: str
    arranged: tuple[str, ...]
    recurrent: tuple[str, ...] = ()


def probe(config: SessionConfig, folder: Path) -> Probe:
    """Open a session again in a process of its own; the graph it made is written to the folder.

    Args:
        config: What to open.
        folder: An empty folder; gets the graph and its weights, packed copies included.

    Raises:
        PreconditionError: If the process cannot be started, or fails.
    """
    opened = str(_as_path(config.opened, folder))
    options = elsewhere(config.provider_options)
    request = asdict(replace(config, opened=opened, provider_options=options))
    request["bytes"] = isinstance(config.opened, bytes)
    (folder / _REQUEST).write_text(json.dumps(request), "utf-8")
    search = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode or not (folder / _FOUND).is_file():
        told = [line for line in done.stderr.splitlines() if line.strip()]
        raise PreconditionError(
            "the session could not be reopened in a separate process",
            {"exit code": done.returncode, "it says": told[-1] if told else "nothing"},
            "check that the temporary folder has space for two copies of the weights",
        )
    found = json.loads((folder / _FOUND).read_text("utf-8"))
    if "error" in found:
        raise PreconditionError(
            "the session could not be reopened", {"it says": found["error"]}, found["fix"]
        )
    return Probe(
        Measured(**found["measured"]),
        found["unmeasured"],
        tuple(found["arranged"]),
        tuple(found["recurrent"]),
    )


def _as_path(opened: str | bytes, folder: Path) -> Path:
    if isinstance(opened, str):
        return Path(opened).resolve()
    path = folder / _BYTES
    path.write_bytes(opened)
    return path


def main(name: str) -> None:
    """Do the work of the process: read the request in a folder, leave what was found there."""
    folder = Path(name)
    request: dict[str, Any] = json.loads((folder / _REQUEST).read_text("utf-8"))
    held = request.pop("bytes")
    try:
        found = _found(request, held, folder)
    except TieopsError as error:
        facts = "; ".join(map(str, error.facts.values()))
        found = {"error": ": ".join(filter(None, (error.what, facts))), "fix": error.fix}
    (folder / _FOUND).write_text(json.dumps(found), "utf-8")


def _found(request: Mapping[str, Any], held: bool, folder: Path) -> dict[str, Any]:
    config = replace(SessionConfig(**request), limits=Limits(**request["limits"]))
    path = str(request["opened"])
    warm = replace(config, opened=_nothing(), options={})
    empty = open_session(warm, session_options(warm))
    onnx.defs.has("Identity")  # onnx loads its operators once a process: 8 MB, no session's
    before, unmeasured = _memory(config.provider, config.device)
    opened = Path(path).read_bytes() if held else path
    config = replace(config, opened=opened)
    session = open_session(config, session_options(config))
    after, _ = _memory(config.provider, config.device)
    arranged = session[3].names
    recurrent = _recurrent(session[0]) if config.provider == "cuda" else []
    del session, empty
    saving = session_options(config)
    saving.optimized_model_filepath = str(folder / GRAPH)
    for key, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", _DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_SAVED_BYTES)),
    ):
        saving.add_session_config_entry(key, value)
    open_session(config, saving)
    measured = {key: max(0, after[key] - before[key]) for key in before}
    return {
        "measured": measured,
        "unmeasured": unmeasured,
        "arranged": arranged,
        "recurrent": recurrent,
    }


def _recurrent(inner: Any) -> list[str]:
    """Return the recurrent layers that run on CUDA: cuDNN reads their weights in its own layout."""
    placed = recorded_placement(inner, "cuda")
    nodes = () if placed is None else placed.nodes
    return [node.name for node in nodes if node.provider == CUDA and is_copied_by_cudnn(node)]


def _nothing() -> bytes:
    """Return a model of one node, so that what every session costs is paid before."""
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Neg(x) }'
    return onnx.parser.parse_model(text).SerializeToString()


def _memory(provider: str, device: int) -> tuple[dict[str, int], str]:
    """Return the bytes that this process holds now, and why some are not known."""
    found: dict[str, int] = {}
    missing: list[str] = []
    if provider == "cuda":
        try:
            found["device_bytes"] = used_bytes(device)
        except OSError as error:
            missing.append(f"the GPU's memory: {error}")
    gc.collect()  # what was read of the model has cycles, and is nobody's copy
    trim_heap()  # what glibc keeps for later is nobody's copy
    own, why_not = process_memory()
    return found | own, "; ".join(filter(None, (*missing, why_not)))
