"""What is tuned beside the learning rate: from the spec over lanes and tables to the verdict."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import analysis
from analysis.rates import rate_table
from analysis.report.tables import recipes
from analysis.report.verdict import verdict
from analysis.schema import unseal
from study.errors import SpecError
from study.plan import describe, probed
from study.results.confirm import WINNERS, winners
from study.spec import check
from study.spec.changes import resolved
from study.tuning.space import Space
from tests.conftest import write_study
from tests.fakes.world import World
from tests.solo import CPU, builder, difference, trained
from tests.test_spec import changed
from tests.test_tune import CONFIG, course, to_the_end, told
from trainables.config import PLAIN, Recipe, TrialConfig, combinations
from trainables.lanes.rates import Measure, losers, next_round, ranked, tuned
from trainables.lanes.stack import Lane, Setting, Stack
from trainables.lanes.trial import grid_lanes
from trainables.rules import RULES, Adjustment
from trainables.tune import MLPTrainable, ModelTrainable

COSINE, DECAY = Recipe("cosine"), Recipe("cosine", weight_decay=0.1)
LOSS = Measure("loss", 100)

# Spec


@pytest.mark.parametrize(
    ("lanes", "mistake"),
    [
        ({"schedule": "cosinus"}, 'lanes.schedule = "cosinus": unknown schedule "cosinus" (did you mean cosine?)'),
        ({"schedule": {"low": 0, "high": 1}}, "must be one value or a list of values"),
        ({"warmup": 1.0}, "lanes.warmup = 1.0: 1.0 is out of range; valid: a share, at least 0 and below 1"),
        ({"weight_decay": [-0.1]}, "valid: 0 and positive"),
        ({"clip_norm": [1.0, 1.0]}, "a value is given twice"),
        ({"learning_rate": [0.1, 0.0]}, "lanes.learning_rate = [0.1, 0.0]: 0.0 is out of range; valid: positive"),
        ({"learning_rate": {"sgd": {"low": 1.0, "high": 0.1}}}, "lanes.learning_rate.sgd: low = 1.0 is above high"),
        ({"learning_rate": {"muon": [0.1]}}, "lanes.learning_rate.muon: not among the optimizers of the search"),
        ({"settings": {"momentum": [0.5]}}, "lanes.settings.momentum: no optimizer of the search has such a setting"),
        ({"settings": {"beta1": [1.0]}}, "lanes.settings.beta1 = 1.0: adam: 1 is not a share"),
        ({"sample": 9}, "lanes.sample = 9: sgd has 8 = 8 combinations"),
        (
            {"rates": 100, "weight_decay": [n / 100 for n in range(50)], "seeds": 5},
            "lanes: rates x weight_decay x seeds = 100 x 50 x 5 = 25,000 lanes a trial of sgd; valid: at most 10,000",
        ),
    ],
)
def test_mistakes_in_axes_name_key_value_and_what_is_valid(lanes: dict[str, Any], mistake: str) -> None:
    with pytest.raises(SpecError) as error:
        check(changed(lanes=lanes, search__optimizer=["sgd", "adam"]))
    assert mistake in str(error.value)
    assert str(error.value).count("\n") == 1


def test_an_axis_is_not_searched_too_and_is_one_of_the_optimizer() -> None:
    search = {"search__optimizer": ["adamw", "LBFGS"], "search__settings": {"adamw": {"weight_decay": [0.0, 0.1]}}}
    with pytest.raises(SpecError) as error:
        check(changed(lanes={"weight_decay": [0.0, 0.1]}, **search))
    assert "lanes.weight_decay: search.settings.adamw.weight_decay searches it already" in str(error.value)
    assert "lanes.weight_decay: LBFGS has no weight decay" in str(error.value)


AXES: dict[str, Any] = {
    "learning_rate": {"momentum": [0.1, 0.01], "adamw": {"low": 1e-4, "high": 1e-1, "count": 4}},
    "schedule": ["constant", "cosine"],
    "weight_decay": [0, 5e-4],
    "clip_norm": 1,
    "settings": {"momentum": [0.0, 0.9]},
    "seeds": 3,
}


def test_a_spec_round_trips_and_trials_get_its_axes() -> None:
    spec = check(changed(lanes=AXES, search__optimizer=["momentum", "adamw", "sgd"]))
    assert check(spec.tables()) == spec
    assert spec.rates("sgd") == (*RULES["sgd"].rates, 8)
    assert spec.rates("momentum") == (0.01, 0.1, 2)
    assert [spec.settings(name) for name in ("momentum", "adamw", "sgd")] == [2 * 2 * 2 * 2, 4 * 2 * 2, 8 * 2 * 2]
    cell = {"optimizer": "momentum", "batch_size": 32, "width": 8, "depth": 1}
    config = TrialConfig.of(Space(spec, "", "").configuration(cell, 0))
    lanes = grid_lanes(config)
    assert len({lane.setting for lane in lanes}) == 16
    assert {lane.learning_rate for lane in lanes} == {0.01, 0.1}
    assert lanes[-1] == Lane(0.1, 2, (), Recipe("cosine", None, 5e-4, 1.0, settings=(("momentum", 0.9),)))
    sampled = check(changed(lanes=AXES | {"sample": 5}, search__optimizer=["momentum", "adamw", "sgd"]))
    few = grid_lanes(TrialConfig.of(Space(sampled, "", "").configuration(cell, 0)))
    assert [lane for lane in lanes if lane.setting in {each.setting for each in few}] == few
    assert len(few) == 15
    assert "15 a trial: 5 of 16 combinations (2 rates x 2 schedules x 2 weight decays x 2 momentums) x 3 seeds" in (
        describe(sampled, probed(sampled))
    )


def test_a_trial_without_axes_is_the_trial_that_it_was() -> None:
    config = TrialConfig.of({"optimizer": "sgd", "batch_size": 1})
    assert not {"axes", "sample"} & set(json.loads(config.identity()))
    assert TrialConfig.of({**asdict(config), "axes": {"warmup": [0.1]}}).identity() != config.identity()
    assert combinations({"learning_rate": [0.1, 0.2]}) == [(0.1, PLAIN), (0.2, PLAIN)]
    assert PLAIN.text() == ""
    assert Recipe.of(json.loads(DECAY.text())) == DECAY


# Tuning


def stack_of(losses: dict[Setting, list[float]], name: str = "grid") -> Stack:
    """A stack whose lanes have those last validation losses, a list of seeds' for each setting."""
    lanes = [Lane(each.learning_rate, seed, (), each.recipe) for each in losses for seed in range(len(losses[each]))]
    stack = Stack(RULES["sgd"], lanes, list(range(len(lanes))), torch.zeros(len(lanes), 1), {}, [], round=name)
    stack.last["validation", "loss"] = np.array(list(losses.values())).flatten()
    return stack


