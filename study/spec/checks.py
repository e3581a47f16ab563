"""Mistakes that only several sections of a spec together make, one rule a function.

A rule's parameters are the sections that it looks at, by name; it runs if those without a default are valid. A rule
yields one line for each mistake: key, value, what is wrong and what is valid.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from study.spec.dimensions import Choice, Dimension, Range, plain, shown
from study.spec.given import Baseline, Enqueued, GivenCell
from study.spec.lanes import AXES, MOST_LANES, Lanes, settings_of
from study.spec.model import (
    DESIGNS,
    SAMPLERS,
    Budget,
    Confirm,
    Recording,
    Resources,
    Search,
    Tuning,
    Workload,
    part,
)
from study.usercode.bundle import UserCode
from trainables.config import Reading
from trainables.errors import ModelError
from trainables.usercode.importing import is_import_path, is_table
from trainables.workloads import catalogue
from trainables.workloads.catalogue import CATALOGUE, DEEPOBS, OPTIMIZERS, SIZELESS, SOLO

Rule = Callable[..., Iterator[str]]
RULES: list[Rule] = []
# Arguments of a family that decide sizes; those of both, with the values that every engine stacks.
_SIZES = {"mlp": ("shape",), "cnn": ("kernel", "padding")}
_STYLE: dict[str, Any] = {"activation": "relu", "norm": "none", "dropout": 0, "residual": False, "init": None}


def rule(function: Rule) -> Rule:
    """Count a function among the rules; mistakes are listed in the rules' order."""
    RULES.append(function)
    return function


def mistakes(sections: Mapping[str, Any], user_code: UserCode) -> list[str]:
    """The mistakes between the valid sections of a spec; rules can look at its user code too."""
    known = {**sections, "user_code": user_code}
    lines = list(_broken(RULES, known))
    takes = {each: inspect.signature(each).parameters.keys() for each in RULES}
    written, searched = {"baseline", "enqueue"}, {"search", "lanes"}
    about_one = [each for each in RULES if takes[each] & searched and not takes[each] & written]
    about_one.remove(sizes_suit_model)  # `baselines_have_all_entries` compares sizes with those of the search
    engine = getattr(sections.get("lanes"), "engine", "auto")
    for key, each in _keyed("baseline", sections.get("baseline", [])):
        entries = each.model_dump(include=set(Search.model_fields), exclude_none=True)
        search = Search(**{**entries, "settings": {each.optimizer: each.settings}})
        alone = {**known, "search": search, "lanes": Lanes(engine=engine, **each.recipe())}
        if workload := sections.get("workload"):
            alone["workload"] = workload.with_args(each.model_args)
        found = [line for line in _broken(about_one, alone) if line not in lines]
        theirs = rf"^(search|lanes(?=\.({'|'.join(AXES)})\b))(\.settings\.{re.escape(each.optimizer)}(?=\.))?"
        for line in found:
            place = re.match(theirs, line)
            start = "" if place is None else f"{key}.settings" if place[3] else key
            lines.append(start + line[place.end() if place else 0 :])
    return lines


def _broken(rules: Iterable[Rule], known: Mapping[str, Any]) -> Iterator[str]:
    for each_rule in rules:
        parameters = inspect.signature(each_rule).parameters.values()
        given = {each.name: known[each.name] for each in parameters if each.name in known}
        if all(each.name in given or each.default is None for each in parameters):
            yield from each_rule(**given)


Written = TypeVar("Written", bound=GivenCell)


def _keyed(name: str, cells: Iterable[Written]) -> Iterator[tuple[str, Written]]:
    """Written cells, each with its key in messages: `baseline[1]`."""
    yield from ((f"{name}[{place}]", each) for place, each in enumerate(cells, start=1))


@rule
def smoothed_labels_are_classes(workload: Workload) -> Iterator[str]:
    """Labels are smoothed by the classifications' own loss."""
    if workload.label_smoothing and (workload.facts.task == "regression" or workload.loss):
        why = f"{workload.loss} is a loss of its own" if workload.loss else f"{workload.data} is a regression"
        yield f"workload.label_smoothing = {workload.label_smoothing:g}: {why}; leave it out"


