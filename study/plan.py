"""What running a spec means, before it runs: cells, lanes, memory and time, measured on a few updates."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass

import torch

from analysis.results import regime
from study.build import builder, criterion
from study.build import rule as rule_of
from study.cluster import packing
from study.spec import Spec
from study.spec.adjust import planned_trials
from trainables import data, models
from trainables.data import Split
from trainables.engines import compiled
from trainables.engines.choose import choose
from trainables.engines.memory import fitting, lane_bytes
from trainables.lanes import equality
from trainables.lanes.batches import Batches
from trainables.lanes.evaluate import TRAIN_SUBSET
from trainables.lanes.stack import Lane, Stack, grid
from trainables.lanes.times import EvaluationTimes
from trainables.lanes.train import advance
from trainables.usercode.importing import UserCodeError, is_import_path
from trainables.usercode.vmap_support import TRIED_EXAMPLES

# A probe times so many seconds of updates, on batches of at most so many examples, and scales.
PROBE_SECONDS = 0.2
PROBE_EXAMPLES = 256
# Relative; what compounds rounding over so few updates stays far below.
LANE_EQUALITY = {"float64": 1e-8, "float32": 1e-3}


@dataclass(frozen=True)
class Probe:
    """A cell at a corner of the space, tried briefly on this machine's CPU with random data.

    Attributes:
        batch_size: examples per update.
        updates: per lane; None if the budget is in seconds.
        seconds: of the whole trial, evaluation included; None likewise.
        memory_bytes: parameters, gradients, the rule's buffers, one block's activations, and the data.
        engine: that such a trial takes on a processor.
        at_once: lanes in a pass.
        small: whether `resources.cpu_nodes` lets it do without a GPU.
    """

    batch_size: int
    updates: int | None
    seconds: float | None
    memory_bytes: int
    engine: str
    at_once: int
    small: bool


def probed(spec: Spec) -> list[Probe]:
    """The cells at the corners of the space, each tried briefly."""
    return [probe(spec, *corner) for corner in spec.corners()]


def describe(spec: Spec, probes: list[Probe]) -> str:
    """The plan of a valid spec, for people: some lines of text.

    Args:
        spec: the spec.
        probes: of `probed`.
    """
    facts, trials = spec.workload.facts, planned_trials(spec)
    scheduler = "no scheduler" if spec.tuning.scheduler == "none" else f"{spec.tuning.scheduler} scheduler"
    lane_count = len(_lanes(spec))
    rows = [
        ("data", f"{spec.workload.data}: {facts.about}"),
        ("", f"{facts.train:,} training, {facts.validation:,} validation, {facts.test:,} test examples"),
        ("cells", _cells(spec)),
        ("trials", f"{trials:,}, {spec.tuning.sampler} sampler, {scheduler}"),
        ("lanes", f"{lane_count} a trial: {lane_count // spec.lanes.seeds} rates x {spec.lanes.seeds} seeds"),
    ]
    if spec.lanes.extensions and lane_count > spec.lanes.seeds:
        rows.append(("", f"up to {spec.lanes.extensions} times half as many rates more, beyond an edge that is best"))
    for size, updates in sorted({(p.batch_size, p.updates) for p in probes}, key=lambda pair: pair[0]):
        much = f"{updates:,} updates a lane" if updates else f"{spec.budget.seconds:g} s a trial"
        rows.append(("", f"batch size {size:,} ({regime(size, facts.train)}): {much}"))
    if confirm := spec.confirm:
        rows.append(
            ("confirm", f"{confirm.top} best cells and each optimizer's best, {confirm.seeds} fresh seeds each")
        )
    fewest = min(p.at_once for p in probes)
    if fewest < lane_count:
        rows.append(("", f"in passes of {fewest} where memory does not hold all"))
    rows.append(("engine", " or ".join(sorted({p.engine for p in probes})) + ", by the size of the trial"))
    if spec.resources.cpu_nodes:
        small = sum(p.small for p in probes)
        rows.append(("devices", f"{small} of {len(probes)} cells at the corners of the space are small: on CPUs alone"))
    memory = max(p.memory_bytes for p in probes) / 2**20
    rows.append(("memory", f"about {memory:,.0f} MiB a trial at most, its data included"))
    rows.append(("time", _time(spec, probes, trials)))
    return "\n".join([f"{spec.name}: valid", *(f"  {label:<8}{text}" for label, text in rows)])


def probe(spec: Spec, batch_size: int, width: int, depth: int) -> Probe:
    """Try a cell briefly, with the optimizer that takes the most time, or else memory."""
    workload, facts, budget = spec.workload, spec.workload.facts, spec.budget
    rule, device = rule_of(spec, _heaviest(spec)), torch.device("cpu")
    build, judge = builder(spec, width, depth), criterion(spec)
    stack = Stack.build(build, _lanes(spec), rule, getattr(torch, workload.dtype), device)
    network = build()
    updates, seconds = budget.total_updates(batch_size, facts.train), None
    examples = _examples(spec, stack)
    sample = examples.inputs[:TRIED_EXAMPLES]
    engine = choose(build, facts.in_shape, judge, batch_size, stack, updates, spec.lanes.engine, sample=sample)
    if updates is not None:
        tried = min(batch_size, PROBE_EXAMPLES)
        batches = Batches(examples, tried, stack)
        # Compiling takes longer than the probe may; the eager engine's time, less what compiling is reckoned to save.
        plain = "auto" if rule.solo or is_import_path(workload.model) else "eager"
        eager = choose(build, facts.in_shape, judge, tried, stack, None, plain, sample=sample)
        eager.warm_up(stack, batches)
        made = 0
        while made < 2 or stack.seconds < PROBE_SECONDS:
            made = max(1, 2 * made)
            advance(stack, eager, batches, made)
        started = time.perf_counter()
        eager.evaluate(stack, slice(0, len(stack.alive)), examples)
        evaluated = min(TRAIN_SUBSET, facts.train) + facts.validation
        evaluation = (time.perf_counter() - started) / len(examples) * evaluated
        if spec.recording.gradient_noise:
            started = time.perf_counter()
            eager.noise(stack, slice(0, len(stack.alive)), examples)
            evaluation += (time.perf_counter() - started) / len(examples) * min(TRAIN_SUBSET, facts.train)
        cost = models.multiplications(network, facts.in_shape)
        share = spec.recording.evaluation_share
        schedule = EvaluationTimes(
            budget, batch_size, facts.train, evaluated=evaluated, multiplications=cost, share=share
        )
        points = len(schedule.series()) + budget.reports
        update = stack.seconds / made * batch_size / tried
        if engine.name == "compiled":
            assert models.layered(network)
            update = max(update / 10, update - compiled.saving(network, facts.in_shape, batch_size, stack))
        seconds = updates * update + points * evaluation
    kept, working = lane_bytes(network, facts.in_shape, batch_size, stack)
    numbers = (facts.train + facts.validation + facts.test) * math.prod(facts.in_shape)
    at_once = fitting(network, facts.in_shape, batch_size, stack)
    memory = kept * len(stack.lanes) + working * at_once + numbers * stack.parameters.element_size()
    small = packing.small(build, facts.in_shape, batch_size)
    return Probe(batch_size, updates, seconds, memory, engine.name, at_once, small)


def _examples(spec: Spec, stack: Stack) -> Split:
    """Examples to time updates on: a user's own, whose values a model may look at; zeros in the place of ours."""
    workload, facts, count = spec.workload, spec.workload.facts, 2 * PROBE_EXAMPLES
    if is_import_path(workload.data):
        train = data.load(
            workload.data,
            data.data_folder(),
            standardize=workload.standardize,
            dtype=stack.parameters.dtype,
            code=workload.code,
        ).train
        rows = torch.arange(count) % len(train)
        return Split(train.inputs[rows], train.targets[rows])
    inputs = stack.parameters.new_zeros(count, *facts.in_shape)
    zeros = inputs.new_zeros(count, facts.out_features)
    return Split(inputs, zeros if facts.task == "regression" else torch.zeros(count).long())


