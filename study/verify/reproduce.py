"""`study reproduce`: runs the source report's experiments as studies, and writes the page of its numbers beside ours.

Each experiment is some shipped specs (`reproduce/...`), run into OUT/EXPERIMENT/SPEC as any study is. Studies that an
earlier call finished there with the same spec are used again, those that it began are resumed. The CNN's (mnist) are
made here from the spec `report-mnist`; `analysis.reproduction.mnist` lists its files, of which `run.json` comes last.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from analysis import reproduction
from analysis.report.page import write_report
from analysis.reproduction.closed_forms import constant_step
from analysis.reproduction.inference import candidates, kept, losses, ordered
from analysis.reproduction.page import run_of, specs_of
from analysis.results import load, read_provenance
from analysis.schema import ResultsError
from study import api
from study.cluster import ray
from study.cluster.ray import Cluster
from study.errors import InputError, SpecError, StorageError, UsageError
from study.progress.display import Show
from study.session import run_session, stoppable
from study.spec import Spec, read, recorded
from study.spec.changes import fixed_settings
from trainables.errors import DataError
from trainables.lanes.seeds import batch_order, initialise
from trainables.storage import data_folder, write_text
from trainables.workloads import data, models
from trainables.workloads.augment import Augment
from trainables.workloads.data import Data, Split

EXPERIMENTS: dict[str, list[str]] = {name: specs_of(name) for name in reproduction.EXPERIMENTS}
"""Experiment -> the specs that it runs, in the report's order."""

MNIST = "report-mnist"
PLAIN, ADAPTIVE = ["sgd", "momentum"], ["rmsprop", "adam"]
# Lanes that a compiled program of this network trains in the time of one.
LANES = 16
# Seeds of candidates that fit the first epoch. Of fewer, one that never learns and one that learns at once can have
# every printed loss between them.
UNREFUTED = 8
KINDS: dict[type[nn.Module], str] = {nn.Conv2d: "convolution", nn.MaxPool2d: "pooling", nn.Linear: "dense"}
AUGMENT: dict[str, Any] = {"rotate": 15.0, "translate": 0.1}
COPIES = 6


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

        Returns the results folders of those that have finished, in order, and the name of the one that was interrupted.
        """
        places, whole, interrupted = [(spec, parent, *place(spec, parent)) for spec, parent in studies], [], ""
        for spec, _, _, finished in places:
            if not finished:
                api.download(spec)
        for spec, parent, folder, finished in places:
            if finished:
                self.say(f"{parent.name}: {spec.name} is done already, in {folder}")
            elif not interrupted:
                where = folder.absolute(), data_folder()
                outcome = run_session(spec, *where, self.ray(spec), self.command, show=self.show)
                finished, interrupted = not outcome.interrupted, spec.name if outcome.interrupted else ""
            whole += [folder] * finished
        return whole, interrupted


def place(spec: Spec, parent: Path) -> tuple[Path, bool]:
    """Where a study runs: the first of NAME, NAME-2 ... that holds no other spec; and whether it has finished there.

    A folder whose spec cannot be read is left as it is.
    """

    def key(spec: Spec) -> Any:
        return fixed_settings(spec), spec.budget.trials, spec.confirm

    for number in itertools.count(1):
        folder = parent / (spec.name if number == 1 else f"{spec.name}-{number}")
        if not (folder / "spec.toml").is_file():
            return folder, False
        with suppress(SpecError):
            if key(recorded(folder)) == key(spec):
                return folder, bool(read_provenance(folder).get("finished"))
    raise AssertionError("unreachable")


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

    With fewer epochs most claims are not checked. A `UsageError` if the folder holds longer runs than are asked for.
    """
    chosen = [name for name in EXPERIMENTS if not only or name in only]
    studies = [
        (sized(read(f"reproduce/{spec}"), seeds, epochs), out / name) for name in chosen for spec in EXPERIMENTS[name]
    ]
    for spec, parent in studies:
        _refuse_shorter(spec, parent)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {out}", f"cannot be created: {error.strerror}; give another folder") from error
    with ExitStack() as stack:
        runner = Runner(stack, command, show, say)
        finished, interrupted = runner.finish(studies)
        for folder in finished:
            _add_truth(recorded(folder), folder)
            if folder.parent.name == "layers":
                try:
                    write_report(folder)
                except ResultsError as error:
                    say(f"layers: its study report could not be written: {error}")
        if "mnist" in chosen and not interrupted:
            if epochs:
                say("mnist: left out, because it has no shorter form; run it without --epochs")
            else:
                try:
                    interrupted = run_mnist(out, runner, seeds)
                except (ResultsError, InputError) as error:
                    say(f"mnist: cannot be resumed, {error}")
    return Ended(reproduction.write_page(out, command, say), interrupted)


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