@rule
def reading_suits_data(workload: Workload) -> Iterator[str]:
    """A task is given for a user's data alone; how to read and divide them is, for files alone."""
    shipped, default = workload.data in CATALOGUE, Reading()
    for key, value in vars(part(workload, Reading)).items() if not is_table(workload.data) else ():
        if value != getattr(default, key) and (shipped or key != "task"):
            given = f"workload.{key} = {shown(list(value) if isinstance(value, tuple) else value)}"
            why = "is a shipped data set" if shipped else "is a function, which returns its splits"
            yield f"{given}: {workload.data} {why}; leave it out"


@rule
def metric_suits_task(workload: Workload) -> Iterator[str]:
    """Accuracy is for classifications, or for a user's score, and at most 1; both metrics are positive."""
    accuracy = workload.metric == "accuracy"
    if accuracy and workload.facts.task == "regression" and not workload.score:
        yield f'workload.metric = "accuracy": {workload.data} is a regression; valid: loss, package.module:score'
    if workload.target is not None and not 0 < workload.target <= (1 if accuracy else math.inf):
        percent = f"; write {workload.target / 100:g}" if accuracy and 1 < workload.target <= 100 else ""
        valid = f"an accuracy, above 0 and at most 1{percent}" if accuracy else "a loss, above 0"
        yield f"workload.target = {workload.target}: must be {valid}"


@rule
def arguments_suit_model(workload: Workload) -> Iterator[str]:
    """Each model family has its own arguments."""
    accepted = (*_SIZES[workload.model], *_STYLE) if workload.model in _SIZES else ()
    for key in workload.given_args() if not is_import_path(workload.model) else ():
        if key not in accepted:
            valid = ", ".join(accepted) or "none"
            yield f"workload.model_args.{key}: {workload.model} has no such argument; valid: {valid}"


def _unusual(workload: Workload) -> list[str]:
    """The keys by which a shipped family has layers that only torch.func stacks."""
    if workload.model == "deepobs-3c3d":
        return ["workload.model"]
    usual = {name: value for name, value in _STYLE.items() if value is not None}
    given = {name: d for name, d in vars(workload.model_args).items() if d is not None and name in usual}
    changed = [name for name, d in given.items() if any(value != usual[name] for value in d.ends())]
    return [f"workload.model_args.{name}" for name in changed]


@rule
def cnn_has_images(workload: Workload) -> Iterator[str]:
    """Networks with convolutions, and DeepOBS's, need images."""
    if workload.model in ("cnn", *DEEPOBS) and len(shape := workload.facts.in_shape) != 3:
        images = ", ".join(name for name, facts in CATALOGUE.items() if len(facts.in_shape) == 3)
        valid = f"those that do: {images}" if workload.data in CATALOGUE else "images are (channels, height, width)"
        yield f'workload.model = "{workload.model}": {workload.data} has no images but inputs of {shape}; {valid}'


@rule
def engine_suits_optimizers(
    search: Search, lanes: Lanes, user_code: UserCode, workload: Workload | None = None
) -> Iterator[str]:
    """Not every engine trains every optimizer and model."""
    names, engine = search.optimizers(), lanes.engine
    solo = [name for name in names if user_code.optimizer(name).solo]
    if engine == "auto":
        return
    if engine == "solo":
        if ruled := [name for name in names if name not in solo]:
            yield f"lanes.engine: solo is for {', '.join(SOLO)}; {', '.join(ruled)} trains as lanes; valid: auto"
    elif solo:
        yield f"lanes.engine: {engine} does not train {', '.join(solo)}, which runs lane by lane; valid: auto"
    elif workload and is_import_path(workload.model):
        yield f"lanes.engine: {engine} is for the shipped models; valid with {workload.model}: auto"
    elif workload and (unusual := _unusual(workload)):
        named = ", ".join(unusual)
        yield f"lanes.engine: {engine} does not train the layers that {named} adds; valid: auto"
    elif engine == "native" and (lacking := [name for name in names if user_code.optimizer(name).eager]):
        yield f"lanes.engine: native does not train {', '.join(lacking)}; valid: auto, eager"
    elif engine == "native" and workload and (workload.loss or any(map(is_import_path, names))):
        yield "lanes.engine: native knows the shipped losses and optimizers only; valid: auto, eager"
    elif engine == "native" and workload and workload.augment:
        yield "lanes.engine: native trains on unchanged examples, and workload.augment changes them; valid: auto, eager"
    elif engine == "native" and workload and workload.label_smoothing:
        yield "lanes.engine: native does not support workload.label_smoothing; valid: auto, eager"


