"""`study check`: the cells, lanes, memory and time of a spec before it runs, measured on a few updates."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from analysis.schema import regime
from analysis.text import counted, duration
from study.cluster import packing
from study.cluster.build import builder, criterion, lanes
from study.cluster.build import rule as rule_of
from study.results.confirm import cost, most_winners
from study.spec import Spec
from study.spec.changes import planned_trials
from study.spec.dimensions import Choice
from study.spec.given import GivenCell
from study.spec.model import part
from study.tuning import warm_start
from study.tuning.schedulers import REDUCTION
from trainables import config
from trainables.engines.base import Engine
from trainables.engines.choose import choose
from trainables.engines.kernel.build import unavailable
from trainables.engines.memory import fitting, lane_bytes
from trainables.lanes import equality
from trainables.lanes.batches import Batches
from trainables.lanes.cost import update_seconds
from trainables.lanes.evaluate import TRAIN_SUBSET, EvaluationTimes
from trainables.lanes.stack import Stack
from trainables.lanes.train import advance
from trainables.storage import data_folder
from trainables.usercode.importing import UserCodeError, is_import_path, is_own
from trainables.usercode.vmap_support import TRIED_EXAMPLES
from trainables.workloads import data, models
from trainables.workloads.adapting import LIBRARIES, Named, own_call
from trainables.workloads.data import Data, Split

# A probe times updates for this long. Batches whose forward pass of all lanes has more multiplications than this are
# cut, to no fewer examples than this, and the time is scaled to the batch size.
PROBE_SECONDS = 0.2
PROBE_UPDATES = 1000  # of a schedule, on whose values times do not depend
PROBE_MULTIPLICATIONS, PROBE_EXAMPLES = 1e8, 256
# Relative; rounding compounded over so few updates stays far below.
LANE_EQUALITY = {"float64": 1e-8, "float32": 1e-3}


@dataclass(frozen=True)
class Probe:
    """A cell at a corner of the space, tried briefly on this machine's CPU with random data."""

    batch_size: int  # examples per update
    updates: int  # per lane
    seconds: float  # of the whole trial, evaluation included
    memory_bytes: int  # parameters, gradients, the rule's buffers, one block's activations, and the data
    engine: str  # of such a trial on a CPU
    at_once: int  # lanes in a pass
    small: bool  # whether it trains without a GPU if `resources.cpu_nodes` is true


def probed(spec: Spec) -> list[Probe]:
    """Probes of the cells at the corners of the space."""
    return [probe(spec, *corner) for corner in spec.corners()]


