"""Files that are no models, or more than one (G of the reference)."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from pathlib import Path

from tests.hostile.case import case
from tests.hostile.models import save, small


def _file(folder: Path, content: bytes, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@case("m.onnx is empty")
def g01_empty(folder: Path) -> Path:
    return _file(folder, b"")


@case("Git LFS pointer", "git lfs pull")
def g02_lfs(folder: Path) -> Path:
    return _file(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


@case("HTML page")
def g03_html(folder: Path) -> Path:
    return _file(folder, b"<!DOCTYPE html><html></html>")


@case("m.onnx")
def g04_truncated(folder: Path) -> Path:
    data = small().SerializeToString()
    return _file(folder, data[: len(data) // 2])


@case("no ONNX model")
def g06_random(folder: Path) -> Path:
    return _file(folder, random.Random(0).randbytes(4096))


@case("zip")
def g07_zip(folder: Path) -> Path:
    return _file(folder, b"PK\x03\x04" + bytes(100))


@case("gzip")
def g08_gzip(folder: Path) -> Path:
    return _file(folder, gzip.compress(small().SerializeToString()))


@case("pickle")
def g08_pickle(folder: Path) -> Path:
    return _file(folder, pickle.dumps({"w": 1}))


@case("is not a regular file")
def g09_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"


@case("directory")
def g10_directory(folder: Path) -> Path:
    (folder / "m.onnx").mkdir()
    return folder / "m.onnx"


@case(ok=True)
def g00_a_model(folder: Path) -> Path:
    return save(folder, small())
