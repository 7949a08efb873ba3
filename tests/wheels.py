"""Trained models that other packages ship: the one file that a test needs, out of the wheel.

The packages are not installed: basic-pitch asks for TensorFlow, rxnmapper for transformers 4, and
magika for ``onnxruntime``, which overwrites the files of ``onnxruntime-gpu``. pip fetches the wheel
alone, checks its hash, and the file is unzipped into pytest's cache, where later runs find it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

__all__ = ["WHEELS", "download", "fetch"]

# What pip calls a requirement, with the hash of the wheel. One platform's for all: only data is
# taken out of it.
WHEELS = {
    "basic-pitch": "basic-pitch==0.4.0 "
    "--hash=sha256:738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
    "magika": "magika==1.0.3 "
    "--hash=sha256:3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    "rxnmapper": "rxnmapper==0.4.3 "
    "--hash=sha256:27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
    "silero-vad": "silero-vad==6.2.3 "
    "--hash=sha256:7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
}


def fetch(package: str, member: str, config: pytest.Config) -> Path:
    """Return the path of one file of a package's wheel, downloading the wheel the first time."""
    assert config.cache is not None
    return download(package, member, config.cache.mkdir("wheels"))


def download(package: str, member: str, cache: Path) -> Path:
    """Return the path of one file of a package's wheel in a folder, downloading it if need be."""
    target = cache / WHEELS[package].partition(" ")[0] / member
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(WHEELS[package], encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64"]
        command += ["--python-version", "3.11", "--require-hashes"]
        done = subprocess.run(
            [*command, "--dest", folder, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"pip cannot download {package}:\n{done.stderr}"
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(member, folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        extracted.replace(target)
    return target
