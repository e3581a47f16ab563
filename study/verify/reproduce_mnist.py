"""Experiment 5 of the source report, its CNN on MNIST: runs the studies that `analysis.reproduction.mnist` reads.

`run_mnist(out, on)` writes everything below `out/mnist`; `run.json` comes last, when all has finished. The parts are
ordinary studies, the shipped spec `report-mnist` with other values:

    candidates-raw, candidates-standardized     gradient descent, without and with momentum, at five rates
    first-epoch-raw                             the other optimizers that the report names, given up after an epoch
    unrefuted-raw                               those of them that this has not refuted, to the end
    nearest-...                                 the candidates nearest to the printed losses, on fresh seeds

The report hides its optimizer and how its inputs are scaled. Its first epoch refutes what falls too early, but only the
later ones what falls too late. The nearest train again on as many seeds as cost no more than a few.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from analysis.reproduction.inference import candidates, kept, losses, ordered
from analysis.results import load
from study.spec.model import Spec, read
from study.verify.parts import finish
from trainables import data, models
from trainables.augment import Augment
from trainables.data import Data, Split
from trainables.lanes.stack import batch_order
from trainables.storage import write_text

if TYPE_CHECKING:
    from study.cluster.ray import Cluster
    from study.progress.display import Show

SPEC = "report-mnist"
PLAIN, ADAPTIVE = ["sgd", "momentum"], ["rmsprop", "adam"]
# Lanes that a compiled program of this network trains in the time of one.
LANES = 16
# Seeds of what an epoch has not refuted: of so few as before, one that comes to nothing and one that learns at once
# have everything between them.
UNREFUTED = 8
# Apart from the seeds on which candidates are picked.
FRESH = {"seed": 1}
AUGMENT: dict[str, Any] = {"rotate": 15.0, "translate": 0.1}
COPIES = 6
DIGITS = {"data": "digits", "model_args": {"kernel": 3, "padding": 1}}


@dataclass(frozen=True)
class Plan:
    """How long everything trains.

    Attributes:
        epoch_updates: updates in what the report calls an epoch: 60,000 images at batch size 4.
        every: updates whose losses are averaged into one.
        epochs: of the report.
    """

    epoch_updates: int = 15_000
    every: int = 2_000
    epochs: int = 3

    def budget(self, epochs: int, spec: Spec) -> dict[str, Any]:
        """The spec's budget for so many of these epochs; in updates where the data have other epochs."""
        batch_size = int(spec.search.batch_size.ends()[0])
        whole = self.epoch_updates * batch_size == spec.workload.facts.train
        return {"epochs": epochs} if whole else {"updates": epochs * self.epoch_updates}


