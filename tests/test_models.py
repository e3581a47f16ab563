from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from trainables.errors import ModelError
from trainables.workloads import catalogue, models


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 4))
def test_the_formula_is_what_a_convolution_does(size: int, kernel: int, stride: int, padding: int) -> None:
    image, filters = torch.zeros(1, 1, size, size), torch.zeros(1, 1, kernel, kernel)
    if size + 2 * padding < kernel:
        with pytest.raises(ModelError, match="does not fit"):
            catalogue.conv_output_size(size, kernel, stride=stride, padding=padding)
        return
    expected = F.conv2d(image, filters, stride=stride, padding=padding).shape[-1]
    assert catalogue.conv_output_size(size, kernel, stride=stride, padding=padding) == expected


def widths(network: nn.Sequential) -> list[int]:
    return [layer.out_features for layer in network if isinstance(layer, nn.Linear)]


def channels(network: nn.Sequential) -> list[int]:
    return [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)]


def test_the_reports_networks_are_points_of_the_space() -> None:
    assert widths(models.mlp((2,), 1, width=64, depth=2)) == [64, 32, 1]
    assert widths(models.mlp((2,), 1, width=16, depth=2)) == [16, 8, 1]
    cnn = models.cnn((1, 28, 28), 10, width=4, depth=2)
    assert channels(cnn) == [4, 8]
    assert widths(cnn) == [32, 16, 10]
    assert next(layer.in_features for layer in cnn if isinstance(layer, nn.Linear)) == 8 * 4 * 4
    assert catalogue.cnn_sizes((1, 28, 28), depth=2) == [(28, 28), (12, 12), (4, 4)]
    assert widths(models.linear((10,), 1)) == [1]


def test_a_constant_mlp_keeps_its_width() -> None:
    assert widths(models.mlp((2,), 1, width=16, depth=3, shape="constant")) == [16, 16, 16, 1]


def kinds(network: nn.Module) -> list[str]:
    """Names of the modules' classes without children of their own."""
    return [type(each).__name__ for each in network.modules() if not list(each.children())]


def test_hidden_layers_have_norm_activation_and_dropout_in_this_order() -> None:
    network = models.mlp((1, 4, 4), 3, width=8, depth=1, activation="gelu", norm="batch", dropout=0.25)
    assert kinds(network) == ["Flatten", "Linear", "BatchNorm1d", "GELU", "Dropout", "Linear"]
    network = models.cnn((1, 8, 8), 3, width=2, depth=1, kernel=3, activation="tanh", norm="layer")
    conv, head = ["Conv2d", "GroupNorm", "Tanh"], ["Linear", "LayerNorm", "Tanh"]
    assert kinds(network) == [*conv, "MaxPool2d", "Flatten", *head, *head, "Linear"]
    assert models.layered(models.mlp((2,), 1, width=8, depth=1, activation="relu", norm="none", dropout=0.0))


@pytest.mark.parametrize("activation", catalogue.ACTIVATIONS)
def test_every_activation_is_a_layer(activation: str) -> None:
    network = models.mlp((2,), 1, width=4, depth=1, activation=activation)
    assert kinds(network) == ["Linear", catalogue.ACTIVATIONS[activation], "Linear"]
    assert network(torch.ones(3, 2)).shape == (3, 1)


@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (4, 2)])  # 4 channels, as many as the first convolution has
def test_residual_layers_start_as_sums_of_input_and_output(channels: int, kernel: int) -> None:
    mlp = models.mlp((2,), 1, width=8, depth=2, residual=True)
    assert widths(mlp) == [8, 4, 1]
    assert [block.layers[0].out_features for block in mlp if isinstance(block, models.Residual)] == [8, 4]
    network = models.cnn((channels, 9, 9), 3, width=4, depth=1, kernel=kernel, residual=True)
    block = next(layer for layer in network if isinstance(layer, models.Residual))
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), x + block.layers[1](block.layers[0](x)))
    assert network(torch.zeros(2, channels, 9, 9)).shape == (2, 3)


def test_initial_weights_are_those_asked_for() -> None:
    torch.manual_seed(0)
    stds = {}
    for init in ("kaiming", "xavier", "orthogonal"):
        network = models.mlp((100,), 100, width=400, depth=1, init=init)
        assert models.layered(network)
        assert not network[0].bias.any()
        stds[init] = network[0].weight.std().item()
    assert stds["kaiming"] == pytest.approx((2 / 100) ** 0.5, rel=0.02)
    assert stds["xavier"] == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    weight = models.mlp((100,), 1, width=50, depth=1, init="orthogonal")[0].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(50), atol=1e-5, rtol=0)
    torch.manual_seed(3)
    usual = nn.Linear(2, 4).weight
    torch.manual_seed(3)
    assert torch.equal(models.mlp((2,), 1, width=4, depth=1, init="torch")[0].weight, usual)


@given(
    st.integers(1, 3), st.integers(8, 40), st.integers(8, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2)
)
def test_a_cnn_fits_or_says_why(c: int, height: int, width: int, depth: int, kernel: int, padding: int) -> None:
    shape = (c, height, width)
    try:
        network = models.cnn(shape, 10, width=2, depth=depth, kernel=kernel, padding=padding)
    except ModelError as error:
        assert f"of {depth} does not fit: {height}x{width}" in str(error)  # noqa: PT017
    else:
        assert network(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("family", [family for family in catalogue.FAMILIES if family != "deepobs-3c3d"])
def test_activations_are_counted_layer_by_layer(family: str) -> None:
    in_shape, outputs = ((100,), 100) if family == "quadratic" else ((1, 8, 8), 10)
    network = models.build(family, in_shape, outputs, width=4, depth=1)
    x = torch.zeros(1, *in_shape)
    total = x.numel()
    for layer in network:
        x = layer(x)
        total += x.numel()
    assert models.activations(network, in_shape) == total


def test_what_cannot_be_built_is_explained() -> None:
    with pytest.raises(ModelError, match=r"28x28 -> 12x12 -> 4x4, and a 5x5 filter does not fit into 4x4"):
        models.cnn((1, 28, 28), 10, width=4, depth=3)
    with pytest.raises(ModelError, match="halves to nothing at layer 3"):
        models.mlp((2,), 1, width=2, depth=3)
    with pytest.raises(ModelError, match="needs images"):
        models.cnn((2,), 1, width=4, depth=1)
    with pytest.raises(ModelError, match="has data of its own, not"):
        models.quadratic((2,), 1)
    with pytest.raises(ModelError, match="needs larger images than 4x4"):
        models.build("deepobs-3c3d", (3, 4, 4), 10)
    with pytest.raises(ModelError, match="deepobs-mlp needs images"):
        models.build("deepobs-mlp", (784,), 10)
    with pytest.raises(ModelError, match="linear, mlp, cnn, quadratic"):
        models.build("rnn", (2,), 1)