def describe(spec: Spec, probes: list[Probe]) -> str:
    """The plan of a valid spec as some lines of text, with the measurements of `probed`."""
    facts, trials = spec.workload.facts, planned_trials(spec)
    scheduler = "no scheduler" if spec.tuning.scheduler == "none" else f"{spec.tuning.scheduler} scheduler"
    lane_count = len(lanes(spec, _heaviest(spec)))
    rows = [
        ("data", f"{spec.workload.data}: {facts.about}"),
        ("", _examples_in_words(spec)),
        *model_call(spec),
        ("cells", _cells(spec)),
        ("trials", f"{trials:,}, {spec.tuning.sampler} sampler, {scheduler}"),
        *([("", f"none begins after timeout = {spec.tuning.timeout}")] if spec.tuning.timeout else []),
        *([("", f"the sampler knows {_known(spec)}")] if spec.tuning.warm_start else []),
        *(("", f"first {_written(each)}") for each in spec.enqueue),
        *zip(itertools.chain(["lanes"], itertools.repeat("")), _lane_rows(spec), strict=False),
    ]
    for size in sorted({p.batch_size for p in probes}):
        rows.append(("", f"batch size {size:,} ({regime(size, facts.train)}): {_budget(spec, size)}"))
    if spec.confirm:
        best = f"the {spec.confirm.top} best cells, and the best of each optimizer and regime"
        rows.append(("confirm", f"{best}: at most {most_winners(spec)}, each on {spec.confirm.seeds} fresh seeds"))
        several = len(spec.search.optimizers()) > 1
        if spec.confirm.looks > 1 and (several or spec.baseline):
            whom = "contenders, until one wins" if several else "the optimizer and its baselines, until told apart"
            more = f"{spec.confirm.looks - 1} times {spec.confirm.seeds} more for {whom}"
            rows.append(
                ("", f"then up to {more}: {spec.confirm.looks} looks, each at p < {0.05 / spec.confirm.looks:.2g}")
            )
    for one in spec.baseline:
        recipe = "".join(f", {name.replace('_', ' ')} {value}" for name, value in one.recipe().items())
        rows.append(("", f'baseline "{one.name}": {_written(one)} at learning rate {one.learning_rate:g}{recipe}'))
    fewest = min(p.at_once for p in probes)
    if fewest < lane_count:
        rows.append(("", f"in passes of {fewest} if memory does not hold all"))
    engines = sorted({p.engine for p in probes})
    rows.append(("engine", " or ".join(engines) + (", depending on the trial" if len(engines) > 1 else "")))
    if why := unavailable():
        rows.append(("", f"no native kernel on this machine ({why}): training on its CPUs is several times slower"))
    if spec.resources.cpu_nodes:
        small = sum(p.small for p in probes)
        rows.append(
            ("devices", f"{small} of {len(probes)} cells at the corners of the space are small and train on CPUs alone")
        )
    memory = max(p.memory_bytes for p in probes) / 2**20
    rows.append(("memory", f"at most about {memory:,.0f} MiB a trial, with its data"))
    rows.append(("time", _time(spec, probes, trials)))
    rows += [("note", text) for text in spec.workload.user_code.notes]
    rows += [("warning", text) for text in [*facts.warnings, *warnings(spec)]]
    return "\n".join([f"{spec.name}: valid", *(f"  {label:<8}{text}" for label, text in rows)])


def model_call(spec: Spec) -> Iterator[tuple[str, str]]:
    """The row with the call of a user's model, where searched arguments have their names in a cell."""
    workload, facts = spec.workload, spec.workload.facts
    if is_import_path(workload.model) and not workload.model.startswith(LIBRARIES):
        sizes = {name: Named(name) for name in ("width", "depth") if getattr(spec.search, name)}
        searched = {name.removeprefix("model."): Named(name) for name in workload.searched()}
        given = {"in_shape": facts.in_shape, "out_features": facts.out_features, **sizes, **workload.arguments()}
        yield "model", own_call(workload.model, given | searched, workload.code)


def _known(spec: Spec) -> str:
    """How many trials of an earlier study the sampler knows."""
    known = warm_start.read(spec)
    line = f"{len(known.cells)} of the {counted(known.completed, 'completed trial')} of {spec.tuning.warm_start}"
    return f"{line}; values may not be comparable, because it had {', '.join(known.lanes)}" if known.lanes else line


def _written(given: GivenCell) -> str:
    """A cell of the spec in words."""
    entries = {name: value for name, value in given.cell().items() if name != "optimizer"}
    return ", ".join([given.optimizer, *(f"{name.replace('_', ' ')} {value}" for name, value in entries.items())])


def _examples_in_words(spec: Spec) -> str:
    """Task, outputs, inputs, splits and metric, with the metric's value without learning where it is known."""
    facts, metric = spec.workload.facts, spec.workload.metric
    outputs = f"{facts.out_features} classes"
    if facts.task == "regression":
        outputs = f"regression of {counted(facts.out_features, 'number')}"
    elif facts.classes:
        outputs += f" ({', '.join(facts.classes[:6])}{' ...' if facts.classes[6:] else ''})"
    shape = facts.in_shape
    inputs = f"{'x'.join(map(str, shape))} inputs" if shape[1:] else counted(shape[0], "feature")
    sizes = f"{facts.train:,} training, {facts.validation:,} validation, {facts.test:,} test examples"
    own = spec.workload.score if metric == "accuracy" else spec.workload.loss
    known = "" if own or metric not in facts.baselines else f", {facts.baselines[metric]:.3g} without learning"
    return f"{outputs}; {inputs}; {sizes}; metric {own or metric}{known}"


