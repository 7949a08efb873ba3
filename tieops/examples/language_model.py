"""The network of MATLAB's "Neural Network Weight Tying", trained on words, then on classes.

An embedding, an LSTM, and an output layer that reads the embedding's weight. The network is trained
to predict the next word of a generated language, and then gets a head of 15 classes with ten times
the learning rate of the body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

import tieops
from tieops.examples.language import Language
from tieops.progress import on_terminal

__all__ = [
    "ClassHistory",
    "LanguageModel",
    "WordHistory",
    "accuracy",
    "draw_sentences",
    "perplexity",
    "train_classes",
    "train_words",
]


class LanguageModel(nn.Module):
    """The seed's network: the output layer shares the embedding's weight.

    Args:
        words: Size of the vocabulary.
        width: Size of the embedding and of the LSTM's state.
        seed: Of the weights.
    """

    def __init__(self, words: int = 1000, width: int = 300, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.emb = nn.Embedding(words, width)
            self.lstm = nn.LSTM(width, width, batch_first=True)
            self.fc = nn.Linear(width, words)
        # Small, because the same numbers are the output layer's weights.
        nn.init.uniform_(self.emb.weight, -0.1, 0.1, torch.Generator().manual_seed(seed))
        tieops.torch.tie(self, "fc.weight", "emb.weight")

    def forward(self, x: Tensor) -> Tensor:
        """Return the odds of each next word, of shape (batch, length, words)."""
        hidden, _ = self.lstm(self.emb(x))
        return torch.softmax(self.fc(hidden), dim=-1)


def draw_sentences(
    language: Language, count: int, length: int = 24, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return sentences of shape (count, length), and the topic of each, of shape (count,)."""
    words, topics = language.draw(count, length, seed)
    return torch.from_numpy(words), torch.from_numpy(topics)


@dataclass(frozen=True)
class WordHistory:
    """What training on words went through.

    Args:
        perplexity: Of each iteration's batch.
        validated: After which iterations the validation sentences were looked at.
        validation_perplexity: The perplexity on them then.
    """

    perplexity: list[float] = field(default_factory=list[float])
    validated: list[int] = field(default_factory=list[int])
    validation_perplexity: list[float] = field(default_factory=list[float])


@dataclass(frozen=True)
class ClassHistory:
    """What training on classes went through.

    Args:
        accuracy: Share of each iteration's batch that was classified right, before its step.
        validated: After which iterations the validation sentences were looked at.
        validation_accuracy: The accuracy on them then; the first before any step.
    """

    accuracy: list[float] = field(default_factory=list[float])
    validated: list[int] = field(default_factory=list[int])
    validation_accuracy: list[float] = field(default_factory=list[float])


def train_words(
    net: nn.Module,
    sentences: Tensor,
    validation: Tensor,
    *,
    epochs: int = 6,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> WordHistory:
    """Train a network to foretell each next word, with Adam; in place.

    Args:
        net: From words of shape (batch, length) to odds of shape (batch, length, words).
        sentences: Words of shape (count, length).
        validation: The same, to validate with.
        epochs: How often each sentence is seen.
        batch: How many sentences make a step.
        lr: The learning rate of factor 1.
        seed: Of the order of the sentences.
    """
    history = WordHistory()
    optimizer = torch.optim.Adam(tieops.param_groups(net, lr=lr))
    for chosen in _batches(len(sentences), epochs, batch, seed, "training words"):
        if chosen is None:
            history.validated.append(len(history.perplexity))
            history.validation_perplexity.append(perplexity(net, validation))
            continue
        loss = _surprise(net, sentences[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.perplexity.append(loss.exp().item())
    return history


def train_classes(
    net: nn.Module,
    sentences: Tensor,
    topics: Tensor,
    validation: tuple[Tensor, Tensor],
    *,
    epochs: int = 4,
    batch: int = 32,
    lr: float = 2e-4,
    seed: int = 0,
) -> ClassHistory:
    """Train a network to tell each sentence's topic at its last word, with Adam; in place.

    Args:
        net: From words of shape (batch, length) to odds of shape (batch, length, classes).
        sentences: Words of shape (count, length).
        topics: Classes of shape (count,).
        validation: Sentences and their topics to validate with.
        epochs: How often each sentence is seen.
        batch: How many sentences make a step.
        lr: The learning rate of factor 1; parameters with another factor have theirs.
        seed: Of the order of the sentences.
    """
    history = ClassHistory()
    history.validated.append(0)
    history.validation_accuracy.append(accuracy(net, *validation))
    optimizer = torch.optim.Adam(tieops.param_groups(net, lr=lr))
    for chosen in _batches(len(sentences), epochs, batch, seed, "training classes"):
        if chosen is None:
            history.validated.append(len(history.accuracy))
            history.validation_accuracy.append(accuracy(net, *validation))
            continue
        odds = net(sentences[chosen])[:, -1]
        loss = functional.nll_loss(_log(odds), topics[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.accuracy.append((odds.argmax(1) == topics[chosen]).float().mean().item())
    return history


def perplexity(net: nn.Module, sentences: Tensor) -> float:
    """Return e to the mean surprise at each word but the first."""
    with torch.no_grad():
        return float(_surprise(net, sentences).exp())


def accuracy(net: nn.Module, sentences: Tensor, topics: Tensor) -> float:
    """Return the share of sentences whose topic is the likeliest class at the last word."""
    with torch.no_grad():
        return float((net(sentences)[:, -1].argmax(1) == topics).float().mean())


def _surprise(net: nn.Module, sentences: Tensor) -> Tensor:
    odds = net(sentences[:, :-1])
    return functional.nll_loss(_log(odds).flatten(0, 1), sentences[:, 1:].flatten())


def _log(odds: Tensor) -> Tensor:
    return odds.clamp_min(1e-12).log()


def _batches(count: int, epochs: int, batch: int, seed: int, title: str) -> Iterator[Tensor | None]:
    """Yield the places of each step's sentences, and None after each epoch; a bar shows."""
    from rich.console import Console
    from rich.progress import track

    generator = torch.Generator().manual_seed(seed)
    shown = track(
        range(epochs),
        title,
        console=Console(stderr=True),
        transient=True,
        disable=not on_terminal(),
    )
    for _ in shown:
        yield from torch.randperm(count, generator=generator).split(batch)
        yield None
