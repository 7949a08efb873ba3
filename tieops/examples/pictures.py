"""Plots for the examples: training curves, and reconstructions of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tieops.examples.autoencoder import History
from tieops.examples.digits import SIDE
from tieops.examples.language_model import ClassHistory, WordHistory
from tieops.exporters.files import new_file

__all__ = ["save_reconstructions", "save_training", "save_transfer"]

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by colour-blind readers too
GREY = "#555555"


def save_training(path: str | Path, histories: Mapping[str, History]) -> Path:
    """Plot the loss and the RMSE of each training over its iterations.

    Args:
        path: Where to write; the suffix says the format.
        histories: Trainings by name, at most three.

    Returns:
        ``path``.
    """
    figure = _figure(9.6, 3.6)
    loss, error = figure.subplots(1, 2)
    for (name, history), colour in zip(histories.items(), COLOURS, strict=False):
        for axes, steps, checks in (
            (loss, history.loss, history.validation_loss),
            (error, history.rmse, history.validation_rmse),
        ):
            _plot(axes, steps, history.validated, checks, colour, name)
    for axes, what in ((loss, "binary cross-entropy"), (error, "RMSE")):
        _dress(axes, what)
        # The end of a training is where two of them differ, by little.
        _logarithmic(axes)
    legend = error.legend(frameon=False, title="dots: validation\nthin line: training batches")
    legend.get_title().set_fontsize(8)
    return _save(figure, path)


def save_reconstructions(path: str | Path, rows: Mapping[str, np.ndarray[Any, Any]]) -> Path:
    """Draw images in rows, one row a name.

    Args:
        path: Where to write; the suffix says the format.
        rows: Images of shape (count, 784) by the name of their row.

    Returns:
        ``path``.
    """
    count = len(next(iter(rows.values())))
    figure = _figure(1.2 * count + 1.2, 1.2 * len(rows) + 0.1)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for (name, images), line in zip(rows.items(), grid, strict=True):
        for image, axes in zip(images, line, strict=True):
            axes.imshow(image.reshape(SIDE, SIDE), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, color=GREY)
    return _save(figure, path)


def save_transfer(
    path: str | Path, words: WordHistory, limit: float, classes: Mapping[str, ClassHistory]
) -> Path:
    """Plot the perplexity of training on words, and the accuracy of trainings on classes.

    Args:
        path: Where to write; the suffix says the format.
        words: The training on words.
        limit: The perplexity that no model can beat.
        classes: Trainings on classes by name, at most three.

    Returns:
        ``path``.
    """
    figure = _figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    _plot(left, words.perplexity, words.validated, words.validation_perplexity, COLOURS[0], "tied")
    left.axhline(limit, color=GREY, linestyle="--", linewidth=1)
    left.annotate(
        f"the language itself: {limit:.2f}", (0, limit), (4, -12),
        textcoords="offset points", fontsize=8, color=GREY,
    )  # fmt: skip
    _dress(left, "perplexity of the next word")
    _logarithmic(left)
    left.set_ylim(bottom=limit * 0.7)
    for (name, history), colour in zip(classes.items(), COLOURS, strict=False):
        steps = history.accuracy
        _plot(right, steps, history.validated, history.validation_accuracy, colour, name)
    _dress(right, "accuracy of 15 classes")
    right.set_ylim(0, 1)
    legend = right.legend(frameon=False, loc="lower right", title="learning rate of the head")
    legend.get_title().set_fontsize(8)
    return _save(figure, path)


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    with new_file(path) as file:
        figure.savefig(file, dpi=110, format=path.suffix.removeprefix(".") or "png")
    return path


def _plot(
    axes: Any,
    steps: Sequence[float],
    validated: Sequence[int],
    checks: Sequence[float],
    colour: str,
    name: str,
) -> None:
    """Draw batches as a thin line, and what validation found as dots on a thicker one."""
    axes.plot(range(1, len(steps) + 1), steps, color=colour, linewidth=0.8, alpha=0.35)
    style = {"marker": "o", "markersize": 3, "linewidth": 1.2}
    axes.plot(validated, checks, color=colour, label=name, **style)


def _dress(axes: Any, title: str) -> None:
    axes.set_xlabel("iteration")
    axes.set_title(title, fontsize=10)
    axes.set_xlim(left=0)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _figure(width: float, height: float) -> Any:
    # Not by pyplot: it would take the user's backend, and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
