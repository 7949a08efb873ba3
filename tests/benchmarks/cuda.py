"""Tied models on CUDA: device memory, latency and agreement, beside the untied file and torch.

    python -m tests.benchmarks.cuda [part of a model's name] [fp32 | fp16 | bf16 | compile ...]
    python -m tests.benchmarks.cuda bytes [part of a model's name]    # of the device, no times
    python -m tests.benchmarks.cuda rehearse    # on the CPU: that the script runs, no figures

Memory: one fresh process a file, which has a small session that has run; bytes of the device that a
session takes when it is made, and what a second small one takes, as the driver counts them. None of
the two has run, as each first run makes handles of NVIDIA's libraries. Latency: tensors that lie on
the device, in and out; contenders take turns; medians. float32 products are TF32 on both sides.
torch.compile takes minutes, and is left out unless asked for. Without a GPU that torch can use it
ends with an error; "bytes" needs no torch there.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

import tieops
from fixtures.torch_models import Case, build
from tests.benchmarks.tied_models import MODELS
from tests.benchmarks.timing import interleaved, medians, versions

SHAPES = {"decode 1x1": (1, 1), "decode 8x1": (8, 1), "prefill 1x128": (1, 128),
          "prefill 8x128": (8, 128)}  # fmt: skip
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 2e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Of the largest output: TF32 has 10 bits of mantissa, as fp16 has; bf16 has 7."""
ROUNDS = 31

MEASURE = """
import json, sys
import tieops
from tieops.runtime.cuda.device import used_bytes

path, warm, provider = sys.argv[1:]

def used():
    return used_bytes(0) if provider == "cuda" else 0

first = tieops.session(warm, provider)
first.run({"x": [1.0]})
before = used()
second = tieops.session(warm, provider)
empty = used() - before
before = used()
session = tieops.session(path, provider)
print(json.dumps([used() - before, empty]))
"""


def inputs(case: Case, shape: tuple[int, int], device: str) -> dict[str, torch.Tensor]:
    """Return inputs of a batch and a length for each input of a model, on the device."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    for name, example in case.inputs.items():
        if example.is_floating_point():
            rows = torch.rand(shape[0] * shape[1], example.shape[1], generator=generator)
            found[name] = rows.to(device, example.dtype)
        else:
            high = int(example.max()) + 1
            found[name] = torch.randint(0, high, shape, generator=generator).to(device)
    return found


def memory(path: Path, warm: Path, provider: str) -> tuple[int, int]:
    """Return the device bytes that a file takes, and those of a small session."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", MEASURE, str(path), str(warm), provider]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    took, empty = json.loads(done.stdout.splitlines()[-1])
    return took, empty


def contenders(
    module: torch.nn.Module, sessions: Mapping[str, tieops.runtime.Session], *, compiled: bool
) -> dict[str, Callable[[dict[str, torch.Tensor]], object]]:
    """Return who runs the model, each a function of its inputs."""
    nets = {"torch eager": module}
    if compiled:
        nets["torch.compile"] = torch.compile(module, dynamic=True)

    def by_torch(net: torch.nn.Module) -> Callable[[dict[str, torch.Tensor]], object]:
        def run(fed: dict[str, torch.Tensor]) -> object:
            with torch.inference_mode():
                return net(**fed)

        return run

    return {name: each.run_tensors for name, each in sessions.items()} | {
        name: by_torch(net) for name, net in nets.items()
    }


def agreement(case: Case, session: tieops.runtime.Session, fed: dict[str, torch.Tensor]) -> float:
    """Return the largest difference to the module in fp32 on the CPU, over its largest output."""
    module = case.module.float().cpu()
    with torch.inference_mode():
        wanted = module(**{n: t.float().cpu() if t.is_floating_point() else t.cpu()
                           for n, t in fed.items()})  # fmt: skip
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted[0]
    found = next(iter(session.run_tensors(fed).values())).float().cpu()
    return float((found - wanted).abs().max() / wanted.abs().max())


def written(model: tieops.TiedModel, folder: Path) -> dict[str, Path]:
    """Write a tied model, and the same untied."""
    models = {"tied": model, "untied": tieops.untie(model)}
    return {
        name: tieops.to_onnx(each, folder / f"{name}.onnx", external_data=True).path
        for name, each in models.items()
    }