def test_ties_go_to_the_first_recipe_and_its_middle_rate() -> None:
    rates = (0.01, 0.1, 1.0)
    stack = stack_of({Setting(rate, recipe): [0.5, 0.5] for recipe in (COSINE, PLAIN) for rate in rates})
    assert tuned([stack], LOSS)[0] == Setting(0.1, COSINE)
    assert list(ranked([stack], LOSS))[:4] == [*(Setting(rate, COSINE) for rate in (0.1, 0.01, 1.0)), Setting(0.1)]


def test_rates_are_added_at_the_best_recipe_only() -> None:
    losses = {Setting(rate, recipe): [0.5, 0.6] for recipe in (PLAIN, COSINE) for rate in (0.01, 0.1, 1.0)}
    edge = stack_of(losses | {Setting(1.0, COSINE): [0.1, 0.1]})
    name, found = next_round([edge], LOSS, extensions=1, refine=1)
    assert (name, {each.recipe for each in found}) == ("extension 1", {COSINE})
    assert [each.learning_rate for each in found] == pytest.approx([10.0, 100.0])
    inside = stack_of(losses | {Setting(0.1, COSINE): [0.1, 0.1], Setting(1.0, COSINE): [0.2, 0.2]})
    name, found = next_round([inside], LOSS, extensions=1, refine=1)
    assert (name, {each.recipe for each in found}) == ("refinement 1", {COSINE})
    assert [each.learning_rate for each in found] == pytest.approx([10**-1.5, 10**-0.5])
    # What another recipe tried there is unknown of this one.
    assert (
        next_round([inside, stack_of({each: [0.2, 0.2] for each in found}, name)], LOSS, extensions=1, refine=1)[0]
        == ""
    )


