"""A CUDA device that is not there: ONNX Runtime's real provider on stand-ins for its libraries.

They are compiled from ``fake_cuda.c``. Device memory comes from the host and is counted, kernels do
nothing: so it shows which nodes the provider takes, what its arena allocates, what is uploaded,
bound and shared, and in which order streams are waited for. It shows no number that an operator
computes, no time, and nothing of what NVIDIA's own libraries allocate.

    python -m tests.support.fake_cuda FOLDER COMMAND...    # run a command on it

Whoever uses it does so in a process of its own: a library that is loaded stays loaded, and other
tests would find a device.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FakeCuda", "build", "why_not"]

SOURCE = Path(__file__).with_name("fake_cuda.c")
ROOT = Path(__file__).resolve().parents[2]
CUDNN = "libcudnn.so.9"


def _provider() -> Path | None:
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.is_file() else None


def why_not() -> str | None:
    """Return what is missing here to build it, or None."""
    if sys.platform != "linux":
        return "no Linux"
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if missing:
        return f"no {' and no '.join(missing)}"
    return None if _provider() else "no onnxruntime-gpu"


@dataclass(frozen=True)
class FakeCuda:
    """The compiled libraries.

    Attributes:
        folder: Laid out as NVIDIA's wheels lay out a folder of packages, and the driver beside it.
    """

    folder: Path

    @property
    def driver(self) -> Path:
        """The folder of the driver's library, which a system has among its own."""
        return self.folder / "driver"

    @property
    def packages(self) -> Path:
        """A folder for ``sys.path``, with the libraries of the wheels."""
        return self.folder / "packages"

    @property
    def libraries(self) -> list[Path]:
        """The folders of the wheels' libraries: CUDA's, then cuDNN's."""
        return sorted(self.packages.glob("nvidia/*/lib"))

    def environment(
        self,
        *,
        path: tuple[Path, ...] | None = None,
        devices: int = 1,
        memory: int = 100_000_000_000,
        calls: Path | None = None,
    ) -> dict[str, str]:
        """Return the variables of a process that has the device.

        Args:
            path: Folders that lie before ``sys.path``; None for those of the wheels.
            devices: How many there are.
            memory: The bytes that each of them has.
            calls: A file that gets the calls.
        """
        search = (self.packages,) if path is None else path
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.driver),
            "PYTHONPATH": os.pathsep.join(map(str, (*search, ROOT))),
            "FAKE_CUDA_DEVICES": str(devices),
            "FAKE_CUDA_BYTES": str(memory),
            "OMP_NUM_THREADS": "1",
            **({"FAKE_CUDA_CALLS": str(calls)} if calls else {}),
        }

    def run(self, code: str, *arguments: object, **environment: Any) -> Any:
        """Run Python with the device, and return what it prints last, read as JSON.

        ``used(device)`` is there: the bytes that a device has given away.
        """
        done = subprocess.run(
            [sys.executable, "-c", f"{_BEFORE}\n{code}", *map(str, arguments)],
            env=self.environment(**environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])


_BEFORE = """
import json, sys
from tests.support.fake_cuda import used
"""


def used(device: int = 0) -> int:
    """Return the bytes that a device of this process has given away."""
    driver = ctypes.CDLL("libcuda.so.1")
    before = driver.fake_current()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.fake_use(device)
    driver.fake_memory(ctypes.byref(free), ctypes.byref(total))
    driver.fake_use(before)
    return total.value - free.value


def build(folder: Path) -> FakeCuda:
    """Compile the libraries into a folder.

    Raises:
        RuntimeError: If something for that is missing.
    """
    provider = _provider()
    if (reason := why_not()) or provider is None:
        raise RuntimeError(f"the stand-in for CUDA cannot be built here: {reason}")
    made = FakeCuda(folder)
    wanted = _undefined(provider)
    cuda = next(name for name in wanted if name.startswith("libcudart")).rpartition(".")[2]
    made.driver.mkdir(parents=True)
    own = made.packages / "nvidia" / f"cu{cuda}" / "lib"
    cudnn = made.packages / "nvidia" / "cudnn" / "lib"
    _compile(made.driver / "libcuda.so.1", "DRIVER", wanted.pop("libcuda.so.1"), None)
    for name, symbols in wanted.items():
        kind = "RUNTIME" if "cudart" in name else "CUBLAS" if "cublas" in name else "OTHER"
        _compile(own / name, kind, symbols, made.driver, versioned="curand" not in name)
    # The provider looks for cuDNN's functions while it runs, by their names.
    _compile(cudnn / CUDNN, "CUDNN", _named(provider), made.driver)
    return made


def _undefined(provider: Path) -> dict[str, set[str]]:
    """Return the functions that the provider wants of each of NVIDIA's libraries."""
    command = ["nm", "-D", "--undefined-only", str(provider)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted: defaultdict[str, set[str]] = defaultdict(set, {"libcurand.so.10": set()})
    for line in listed.splitlines():
        name, _, version = line.split()[-1].partition("@")
        if version.startswith(("libcudart", "libcublas")):
            wanted[version].add(name)
        elif name.startswith("curand"):
            wanted["libcurand.so.10"].add(name)
        elif name.startswith("cu"):
            wanted["libcuda.so.1"].add(name)
    return dict(wanted)


def _named(provider: Path) -> set[str]:
    found = re.findall(rb"\0(cudnn[A-Z]\w+)\0", provider.read_bytes().replace(b"\0", b"\0\0"))
    return {name.decode() for name in found}


def _compile(
    path: Path, kind: str, wanted: set[str], driver: Path | None, *, versioned: bool = False
) -> None:
    own = SOURCE.read_text("utf-8")
    part = own.partition(f"#ifdef {kind}\n")[2].partition("#endif")[0]
    have = set(re.findall(r"(\w+)\(", part))
    rest = [
        f"int {name}(void **made) {{ *made = malloc(64); return 0; }}"
        if name.startswith("cudnnCreate")
        else f'int {name}(void) {{ fake_say("{name}"); return 0; }}'
        for name in sorted(wanted - have)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-fno-builtin", "-w", "-O1", f"-D{kind}", "-x", "c", "-",
               "-o", str(path), f"-Wl,-soname,{path.name}"]  # fmt: skip
    if driver is not None:
        command += ["-x", "none", str(driver / "libcuda.so.1")]
    if versioned:
        script = path.with_suffix(".map")
        script.write_text(f"{path.name} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={script}")
    text = "\n".join([own, *rest])
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def main(folder: str, *command: str) -> None:
    """Run a command with the device."""
    made = build(Path(folder))
    raise SystemExit(subprocess.run(command, env=made.environment(), check=False).returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