def run_mnist(
    out: Path,
    on: Callable[[Spec], Cluster],
    seeds: int | None = None,
    *,
    plan: Plan | None = None,
    command: str = "",
    show: Show = "auto",
    say: Callable[[str], None] = print,
) -> str:
    """Run the experiment, or what is left of it.

    Args:
        out: the reproduction's folder; everything goes below `out/mnist`.
        on: of `search.one_ray`.
        seeds: of each candidate, at least; the spec's three if not given.
        plan: how long everything trains; as long as the report if not given.
        command: what the user ran.
        show: see `study.progress.display.Show`.
        say: prints a line.

    Returns:
        The name of the study in which it was interrupted; empty if it was not.
    """
    plan, folder = plan or Plan(), out / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    name, why = _data_set()
    loaded = data.load(name, data.data_folder().absolute(), standardize=False)
    base: dict[str, Any] = DIGITS if name == "digits" else {}
    lanes = {} if seeds is None else {"seeds": seeds}

    def part(title: str, inputs: str, epochs: int, changes: Mapping[str, Any]) -> tuple[Spec, Path]:
        workload = {"workload": base | {"standardize": inputs == "standardized"}}
        spec = read(SPEC, workload | dict(changes))
        budget = plan.budget(epochs, spec) | {"trials": len(spec.search.optimizers())}
        spec = read(SPEC, workload | dict(changes) | {"budget": budget})
        return spec.model_copy(update={"name": f"{title}-{inputs}"}), folder

    # Adaptive rules divide by the gradient's size, so the inputs' scale is little to them, and they are soon refuted.
    screen = [
        part(title, inputs, epochs, {"search": {"optimizer": optimizers}, "lanes": lanes})
        for title, inputs, epochs, optimizers in (
            ("candidates", "raw", plan.epochs, PLAIN),
            ("candidates", "standardized", plan.epochs, PLAIN),
            ("first-epoch", "raw", 1, ADAPTIVE),
        )
    ]
    screened = finish(screen, on, command=command, show=show, say=say)
    if screened.interrupted:
        return screened.interrupted
    frames = [losses(load(own), plan.every, plan.epoch_updates) for own in screened.folders]
    early, again = candidates(frames[-1]), []
    if (left := early["fits"]).any():
        low, high = early.loc[left, "learning_rate"].min(), early.loc[left, "learning_rate"].max()
        grid = {"low": low, "high": high, "count": 1 + round(2 * math.log10(high / low))}
        optimizers = ordered(early.loc[left, "optimizer"])
        unrefuted = {
            "search": {"optimizer": optimizers},
            "lanes": {"seeds": max(seeds or 1, UNREFUTED), "learning_rate": grid},
        }
        again.append(part("unrefuted", "raw", plan.epochs, unrefuted))
    for inputs, optimizers, rates in kept(frames):
        grid = {"low": rates[0], "high": rates[-1], "count": len(rates)}
        fresh = max(seeds or 1, LANES // len(rates))
        changes = {
            "search": {"optimizer": optimizers},
            "lanes": {"learning_rate": grid, "seeds": fresh},
            "tuning": FRESH,
        }
        again.append(part("nearest", inputs, plan.epochs, changes))
    further = finish(again, on, command=command, show=show, say=say)
    if not further.interrupted:
        _network(read(SPEC, {"workload": base}), loaded, folder)
        _images(loaded, folder)
        told = {"data": name, "why": why, "augment": AUGMENT, "every": plan.every, "epoch_updates": plan.epoch_updates}
        nearest = [own.name for own in further.folders if own.name.startswith("nearest")]
        told["screened"] = [own.name for own in [*screened.folders, *further.folders] if own.name not in nearest]
        told["nearest"] = nearest
        _write(folder / "run.json", told)
    return further.interrupted


def _data_set() -> tuple[str, str]:
    """mnist, or digits and why."""
    try:
        data.load("mnist", data.data_folder().absolute(), standardize=False)
    except data.DataError as error:
        return "digits", str(error).split(", and ")[0]
    return "mnist", ""


def _network(spec: Spec, loaded: Data, folder: Path) -> None:
    """Write the layers as torch has them: settings, shape of the output, parameters."""
    width, depth = (int(dimension.ends()[0]) for dimension in (spec.search.width, spec.search.depth) if dimension)
    arguments = spec.workload.arguments()
    network = models.cnn(loaded.in_shape, loaded.out_features, width=width, depth=depth, **arguments)
    layers, x = [], torch.zeros(1, *loaded.in_shape)
    for layer in network:
        with torch.no_grad():
            x = layer(x)
        found = {"shape": list(x.shape[1:]), "parameters": sum(p.numel() for p in layer.parameters())}
        if isinstance(layer, nn.Conv2d):
            sizes = {"kernel": layer.kernel_size[0], "stride": layer.stride[0], "padding": int(layer.padding[0])}
            layers.append({"kind": "convolution", "out": layer.out_channels, **sizes, **found})
        elif isinstance(layer, nn.MaxPool2d):
            layers.append({"kind": "pooling", "kernel": 2, "stride": 2, "padding": 0, **found})
        elif isinstance(layer, nn.Linear):
            layers.append({"kind": "dense", "out": layer.out_features, **found})
    _write(folder / "network.json", {"in_shape": list(loaded.in_shape), "layers": layers})


def _images(loaded: Data, folder: Path) -> None:
    """Write the first batch of seed 0, the same augmented, and the test images: bytes, (..., height, width)."""
    rows = batch_order(0, 0, len(loaded.train))[:4]
    batch = Split(loaded.train.inputs[rows], loaded.train.targets[rows])
    copies = batch.inputs.repeat_interleave(COPIES, 0)
    changed = Augment(**AUGMENT)(copies, Augment.draw(0, len(copies))).unflatten(0, (len(rows), COPIES))
    changed[:, 0] = batch.inputs
    np.savez_compressed(
        folder / "images.npz",
        batch=_bytes(batch.inputs),
        batch_labels=batch.targets.numpy(),
        augmented=_bytes(changed),
        test=_bytes(loaded.test.inputs),
        test_labels=loaded.test.targets.numpy(),
    )


def _bytes(images: torch.Tensor) -> np.ndarray:
    """(..., 1, height, width) from 0 to 1 -> (..., height, width) from 0 to 255."""
    return (images[..., 0, :, :] * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _write(file: Path, content: Mapping[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=1) + "\n")