@rule
def rates_are_of_optimizers(search: Search, lanes: Lanes) -> Iterator[str]:
    """A table of learning rates names optimizers of the search."""
    given = lanes.learning_rate if isinstance(lanes.learning_rate, dict) else {}
    for name in given:
        if name not in search.optimizers():
            yield (
                f"lanes.learning_rate.{name}: not among the optimizers of the search; "
                f"valid: {', '.join(search.optimizers())}, or the keys low, high, count"
            )


@rule
def axes_suit_optimizers(search: Search, lanes: Lanes, user_code: UserCode) -> Iterator[str]:
    """Every axis of lanes is for an optimizer of the search, which takes its values and does not search them too."""
    settings = {name: settings_of(name, user_code.optimizer(name)) for name in search.optimizers()}
    for name in sorted({*lanes.settings} & {*AXES}):
        yield f"lanes.settings.{name}: is a key of its own; write it as lanes.{name}"
        return
    for name, choice in lanes.axes().items():
        key = f"lanes.{name}" if name in AXES else f"lanes.settings.{name}"
        owners = [each for each in settings if name in settings[each]]
        if name not in AXES and not owners:
            valid = ", ".join(dict.fromkeys(itertools.chain(*settings.values()))) or "none"
            yield f"{key}: no optimizer of the search has such a setting; valid: {valid}"
        for each in owners:
            if name in search.settings.get(each, {}):
                yield f"{key}: search.settings.{each}.{name} searches it already; give one of the two"
            refusals = (_refused(user_code, each, name, float(value)) for value in choice.values)
            if message := next(filter(None, refusals), None):
                yield f"{key} = {shown(plain(choice))}: {each}: {message}"
    for each in settings:
        if lanes.ema and max(lanes.ema.ends()) and each.startswith("schedule-free"):
            yield f"lanes.ema: {each} averages its parameters itself; leave out one of the two"
        without = each == "adan" or (user_code.optimizer(each).solo and "weight_decay" not in settings[each])
        if lanes.weight_decay and without:
            yield f"lanes.weight_decay: {each} has no weight decay; leave out one of the two"
        if each == "Rprop" and (lanes.schedule or lanes.warmup):
            yield "lanes.schedule: Rprop uses the learning rate in its first update only; leave out one of the two"


@rule
def lanes_can_be_counted(search: Search, lanes: Lanes, user_code: UserCode) -> Iterator[str]:
    """A trial has a reasonable number of lanes, and a sample is a part of the combinations."""
    for optimizer in search.optimizers():
        facts = user_code.optimizer(optimizer)
        known = {*AXES, *settings_of(optimizer, facts)}
        counts = {name: len(each.values) for name, each in lanes.axes().items() if name in known}
        (_, _, rates), _ = lanes.grid_of(optimizer, facts.rates)
        words, every = " x ".join(map(str, (rates, *counts.values()))), rates * math.prod(counts.values())
        if lanes.sample and lanes.sample > every:
            yield f"lanes.sample = {lanes.sample}: {optimizer} has {words} = {every} combinations; leave it out"
            return
        if (total := min(every, lanes.sample or every) * lanes.seeds) > MOST_LANES:
            yield (
                f"lanes: {' x '.join(['rates', *counts, 'seeds'])} = {words} x {lanes.seeds} = {total:,} lanes a trial "
                f"of {optimizer}; valid: at most {MOST_LANES:,}; take fewer values, or a sample of them"
            )
            return


