"""The moving average of a lane's parameters, beside torch's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import analysis
from study.errors import SpecError
from study.spec import check
from tests.fakes.world import World
from tests.solo import difference, small
from tests.test_recipes import PLANTED
from tests.test_spec import changed
from tests.test_tune import CONFIG, to_the_end
from trainables.config import Recipe
from trainables.engines.choose import choose
from trainables.lanes.batches import Batches
from trainables.lanes.reference import alone
from trainables.lanes.stack import Lane, Stack
from trainables.lanes.train import advance
from trainables.rules import EMA, RULES, named
from trainables.tune import MLPTrainable
from trainables.workloads import models
from trainables.workloads.criterion import Criterion
from trainables.workloads.data import Data

UPDATES, CPU = 100, torch.device("cpu")
CUBIC, DIGITS = ((2,), 1, "cubic"), ((1, 8, 8), 10, "digits")
# Name -> model, arguments, optimizer, the engine that is asked for, and the one that trains.
CASES: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "native mlp": ("mlp", {"width": 16, "depth": 2}, "adam", "native", "Native"),
    "native mlp radam": ("mlp", {"width": 16, "depth": 2}, "radam", "native", "Native"),
    "native mlp sgd": ("mlp", {"width": 5, "depth": 1}, "sgd", "native", "Native"),
    "native cnn": ("cnn", {"width": 2, "depth": 1, "kernel": 3}, "nesterov", "native", "Native"),
    "wide mlp": ("mlp", {"width": 256, "depth": 2}, "adamw", "native", "Wide"),
    "eager mlp": ("mlp", {"width": 16, "depth": 2}, "rmsprop", "eager", "Eager"),
    "eager lion": ("mlp", {"width": 16, "depth": 2}, "lion", "auto", "Eager"),
    "eager muon": ("mlp", {"width": 8, "depth": 1}, "muon", "auto", "Eager"),
    "recorded mlp": ("mlp", {"width": 16, "depth": 2}, "adam", "cuda-graph", "Graph"),
    "vmap batch norm": ("mlp", {"width": 8, "depth": 1, "norm": "batch"}, "momentum", "auto", "Vmapped"),
    "lane by lane": ("mlp", {"width": 8, "depth": 1}, "ASGD", "auto", "Solo"),
    "lane by lane, norm": ("tests.user_code:Shuffled", {"width": 8, "depth": 1}, "adam", "auto", "Solo"),
}
# In one stack: none, two decays, a schedule and clipping beside one, and a lane that diverges.
LANES = [
    Lane(1e-3, 0),
    Lane(1e-3, 0, (), Recipe(ema=0.9)),
    Lane(1e-3, 1, (), Recipe(ema=0.99)),
    Lane(3e-3, 1, (), Recipe("cosine", clip_norm=1.0, ema=0.5)),
    Lane(1e-3, 1, (), Recipe(ema=0.0)),
]


def setup(case: str, lanes: list[Lane]) -> tuple[Any, Stack, Any, Batches, Data]:
    model, arguments, optimizer, wanted, kind = CASES[case]
    digits = model == "cnn" or "wide" in case or "norm" in case
    in_shape, outputs, name = DIGITS if digits else CUBIC
    build, loaded = partial(models.build, model, in_shape, outputs, **arguments), small(name)
    stack = Stack.build(build, lanes, named(optimizer), torch.float64, CPU, UPDATES)
    engine = choose(build, in_shape, loaded.task, 32, stack, wanted, name=model)
    assert type(engine).__name__ == kind
    return build, stack, engine, Batches(loaded.train, 32, stack), loaded


def average_of(stack: Stack) -> Tensor:
    with stack.averaged():
        return stack.parameters.clone()


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("case", CASES)
def test_the_average_is_torchs_own_after_a_hundred_updates(case: str) -> None:
    build, stack, engine, batches, loaded = setup(case, LANES)
    for stop in (1, 2, 37, UPDATES):
        advance(stack, engine, batches, stop)
    found = average_of(stack)
    for lane, ours, raw in zip(LANES, found, stack.parameters, strict=True):
        network, losses = alone(
            build, stack.rule, loaded.train, 32, lane, Criterion(loaded.task), UPDATES, total=UPDATES
        )
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(lane.recipe.ema or 0.0))
        for _ in losses:
            average.update_parameters(network)
        assert difference(raw, flat(network)) < 1e-9
        assert difference(ours, flat(average.module)) < 1e-9
    # Without an average the parameters are evaluated, to the last bit.
    assert torch.equal(found[0], stack.parameters[0])
    assert torch.equal(found[4], stack.parameters[4])
    assert difference(found[1], stack.parameters[1]) > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_an_average_changes_no_parameters_and_does_not_depend_on_neighbours(case: str) -> None:
    plain = [Lane(lane.learning_rate, lane.seed) for lane in LANES[:3]]
    _, without, engine, batches, _ = setup(case, plain)
    advance(without, engine, batches, 20)
    _, stack, engine, batches, _ = setup(case, LANES[:3])
    advance(stack, engine, batches, 20)
    assert torch.equal(stack.parameters, without.parameters)
    _, pair, engine, batches, _ = setup(case, LANES[1:3])
    advance(pair, engine, batches, 20)
    assert difference(average_of(pair), average_of(stack)[1:]) < 1e-12


def test_before_the_first_update_the_average_is_the_network() -> None:
    _, stack, *_ = setup("eager mlp", LANES)
    assert torch.equal(average_of(stack), stack.parameters)


AXES = {"ema": [0.0, 0.95]}


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_a_lane_is_scored_by_its_average_and_its_own_score_stands_beside(engine: str) -> None:
    config = {**CONFIG, "rates": (1e-2, 1e-2, 1), "axes": AXES, "engine": engine, "weights": True}
    trial = MLPTrainable(config)
    lanes = to_the_end(trial)[-1]["payload"].lanes
    stack, data = trial.run.stack, trial.run.data
    alive = {lane["lane"]: lane for lane in lanes}
    assert {lane["ema"] for lane in lanes} == {0.0, 0.95}
    network = trial.run.build()
    for place in stack.alive:
        lane = alive[place]
        for prefix, row in (("", average_of(stack)[place]), ("raw_", stack.parameters[place])):
            nn.utils.vector_to_parameters(row, network.parameters())
            for split in ("validation", "test"):
                examples = getattr(data, split)
                with torch.no_grad():
                    loss = nn.functional.mse_loss(network(examples.inputs), examples.targets).item()
                assert lane[f"{prefix}{split}_loss"] == pytest.approx(loss, rel=1e-5)
        assert torch.equal(torch.tensor(lane["weights"]).to(stack.parameters), average_of(stack)[place])
        equal = lane["raw_test_loss"] == lane["test_loss"]
        assert equal == (lane["ema"] == 0)


def test_lanes_without_averages_have_no_second_score() -> None:
    config = {**CONFIG, "rates": (1e-2, 1e-2, 1)}
    lanes = to_the_end(MLPTrainable(config))[-1]["payload"].lanes
    assert {(lane["ema"], lane["raw_test_loss"]) for lane in lanes} == {(0.0, None)}


@pytest.mark.parametrize(
    ("optimizer", "lanes", "mistake"),
    [
        ("adam", {"ema": 1.0}, "lanes.ema = 1.0: 1.0 is out of range; valid: a share, at least 0 and below 1"),
        ("schedule-free-sgd", {"ema": 0.9}, "lanes.ema: schedule-free-sgd averages its parameters itself"),
        ("adam", {"ema_decay": 0.9}, "lanes.ema_decay: unknown key; write ema = 0.999 in [lanes]"),
    ],
)
def test_mistakes_about_averages_are_explained(optimizer: str, lanes: dict[str, Any], mistake: str) -> None:
    with pytest.raises(SpecError) as error:
        check(changed(lanes=lanes, search__optimizer=[optimizer]))
    assert mistake in str(error.value)


def test_a_rule_with_an_average_of_its_own_refuses_another() -> None:
    with pytest.raises(ValueError, match="schedule-free-sgd averages its parameters itself, so it takes no ema"):
        RULES["schedule-free-sgd"].with_ema()
    assert EMA in RULES["adam"].with_ema().buffers


def test_a_study_of_noise_chooses_the_average_and_confirms_it(tmp_path: Path) -> None:
    # At a constant large rate of tiny batches the last parameters scatter, and their average does not.
    lanes = {"learning_rate": [0.05], "ema": [0.0, 0.99], "seeds": 4, "extensions": 0, "refine": 0}
    with World(tmp_path, PLANTED | {"lanes": lanes}) as world:
        world.finish()
        results = analysis.load(world.results())
    table = analysis.cells(results)
    assert json.loads(table["recipe"][0]) == {"ema": 0.99}
    assert results.confirmation
    confirmed = results.confirmation.lanes
    assert set(confirmed["ema"]) == {0.99}
    assert (confirmed["raw_test_loss"] > confirmed["test_loss"]).all()
    assert "ema 0.99" in analysis.best(results)["text"]
    baseline = {"name": "b", "optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "ema": 0.9}
    spec = check(PLANTED | {"baseline": [baseline]})
    assert asdict(Recipe.of(spec.baseline[0].recipe()))["ema"] == 0.9
