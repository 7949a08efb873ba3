"""Packages that ship ONNX files, and what to feed the files whose inputs cannot be any arrays.

Their licenses allow what is done here: the files are downloaded by pip, read, rewritten in a
temporary folder and run. None of them is part of this repository.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from tests.support.wheels import download_models

__all__ = ["PACKAGES", "Package", "feeds", "files"]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Package:
    """A package: the license that it states, and what its models are for."""

    license: str
    about: str
    installed: bool = False
    """Whether it is there anyway, because the tests need it; the others are downloaded."""
    atol: float = 1e-5
    """How far outputs may be apart where rounding may differ."""


PACKAGES: dict[str, Package] = {
    "basic-pitch": Package("Apache-2.0", "notes from audio"),
    "chython-rxnmap": Package("LGPL-3.0-or-later", "atom mapping of reactions, a transformer"),
    "ddddocr": Package("MIT", "text and boxes in pictures"),
    "faster-whisper": Package("MIT", "silero-vad 6, two graphs that share"),
    "livekit-plugins-silero": Package("Apache-2.0", "silero-vad 5"),
    "magika": Package("Apache-2.0", "kinds of files"),
    "onnx": Package("Apache-2.0", "the backend tests' models", installed=True),
    # Logarithms of powers that are nearly 0: another way to sum a transform shows in them.
    "onnx-asr": Package("MIT", "features of audio, written in onnxscript", atol=1e-2),
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
    file = PurePosixPath(member).name
    if name == "magika":
        return [{"bytes": _texts()}]
    if name == "onnx-asr" and "resample" not in file:
        return [_waves(2, 16000), _waves(1, 4800)]
    if name in ("silero-vad", "livekit-plugins-silero") and file in _RATES:
        return [_speech(batch, samples, rate, file) for batch, samples, rate in _RATES[file]]
    if file == "nakdimon.onnx":  # letters, as floats
        return [{"input_1": np.arange(86, dtype=np.float32).reshape(2, 43) % 43}]
    if name == "piper-tts":
        letters, marks = np.arange(108).reshape(2, 54), np.arange(108).reshape(2, 54)
        lengths = np.array([54, 40])
        return [{"char_inputs": letters % 54, "diac_inputs": marks % 16, "input_lengths": lengths}]
    rng = np.random.default_rng(0)
    return [
        {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
        for shapes in _SHAPES.get(file, ())
    ] or None


_SHAPES: dict[str, list[dict[str, tuple[int, ...]]]] = {
    "Run_1663829550_Stage_0.onnx": [{"input": (1, 3, 100, 160), "h0": (4, 1, 64)}],
    "Run_1663915512_Stage_0.onnx": [{"input": (1, 3, 100, 160), "h0": (4, 1, 64)}],
    "Run_1668423760_Stage_0.onnx": [{"input": (1, 3, 100, 160), "h0": (4, 1, 96)}],
    "plcmos_v2.onnx": [{"degraded_audio": (1, 1, 60, 257), "rater_embed": (1, 64)}],
    "common.onnx": [{"input1": (1, 1, 64, 160)}, {"input1": (1, 1, 64, 96)}],
    "common_old.onnx": [{"input1": (1, 1, 64, 160)}, {"input1": (1, 1, 64, 96)}],
    "ch_PP-OCRv4_det_infer.onnx": [{"x": (1, 3, 64, 96)}],
    "ch_PP-OCRv4_rec_infer.onnx": [{"x": (1, 3, 48, 96)}, {"x": (2, 3, 48, 160)}],
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": [{"x": (1, 3, 48, 192)}],
}
"""Shapes of pictures and frames that are too small if they are made from the signature."""


_BOTH = [(1, 576, 16000), (3, 576, 16000), (1, 288, 8000), (2, 288, 8000)]
_RATES = {
    "silero_vad.onnx": _BOTH,
    "silero_vad_op18_ifless.onnx": _BOTH,
    "silero_vad_16k_op15.onnx": _BOTH[:2],
    "silero_vad_half.onnx": _BOTH[:2],
}
"""What silero-vad listens to: batch, 32 ms and what was before, and the rate."""


def _speech(batch: int, samples: int, rate: int, file: str) -> Arrays:
    rng = np.random.default_rng(rate + batch)
    made = {
        "input": rng.standard_normal((batch, samples)).astype(np.float32),
        "state": rng.standard_normal((2, batch, 128)).astype(np.float32),
        "sr": np.array(rate),
    }
    return {key: made[key] for key in made if key != "sr" or "half" not in file}


def _waves(batch: int, samples: int) -> Arrays:
    """Return a second of noise, or less; the lengths that count go down from there."""
    waves = np.random.default_rng(samples).standard_normal((batch, samples)) * 0.1
    lengths = np.array([samples - 800 * row for row in range(batch)])
    return {"waveforms": waves.astype(np.float32), "waveforms_lens": lengths}


def _texts() -> np.ndarray:
    """Return the beginnings of files: random bytes are of no kind, and hang on rounding."""
    root = Path(__file__).parents[2]
    found = [root / "README.md", root / "LICENSE", Path(__file__)]
    rows = [np.frombuffer(path.read_bytes()[:2048], np.uint8) for path in found]
    return np.stack([np.pad(row, (0, 2048 - len(row))) for row in rows]).astype(np.int32)
