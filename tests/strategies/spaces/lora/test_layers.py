"""Layers are selected by name; an unknown name gets suggestions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clients.models.text import char_transformer
from clients.models.vision import cnn_mnist
from strategies.spaces.lora.layers import Shape, adaptable, chooses, matching


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_every_linear_layer_with_its_shape_in_the_module_s_order() -> None:
    assert adaptable(net(), ["all-linear"]) == {"0": Shape(6, 4), "2": Shape(3, 6)}
    assert adaptable(nn.Linear(5, 2), ["all-linear"]) == {"": Shape(2, 5)}


def test_convolutions_are_matrices_over_their_kernels_when_asked_for() -> None:
    model = cnn_mnist(input_shape=(1, 28, 28), classes=10)
    assert "0" not in adaptable(model, ["all-linear"])
    assert adaptable(model, ["0", "3", "all-linear"])["3"] == Shape(64, 32 * 25)


def test_names_ends_of_names_and_regular_expressions_choose_and_exclude_takes_out() -> None:
    model = char_transformer(input_shape=(8,), classes=5, width=8, heads=2, depth=2)
    assert list(adaptable(model, ["linear1"])) == ["blocks.0.linear1", "blocks.1.linear1"]
    assert list(adaptable(model, [r"blocks\.1\..*"])) == ["blocks.1.linear1", "blocks.1.linear2"]
    assert list(adaptable(model, ["all-linear"], ["head", "linear2"])) == ["blocks.0.linear1", "blocks.1.linear1"]
    with pytest.raises(ValueError, match="leave no layer"):
        adaptable(model, ["head"], ["head"])


@pytest.mark.parametrize(("target", "near"), [("linear_1", "blocks.0.linear1"), ("heads", "head"), ("q", "near")])
def test_a_target_that_matches_nothing_names_the_nearest_layers(target: str, near: str) -> None:
    model = char_transformer(input_shape=(8,), classes=5, width=8, heads=2, depth=1)
    with pytest.raises(ValueError, match=f"{target}.*matches no layer.*{near}"):
        adaptable(model, [target])


def test_a_target_that_cannot_be_adapted_says_why() -> None:
    model = char_transformer(input_shape=(8,), classes=5, width=8, heads=2, depth=1)
    with pytest.raises(ValueError, match=r"out_proj.*MultiheadAttention, which reads its weight without calling"):
        adaptable(model, ["out_proj"])
    with pytest.raises(ValueError, match="LayerNorm has no adapter"):
        adaptable(model, ["norm1"])
    with pytest.raises(ValueError, match="neither a name nor a regular expression"):
        adaptable(model, ["(("])


def test_a_layer_that_shares_its_weight_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mid, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

    assert list(adaptable(Tied(), ["all-linear"])) == ["mid"]
    with pytest.raises(ValueError, match="shared with another layer"):
        adaptable(Tied(), ["head"])


def test_parameters_are_chosen_the_same_way() -> None:
    names = ["0.weight", "0.bias", "2.bias"]
    assert matching(names, ["bias"]) == ["0.bias", "2.bias"] and matching(names, []) == []
    with pytest.raises(ValueError, match=r"'2.bais' is no parameter of the model; nearest: 2.bias"):
        matching(names, ["2.bais"])
    assert chooses("fc", "net.fc") and not chooses("fc", "net.xfc")


def test_a_grouped_convolution_has_no_adapter() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    assert list(adaptable(model, [r"\d"])) == ["1"]
    assert model(torch.zeros(1, 4, 5, 5)).shape == (1, 2, 3, 3)
