"""Output sizes, parameters and multiplications of the report's CNN, by its own formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.reproduction.claims import printed


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """The report's formula, (size - kernel + 2 padding) / stride + 1, rounded down; in pixels."""
    return (size - kernel + 2 * padding) // stride + 1


def layer_table(in_shape: Sequence[int], layers: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Shapes, parameters and multiplications of a CNN, layer by layer.

    `in_shape` is (channels, height, width) of an image. A layer's `kind` is convolution, pooling or dense. The first
    two have kernel, stride and padding; a convolution and a dense layer have `out`: channels or features.

    Returns:
        One row per layer: layer, channels, height, width (1 of a dense layer), parameters, multiplications of one
        forward pass of one image.
    """
    channels, height, width = in_shape
    rows, counts = [], dict.fromkeys(("convolution", "pooling", "dense"), 0)
    for layer in layers:
        kind = layer["kind"]
        counts[kind] += 1
        if kind == "dense":
            weights, height, width = channels * height * width * layer["out"], 1, 1
        else:
            kernel = layer["kernel"]
            height, width = (output_size(n, kernel, layer["stride"], layer["padding"]) for n in (height, width))
            weights = 0 if kind == "pooling" else layer["out"] * channels * kernel**2
        channels = layer.get("out", channels)
        parameters = weights + (0 if kind == "pooling" else channels)  # with biases
        rows.append((f"{kind} {counts[kind]}", channels, height, width, parameters, weights * height * width))
    return pd.DataFrame(rows, columns=["layer", "channels", "height", "width", "parameters", "multiplications"])


def shape_text(shape: Sequence[int]) -> str:
    """(channels, height, width) in the report's order, such as 24x24x4; of features alone their number."""
    return "x".join(map(str, [*shape[1:], shape[0]]))


def size_facts() -> dict[str, Any]:
    """The facts of the report's claims about sizes, which follow from its formula alone.

    `sizes` compares, at the report's two image sizes, its network with the same dense layers without the convolutions;
    in_place is how many times the multiplications of the first convolution a dense layer of as many outputs takes.
    """
    volume, colour = printed("mnist")["example_volume"], printed("mnist")["colour_inputs"]
    size, kernel = volume["input"], volume["filter"]
    network, sizes = printed("mnist")["layers"], []
    for shape in ((1, size, size), (colour["channels"], colour["side"], colour["side"])):
        ours = layer_table(shape, network)
        flat = layer_table(shape, [layer for layer in network if layer["kind"] == "dense"])
        first = ours.iloc[0]
        outputs = int(first["channels"] * first["height"] * first["width"])
        row = {"image": shape_text(shape), "in_place": math.prod(shape) * outputs / first["multiplications"]}
        for name in ("parameters", "multiplications"):
            row |= {name: int(ours[name].sum()), f"dense_{name}": int(flat[name].sum())}
        sizes.append(row)
    return {
        "without": output_size(size, kernel),
        "padding": next((p for p in range(kernel) if output_size(size, kernel, 1, p) == volume["output"]), None),
        "inputs": colour["side"] ** 2 * colour["channels"],
        "sizes": sizes,
        "larger": sum(row["dense_parameters"] > row["parameters"] for row in sizes),
        "dearer": sum(row["dense_multiplications"] > row["multiplications"] for row in sizes),
    }