def _refuse_shorter(spec: Spec, parent: Path) -> None:
    """Raise UsageError if the page has a longer run of the spec: this one would not be shown."""
    try:
        there = run_of(parent.parent, parent.name, spec.name)
    except ValueError:  # damaged; the page says so
        return
    if there and spec.budget.epochs and spec.budget.epochs < there[1]:
        mistake = f"{parent.parent} holds {spec.name} with {there[1]} epochs, which its page shows; give another --out"
        raise UsageError(f"--epochs {spec.budget.epochs}", mistake)


def _add_truth(spec: Spec, folder: Path) -> None:
    """Write `truth.json` beside a study's tables: facts about each draw of the data that only its generator knows."""
    tell = {"linear-by-hand": by_hand, "linear": _coefficients, "cubic-linear": _plateau}.get(spec.name)
    if tell is None:
        return
    draws = [spec.lane_seeds(trial)[0] for trial in range(spec.budget.trials)]
    truth = [{"seed": seed, **tell(spec, seed)} for seed in draws]
    write_text(folder / reproduction.TRUTH, json.dumps(truth) + "\n")


def _coefficients(spec: Spec, seed: int) -> dict[str, Any]:
    return {"coefficients": data.linear_coefficients(seed).tolist()}


def _plateau(spec: Spec, seed: int) -> dict[str, Any]:
    examples = data.load(spec.workload.data, seed=seed, dtype=torch.float64).train
    rate, _, _ = spec.rates("sgd")
    fit = constant_step(examples.inputs.numpy(), examples.targets.numpy()[:, 0], rate)
    return {"floor": fit.floor, "noise": fit.noise}


def by_hand(spec: Spec, seed: int) -> dict[str, Any]:
    """One update of gradient descent on a squared error, without automatic differentiation.

    The observation (x, y), the parameters before (10 weights, then the bias), prediction, gradient and parameters
    after, all by the formulas: for (prediction - y)^2 the gradient is 2 (prediction - y) (x, 1).
    """
    examples = data.load(spec.workload.data, seed=seed, dtype=torch.float64)
    network = initialise(partial(models.build, "linear", examples.in_shape, 1), seed)
    before = np.concatenate([p.detach().double().numpy().ravel() for p in network.parameters()])
    row = int(batch_order(seed, 0, len(examples.train))[0])
    x, y = examples.train.inputs[row].numpy(), float(examples.train.targets[row, 0])
    prediction = float(x @ before[:-1] + before[-1])
    gradient = 2 * (prediction - y) * np.append(x, 1.0)
    rate, _, _ = spec.rates("sgd")
    numbers = {"x": x, "before": before, "gradient": gradient, "after": before - rate * gradient}
    return {"y": y, "prediction": prediction, **{name: values.tolist() for name, values in numbers.items()}}


@dataclass(frozen=True)
class Plan:
    """How long the CNN trains."""

    epoch_updates: int = 15_000  # updates in the report's epoch: 60,000 images at batch size 4
    every: int = 2_000  # updates whose losses are averaged into one
    epochs: int = 3  # of the report

    def budget(self, epochs: int, spec: Spec) -> dict[str, Any]:
        """The spec's budget for that many of the report's epochs; in updates where the data have other epochs."""
        batch_size = int(spec.search.batch_size.ends()[0])
        whole = self.epoch_updates * batch_size == spec.workload.facts.train
        return {"epochs": epochs} if whole else {"updates": epochs * self.epoch_updates}