def byte_rows(title: str, make: Callable[[], Case], kind: str) -> None:
    """Print the bytes of the device that a model takes, tied and untied."""
    case = make()
    module = case.module.eval().to(DTYPES[kind])
    fed = inputs(case, (2, 9), "cpu")
    fed = {n: t.to(DTYPES[kind]) if t.is_floating_point() else t for n, t in fed.items()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = tieops.from_torch(module, (), fed, dynamic_shapes=case.dynamic_shapes)
        warm = tieops.to_onnx(_warm(), folder / "warm.onnx").path
        unique = model.ledger.stored_bytes
        for name, path in written(model, folder).items():
            took, empty = memory(path, warm, "cuda")
            cells = [f"{took:,}", f"{empty:,}", f"{(took - empty) / unique:.2f}"]
            print(f"| {title} | {kind} | {name} | {' | '.join(cells)} |", flush=True)


def rows(
    title: str, make: Callable[[], Case], provider: str, rounds: int, kind: str, *, compiled: bool
) -> None:
    """Print the rows of one model in one dtype."""
    case = make()
    module = case.module.eval().to(provider, DTYPES[kind])
    fed = inputs(case, (2, 9), provider)
    fed = {n: t.to(DTYPES[kind]) if t.is_floating_point() else t for n, t in fed.items()}
    case = Case(module, fed, case.dynamic_shapes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = tieops.from_torch(module, (), case.inputs, dynamic_shapes=case.dynamic_shapes)
        warm = tieops.to_onnx(_warm(), folder / "warm.onnx").path
        files = written(model, folder)
        unique = model.ledger.stored_bytes
        took = {name: memory(path, warm, provider) for name, path in files.items()}
        sessions = {name: tieops.session(path, provider) for name, path in files.items()}
        table: dict[str, list[float]] = {}
        for shape in SHAPES.values():
            fed = inputs(case, shape, provider)
            runs = contenders(module, sessions, compiled=compiled)
            work = {n: lambda r=r: _finished(r(fed), provider) for n, r in runs.items()}  # noqa: B023
            for name, seconds in medians(interleaved(work, rounds, warm_up=3)).items():
                table.setdefault(name, []).append(seconds * 1e3)
        fell = sessions["tied"].placement().fell
        apart = agreement(case, sessions["tied"], inputs(case, (2, 9), provider))
    for name, times in table.items():
        cells = [f"{time:.2f}" for time in times]
        bytes_, empty = took.get(name, (0, 0))
        raw = f"{bytes_:,} - {empty:,}" if name in took else ""
        share = f"{(bytes_ - empty) / unique:.2f}" if name in took else ""
        print(f"| {title} | {kind} | {name} | {raw} | {share} | {' | '.join(cells)} |", flush=True)
    ratios = [a / b for a, b in zip(table["tied"], table["untied"], strict=True)]
    print(f"| | | tied to untied | | | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    operators = ", ".join(sorted({node.op_type for node in fell if not node.computes_shapes}))
    print(
        f"| | | {unique:,} bytes unique; on the CPU, but for shapes: {operators or 'none'}; "
        f"apart from fp32 on the CPU: {apart:.1e} (limit {TOLERANCE[kind]}) | | | | | | |",
        flush=True,
    )


def _finished(result: object, provider: str) -> object:
    if provider == "cuda":
        torch.cuda.synchronize()
    return result


def _warm() -> tieops.TiedModel:
    import onnx

    text = '<ir_version: 10, opset_import: ["": 20]> f (float[n] x) => (float[n] y) { y = Neg(x) }'
    return tieops.from_onnx(onnx.parser.parse_model(text))


def main(*arguments: str) -> None:
    """Print the table of every model, or of those whose name has a part."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    modes = [each for each in arguments if each in ("bytes", "rehearse", "compile")]
    kinds = [each for each in arguments if each in DTYPES]
    name = " ".join(each for each in arguments if each not in (*modes, *kinds))
    models = {title: make for title, make in MODELS.items() if name in title}
    if "bytes" in modes:
        print(versions())
        print("| model | dtype | | bytes | of a small session | of unique |")
        print("|---" * 6 + "|")
        for title, make in models.items():
            for kind in kinds or ["fp32"]:
                byte_rows(title, make, kind)
        print("times and outputs: not measured")
        return
    rehearse = "rehearse" in modes
    if not rehearse and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here that torch can use; nothing was measured")
    # ONNX Runtime's default: torch alone would compute float32 as float32.
    torch.backends.cuda.matmul.allow_tf32 = True
    device = "a rehearsal, no figures" if rehearse else torch.cuda.get_device_name()
    print(f"{device}; {versions()}")
    titles = " | ".join(f"{each}, ms" for each in SHAPES)
    print(f"| model | dtype | | bytes - of a small session | of unique | {titles} |")
    print("|---" * (5 + len(SHAPES)) + "|")
    if rehearse:  # the CPU has no kernels for the other dtypes
        small = partial(build, "lstm", 200, 16)
        rows("lstm", small, "cpu", rounds=1, kind="fp32", compiled=False)
        return
    for title, make in models.items():
        for kind in kinds or DTYPES:
            rows(title, make, "cuda", ROUNDS, kind, compiled="compile" in modes)


if __name__ == "__main__":
    main(*sys.argv[1:])