def test_halving_keeps_rates_of_every_recipe() -> None:
    losses = {
        Setting(rate, recipe): [rate * 2**place] for place, recipe in enumerate((PLAIN, DECAY)) for rate in (1.0, 2.0)
    }
    assert losers(stack_of(losses), LOSS, 1) == [1, 3]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_the_tuned_setting_is_the_one_that_the_analysis_finds(metric: str) -> None:
    random = np.random.default_rng(0)
    settings = [Setting(rate, recipe) for recipe in (PLAIN, COSINE, DECAY) for rate in (0.01, 0.1, 1.0)]
    for _ in range(20):
        values = random.choice([0.1, 0.3, 0.301, 0.303], (len(settings), 2))
        values[random.random(values.shape) < 0.1] = math.nan
        losses = values if metric == "loss" else random.choice([0.2, 0.5], (len(settings), 1)) * np.ones(2)
        stack = stack_of(dict(zip(settings, losses.tolist(), strict=True)))
        stack.last["validation", metric] = values.flatten()
        frame = pd.DataFrame(
            {
                "cell": 0,
                "lane": range(len(stack.lanes)),
                "seed": [lane.seed for lane in stack.lanes],
                "recipe": [lane.recipe.text() for lane in stack.lanes],
                "learning_rate": [lane.learning_rate for lane in stack.lanes],
                "outcome": np.where(np.isnan(values.flatten()), "diverged", "completed"),
                "stopped_update": None,
                "validation_loss": losses.flatten(),
                f"validation_{metric}": values.flatten(),
            }
        ).sample(frac=1, random_state=0)
        setting, value = tuned([stack], Measure(metric, 1000, 1e-10))
        table = rate_table(frame, metric, 1000, 1e-10)
        theirs = table[table["best"]].iloc[0]
        assert setting
        assert (theirs["recipe"], theirs["learning_rate"]) == (setting.recipe.text(), setting.learning_rate)
        assert theirs["estimate"] == pytest.approx(value)
        assert len(table) == 3


# Lanes


def test_a_gradient_that_is_not_finite_stays_in_its_lane() -> None:
    gradients = torch.tensor([[3.0, 4.0], [math.nan, 1.0], [math.inf, 1.0], [1e30, 1e30], [3.0, 4.0]])
    adjust = Adjustment.of(
        torch.tensor([[math.inf]] * 5),
        torch.tensor([[1.0]] * 3 + [[math.inf]] * 2),
        torch.tensor([[0.0]] * 4 + [[0.5]]),
    )
    adjust(torch.ones(5, 2), gradients)
    assert gradients[0].tolist() == pytest.approx([0.6, 0.8], rel=1e-6)
    assert gradients[1:3].isnan().any(1).all()
    assert gradients[3].tolist() == torch.tensor([1e30, 1e30]).tolist()
    assert gradients[4].tolist() == [3.5, 4.5]


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_neighbours_with_other_recipes_change_nothing(engine: str) -> None:
    lane = Lane(0.05, 1, (), Recipe("cosine", 0.1, 1e-3, 0.5))
    others = [Lane(0.05, 1), Lane(1e200, 1, (), Recipe("linear", clip_norm=0.1)), Lane(0.02, 2, (), DECAY)]
    alone = trained("mlp", "momentum", 32, [lane], 40, engine).parameters[0]
    together = trained("mlp", "momentum", 32, [others[0], others[1], lane, others[2]], 40, engine)
    assert difference(together.parameters[together.alive.index(2)], alone) < 1e-9
    plain = trained("mlp", "momentum", 32, [others[0]], 40, engine).parameters[0]
    assert difference(together.parameters[0], plain) < 1e-9


def test_a_schedule_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="needs the number of updates"):
        Stack.build(builder("mlp"), [Lane(0.1, 0, (), COSINE)], RULES["sgd"], torch.float64, CPU)


AXES_OF_TRIAL = {
    "schedule": ["constant", "cosine"],
    "warmup": [0.2],
    "weight_decay": [0.01],
    "ema": [0.0, 0.9],
    "clip_norm": [1.0],
}


