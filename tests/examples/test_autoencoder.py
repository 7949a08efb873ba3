"""The examples: digits, the autoencoder in its two ways, its pictures, its script and command."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import tieops
from tieops.cli import app
from tieops.errors import ExportError, MissingDependencyError
from tieops.examples.autoencoder import (
    SIZES,
    Autoencoder,
    History,
    NestedAutoencoder,
    draw_data,
    predict,
    rmse,
    tie_decoder,
    train,
)
from tieops.examples.digits import draw_digits
from tieops.examples.pictures import save_reconstructions, save_training

SMALL = (784, 48, 24, 12)
SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "autoencoder.py"


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return draw_data(300)


# Digits


def test_digits_are_seeded_images() -> None:
    images = draw_digits(200, seed=3)
    assert images.shape == (200, 28, 28)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.array_equal(images, draw_digits(200, seed=3))
    assert np.array_equal(images[:50], draw_digits(50, seed=3))
    assert not np.array_equal(images, draw_digits(200, seed=4))
    assert len({image.tobytes() for image in images}) == 200
    assert images.sum((1, 2)).min() > 10, "an image is all but empty"


def test_a_digit_is_never_cut_off() -> None:
    images = draw_digits(1000)
    border = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    assert (border > 0.5).mean() < 0.0005


def test_what_draws_digits_may_be_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"tieops\[examples\]\""):
        draw_digits(1)


def test_the_test_set_is_split_sixty_to_forty(data) -> None:
    assert [tuple(each.shape) for each in data] == [(300, 784), (180, 784), (120, 784)]


# The network


def test_it_is_the_network_of_the_seed() -> None:
    net = tie_decoder(Autoencoder())
    assert [each.out_features for each in net.encoder if isinstance(each, nn.Linear)] == [
        784, 392, 196,
    ]  # fmt: skip
    weights = [784 * 784, 784 * 392, 392 * 196]
    biases = 784 + 392 + 196 + 392 + 784 + 784
    for each in (net, NestedAutoencoder()):
        assert sum(p.numel() for p in each.parameters()) == sum(weights) + biases
    ties = tieops.torch.find_ties(net)
    assert [[str(reader) for reader in tie.readers] for tie in ties] == [
        ["encoder.0.weight", "decoder.4.weight (transpose)"],
        ["encoder.2.weight", "decoder.2.weight (transpose)"],
        ["encoder.4.weight", "decoder.0.weight (transpose)"],
    ]
    assert SIZES == (784, 784, 392, 196)


def test_the_two_ways_are_one_network(data) -> None:
    nested, tied = NestedAutoencoder(SMALL), tie_decoder(Autoencoder(SMALL))
    assert torch.equal(nested(data[0]), tied(data[0]))


def test_the_code_of_the_nested_one_shows_its_ties_in_a_call(data) -> None:
    net = NestedAutoencoder(SMALL)
    assert len(tieops.torch.find_ties(net)) == 0
    found = tieops.torch.find_ties(net, (data[0][:2],))
    assert {tie.names for tie in found} == {(f"encoder.{i}.weight",) for i in (0, 2, 4)}
    assert [len(tie.readers) for tie in found] == [2, 2, 2]


def test_the_two_ways_learn_the_same(data) -> None:
    images, validation, _ = data
    nested, tied = NestedAutoencoder(SMALL), tie_decoder(Autoencoder(SMALL))
    one, other = (
        train(net, images, validation, epochs=3, batch=50, seed=1) for net in (nested, tied)
    )
    assert len(one.loss) == 18
    assert one.validated == [6, 12, 18]
    assert one == other, "the loss curves differ"
    for index in (0, 2, 4):
        assert torch.equal(nested.encoder[index].weight, tied.encoder[index].weight)
        assert torch.equal(nested.biases[index // 2], tied.decoder[index].bias)
    assert torch.equal(predict(nested, validation), predict(tied, validation))


def test_an_untied_one_goes_its_own_way(data) -> None:
    images, validation, _ = data
    tied = tie_decoder(Autoencoder(SMALL))
    untied = tieops.torch.untie(copy.deepcopy(tied))
    first = [train(net, images, validation, epochs=1).loss for net in (tied, untied)]
    assert first[0][0] == pytest.approx(first[1][0], rel=1e-5)
    assert first[0][-1] != first[1][-1]
    assert not torch.equal(untied.decoder[4].weight, untied.encoder[0].weight.t())


def test_training_is_what_it_says(data) -> None:
    images, validation, test = data
    net = tie_decoder(Autoencoder(SMALL))
    before = predict(net, test)
    history = train(net, images, validation, epochs=20, batch=50, lr=3e-3)
    found = predict(net, test)
    assert rmse(found, test) < 0.85 * rmse(before, test)
    assert rmse(found, test) == pytest.approx(
        float(np.sqrt(np.mean((found.numpy() - test.numpy()) ** 2)))
    )
    loss = functional.binary_cross_entropy(predict(net, validation), validation)
    assert history.validation_loss[-1] == pytest.approx(float(loss))
    assert not torch.equal(found, before)


# Pictures


def test_pictures_have_something_in_them(tmp_path) -> None:
    history = History([0.7, 0.5, 0.4], [0.5, 0.4, 0.3], [3], [0.4], [0.3])
    training = save_training(tmp_path / "training.png", {"tied": history, "untied": history})
    rows = {"original": np.eye(3, 784), "rebuilt": np.zeros((3, 784))}
    rebuilt = save_reconstructions(tmp_path / "rebuilt.png", rows)
    for path in (training, rebuilt):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("L").getcolors() or []) > 3


def test_the_pictures_of_the_page_are_small() -> None:
    for name in ("training.png", "reconstructions.png"):
        path = SCRIPT.with_name(name)
        assert path.stat().st_size < 150_000
        assert f"({name})" in SCRIPT.with_suffix(".md").read_text("utf-8")


# The script and the command


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("autoencoder_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_script_runs(tmp_path, capsys) -> None:
    table = script().main(200, 1, tmp_path, "cpu")
    assert table["tied"]["parameters"] == 1_002_148
    assert table["untied"]["parameters"] == 2_000_964
    assert table["tied"]["bytes stored"] == 4 * 1_002_148
    assert table["untied"]["bytes stored"] == 4 * 2_000_964
    out = capsys.readouterr().out
    assert "200 images to train, 120 to validate, 80 to test" in out
    assert "nested and tied: the same loss in all 2 iterations" in out
    assert "tied.onnx on cpu: equal within tolerance" in out
    names = {path.name for path in tmp_path.iterdir()}
    assert {"tied.onnx", "untied.onnx", "training.png", "reconstructions.png"} <= names


def test_the_command_opens_its_plots_if_asked(tmp_path, monkeypatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    args = ["demo", "--train", "--epochs", "1", "--images", "10", "--provider", "cpu", "--show",
            "--plots", str(tmp_path)]  # fmt: skip
    assert CliRunner().invoke(app, args).exit_code == 0
    assert [Path(each).name for each in opened] == ["training.png", "reconstructions.png"]


def test_the_command_finds_out_early_where_it_cannot_write(tmp_path) -> None:
    (tmp_path / "file").touch()
    args = ["demo", "--train", "--plots", str(tmp_path / "file")]
    error = CliRunner().invoke(app, args).exception
    assert isinstance(error, ExportError)
    assert "cannot write plots to" in str(error)


@pytest.mark.slow
def test_the_command_trains(tmp_path) -> None:
    args = ["demo", "--train", "--epochs", "1", "--images", "100", "--provider", "cpu",
            "--plots", tmp_path / "plots", "--out", tmp_path / "net.onnx"]  # fmt: skip
    result = CliRunner().invoke(app, [str(each) for each in args])
    assert result.exit_code == 0, result.output
    for words in (
        "encoder 784 -> 784 -> 392 -> 196",
        "decoder.4.weight (transpose)",
        "on 40 test images",
        "running on cpu",
        "equal within tolerance",
        "8.00 MB read, 4.01 MB stored",
    ):
        assert words in result.output
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "reconstructions.png", "training.png",
    ]  # fmt: skip
    assert len(tieops.from_onnx(tmp_path / "net.onnx").ties) == 3
    result = CliRunner().invoke(app, [str(each) for each in [*args, "--json"]])
    found = json.loads(result.stdout)
    assert found["verified"]["verdict"] == "equal within tolerance"
    assert 0 < found["test_rmse"] < 1
    assert len(found["model"]["ties"]) == 3