def warnings(spec: Spec) -> Iterator[str]:
    """What a valid spec is too small for, one line each."""
    trials, optimizers, sizes = planned_trials(spec), len(spec.search.optimizers()), spec.search.batch_size.size()
    pairs, among = optimizers * sizes, f"{counted(optimizers, 'optimizer')} x {counted(int(sizes), 'batch size')}"
    if trials < optimizers:
        yield f"{counted(trials, 'trial')} for {optimizers} optimizers: at most {trials} can be compared"
    elif trials < pairs and isinstance(spec.search.batch_size, Choice):
        yield f"{counted(trials, 'trial')} for {among}: at most {trials} of {pairs} pairs can be compared"
    if spec.tuning.fair and trials > optimizers and (rest := trials % optimizers):
        more = "1 of them gets" if rest == 1 else f"{rest} of them get"
        yield f"{trials} trials for {optimizers} optimizers: {more} one trial more than the others"
    for name, count in Counter(each.optimizer for each in spec.enqueue).items() if spec.tuning.fair else ():
        if count > (share := math.ceil(trials / optimizers)):
            yield f"{counted(count, 'enqueued cell')} of {name}, whose share is {share} of {trials} trials"
    if spec.tuning.scheduler != "none" and trials < REDUCTION * pairs:
        yield (
            f"{spec.tuning.scheduler} compares only trials with the same optimizer and batch size, and {trials} trials "
            f"for {among} are too few to stop many"
        )


def probe(spec: Spec, batch_size: int, width: int, depth: int) -> Probe:
    """Try a cell briefly, with the optimizer that takes the most time, or else memory."""
    workload, facts = spec.workload, spec.workload.facts
    make, judge = builder(spec, width, depth), criterion(spec)
    rule, dtype = rule_of(spec, _heaviest(spec)), getattr(torch, workload.dtype)
    lane_list, network = lanes(spec, _heaviest(spec)), make()
    stack = Stack.build(make, lane_list, rule, dtype, torch.device("cpu"), total=PROBE_UPDATES)
    multiplications = models.multiplications(network, facts.in_shape)
    most = int(PROBE_MULTIPLICATIONS / (multiplications * len(stack.lanes)))
    tried = min(batch_size, max(most, PROBE_EXAMPLES))
    examples = _examples(spec, stack, max(tried, 2 * PROBE_EXAMPLES))
    sample = examples.inputs[:TRIED_EXAMPLES]
    augmented = bool(workload.augment)
    engine = choose(make, facts.in_shape, judge, tried, stack, spec.lanes.engine, augmented=augmented, sample=sample)
    budget = part(spec.budget, config.Budget)
    if budget.seconds:
        alone = update_seconds(make, rule, examples, tried, lane_list[0], judge, multiplications=multiplications)
        budget = budget.in_updates(alone * batch_size / tried)
    times = EvaluationTimes(
        budget,
        batch_size,
        facts.train,
        evaluated=min(TRAIN_SUBSET, facts.train) + facts.validation,
        multiplications=multiplications,
        share=spec.recording.evaluation_share,
    )
    seconds = times.total * _update_seconds(stack, engine, Batches(examples, tried, stack)) * batch_size / tried
    seconds += (len(times.series()) + budget.reports) * _evaluation_seconds(spec, stack, engine, examples)
    kept, working = lane_bytes(network, facts.in_shape, batch_size, stack)
    numbers = (facts.train + facts.validation + facts.test) * math.prod(facts.in_shape)
    at_once = fitting(network, facts.in_shape, batch_size, stack)
    memory = kept * len(stack.lanes) + working * at_once + numbers * stack.parameters.element_size()
    small = packing.small(make, facts.in_shape, batch_size)
    return Probe(batch_size, times.total, seconds, memory, engine.name, at_once, small)


def _update_seconds(stack: Stack, engine: Engine, batches: Batches) -> float:
    """Seconds of an update of all lanes, from as many updates as fit into `PROBE_SECONDS`."""
    engine.warm_up(stack, batches)
    made = 0
    while made < 2 or stack.seconds < PROBE_SECONDS:
        made = max(1, 2 * made)
        advance(stack, engine, batches, made)
    return stack.seconds / made