def run_mnist(out: Path, runner: Runner, seeds: int | None = None, plan: Plan | None = None) -> str:
    """Run the report's CNN, whose optimizer and input scale are unknown, as studies below `out/mnist`.

    All candidates train first; the adaptive optimizers for one epoch, which refutes those whose loss falls too early.
    Those that fit it train on, and the candidates nearest to the printed losses train again on fresh seeds, as many as
    cost no more than a few. Returns the name of the study in which it was interrupted, or an empty text.
    """
    plan, folder = plan or Plan(), out / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    name, why = "mnist", ""
    try:
        data.load(name, data_folder().absolute(), standardize=False)
    except DataError as error:
        name, why = "digits", str(error).split(", and ")[0]
    base = {} if name == "mnist" else {"data": name, "model_args": {"kernel": 3, "padding": 1}}

    def part(
        title: str, inputs: str, epochs: int, optimizers: list[str], lanes: dict[str, Any], fresh: bool = False
    ) -> tuple[Spec, Path]:
        changes: dict[str, Any] = {
            "workload": base | {"standardize": inputs == "standardized"},
            "search": {"optimizer": optimizers},
            "lanes": lanes,
            "tuning": {"seed": 1} if fresh else {},
        }
        budget = plan.budget(epochs, read(MNIST, changes)) | {"trials": len(optimizers)}
        spec = read(MNIST, changes | {"budget": budget})
        return spec.model_copy(update={"name": f"{title}-{inputs}"}), folder

    lanes = {} if seeds is None else {"seeds": seeds}
    # Adaptive rules divide by the gradient's size, so the inputs' scale matters little to them.
    screen = [part("candidates", inputs, plan.epochs, PLAIN, lanes) for inputs in ("raw", "standardized")]
    screened, interrupted = runner.finish([*screen, part("first-epoch", "raw", 1, ADAPTIVE, lanes)])
    if interrupted:
        return interrupted
    frames = [losses(load(own), plan.every, plan.epoch_updates) for own in screened]
    again = []
    early = candidates(frames[-1])
    if len(early := early[early["fits"]]):
        grid = _grid(early["learning_rate"])
        again.append(
            part(
                "unrefuted",
                "raw",
                plan.epochs,
                ordered(early["optimizer"]),
                grid | {"seeds": max(seeds or 1, UNREFUTED)},
            )
        )
    for inputs, optimizers, rates in kept(frames):
        fresh = {"seeds": max(seeds or 1, LANES // len(rates))}
        again.append(part("nearest", inputs, plan.epochs, optimizers, _grid(rates, len(rates)) | fresh, fresh=True))
    further, interrupted = runner.finish(again)
    if not interrupted:
        nearest = [own.name for own in further if own.name.startswith("nearest")]
        facts = {"data": name, "why": why, "augment": AUGMENT, "every": plan.every, "epoch_updates": plan.epoch_updates}
        facts |= {
            "nearest": nearest,
            "screened": [own.name for own in [*screened, *further] if own.name not in nearest],
        }
        loaded = data.load(name, data_folder().absolute(), standardize=False)
        _write_images(loaded, folder)
        network = _network(read(MNIST, {"workload": base}), loaded)
        for file, content in (("network.json", network), ("run.json", facts)):
            write_text(folder / file, json.dumps(content, indent=1) + "\n")
    return interrupted


def _grid(rates: Collection[float], count: int = 0) -> dict[str, Any]:
    """A grid over some rates: that many, or two a decade."""
    low, high = min(rates), max(rates)
    return {"learning_rate": {"low": low, "high": high, "count": count or 1 + round(2 * math.log10(high / low))}}


def _network(spec: Spec, loaded: Data) -> dict[str, Any]:
    """The layers of the network as torch has them: settings, shape of the output, parameters."""
    width, depth = (int(dimension.ends()[0]) for dimension in (spec.search.width, spec.search.depth) if dimension)
    network = models.cnn(loaded.in_shape, loaded.out_features, width=width, depth=depth, **spec.workload.arguments())
    layers, x = [], torch.zeros(1, *loaded.in_shape)
    for layer in network:
        with torch.no_grad():
            x = layer(x)
        if kind := KINDS.get(type(layer)):
            settings = {name: getattr(layer, name, 0) for name in ("kernel_size", "stride", "padding")}
            sizes = {name: value[0] if isinstance(value, tuple) else value for name, value in settings.items()}
            shape, parameters = list(x.shape[1:]), sum(p.numel() for p in layer.parameters())
            layers.append({"kind": kind, "out": shape[0], "kernel": sizes.pop("kernel_size"), **sizes, "shape": shape,
                           "parameters": parameters})  # fmt: skip
    return {"in_shape": list(loaded.in_shape), "layers": layers}


def _write_images(loaded: Data, folder: Path) -> None:
    """Write the first batch of seed 0, the same augmented, and the test images: bytes, (..., height, width)."""

    def pixels(images: torch.Tensor) -> np.ndarray:
        return (images[..., 0, :, :] * 255).round().clamp(0, 255).to(torch.uint8).numpy()

    rows = batch_order(0, 0, len(loaded.train))[:4]
    batch = Split(loaded.train.inputs[rows], loaded.train.targets[rows])
    copies = batch.inputs.repeat_interleave(COPIES, 0)
    changed = Augment(**AUGMENT)(copies, Augment.draw(0, len(copies))).unflatten(0, (len(rows), COPIES))
    changed[:, 0] = batch.inputs
    np.savez_compressed(
        folder / "images.npz",
        batch=pixels(batch.inputs),
        batch_labels=batch.targets.numpy(),
        augmented=pixels(changed),
        test=pixels(loaded.test.inputs),
        test_labels=loaded.test.targets.numpy(),
    )
