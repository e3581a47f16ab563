"""`study reproduce`: runs the source report's experiments as studies, and writes the page of its numbers beside ours.

Each experiment is some shipped specs (`reproduce/...`), run into OUT/EXPERIMENT/SPEC as any study is. Studies that have
finished there are used again, those that were interrupted are resumed. The CNN's (mnist) are made here from the spec
`report-mnist`; `analysis.reproduction.mnist` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from analysis import reproduction
from analysis.report.page import write_report
from analysis.reproduction.claims import asked, printed
from analysis.reproduction.closed_forms import ConstantStep, constant_step
from analysis.reproduction.inference import INPUTS, OPTIMIZERS, candidates, kept, losses, ordered
from analysis.reproduction.page import specs_of
from analysis.results import load, read_provenance
from analysis.schema import ResultsError
from study import api
from study.cluster import ray
from study.cluster.ray import Cluster
from study.errors import InputError, StorageError
from study.progress.display import Show
from study.session import run_session, stoppable
from study.spec import Spec, read, recorded
from trainables.errors import DataError
from trainables.lanes.seeds import batch_order, initialise
from trainables.storage import data_folder
from trainables.workloads import data, models
from trainables.workloads.augment import Augment
from trainables.workloads.data import Split

EXPERIMENTS = list(reproduction.EXPERIMENTS)
MNIST = "report-mnist"
# Lanes that a compiled program of this network trains in the time of one.
LANES = 16
# Seeds of candidates that fit the first epoch. Of fewer, one that never learns and one that learns at once can have
# every printed loss between them.
UNREFUTED = 8


class Ended(NamedTuple):
    """The page, if there is anything to show, and the study that was interrupted, if any."""

    page: Path | None
    interrupted: str


@dataclass(frozen=True)
class Runner:
    """Runs studies that belong together on one Ray of this machine, which starts with the first of them."""

    stack: ExitStack  # ends Ray
    command: str = ""
    show: Show = "auto"
    say: Callable[[str], None] = print
    started: list[Cluster] = field(default_factory=list)

    def ray(self, spec: Spec) -> Cluster:
        """The Ray of all studies."""
        if not self.started:
            self.stack.enter_context(stoppable())
            self.started.append(self.stack.enter_context(ray.connected(spec, None)))
            self.stack.enter_context(stoppable())  # Ray sets signal handlers of its own
        return self.started[0]

    def finish(self, studies: Sequence[tuple[Spec, Path]]) -> tuple[list[Path], str]:
        """Run or resume studies until one is interrupted, each with the parent of its results folder.

        Returns the results folders of those that have finished, in order, and the name of the one that was interrupted;
        StorageError, before any runs, if a folder holds a study with other settings.
        """
        places = [(spec, parent / spec.name) for spec, parent in studies]
        done = {folder: is_done(spec, folder) for spec, folder in places}
        for spec, folder in places:
            if not done[folder]:
                api.download(spec)
        for spec, folder in places:
            if done[folder]:
                self.say(f"{folder.parent.name}: {spec.name} is done already, in {folder}")
                continue
            where = folder.absolute(), data_folder()
            if run_session(spec, *where, self.ray(spec), self.command, show=self.show).interrupted:
                return [each for each in done if done[each]], spec.name
            done[folder] = True
        return list(done), ""


def is_done(spec: Spec, folder: Path) -> bool:
    """Whether a study has finished in its folder; StorageError if that holds one with other settings."""
    if not (folder / "spec.toml").is_file():
        return False
    api.require_same(spec, folder)
    return bool(read_provenance(folder).get("finished")) and recorded(folder).budget.trials >= spec.budget.trials


def run(
    out: Path,
    *,
    only: Collection[str] = (),
    seeds: int | None = None,
    epochs: int | None = None,
    command: str = "",
    show: Show = "auto",
    say: Callable[[str], None] = print,
) -> Ended:
    """Run what is left of some experiments, all if `only` is empty, then write the page of all that have been run.

    With fewer epochs most claims are not checked. A `StorageError` if the folder holds runs of another size.
    """
    chosen = [name for name in EXPERIMENTS if not only or name in only]
    shipped = [(name, spec) for name in chosen if name != "mnist" for spec in specs_of(name)]
    studies = [(sized(read(f"reproduce/{spec}"), seeds, epochs), out / name) for name, spec in shipped]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {out}", f"cannot be created: {error.strerror}; give another folder") from error
    with ExitStack() as stack:
        runner = Runner(stack, command, show, say)
        finished, interrupted = runner.finish(studies)
        for folder in finished:
            if folder.parent.name == "layers":
                write_report(folder)
        if "mnist" in chosen and epochs:
            say("mnist: left out, because it has no shorter form; run it without --epochs")
        elif "mnist" in chosen and not interrupted:
            try:
                interrupted = run_mnist(out, runner, seeds)
            except (ResultsError, InputError, DataError) as error:
                say(f"mnist: left out, {error}")
    return Ended(reproduction.write_page(out, TRUTH, command, say), interrupted)


def sized(spec: Spec, seeds: int | None, epochs: int | None) -> Spec:
    """A shipped spec with another number of seeds, and at most as many epochs.

    Where each trial draws its own data, seeds are lanes x trials, with at most as many lanes in a trial as in the spec,
    so that the number of draws is kept.
    """
    budget, lanes, confirm = spec.budget, spec.lanes, spec.confirm
    if seeds is not None and spec.workload.redraw:
        each = max(count for count in range(1, lanes.seeds + 1) if seeds % count == 0)
        lanes = lanes.model_copy(update={"seeds": each})
        budget = budget.model_copy(update={"trials": seeds // each})
    elif seeds is not None:
        lanes = lanes.model_copy(update={"seeds": seeds})
        confirm = confirm and confirm.model_copy(update={"seeds": max(2, seeds)})
    if epochs is not None and budget.epochs is not None:
        budget = budget.model_copy(update={"epochs": min(epochs, budget.epochs)})
    return spec.model_copy(update={"budget": budget, "lanes": lanes, "confirm": confirm})


def run_mnist(out: Path, runner: Runner, seeds: int | None = None, workload: Mapping[str, Any] | None = None) -> str:
    """Run the report's CNN, whose optimizer and input scale are unknown, as studies below `out/mnist`.

    All candidates train first; the adaptive optimizers for one epoch, which refutes those whose loss falls too early.
    Those that fit it train on, and the candidates nearest to the printed losses train again on fresh seeds, as many as
    cost no more than a few. `workload` replaces settings of the spec's. Returns the name of the study in which it was
    interrupted, or an empty text; DataError if there is no MNIST.
    """

    def part(
        title: str, inputs: str, epochs: int, optimizers: Sequence[str], lanes: Mapping[str, Any], fresh: bool = False
    ) -> tuple[Spec, Path]:
        changes: dict[str, Any] = {
            "workload": {**(workload or {}), "standardize": inputs == "standardized"},
            "search": {"optimizer": list(optimizers)},
            "lanes": lanes,
            "tuning": {"seed": 1} if fresh else {},
            "budget": {"epochs": epochs, "trials": len(optimizers)},
        }
        return read(MNIST, changes).model_copy(update={"name": f"{title}-{inputs}"}), out / "mnist"

    plain, adaptive, epochs = OPTIMIZERS[:2], OPTIMIZERS[2:], printed("mnist")["epochs"]
    lanes = {} if seeds is None else {"seeds": seeds}
    # Adaptive rules divide by the gradient's size, so the inputs' scale matters little to them.
    screen = [part("candidates", inputs, epochs, plain, lanes) for inputs in INPUTS]
    screened, interrupted = runner.finish([*screen, part("first-epoch", "raw", 1, adaptive, lanes)])
    if interrupted:
        return interrupted
    frames = [losses(load(own)) for own in screened]
    again = []
    early = candidates(frames[-1])
    if len(early := early[early["fits"]]):
        further = _grid(early["learning_rate"]) | {"seeds": max(seeds or 1, UNREFUTED)}
        again.append(part("unrefuted", "raw", epochs, ordered(early["optimizer"]), further))
    for inputs, optimizers, rates in kept(frames):
        fresh = _grid(rates, len(rates)) | {"seeds": max(seeds or 1, LANES // len(rates))}
        again.append(part("nearest", inputs, epochs, optimizers, fresh, fresh=True))
    return runner.finish(again)[1]


def _grid(rates: Collection[float], count: int = 0) -> dict[str, Any]:
    """A grid over some rates: that many, or two a decade."""
    low, high = min(rates), max(rates)
    return {"learning_rate": {"low": low, "high": high, "count": count or 1 + round(2 * math.log10(high / low))}}


def by_hand(seed: int) -> dict[str, Any]:
    """One update of gradient descent on a squared error, without automatic differentiation.

    Of one draw of the data: the observation (x, the last 1 for the bias; y), the parameters before (10 weights, then
    the bias), gradient and parameters after, all by the formulas: for (prediction - y)^2 the gradient is
    2 (prediction - y) (x, 1).
    """
    examples = data.load("linear", seed=seed, dtype=torch.float64)
    network = initialise(partial(models.build, "linear", examples.in_shape, 1), seed)
    before = np.concatenate([p.detach().double().numpy().ravel() for p in network.parameters()])
    row = int(batch_order(seed, 0, len(examples.train))[0])
    x, y = np.append(examples.train.inputs[row].numpy(), 1.0), float(examples.train.targets[row, 0])
    gradient = 2 * (float(x @ before) - y) * x
    after = before - printed("linear")["by_hand"]["learning_rate"] * gradient
    return {"x": x, "y": y, "before": before, "gradient": gradient, "after": after}


def plateau(seed: int) -> ConstantStep:
    """Where SGD on one draw of the cubic data stalls."""
    examples = data.load("cubic", seed=seed, dtype=torch.float64).train
    rate = printed("cubic-linear")["learning_rate"]
    return constant_step(examples.inputs.numpy(), examples.targets.numpy()[:, 0], rate)


def pictures(name: str = "mnist") -> dict[str, Any]:
    """The first batch of seed 0, the same augmented, the test images, and the network's layers as torch makes them.

    Images are bytes, (..., height, width); layers are pairs of their output's shape and number of parameters.
    """

    def pixels(images: torch.Tensor) -> np.ndarray:
        return (images[..., 0, :, :] * 255).round().clamp(0, 255).to(torch.uint8).numpy()

    loaded = data.load(name, data_folder().absolute(), standardize=False)
    rows = batch_order(0, 0, len(loaded.train))[: printed("mnist")["batch_size"]]
    batch, copies = Split(loaded.train.inputs[rows], loaded.train.targets[rows]), asked("mnist")["copies"]
    repeated = batch.inputs.repeat_interleave(1 + copies, 0)
    change = Augment(**asked("mnist")["augment"])
    changed = change(repeated, Augment.draw(0, len(repeated))).unflatten(0, (len(rows), 1 + copies))
    changed[:, 0] = batch.inputs
    layers, x = [], torch.zeros(1, 1, 28, 28)
    for layer in models.cnn((1, 28, 28), 10, width=4, depth=2):
        x = layer(x).detach()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.Linear):
            layers.append((list(x.shape[1:]), sum(p.numel() for p in layer.parameters())))
    return {
        "batch": pixels(batch.inputs),
        "batch_labels": batch.targets.numpy(),
        "augmented": pixels(changed),
        "test": pixels(loaded.test.inputs),
        "layers": layers,
    }


TRUTH: dict[str, Callable[..., Any]] = {
    "linear-by-hand": by_hand,
    "linear": data.linear_coefficients,
    "cubic-linear": plateau,
    "mnist": pictures,
}
"""What the page needs beside the studies' results, as `analysis.reproduction.claims.Truth`."""