def _evaluation_seconds(spec: Spec, stack: Stack, engine: Engine, examples: Split) -> float:
    """Seconds of one evaluation of all lanes."""
    facts, subset = spec.workload.facts, min(TRAIN_SUBSET, spec.workload.facts.train)
    works: list[tuple[Callable[..., object], int]] = [(engine.evaluate, subset + facts.validation)]
    works += [(engine.noise, subset)] if spec.recording.gradient_noise else []
    seconds = 0.0
    for work, count in works:
        started = time.perf_counter()
        work(stack, slice(0, len(stack.alive)), examples)
        seconds += (time.perf_counter() - started) / len(examples) * count
    return seconds


def _data(spec: Spec, dtype: torch.dtype) -> Data:
    workload, images = spec.workload, spec.workload.model == "cnn"
    options: dict[str, Any] = {"standardize": workload.standardize, "code": workload.code, "images": images}
    return data.load(workload.data, data_folder(), dtype=dtype, reading=part(workload, config.Reading), **options)


def _examples(spec: Spec, stack: Stack, count: int) -> Split:
    """Examples to time updates on: of a user's data, on whose values a model may depend; otherwise zeros."""
    facts = spec.workload.facts
    if is_own(spec.workload.data):
        train = _data(spec, stack.parameters.dtype).train
        rows = torch.arange(count) % len(train)
        return Split(train.inputs[rows], train.targets[rows])
    inputs = stack.parameters.new_zeros(count, *facts.in_shape)
    zeros = inputs.new_zeros(count, facts.out_features)
    return Split(inputs, zeros if facts.task == "regression" else torch.zeros(count).long())


def proved(spec: Spec) -> tuple[str, bool]:
    """Whether lanes of a user's model or rule equal torch.optim, tried on this machine's CPU.

    The cell is the smallest of the space; the optimizer is the first that has a rule over lanes, if there is one.

    Returns:
        The result in words, empty for shipped models and rules; and whether lanes are equal.
    """
    names = spec.search.optimizers()
    if not is_import_path(spec.workload.model) and not any(map(is_import_path, names)):
        return "", True
    ruled = sorted(names, key=lambda name: (spec.optimizer_facts(name).solo, not is_import_path(name)))[0]
    dtype = "float64"
    try:
        batch, proof = _proof(spec, ruled, dtype)
    except (UserCodeError, RuntimeError):
        if spec.workload.dtype == dtype:
            raise
        dtype = spec.workload.dtype  # the model may work in that type alone
        batch, proof = _proof(spec, ruled, dtype)
    if math.isnan(proof.speed):
        how = f"{proof.lanes} lanes run one after another"
    else:
        how = f"{proof.lanes} lanes together are {proof.speed:.1f} times as fast as one after another"
    equal = proof.difference <= LANE_EQUALITY[dtype]
    fine, advice = "equal" if equal else "DIFFER from", ""
    if not equal:
        advice = (
            "\n          do not trust a study of these. If adam differs too, the model keeps more than parameters and "
            "buffers; otherwise the rule does not compute what its torch_class does"
        )
    text = (
        f"  lanes   {fine} what each computes alone: {proof.difference:.0e} after {equality.UPDATES} updates of "
        f"{ruled} at batch size {batch}, {dtype}; {how}{advice}"
    )
    return text, equal


def _proof(spec: Spec, optimizer: str, dtype: str) -> tuple[int, equality.Proof]:
    """The batch size of the smallest cell, and the comparison there."""
    corners = spec.corners()
    batch, build = min(size for size, _, _ in corners), builder(spec, *corners[0][1:], end=0)
    lanes_of_trial, data = lanes(spec, optimizer), _data(spec, getattr(torch, dtype))
    rule, judge = rule_of(spec, optimizer), criterion(spec)
    return batch, equality.prove(build, rule, data, batch, lanes_of_trial, judge, spec.workload.model)