@rule
def halving_has_reports(lanes: Lanes, budget: Budget) -> Iterator[str]:
    """Halving drops rates between reports."""
    if lanes.halving and budget.reports < 2:
        yield "lanes.halving: rates are dropped between reports, and this budget has only one; give 2 epochs or more"


@rule
def batch_sizes_suit_data(workload: Workload, search: Search) -> Iterator[str]:
    """A batch is at most the training split, which "full" means."""
    examples, sizes = workload.facts.train, search.batch_size.ends()
    if {"full", examples} <= set(sizes):
        yield f'search.batch_size: {examples} and "full" are the same; name one'
    for value in sizes:
        if isinstance(value, int) and value > examples:
            yield (
                f"search.batch_size = {value}: larger than the {examples} training examples of {workload.data}; "
                f'"full" means all of them'
            )


@rule
def sizes_suit_model(workload: Workload, search: Search) -> Iterator[str]:
    """Some networks have no size, other shipped families need one."""
    if is_import_path(workload.model):
        return
    for name in ("width", "depth"):
        given = getattr(search, name) is not None
        if workload.model in SIZELESS:
            if given:
                yield f"search.{name}: a {workload.model} model has none; leave it out"
        elif not given:
            yield f"search.{name}: missing; {workload.model} needs it, as in {name} = [1, 2]"


@rule
def networks_can_be_built(workload: Workload, search: Search) -> Iterator[str]:
    """A CNN's image, or an MLP's width, must last for its depth."""
    images = len(workload.facts.in_shape) == 3
    if search.width is None or search.depth is None or workload.model not in (("mlp", "cnn") if images else ("mlp",)):
        return
    width = min(int(width) for width in search.width.ends())
    for depth in (int(depth) for depth in search.depth.ends()):
        if message := _misfit(workload, width, depth):
            fitting = [each for each in range(1, depth) if not _misfit(workload, width, each)]
            valid = f"at most {fitting[-1]}" if fitting else "none"
            yield f"search.depth = {depth}: {message}; valid depths here: {valid}"


def _misfit(workload: Workload, width: int, depth: int) -> str | None:
    """Why a network of a shipped family cannot be built; None if it can."""
    given = {name: d.ends() for name, d in workload.given_args().items() if name in _SIZES[workload.model]}
    for values in itertools.product(*given.values()):
        arguments: dict[str, Any] = dict(zip(given, values, strict=True))
        try:
            if workload.model == "cnn":
                catalogue.cnn_sizes(workload.facts.in_shape, depth=depth, **arguments)
            else:
                catalogue.mlp_widths(width, depth, **arguments)
        except ModelError as error:
            return str(error)
    return None


@rule
def no_batch_has_one_example(workload: Workload, search: Search, budget: Budget) -> Iterator[str]:
    """Models that normalise over the batch cannot train on a single example; one mistake."""
    norm = workload.model_args.norm
    lone = 'norm = "batch"' if norm and "batch" in norm.ends() else workload.user_code.lone
    if not lone:
        return
    count, sizes, why = workload.facts.train, search.batch_size, f"cannot train on one ({lone})"
    given = range(int(sizes.low), int(sizes.high) + 1) if isinstance(sizes, Range) else sizes.ends()
    for size in sorted(count if size == "full" else min(int(size), count) for size in given):
        if size == 1:
            yield f"search.batch_size = 1: {workload.model} cannot train on one example ({lone}); give larger batches"
            return
        if count % size == 1 and not budget.drop_last:
            yield (
                f"search.batch_size = {size}: the last batch of an epoch has one of the {count} examples, and "
                f"{workload.model} {why}; set budget.drop_last = true"
            )
            return


