"""Trained models that other packages ship: the files that a test needs, out of the wheel.

The packages are not installed: basic-pitch asks for TensorFlow, rxnmapper for transformers 4, and
magika for ``onnxruntime``, which overwrites the files of ``onnxruntime-gpu``. pip fetches the wheel
alone, checks its hash, and the files are unzipped into pytest's cache, where later runs find them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["WHEELS", "download", "download_models", "fetch"]

# What pip calls a requirement, with the hash of the wheel. One platform's for all: only data is
# taken out of it.
WHEELS = {
    "basic-pitch": "basic-pitch==0.4.0 "
    "--hash=sha256:738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
    "chython-rxnmap": "chython-rxnmap==2.0 "
    "--hash=sha256:c330c6b2250bd024807abffc45f51d2953489fa52a9caa20e82572e4463d5de6",
    "ddddocr": "ddddocr==1.6.1 "
    "--hash=sha256:c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935",
    "faster-whisper": "faster-whisper==1.2.1 "
    "--hash=sha256:79a66ad50688c0b794dd501dc340a736992a6342f7f95e5811be60b5224a26a7",
    "livekit-plugins-silero": "livekit-plugins-silero==1.8.9 "
    "--hash=sha256:afd32a25eab346a5258714edbadd13a56f8ad902ee4c1d8f928eeb1d971a64cf",
    "magika": "magika==1.0.3 "
    "--hash=sha256:3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    "onnx-asr": "onnx-asr==0.12.0 "
    "--hash=sha256:5e7ceca454609819ea7833f61e2302e0c8f6ece4f8a78b66c5daba53cb51de4a",
    "piper-tts": "piper-tts==1.8.0 "
    "--hash=sha256:25b4d3f31ff70c8fa7151908e00aaa5650cbdf16bca8fcf21299f3941b89a7d3",
    "pyopenjtalk-plus": "pyopenjtalk-plus==0.4.1.post10 "
    "--hash=sha256:239c2fe9d6fb97a3c14ccfaabee91f44c7953d36b34249c7e05884eecbebc93d",
    "rapidocr-onnxruntime": "rapidocr-onnxruntime==1.4.4 "
    "--hash=sha256:971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    "rxnmapper": "rxnmapper==0.4.3 "
    "--hash=sha256:27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
    "silero-vad": "silero-vad==6.2.3 "
    "--hash=sha256:7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    "speechmos": "speechmos==0.0.1.1 "
    "--hash=sha256:31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7",
    "swift-f0": "swift-f0==0.3.0 "
    "--hash=sha256:d7240c7c94b1d3e8f0e0cd2701b79be89a0f23a19cd5f944895a6518ecad72f3",
}


def fetch(package: str, member: str, config: pytest.Config) -> Path:
    """Return the path of one file of a package's wheel, downloading the wheel the first time."""
    assert config.cache is not None
    return download(package, member, config.cache.mkdir("wheels"))


def download(package: str, member: str, cache: Path) -> Path:
    """Return the path of one file of a package's wheel in a folder, downloading it if need be."""
    target = _home(package, cache) / member
    if not target.is_file():
        with _wheel(package, cache) as (archive, folder):
            extracted = Path(archive.extract(member, folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            extracted.replace(target)
    return target


def download_models(package: str, cache: Path) -> list[Path]:
    """Return the paths of all ONNX files of a package's wheel, downloading it if need be."""
    home = _home(package, cache)
    complete = home / "complete"
    if not complete.is_file():
        with _wheel(package, cache) as (archive, _):
            names = [name for name in archive.namelist() if name.endswith(".onnx")]
            # What is to be installed outside of the package is there a second time.
            archive.extractall(home, [name for name in names if ".data/" not in name])
        complete.touch()
    return sorted(home.rglob("*.onnx"))


def _home(package: str, cache: Path) -> Path:
    return cache / WHEELS[package].partition(" ")[0]


@contextmanager
def _wheel(package: str, cache: Path) -> Iterator[tuple[zipfile.ZipFile, Path]]:
    """Download a wheel into a folder that does not outlive the block."""
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(WHEELS[package], encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64"]
        command += ["--python-version", "3.11", "--require-hashes"]
        done = subprocess.run(
            [*command, "--dest", name, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"pip cannot download {package}:\n{done.stderr}"
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            yield archive, folder
