"""`study reproduce`: the source report's experiments, run as studies, and the page of its numbers beside ours.

Each experiment is some shipped specs (`specs/reproduce/`), run into OUT/EXPERIMENT/SPEC as any study is. What an
earlier call finished there with the same spec is taken as it is, and what it began goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from analysis import reproduction
from analysis.report import write_report
from analysis.reproduction import mnist
from analysis.reproduction.closed_forms import constant_step
from analysis.reproduction.page import folders_in
from analysis.reproduction.section import read_truth
from analysis.results import ResultsError
from study import search
from study.errors import InputError, SpecError, StorageError, UsageError
from study.results.provenance import read_provenance
from study.spec.model import Spec, read
from study.verify.parts import finish
from study.verify.reproduce_mnist import run_mnist
from trainables import data, models
from trainables.lanes.stack import batch_order, initialise
from trainables.storage import write_text

if TYPE_CHECKING:
    from study.progress.display import Show

EXPERIMENTS: dict[str, tuple[str, ...]] = {
    name: experiment.specs if experiment else () for name, experiment in reproduction.SECTIONS.items()
}
"""Experiment -> the specs that it runs, in the report's order; mnist runs its own (`study.verify.reproduce_mnist`)."""


@dataclass(frozen=True)
class Ended:
    """How a reproduction ended.

    Attributes:
        page: the page; None if there is nothing to show yet.
        interrupted: the study in which it was interrupted; empty if it was not.
    """

    page: Path | None
    interrupted: str


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
    """Run what is left of some experiments, then write the page of all that have been run.

    Args:
        out: the folder of all experiments; made if it is not there.
        only: names of `EXPERIMENTS`; all if empty.
        seeds: of every experiment, instead of its specs'.
        epochs: at most so many, to try the whole without its cost; verdicts then have nothing to go by.
        command: what the user ran, for the provenance.
        show: how studies show their progress.
        say: prints a line.

    Raises:
        StorageError: if the folder cannot be made.
        UsageError: if its page has longer runs of what is to be cut.
    """
    chosen = [name for name in EXPERIMENTS if not only or name in only]
    specs = {name: [sized(read(f"reproduce/{spec}"), seeds, epochs) for spec in EXPERIMENTS[name]] for name in chosen}
    _refuse_shorter([spec for own in specs.values() for spec in own], out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {out}", [f"cannot be made: {error.strerror}; give another folder"]) from error
    with search.one_ray() as on:
        parts = finish(
            [(spec, out / name) for name in chosen for spec in specs[name]], on, command=command, show=show, say=say
        )
        found = recorded(out)
        found |= {read(folder / "spec.toml").name: str(folder.relative_to(out)) for folder in parts.folders}
        for folder in found.values():
            _add_truth(read(out / folder / "spec.toml"), out / folder)
        write_text(out / reproduction.PARTS, json.dumps(found, indent=1) + "\n")
        if "layers" in found and ("layers" in chosen or not (out / found["layers"] / "report").exists()):
            try:
                write_report(out / found["layers"])
            except ResultsError as error:
                say(f"layers: without its ordinary report, {error}")
        cut = parts.interrupted
        if not cut and "mnist" in chosen:
            if epochs:
                say("mnist: left out, since it has no shorter form; leave --epochs away")
            else:
                try:
                    cut = run_mnist(out, on, seeds, command=command, show=show, say=say)
                except (ResultsError, InputError) as error:
                    say(f"mnist: cannot go on, {error}")
    anything = found or mnist.is_whole(out)
    return Ended(reproduction.write_page(out, command, say) if anything else None, cut)


def sized(spec: Spec, seeds: int | None, epochs: int | None) -> Spec:
    """A shipped spec with another number of seeds, and at most so many epochs.

    Where each trial draws its data anew, seeds are lanes x trials: no more lanes in a trial than the spec has, so that
    there are as many draws as it means.
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


def _refuse_shorter(specs: Sequence[Spec], out: Path) -> None:
    """Keep a run that is cut to try it out from taking the place of a longer one on the page."""
    there = recorded(out)
    for spec in specs:
        if spec.name not in there:
            continue
        before = read(out / there[spec.name] / "spec.toml").budget.epochs
        if before and spec.budget.epochs and spec.budget.epochs < before:
            mistake = f"{out} holds {spec.name} with {before} epochs, which its page would lose; give another --out"
            raise UsageError(f"--epochs {spec.budget.epochs}", [mistake])


def recorded(out: Path) -> dict[str, str]:
    """Spec name -> its results folder within `out`, of all that has been run there.

    What the list lacks, since it was damaged or a call was cut off, is looked for: of what has finished the longest,
    and of these the newest.
    """
    listed, found = folders_in(out), {}
    for experiment, specs in EXPERIMENTS.items():
        for name in specs:
            if name in listed and _named(out / listed[name], name):
                found[name] = listed[name]
                continue
            there = [file.parent for file in out.glob(f"{experiment}/{name}*/spec.toml")]
            done = {folder: spec.budget.epochs or 0 for folder in there if (spec := _named(folder, name))}
            ends = {folder: str(read_provenance(folder).get("finished") or "") for folder in done}
            if whole := [folder for folder in done if ends[folder]]:
                best = max(whole, key=lambda folder: (done[folder], ends[folder]))
                found[name] = str(best.relative_to(out))
    return found


def _named(folder: Path, name: str) -> Spec | None:
    """The spec of a results folder, if it can be read and has this name."""
    try:
        spec = read(folder / "spec.toml")
    except SpecError:
        return None
    return spec if spec.name == name else None


def _add_truth(spec: Spec, folder: Path) -> None:
    """Write what only the data's maker knows beside a study's tables: `truth.json`, one entry per draw of the data.

    A call that was cut off may have left it out, and it may be damaged; what is there and whole stays.
    """
    tell = {"linear-by-hand": by_hand, "linear": _coefficients, "cubic-linear": _plateau}.get(spec.name)
    if tell is None:
        return
    draws = [spec.lane_seeds(trial)[0] for trial in range(spec.budget.trials)]
    first, found = {"seed": draws[0], **tell(spec, draws[0])}, read_truth(folder)
    if [entry["seed"] for entry in found] == draws and all(_whole(entry, first) for entry in found):
        return
    told = [first, *({"seed": seed, **tell(spec, seed)} for seed in draws[1:])]
    write_text(folder / reproduction.TRUTH, json.dumps(told) + "\n")


def _whole(entry: dict[str, Any], like: dict[str, Any]) -> bool:
    """Whether an entry has what another has, and no NaN."""
    try:
        json.dumps(entry, allow_nan=False)
    except ValueError:
        return False
    return entry.keys() == like.keys() and all(type(entry[name]) is type(value) for name, value in like.items())


def _coefficients(spec: Spec, seed: int) -> dict[str, Any]:
    return {"coefficients": data.linear_coefficients(seed).tolist()}


def _plateau(spec: Spec, seed: int) -> dict[str, Any]:
    examples = data.load(spec.workload.data, seed=seed, dtype=torch.float64).train
    rate, _, _ = spec.rates("sgd")
    found = constant_step(examples.inputs.numpy(), examples.targets.numpy()[:, 0], rate)
    return {"floor": found.floor, "noise": found.noise}


def by_hand(spec: Spec, seed: int) -> dict[str, Any]:
    """One update of gradient descent on a squared error, without automatic differentiation.

    Args:
        spec: of the linear model.
        seed: of the draw of the data, of the initial parameters and of the order.

    Returns:
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