def _budget(spec: Spec, batch_size: int) -> str:
    """How long a lane trains, and whether `min_updates` makes that longer."""
    budget, train = part(spec.budget, config.Budget), spec.workload.facts.train
    updates = budget.total_updates(batch_size, train)
    if updates is None:
        return f"{budget.seconds:g} s of one network a lane"
    used = config.examples_per_epoch(batch_size, train, drop_last=budget.drop_last)
    epochs = f"{updates / config.updates_per_epoch(batch_size, used):.4g} epochs"
    longer = updates != replace(budget, min_updates=0).total_updates(batch_size, train)
    return f"{counted(updates, 'update')} a lane = {epochs}{', by min_updates' if longer else ''}"


def _cells(spec: Spec) -> str:
    """Number of cells, and their dimensions; settings are searched with their optimizer only."""
    shared = " x ".join(f"{d.size()} {name}" for name, d in spec.dimensions().items())
    own = ", ".join(name for optimizer in spec.search.optimizers() for name in spec.search.settings_of(optimizer))
    count = f"{spec.cells():,}" if math.isfinite(spec.cells()) else "any number"
    return f"{count} ({shared}{f'; with {own}' if own else ''})"


def _heaviest(spec: Spec) -> str:
    def weight(name: str) -> tuple[bool, int]:
        return spec.optimizer_facts(name).solo, (1 + len(rule_of(spec, name).buffers)) * spec.settings(name)

    return max(spec.search.optimizers(), key=weight)


def _lane_rows(spec: Spec) -> Iterator[str]:
    """The lanes of a trial with their arithmetic, and what a trial may add."""
    counts = {name: spec.setting_counts(name) for name in spec.search.optimizers()}
    for each in dict.fromkeys(tuple(own.items()) for own in counts.values()):
        names = [name for name in counts if tuple(counts[name].items()) == each]
        tuned = [(name, count) for name, count in each if count > 1 or name == "learning_rate"]
        words = " x ".join(counted(n, name.replace("learning_", "").replace("_", " ")) for name, n in tuned)
        settings, every = spec.settings(names[0]), math.prod(count for _, count in each)
        words = f"{settings} of {every} combinations ({words})" if settings < every else words
        whose = f" of {', '.join(names)}" if len(set(map(spec.settings, counts))) > 1 else ""
        yield f"{settings * spec.lanes.seeds} a trial{whose}: {words} x {counted(spec.lanes.seeds, 'seed')}"
    if max(own["learning_rate"] for own in counts.values()) == 1:
        return
    best = " at the best recipe" if any(len(own) > 1 for own in counts.values()) else ""
    if more := spec.lanes.extensions:
        yield f"up to {more} extensions: half as many rates are added{best} if the best one is the lowest or highest"
    if more := spec.lanes.refine:
        condition = "if the grid is too coarse for the noise"
        yield f"then up to {more} refinements: two rates are added around the best one {condition}"


def _added(spec: Spec) -> float:
    """Settings that a trial may add by extensions and refinements, as a share of its grid."""
    name = _heaviest(spec)
    rates = spec.rates(name)[2]
    most = spec.lanes.extensions * math.ceil(rates / 2) + spec.lanes.refine * 2
    return most / spec.settings(name) if rates > 1 else 0.0


def _time(spec: Spec, probes: list[Probe], trials: int) -> str:
    at_once = max(1, (os.cpu_count() or 1) // spec.resources.cpus_per_trial)
    seconds = [p.seconds for p in probes]
    each = sum(seconds) / len(seconds) / at_once
    total, again = trials * each, cost(spec) * each
    confirmation = f", of which {duration(again)} for the confirmation" if again else ""
    spread = f"{duration(min(seconds))} to {duration(max(seconds))} a trial"
    if spec.confirm and spec.confirm.looks > 1:
        confirmation += ", more if it adds seeds"
    if more := _added(spec):
        spread += f", up to {more:.0%} more if rates are added"
    less = ", less for trials that the scheduler stops" if spec.tuning.scheduler != "none" else ""
    gpu = "; measured on the CPU; a GPU takes a different time" if spec.resources.gpus else ""
    took = f"about {duration(total + again)} on this machine{confirmation}"
    return f"{took}, plus the start of Ray and the report; {at_once} trials at once ({spread}{less}){gpu}"
