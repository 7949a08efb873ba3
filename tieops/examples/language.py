"""A generated language: random sentences about topics, and how predictable they are.

Each word is followed by one of a few others, with known probabilities, and mostly by words of its
topic. So a model can be judged: no model does better than the perplexity of the language itself,
and a good one can classify a sentence by topic.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["Language"]

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


class Language:
    """A Markov chain over words, with a topic for each word.

    Args:
        words: How many words there are.
        topics: How many topics; word ``w`` belongs to topic ``w % topics``.
        following: How many words may follow one.
        seed: Of the odds.

    Attributes:
        perplexity: What the best possible model reaches: e to the entropy of the next word, given
            the words before it (Cover and Thomas, "Elements of Information Theory", theorem 4.2.4).

    Example:
        >>> language = Language(words=60, topics=3, following=4)
        >>> sentences, topics = language.draw(5, length=8, seed=1)
        >>> sentences.shape, topics.tolist()
        ((5, 8), [1, 0, 0, 0, 2])
    """

    def __init__(
        self, words: int = 1000, topics: int = 15, following: int = 8, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.words, self.topics = words, topics
        same = [np.arange(topic, words, topics) for topic in range(topics)]
        self._next = np.stack(
            [
                # The last of them leads to another topic, now and then.
                np.append(rng.choice(same[word % topics], following - 1), rng.integers(words))
                for word in range(words)
            ]
        ).astype(np.int64)
        odds = rng.dirichlet(np.full(following - 1, 2.0), words) * 0.97
        self._odds = np.append(odds, np.full((words, 1), 0.03), axis=1)
        self.perplexity = float(np.exp(self._entropy()))

    def draw(self, count: int, length: int, seed: int = 0) -> tuple[Ints, Ints]:
        """Draw sentences.

        Args:
            count: How many.
            length: How many words each has.
            seed: Of the draw.

        Returns:
            Words of shape (count, length), and the topic that each sentence began with, of shape
            (count,).
        """
        rng = np.random.default_rng(seed)
        word = rng.integers(0, self.words, count)
        topics = word % self.topics
        said = [word]
        bounds = self._odds.cumsum(1)
        for _ in range(length - 1):
            place = (rng.random((count, 1)) > bounds[word]).sum(1)
            word = self._next[word, np.minimum(place, self._next.shape[1] - 1)]
            said.append(word)
        return np.stack(said, axis=1), topics

    def _entropy(self) -> float:
        """Return the entropy of the next word in nats, in the long run."""
        matrix = np.zeros((self.words, self.words))
        rows = np.arange(self.words)[:, None]
        np.add.at(matrix, (rows, self._next), self._odds)  # a word may be listed twice
        often = np.full(self.words, 1 / self.words)
        for _ in range(500):
            often = often @ matrix
        surprise = -(matrix * np.log(np.where(matrix > 0, matrix, 1))).sum(1)
        return float(often @ surprise)