@rule
def quadratic_is_whole(workload: Workload) -> Iterator[str]:
    """DeepOBS's quadratic problem is one data set with one model, in its own units."""
    if "quadratic" not in (workload.data, workload.model):
        return
    if workload.model != "quadratic":
        yield f'workload.model = "{workload.model}": the data set quadratic is for one model; valid: quadratic'
    if workload.data != "quadratic":
        yield f'workload.data = "{workload.data}": the model quadratic is for one data set; valid: quadratic'
    if workload.data == "quadratic" and workload.standardize:
        yield "workload.standardize = true: quadratic has units of its own, so set standardize = false"


@rule
def predictions_are_of_classes(workload: Workload, recording: Recording) -> Iterator[str]:
    """A regression predicts no classes."""
    if recording.predictions and workload.facts.task == "regression":
        yield f"recording.predictions = true: needs a classification, and {workload.data} is a regression; leave it out"


@rule
def settings_suit_optimizers(search: Search, user_code: UserCode) -> Iterator[str]:
    """Settings are those of an optimizer of the search, with values that it takes."""
    for optimizer, settings in search.settings.items():
        if optimizer not in search.optimizers():
            valid = ", ".join(search.optimizers())
            yield f"search.settings.{optimizer}: not among the optimizers of the search; valid: {valid}"
            continue
        known = settings_of(optimizer, user_code.optimizer(optimizer))
        for name, dimension in settings.items():
            key = f"search.settings.{optimizer}.{name}"
            if name not in known:
                usual = ", ".join(f"{each} (usually {value:g})" for each, value in known.items()) or "none"
                yield f"{key}: {optimizer} has no such setting; valid: {usual}"
                continue
            refusals = (_refused(user_code, optimizer, name, float(value)) for value in dimension.ends())
            if message := next(filter(None, refusals), None):
                yield f"{key} = {shown(plain(dimension))}: {message}"


def _refused(user_code: UserCode, optimizer: str, name: str, value: float) -> str | None:
    """Why an optimizer does not take a value of a setting; the user's classes have been tried already."""
    if optimizer in OPTIMIZERS:
        return catalogue.refused(optimizer, name, value)
    return None if user_code.optimizer(optimizer).solo else catalogue.rule_refuses(name, value)


@rule
def grid_sampler_has_lists(tuning: Tuning, search: Search, workload: Workload | None = None) -> Iterator[str]:
    """The grid sampler cannot enumerate a range."""
    if tuning.sampler != "grid":
        return
    dimensions = {f"search.{name}": each for name, each in search.dimensions().items()}
    for optimizer in search.optimizers():
        dimensions |= {f"search.settings.{name}": each for name, each in search.settings_of(optimizer).items()}
    for name, each in workload.searched().items() if workload else ():
        dimensions[name.replace("model.", "workload.model_args.", 1)] = each
    for key, dimension in dimensions.items():
        if not isinstance(dimension, Choice):
            yield f"{key} = {shown(plain(dimension))}: the grid sampler needs lists; write the values out"


@rule
def tuning_suits_itself(tuning: Tuning) -> Iterator[str]:
    """A warm start needs a sampler that looks at trials, and a scheduler one objective, of which each is given once."""
    if tuning.warm_start and tuning.sampler in DESIGNS:
        learning = ", ".join(name for name in SAMPLERS if name not in DESIGNS)
        yield f"tuning.warm_start: the sampler {tuning.sampler} does not look at trials; valid with it: {learning}"
    if len(set(tuning.objectives)) < len(tuning.objectives):
        yield f"tuning.objectives = {shown(tuning.objectives)}: an objective is given twice; give each once"
    if len(tuning.objectives) > 1 and tuning.scheduler != "none":
        yield (
            f'tuning.scheduler = "{tuning.scheduler}": compares trials by the metric alone and could stop those that '
            f'are best in another objective; with several objectives set scheduler = "none"'
        )


