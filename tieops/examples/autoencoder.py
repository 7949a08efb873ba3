"""The tied autoencoder of MATLAB's "Weight Tying Using Nested Layer", built in two ways.

Three Linear layers of output sizes 784, 392 and 196 encode the 784 pixels of an image. The decoder
reads their weights transposed, in reverse order, and has its own three biases.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

import tieops
from tieops.examples.digits import draw_digits
from tieops.progress import on_terminal

__all__ = [
    "SIZES",
    "Autoencoder",
    "History",
    "NestedAutoencoder",
    "draw_data",
    "predict",
    "rmse",
    "tie_decoder",
    "train",
]

SIZES = (784, 784, 392, 196)


class NestedAutoencoder(nn.Module):
    """The first way: the decoder is code that reads the encoder's weights transposed.

    Args:
        sizes: The pixels of an image, then the output size of each layer of the encoder.
        seed: Of the weights.
    """

    def __init__(self, sizes: Sequence[int] = SIZES, seed: int = 0) -> None:
        super().__init__()
        self.encoder = _layers(sizes, nn.ReLU(), seed)
        self.biases = nn.ParameterList(torch.zeros(size) for size in reversed(sizes[:-1]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstructions of images of shape (batch, pixels)."""
        hidden = self.encoder(images)
        weights = [layer.weight for layer in self.encoder if isinstance(layer, nn.Linear)]
        for weight, bias in zip(reversed(weights), self.biases, strict=True):
            hidden = functional.linear(hidden, weight.t(), bias)
            hidden = torch.sigmoid(hidden) if weight is weights[0] else torch.relu(hidden)
        return hidden


class Autoencoder(nn.Module):
    """The second way: a decoder of ordinary layers, which ``tie_decoder`` ties to the encoder's.

    Args:
        sizes: The pixels of an image, then the output size of each layer of the encoder.
        seed: Of the weights.
    """

    def __init__(self, sizes: Sequence[int] = SIZES, seed: int = 0) -> None:
        super().__init__()
        self.encoder = _layers(sizes, nn.ReLU(), seed)
        self.decoder = _layers(sizes[::-1], nn.Sigmoid(), seed + 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstructions of images of shape (batch, pixels)."""
        return self.decoder(self.encoder(images))


def tie_decoder(net: Autoencoder) -> Autoencoder:
    """Make the decoder's weights the encoder's, transposed, in reverse order; in place."""
    last = len(net.encoder) - 2
    for index in range(0, last + 1, 2):  # between two Linear layers is what follows the first
        name, to = f"decoder.{index}.weight", f"encoder.{last - index}.weight"
        tieops.torch.tie(net, name, to, transpose=True)
    return net


def _layers(sizes: Sequence[int], last: nn.Module, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inside, out in itertools.pairwise(sizes):
        linear = nn.Linear(inside, out)
        # MATLAB's initial values for a fully connected layer: Glorot, and no bias.
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1], last)


def draw_data(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images to train, to validate and to test with, each of shape (images, 784).

    ``count`` of them train, and as many are drawn to test with: 60 % of those validate.

    Raises:
        MissingDependencyError: If matplotlib or Pillow is not installed.
    """
    images, others = (torch.from_numpy(draw_digits(count, seed)).flatten(1) for seed in (0, 1))
    validation, test = others.split([count * 6 // 10, count - count * 6 // 10])
    return images, validation, test


@dataclass(frozen=True)
class History:
    """What a training went through.

    Args:
        loss: Of each iteration's batch: binary cross-entropy, the mean over pixels.
        rmse: Of each iteration's batch: root of the mean squared error.
        validated: After which iterations the validation set was looked at.
        validation_loss: The loss on the validation set then.
        validation_rmse: The RMSE on the validation set then.
    """

    loss: list[float] = field(default_factory=list[float])
    rmse: list[float] = field(default_factory=list[float])
    validated: list[int] = field(default_factory=list[int])
    validation_loss: list[float] = field(default_factory=list[float])
    validation_rmse: list[float] = field(default_factory=list[float])


def train(
    net: nn.Module,
    images: Tensor,
    validation: Tensor,
    *,
    epochs: int = 30,
    batch: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
) -> History:
    """Train an autoencoder with Adam on binary cross-entropy; a bar shows on a terminal.

    Epochs, batch size and learning rate are the defaults of MATLAB's ``trainingOptions("adam")``.

    Args:
        net: The network; trained in place.
        images: Images and targets, of shape (count, pixels), from 0 to 1.
        validation: Images to validate with after each epoch.
        epochs: How often each image is seen.
        batch: How many images make a step.
        lr: The learning rate.
        seed: Of the order of the images.

    Returns:
        What happened.
    """
    from rich.console import Console
    from rich.progress import track

    history = History()
    optimizer = torch.optim.Adam(tieops.param_groups(net, lr=lr))
    generator = torch.Generator().manual_seed(seed)
    shown = track(
        range(epochs),
        f"training {type(net).__name__}",
        console=Console(stderr=True),
        transient=True,
        disable=not on_terminal(),
    )
    for _ in shown:
        for chosen in torch.randperm(len(images), generator=generator).split(batch):
            wanted = images[chosen]
            found = net(wanted)
            loss = functional.binary_cross_entropy(found, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.loss.append(loss.item())
            history.rmse.append(rmse(found, wanted))
        found = predict(net, validation)
        history.validated.append(len(history.loss))
        history.validation_loss.append(functional.binary_cross_entropy(found, validation).item())
        history.validation_rmse.append(rmse(found, validation))
    return history


def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Return the reconstructions of images, without gradients."""
    with torch.inference_mode():
        return net(images)


def rmse(found: Tensor, wanted: Tensor) -> float:
    """Return the root of the mean squared difference."""
    return functional.mse_loss(found.detach(), wanted).sqrt().item()