@pytest.mark.parametrize("engine", ["native", "eager", "cuda-graph", "vmap", "solo"])
@pytest.mark.parametrize("budget", [{"epochs": 4}, {"seconds": 0.05}])
def test_a_trial_resumes_in_the_middle_of_a_schedule_bit_for_bit(
    engine: str, budget: dict[str, Any], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"vmap": {"model": "tests.user_code:Residual"}, "solo": {"optimizer": "ASGD"}}.get(
        engine, {"engine": engine}
    )
    kind = ModelTrainable if engine == "vmap" else MLPTrainable
    config = {**CONFIG, "rates": (1e-2, 1e-1, 2), "axes": AXES_OF_TRIAL, "budget": budget} | how
    config |= {"checkpoint": str(tmp_path / "trial.pt"), "checkpoint_seconds": 0.0, "refine": 1}
    first = kind(config)
    begun = [first.train() for _ in range(2)]
    saved = (tmp_path / "trial.pt").read_bytes()
    undisturbed = begun + to_the_end(first)
    (tmp_path / "trial.pt").write_bytes(saved)
    rest = to_the_end(kind(config))
    assert told(begun + rest) == told(undisturbed)
    assert course([rest[-1]["payload"]]) == course([undisturbed[-1]["payload"]])
    assert undisturbed[-1]["engine"] == engine


# Studies

PLANTED: dict[str, Any] = {
    "name": "planted",
    "workload": {"data": "tests.user_code:noise", "model": "linear", "metric": "loss", "standardize": False},
    "search": {"batch_size": 4, "optimizer": ["sgd"]},
    "lanes": {
        "learning_rate": [0.03, 0.1],
        "schedule": ["constant", "cosine"],
        "weight_decay": [0.0, 3.0],
        "seeds": 3,
        "extensions": 0,
        "refine": 0,
    },
    "tuning": {"sampler": "random"},
    "budget": {"trials": 1, "epochs": 30},
    "confirm": {"top": 1, "seeds": 3},
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study in which weight decay and a falling rate win: its data are noise."""
    with World(tmp_path_factory.mktemp("planted"), PLANTED) as world:
        world.start()
        while world.alive:
            world.step(world.running()[0])
        return world.results()


def test_the_planted_recipe_is_tuned_confirmed_and_reported(planted: Path) -> None:
    results = analysis.load(planted)
    table = analysis.cells(results)
    expected = {"schedule": "cosine", "weight_decay": 3.0}
    assert json.loads(table["recipe"][0]) == json.loads(results.trials["recipe"][0]) == expected
    assert [each["recipe"] for each in unseal(planted / "confirm" / WINNERS)["winners"]] == [expected]
    assert results.confirmation
    assert set(results.confirmation.lanes["schedule"]) == {"cosine"}
    assert set(results.confirmation.lanes["weight_decay"]) == {3.0}
    assert analysis.compare(results, table).fresh
    assert analysis.best(results)["recipe"] == expected
    assert "schedule cosine, weight_decay 3" in analysis.best(results)["text"]
    assert any(
        "schedule cosine, weight_decay 3" in line for line in verdict(results, table, analysis.compare(results, table))
    )
    frame = analysis.rate_sensitivity(results, table)
    assert (len(frame), set(map(json.dumps, map(json.loads, frame["recipe"])))) == (2, {json.dumps(expected)})
    shown = recipes(results, table)
    assert shown
    assert [(row[0], row[1], row[2]) for row in shown.rows] == [
        ("sgd", "schedule", "constant"),
        ("sgd", "schedule", ("cosine", "tuned")),
        ("sgd", "weight decay", "0"),
        ("sgd", "weight decay", ("3", "tuned")),
    ]


def test_an_earlier_folder_loads_and_its_winners_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path, optimizers=["sgd", "adam"], widths=[8], depths=[1])
    before = analysis.cells(analysis.load(folder))
    new = ["recipe", "schedule", "warmup", "weight_decay", "clip_norm", "clip_value", "ema"]
    for table in ("trials", "lanes"):
        for file in (folder / f"{table}.parquet").glob("*.parquet"):
            piece = pq.read_table(file)
            pq.write_table(piece.drop_columns([name for name in new if name in piece.schema.names]), file)
    results = analysis.load(folder)
    pd.testing.assert_frame_equal(analysis.cells(results), before)
    assert set(results.lanes["schedule"]) == {"constant"}
    assert set(before["recipe"]) == {""}
    spec = resolved(check(changed(confirm={"top": 1}, search__optimizer=["sgd", "adam"])))
    first = winners(spec, folder)
    file = folder / "confirm" / WINNERS
    file.write_text(
        json.dumps([{name: each[name] for name in ("cell", "learning_rate")} for each in map(asdict, first)])
    )
    assert winners(spec, folder) == first