@rule
def cpu_nodes_compare_no_devices(
    resources: Resources, tuning: Tuning | None = None, budget: Budget | None = None, lanes: Lanes | None = None
) -> Iterator[str]:
    """Seconds of cells on GPUs and on CPUs do not compare."""
    if not resources.cpu_nodes:
        return
    advice = "leave out resources.cpu_nodes"
    if budget and budget.seconds:
        yield f"budget.seconds = {budget.seconds:g}: a CPU's second is not a GPU's; give epochs, or {advice}"
    if tuning and "train_seconds" in tuning.objectives:
        yield f"tuning.objectives: train_seconds of a CPU and of a GPU cannot be compared; remove it, or {advice}"
    if lanes and lanes.engine == "cuda-graph":
        yield f"lanes.engine: cuda-graph is for GPUs, and small cells train on CPUs; valid: auto; or {advice}"


@rule
def baselines_are_confirmed(baseline: Sequence[Baseline], confirm: Confirm | None) -> Iterator[str]:
    """A baseline is trained by the confirmation alone."""
    if baseline and confirm is None:
        yield "baseline: needs the fresh seeds of a confirmation, and confirm = false; give the table [confirm] instead"


@rule
def baselines_have_names(baseline: Sequence[Baseline], search: Search) -> Iterator[str]:
    """Reports tell baselines and optimizers apart by their names."""
    taken = dict.fromkeys(search.optimizers(), "the name of an optimizer of the search")
    for key, each in _keyed("baseline", baseline):
        if each.name in taken:
            yield f'{key}.name = "{each.name}": is {taken[each.name]}; give another'
        taken[each.name] = "the name of another baseline"


@rule
def baselines_have_all_entries(baseline: Sequence[Baseline], search: Search, workload: Workload) -> Iterator[str]:
    """A baseline is one network: it has a size if those of the search have, and every searched argument."""
    for key, each in _keyed("baseline", baseline):
        known = {name: None for name in ("width", "depth") if getattr(search, name)} | workload.searched()
        yield from _entries(key, each, {"optimizer": None, "batch_size": None, **known}, settings=False)


@rule
def enqueued_cells_are_of_the_space(
    enqueue: Sequence[Enqueued],
    search: Search,
    workload: Workload,
    tuning: Tuning | None = None,
    budget: Budget | None = None,
) -> Iterator[str]:
    """An enqueued cell is one that the sampler could propose, and takes a trial."""
    if budget and len(enqueue) > budget.trials:
        yield f"enqueue: {len(enqueue)} cells for budget.trials = {budget.trials}; leave some out, or give more trials"
    if enqueue and tuning and tuning.sampler == "grid":
        yield 'enqueue: the grid sampler has an order of its own; leave it out, or set tuning.sampler = "random"'
    for key, each in _keyed("enqueue", enqueue):
        if each.optimizer not in search.optimizers():
            yield f'{key}.optimizer = "{each.optimizer}": not in the search; valid: {", ".join(search.optimizers())}'
            continue
        known = search.dimensions() | search.settings_of(each.optimizer) | workload.searched()
        yield from _entries(key, each, known, settings=True)


def _entries(key: str, given: GivenCell, known: Mapping[str, Dimension | None], *, settings: bool) -> Iterator[str]:
    """Mistakes in the entries of a written cell: those that it lacks, that are unknown, or outside their dimension.

    `known` has the dimension of every entry, None if any value will do; settings are entries if `settings`.
    """
    cell, own = given.cell(), f"{given.optimizer}."
    for name in {**known, **cell}:
        if name.startswith(own) and not settings:
            continue  # `settings_suit_optimizers` checks these
        entry = f"{key}.{name.replace(own, 'settings.').replace('model.', 'model_args.')}"
        valid = "any" if known.get(name) is None else shown(plain(known[name]))  # type: ignore[arg-type]
        if name not in cell:
            if (dimension := known[name]) is None or dimension.size() > 1:
                yield f"{entry}: missing, because the search has it; valid: {valid}"
        elif name not in known:
            yield f"{entry} = {shown(cell[name])}: the search has no such key; leave it out"
        elif (dimension := known[name]) and cell[name] not in dimension:
            yield f"{entry} = {shown(cell[name])}: not in the search; valid: {valid}"