def proved(spec: Spec) -> tuple[str, bool]:
    """Whether lanes of users' models or rules equal torch.optim, tried on this machine's CPU.

    The cell is the smallest of the space; the optimizer the first that has a rule over lanes, if there is one.

    Returns:
        It in words, which are empty for models and rules of ours; and whether they do.
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
        dtype = spec.workload.dtype  # a model may be made for that alone
        batch, proof = _proof(spec, ruled, dtype)
    if math.isnan(proof.speed):
        how = f"{proof.lanes} lanes run one after another"
    else:
        how = f"{proof.lanes} lanes together are {proof.speed:.1f} times as fast as one after another"
    equal = proof.difference <= LANE_EQUALITY[dtype]
    fine, advice = "equal" if equal else "DIFFER from", ""
    if not equal:
        advice = (
            "\n          do not trust a study of these. With adam alone, is it the same? Then it is the model: see "
            "that all it keeps is parameters and buffers; else the rule, which must compute what its torch_class does"
        )
    text = (
        f"  lanes   {fine} what each computes alone: {proof.difference:.0e} after {equality.UPDATES} updates of "
        f"{ruled} at batch size {batch}, {dtype}; {how}{advice}"
    )
    return text, equal


def _proof(spec: Spec, optimizer: str, dtype: str) -> tuple[int, equality.Proof]:
    """The batch size of the smallest cell, and what came of trying it."""
    workload, corners = spec.workload, spec.corners()
    found = data.load(
        workload.data,
        data.data_folder().absolute(),
        standardize=workload.standardize,
        dtype=getattr(torch, dtype),
        code=workload.code,
    )
    batch, build = min(size for size, _, _ in corners), builder(spec, *corners[0][1:], end=0)
    all_lanes = grid(*spec.rates(optimizer), spec.lane_seeds())
    proof = equality.prove(build, rule_of(spec, optimizer), found, batch, all_lanes, criterion(spec), workload.model)
    return batch, proof


def _cells(spec: Spec) -> str:
    """How many cells there are, and what they are made of; settings come on top of their optimizer."""
    shared = " x ".join(f"{d.size()} {name}" for name, d in spec.dimensions().items())
    own = ", ".join(name for optimizer in spec.search.optimizers() for name in spec.search.settings_of(optimizer))
    count = f"{spec.cells():,}" if math.isfinite(spec.cells()) else "any number"
    return f"{count} ({shared}{f'; with {own}' if own else ''})"


def _heaviest(spec: Spec) -> str:
    return max(
        spec.search.optimizers(), key=lambda name: (spec.optimizer_facts(name).solo, len(rule_of(spec, name).buffers))
    )


def _lanes(spec: Spec) -> list[Lane]:
    return grid(*spec.rates(_heaviest(spec)), spec.lane_seeds())


def _time(spec: Spec, probes: list[Probe], trials: int) -> str:
    at_once = max(1, (os.cpu_count() or 1) // spec.resources.cpus_per_trial)
    seconds = [spec.budget.seconds or p.seconds or 0.0 for p in probes]
    total = trials * sum(seconds) / len(seconds) / at_once
    spread = f"{_duration(min(seconds))} to {_duration(max(seconds))} a trial"
    less = ", less what the scheduler stops" if spec.tuning.scheduler != "none" else ""
    gpu = "; timed on the CPU, a GPU will differ" if spec.resources.gpus else ""
    return f"about {_duration(total)} on this machine, {at_once} trials at once ({spread}{less}){gpu}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
