"""The ordinary torch loop that every lane equals: one network, torch.optim, one update after another.

Lane equality, `study check`, the benchmark and the tests compare with this loop.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import PLAIN, Recipe, examples_per_epoch, updates_per_epoch
from trainables.lanes.seeds import batch_order, drawing, initialise
from trainables.lanes.stack import Lane
from trainables.rules import Rule
from trainables.usercode.importing import is_import_path
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Split
from trainables.workloads.models import Builder, layered, trained

# (outputs (n, out_features), targets (n, ...)) -> the mean loss, a scalar.
MeanLoss = Callable[[Tensor, Tensor], Tensor]


def updates(
    network: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    examples: Split,
    loss: MeanLoss,
    batches: Iterable[Tensor],
    seed: int | None = None,
    recipe: Recipe = PLAIN,
    rates: Callable[[int], float] | None = None,
) -> Iterator[Tensor]:
    """Make one update per batch.

    Args:
        network: trained in place.
        optimizers: each of some of its parameters.
        examples: the training split.
        loss: mean loss of a batch.
        batches: rows of the split, (n,) each.
        seed: of the lane, from which the network draws its random numbers; None if it draws none.
        recipe: how gradients are clipped.
        rates: number of an update, from 0 -> its learning rate; that of the optimizers throughout if not given.

    Yields:
        The batch's loss before its update.
    """
    network.train()
    for update, rows in enumerate(batches):
        x, y = examples.inputs[rows], examples.targets[rows]
        if rates:
            set_rate(optimizers, rates(update))
        with drawing(seed or 0, update, x.device, when=seed is not None):
            yield step(network, optimizers, lambda x=x, y=y: loss(network(x), y), recipe)  # type: ignore[misc]


def set_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    """Give optimizers another learning rate, as torch's schedulers do."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def step(
    network: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss: Callable[[], Tensor],
    recipe: Recipe = PLAIN,
) -> Tensor:
    """Make one update; an optimizer whose `step` requires a closure is given one.

    Args:
        network: trained in place.
        optimizers: each of some of its parameters.
        loss: computes the loss of the batch.
        recipe: how gradients are clipped.

    Returns:
        The loss before the update.
    """
    found: list[Tensor] = []

    def closure() -> Tensor:
        network.zero_grad()
        now = loss()
        now.backward()
        if recipe.clip_value:
            nn.utils.clip_grad_value_(network.parameters(), recipe.clip_value)
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        found.append(now.detach())
        return found[-1]

    if any(requires_closure(type(optimizer)) for optimizer in optimizers):  # type: ignore[arg-type]
        for optimizer in optimizers:
            optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure()
        for optimizer in optimizers:
            optimizer.step()
    return found[0]


@cache
def requires_closure(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether an optimizer's `step` requires a closure, by which it computes the loss repeatedly, as LBFGS does."""
    parameters = inspect.signature(kind.step).parameters
    return "closure" in parameters and parameters["closure"].default is inspect.Parameter.empty


def alone(
    build: Builder,
    rule: Rule,
    examples: Split,
    batch_size: int,
    lane: Lane,
    criterion: Criterion,
    count: int,
    *,
    drop_last: bool = False,
    total: int = 0,
) -> tuple[nn.Module, Iterator[Tensor]]:
    """One lane's configuration alone, with the optimizer of torch that its rule names.

    Args:
        build: makes one network.
        rule: the optimizer.
        examples: the training split, in the type of the parameters.
        batch_size: examples per update.
        lane: the configuration.
        criterion: the loss.
        count: updates to make.
        drop_last: whether an epoch leaves out a last batch that is short.
        total: updates of the budget, on which a schedule depends; `count` if not given.

    Returns:
        The network at its start, and an iterator that makes the updates and yields the loss before each.
    """
    network = initialise(build, lane.seed).to(examples.inputs.device, examples.inputs.dtype)
    optimizers = rule.reference(list(trained(network).values()), lane.learning_rate, lane.options())
    size = min(batch_size, len(examples))
    per_epoch = updates_per_epoch(size, examples_per_epoch(size, len(examples), drop_last=drop_last))

    def batches() -> Iterator[Tensor]:
        for epoch in range(math.ceil(count / per_epoch)):
            order = batch_order(lane.seed, epoch, len(examples)).to(examples.inputs.device)
            yield from order.split(size)[: min(per_epoch, count - epoch * per_epoch)]

    # Only networks and optimizers of users may draw random numbers; seeding would slow down the others by half.
    seed = None if layered(network) and not is_import_path(rule.name) else lane.seed
    rates = (lambda n: float(lane.rates(n, n + 1, total or count)[0])) if lane.scheduled else None
    found = updates(network, optimizers, examples, mean_loss(criterion), batches(), seed, lane.recipe, rates)
    return network, found


def mean_loss(criterion: Criterion) -> MeanLoss:
    """Torch's own mean loss of the task, or the mean of a user's loss."""
    if criterion.loss:
        return lambda outputs, targets: criterion.losses(outputs[None], targets[None]).mean()
    return (
        F.mse_loss if criterion.task == "regression" else partial(F.cross_entropy, label_smoothing=criterion.smoothing)
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors, relative to the second where that is above 1.

    Equal infinities, and two NaN, do not differ; one NaN or infinity makes the difference infinite.
    """
    ours, theirs = ours.double(), theirs.double()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = (ours - theirs).abs() / theirs.abs().clamp(min=1)
    found = torch.where(same, 0.0, difference.nan_to_num(nan=math.inf))
    return float(found.max()) if found.numel() else 0.0
