"""The language model example: its language, its trainings, its script."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tieops
from tieops.examples.language import Language
from tieops.examples.language_model import (
    LanguageModel,
    accuracy,
    draw_sentences,
    perplexity,
    train_classes,
    train_words,
)

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "language_model.py"


def test_the_language_is_seeded_and_stays_in_its_vocabulary() -> None:
    language = Language(words=60, topics=5)
    sentences, topics = language.draw(50, length=9, seed=3)
    again, _ = Language(words=60, topics=5).draw(50, length=9, seed=3)
    assert np.array_equal(sentences, again)
    assert not np.array_equal(sentences, language.draw(50, length=9, seed=4)[0])
    assert (sentences.min(), sentences.max()) >= (0, 1)
    assert sentences.max() < 60
    assert np.array_equal(topics, sentences[:, 0] % 5)
    stays = (sentences[:, 1:] % 5 == sentences[:, :-1] % 5).mean()
    assert stays > 0.9


def test_no_model_that_knows_the_odds_does_better_than_the_language() -> None:
    """The best model's surprise, counted on drawn words, is what the entropy says."""
    language = Language(words=40, topics=4, following=5)
    sentences, _ = language.draw(4000, length=30, seed=1)
    counts = np.zeros((40, 40))
    np.add.at(counts, (sentences[:, :-1].ravel(), sentences[:, 1:].ravel()), 1)
    odds = counts / counts.sum(1, keepdims=True)
    surprise = -np.log(odds[sentences[:, 15:-1], sentences[:, 16:]]).mean()
    assert np.exp(surprise) == pytest.approx(language.perplexity, rel=0.02)


def test_a_model_without_knowledge_has_the_vocabulary_as_its_perplexity() -> None:
    language = Language(words=50, topics=5)
    sentences, topics = draw_sentences(language, 40, 9)
    net = LanguageModel(50, 16)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    assert perplexity(net, sentences) == pytest.approx(50, rel=1e-4)
    assert accuracy(net, sentences, topics) == pytest.approx(float((topics == 0).float().mean()))


def test_the_network_is_tied_and_learns_words_then_classes() -> None:
    language = Language(words=45, topics=15)
    sentences, _ = draw_sentences(language, 400, 12, seed=1)
    validation, _ = draw_sentences(language, 100, 12, seed=2)
    net = LanguageModel(45, 24)
    assert net.fc.weight is net.emb.weight
    history = train_words(net, sentences, validation, epochs=6, batch=32, lr=2e-2)
    assert len(history.perplexity) == 6 * 13
    assert history.validation_perplexity[-1] < 0.4 * 45
    classes = draw_sentences(language, 200, 6, seed=3)
    head = tieops.torch.replace_head(
        copy.deepcopy(net), out_features=15, seed=0, lr_factor=10, bias_lr_factor=10
    )
    assert head.emb.weight.shape == (45, 24)
    found = train_classes(head, *classes, classes, epochs=4, lr=1e-3)
    assert found.validated[0] == 0
    assert found.validation_accuracy[-1] > found.validation_accuracy[0] + 0.3


@pytest.mark.slow
def test_the_script_runs_at_a_small_size(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location("language_model_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.main(200, 2, 45, 16, tmp_path, "cpu")
    printed = capsys.readouterr().out
    assert "one step moves the head 10.00 times as far" in printed
    assert printed.count("equal within tolerance") == 4
    assert found["perplexity"] < found["perplexity before"]
    assert found["apart"] <= 0.05
    with Image.open(tmp_path / "transfer.png") as picture:
        assert picture.size[0] > 900
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
