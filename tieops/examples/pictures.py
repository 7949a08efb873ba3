"""The two pictures of an autoencoder: how its training went, and what it makes of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tieops.examples.autoencoder import History
from tieops.examples.digits import SIDE

__all__ = ["save_reconstructions", "save_training"]

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by colour-blind readers too
GREY = "#555555"


def save_training(path: Path, histories: Mapping[str, History]) -> Path:
    """Plot the loss and the RMSE of each training over its iterations.

    Args:
        path: Where to write; the suffix says the format.
        histories: Trainings by name, at most three.

    Returns:
        ``path``.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = _figure(9.6, 3.6)
    loss, error = figure.subplots(1, 2)
    for (name, history), colour in zip(histories.items(), COLOURS, strict=False):
        for axes, steps, checks in (
            (loss, history.loss, history.validation_loss),
            (error, history.rmse, history.validation_rmse),
        ):
            steps_taken = range(1, len(steps) + 1)
            axes.plot(steps_taken, steps, color=colour, linewidth=0.8, alpha=0.35)
            style = {"marker": "o", "markersize": 3, "linewidth": 1.2}
            axes.plot(history.validated, checks, color=colour, label=name, **style)
    for axes, what in ((loss, "binary cross-entropy"), (error, "RMSE")):
        axes.set_xlabel("iteration")
        axes.set_title(what, fontsize=10)
        axes.set_xlim(left=0)
        # The end of a training is where two of them differ, by little.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    legend = error.legend(frameon=False, title="dots: validation\nthin line: training batches")
    legend.get_title().set_fontsize(8)
    figure.savefig(path, dpi=110)
    return path


def save_reconstructions(path: Path, rows: Mapping[str, np.ndarray[Any, Any]]) -> Path:
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
    figure.savefig(path, dpi=110)
    return path


def _figure(width: float, height: float) -> Any:
    # Not by pyplot: it would take the user's backend, and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
