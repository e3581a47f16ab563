"""The lines of torch that train one setting of a study, as text that runs as it is printed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainables.config import Reading, Recipe, TrialConfig, examples_per_epoch, updates_per_epoch
from trainables.lanes.reference import requires_closure
from trainables.lanes.stack import Lane
from trainables.lanes.trial import grid_lanes
from trainables.rules import named
from trainables.usercode.importing import is_import_path, is_own
from trainables.workloads.adapting import Named
from trainables.workloads.catalogue import DEEPOBS
from trainables.workloads.data import Data
from trainables.workloads.models import layered


def recipe(config: TrialConfig, network: nn.Module, data: Data, updates: int) -> str:
    """The lines that train a setting once, from a seed of their own, and print its score on the test split.

    Args:
        config: of a trial with one learning rate.
        network: of this setting.
        data: of this setting.
        updates: the budget in updates.
    """
    lane = grid_lanes(config)[0]
    size = min(config.batch_size, len(data.train))
    used = examples_per_epoch(size, len(data.train), drop_last=config.budget.drop_last)
    epochs = updates / updates_per_epoch(size, used)
    load: dict[str, Any] = {"standardize": config.standardize, "seed": config.data_seed}
    load |= {"dtype": torch.float64} if config.dtype == "float64" else {}
    read = {name: value for name, value in vars(config.reading()).items() if value != getattr(Reading, name)}
    load |= {"reading": Named(f"Reading({_arguments(**read)})")} if read else {}
    load |= {"images": True} if is_own(config.data) and config.model == "cnn" else {}
    x = "data.train.inputs[rows]"
    changes = {name: value for name, value in vars(config.augment).items() if value}
    lines = [
        f"data = load({_arguments(config.data, **load, **_bundle('code', config.data, config))})",
        "torch.manual_seed(0)",
        *_network(config, network, data),
        f"optimizers = {_optimizers(config)}",
        *_schedule(lane, updates),
        *_average(lane.recipe),
        *_criterion(config, data),
        f"orders = (torch.randperm({len(data.train)})[:{used}] for _ in count())",
        f"batches = (rows for order in orders for rows in order.split({size}))",
    ]
    if changes:
        lines.append(f"augment = Augment({_arguments(**changes)}, mean=data.mean, std=data.std)")
        x = f"augment({x}, torch.rand(len(rows), 7))"
    lines += [
        f"for rows in islice(batches, {updates}):  # {epochs:.6g} epochs",
        f"    x, y = {x}, data.train.targets[rows]",
        *_update(config, lane.recipe),
        *(["    for scheduler in schedulers:", "        scheduler.step()"] if lane.scheduled else []),
        *(["    average.update_parameters(network)"] if lane.recipe.ema else []),
        *(["network = average.module"] if lane.recipe.ema else []),
        *(
            ["optimizers[0].average()  # the parameters to evaluate"]
            if named(config.optimizer, config.code).average
            else []
        ),
        "network.eval()",
        "with torch.no_grad():",
        "    outputs, targets = network(data.test.inputs), data.test.targets",
        '    print("test loss", criterion(outputs, targets).item())',
    ]
    if config.score or data.task == "classification":
        lines.append('    print("test accuracy", score(outputs, targets).double().mean().item())')
    return "\n".join([*_imports("\n".join(lines)), "", *lines])


_IMPORTS = {
    "count": "from itertools import count, islice\n",
    "torch": "import torch",
    "nn.": "from torch import nn",
    "AveragedModel(": "from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn",
    "F.": "from torch.nn import functional as F\n",
    "named(": "from trainables.rules import named",
    "factor(": "from trainables.schedules import factor",
    "function(": "from trainables.usercode.importing import function",
    "Augment(": "from trainables.workloads.augment import Augment",
    "Reading(": "from trainables.config import Reading",
    "load(": "from trainables.workloads.data import load",
    "build(": "from trainables.workloads.models import build",
}


def _imports(text: str) -> list[str]:
    return [line for name, line in _IMPORTS.items() if name in text]


def _arguments(*values: object, **named: object) -> str:
    return ", ".join([*map(repr, values), *(f"{name}={value!r}" for name, value in named.items())])


def _bundle(name: str, path: str, config: TrialConfig) -> dict[str, str]:
    """The argument that says where user code lies."""
    return {name: config.code} if is_own(path) else {}


def _network(config: TrialConfig, network: nn.Module, data: Data) -> list[str]:
    """The network: layer by layer if all of them are torch's own, with torch's own initial values."""
    cast = ".double()" if config.dtype == "float64" else ""
    usual = config.model_args.get("init", "torch") == "torch" and config.model not in DEEPOBS
    if usual and layered(network) and all(type(layer).__module__.startswith("torch.nn.") for layer in network):
        return ["network = nn.Sequential(", *(f"    nn.{layer}," for layer in network), f"){cast}"]
    size = {name: size for name, size in (("width", config.width), ("depth", config.depth)) if size}
    options = {**size, **_bundle("bundle", config.model, config), **config.model_args}
    arguments = _arguments(config.model, data.in_shape, data.out_features, **options)
    return [f"network = build({arguments}){cast}"]


def _optimizers(config: TrialConfig) -> str:
    """The list of optimizers."""
    lane = grid_lanes(config)[0]
    rule, rate, settings = named(config.optimizer, config.code), lane.learning_rate, lane.options()
    if is_import_path(config.optimizer) or rule.torch_class is None:
        found = f"named({_arguments(config.optimizer, **_bundle('code', config.optimizer, config))})"
        return f"{found}.reference(list(network.parameters()), {rate!r}, {settings!r})"
    make, options = f"torch.optim.{rule.torch_class.__name__}", _arguments(lr=rate, **rule.options(settings))
    return f"[{make}(network.parameters(), {options})]"


def _schedule(lane: Lane, updates: int) -> list[str]:
    """The schedule of the learning rate, if it has one."""
    if not lane.scheduled:
        return []
    arguments = _arguments(lane.recipe.schedule or "constant", lane.recipe.warmup or 0.0)
    each = f"torch.optim.lr_scheduler.LambdaLR(each, lambda n: factor({arguments}, n, {updates}))"
    return [f"schedulers = [{each} for each in optimizers]"]


def _average(own: Recipe) -> list[str]:
    """The moving average of the parameters, if there is one."""
    if not own.ema:
        return []
    return [f"average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn({own.ema!r}))"]


def _criterion(config: TrialConfig, data: Data) -> list[str]:
    """The mean loss, and the score of each example if there is one."""
    usual = "F.mse_loss" if data.task == "regression" else "F.cross_entropy"
    own = f"lambda outputs, targets: function({_arguments(config.loss, 'loss', config.code)})(outputs, targets).mean()"
    lines = [f"criterion = {own if config.loss else usual}"]
    if config.score:
        lines.append(f"score = function({_arguments(config.score, 'score', config.code)})")
    elif data.task == "classification":
        lines.append("score = lambda outputs, targets: outputs.argmax(1) == targets")
    return lines


def _update(config: TrialConfig, own: Recipe) -> list[str]:
    """One update of the network by a batch x, y."""
    rule = named(config.optimizer, config.code)
    smoothed = f"F.cross_entropy(network(x), y, label_smoothing={config.label_smoothing!r})"
    mean = smoothed if config.label_smoothing else "criterion(network(x), y)"
    loss = ["network.zero_grad()", f"loss = {mean}", "loss.backward()"]
    loss += [f"nn.utils.clip_grad_value_(network.parameters(), {own.clip_value!r})"] if own.clip_value else []
    loss += [f"nn.utils.clip_grad_norm_(network.parameters(), {own.clip_norm!r})"] if own.clip_norm else []
    if rule.torch_class is None or not requires_closure(rule.torch_class):  # type: ignore[arg-type]
        return [f"    {line}" for line in (*loss, "for optimizer in optimizers:", "    optimizer.step()")]
    step = ["for optimizer in optimizers:", "    optimizer.step(closure)"]
    return [f"    {line}" for line in ("def closure():", *(f"    {line}" for line in (*loss, "return loss")), *step)]
