"""The confirmation that adds seeds until an optimizer wins: what is run, what is compared, and how often it errs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import analysis
from analysis.comparisons import looks_of
from analysis.paired import Scores, compare_with_best, paired_scores, seeds_can_help
from analysis.report.verdict import verdict
from analysis.schema import unseal
from study.api import _refuse_edits
from study.cli.commands import main
from study.errors import SpecError
from study.plan import describe, probed
from study.results.confirm import WINNERS, looks_made
from study.spec import check, recorded
from study.spec.changes import until_significant, with_values
from tests.fakes.world import World
from tests.test_protocol import EQUAL, OPTIMIZERS, compared, simulated
from tests.test_spec import changed

# Two optimizers that are the same one, and a third that does not train.
TABLES: dict[str, Any] = {
    "name": "looks",
    "workload": {"data": "linear", "model": "linear", "dtype": "float32"},
    "search": {"batch_size": 20, "optimizer": ["sgd", "gradient-descent", "adam"]},
    "lanes": {"learning_rate": {"sgd": [0.05], "gradient-descent": [0.05], "adam": [1e-6]}, "seeds": 2},
    "tuning": {"sampler": "grid"},
    "budget": {"trials": 3, "epochs": 3},
    "confirm": {"top": 1, "seeds": 3, "most_seeds": 10},
}


def looks(world: World) -> list[tuple[str, int]]:
    listed = unseal(world.results() / "confirm" / WINNERS)["winners"]
    return [(each["cell"]["optimizer"], each["look"]) for each in listed]


def test_seeds_are_added_to_contenders_and_baselines_up_to_the_limit(tmp_path: Path) -> None:
    baseline = {"name": "ours", "optimizer": "sgd", "learning_rate": 0.01, "batch_size": 20}
    with World(tmp_path, TABLES | {"baseline": [baseline]}) as world:
        world.finish()
        found = looks(world)
        results = analysis.load(world.results())
    # Equal optimizers are never told apart: three looks, which 10 seeds allow; adam has the first alone.
    assert sorted(found) == sorted(
        [("adam", 0), *((name, look) for name in ("sgd", "sgd", "gradient-descent") for look in range(3))]
    )
    assert results.confirmation
    lanes = results.confirmation.lanes
    assert lanes.groupby("trial")["seed"].nunique().tolist() == [3] * len(found)
    table = analysis.cells(results)
    compared = analysis.compare(results, table)
    assert (compared.looks, compared.most_looks, compared.winner) == (3, 3, None)
    assert [(e.name, e.score.n, e.contender) for e in compared.entries][2] == ("adam", 3, False)
    assert {(e.name, e.score.n) for e in compared.contenders} == {("sgd", 9), ("gradient-descent", 9)}
    assert [(e.name, e.score.n) for e in compared.baselines] == [("ours", 9)]
    assert "9 fresh seeds" in verdict(results, table, compared)[0]
    assert "(look 3 of at most 3)" in verdict(results, table, compared)[0]
    # Regimes, and several studies, are compared on the seeds that all have.
    assert analysis.compare(results, table, "regime").seeds == 3
    once = analysis.compare(results, table, once=True)
    assert (once.seeds, once.looks, len(once.scored)) == (3, 1, 3)


def test_a_winner_ends_the_looks(tmp_path: Path) -> None:
    lanes = TABLES["lanes"] | {"learning_rate": {"sgd": [0.05], "adam": [1e-6]}}
    search = TABLES["search"] | {"optimizer": ["sgd", "adam"]}
    with World(tmp_path, TABLES | {"lanes": lanes, "search": search, "budget": {"trials": 2, "epochs": 3}}) as world:
        world.finish()
        assert looks(world) == [("sgd", 0), ("adam", 0)]
        results = analysis.load(world.results())
    found = analysis.compare(results, analysis.cells(results))
    assert found.winner
    assert (found.winner.name, found.looks) == ("sgd", 1)


@pytest.mark.parametrize(
    ("other", "rate", "looks_of_it"), [("gradient-descent", 0.05, 3), ("gradient-descent", 1e-6, 1), ("sgd", 0.05, 1)]
)
def test_an_only_optimizer_is_looked_at_until_it_differs_from_its_baseline(
    tmp_path: Path, other: str, rate: float, looks_of_it: int
) -> None:
    """The baseline is another name of the same optimizer, is much worse, or is the tuned setting itself."""
    baseline = {"name": "usual", "optimizer": other, "learning_rate": rate, "batch_size": 20}
    tables = {
        "search": TABLES["search"] | {"optimizer": "sgd"},
        "lanes": TABLES["lanes"] | {"learning_rate": [0.05]},
        "budget": {"trials": 1, "epochs": 3},
        "baseline": [baseline],
    }
    spec = check(TABLES | tables)
    assert "2 times 3 more for the optimizer and its baselines" in describe(spec, probed(spec))
    with World(tmp_path, TABLES | tables) as world:
        world.finish()
        expected = [(name, look) for look in range(looks_of_it) for name in dict.fromkeys(("sgd", other))]
        assert looks(world) == expected
        results = analysis.load(world.results())
    found = analysis.compare(results, analysis.cells(results))
    assert found.looks == looks_of_it
    assert found.baselines[0].score.n == 3 * looks_of_it


def test_looks_end_where_more_seeds_cannot_help() -> None:
    def scores(test_examples: int, flipped: float) -> Scores:
        """Two configurations of which one is right on 6% more examples; each seed gets some other examples wrong."""
        right = np.arange(test_examples) < np.array([0.80, 0.86])[:, None, None] * test_examples
        noise = np.random.default_rng(0).random((2, 10, test_examples)) < flipped
        each = (right ^ noise).astype(float)
        return paired_scores(each.mean(axis=2), "accuracy", each)

    # Where all seeds agree on each example, its 50 examples hide the difference, and no seed changes that.
    assert not seeds_can_help(scores(50, flipped=0.0))
    assert seeds_can_help(scores(5000, flipped=0.0))
    # Seeds that differ much say little, yet.
    assert len([each for each in compare_with_best(scores(400, flipped=0.3)) if each.contender]) == 2
    assert seeds_can_help(scores(400, flipped=0.3))
    # Two contenders may be the same one: the third may still beat both.
    first = scores(400, flipped=0.3)
    twins = paired_scores(np.zeros((3, 10)) + 0.5, "accuracy")
    twins = replace(twins, means=first.means[[0, 0, 1]], of_seeds=first.of_seeds[np.ix_([0, 0, 1], [0, 0, 1])])
    assert seeds_can_help(replace(twins, of_examples=first.of_examples[np.ix_([0, 0, 1], [0, 0, 1])]))


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_few_seeds_without_recorded_examples_can_be_helped(seeds: int) -> None:
    """The limit of many seeds is not judged with the degrees of freedom of few; tuning's share alone hides 0.3."""
    noise = np.random.default_rng(0).normal(0, 0.2, (2, seeds))
    assert seeds_can_help(paired_scores(np.exp(noise + np.array([[0.0], [0.6]])), "loss").tuned([0.05, 0.05]), looks=10)
    steady = noise[:1] + np.array([[0.0], [0.1]])  # seeds agree on the difference
    assert not seeds_can_help(paired_scores(np.exp(steady), "loss").tuned([0.05, 0.05]), looks=10)


def test_a_killed_confirmation_goes_on_with_the_look_that_it_was_at(tmp_path: Path) -> None:
    with World(tmp_path / "whole", TABLES) as world:
        world.finish()
        whole, expected = looks(world), analysis.load(world.results())
    with World(tmp_path / "killed", TABLES) as world:
        world.start()
        file = world.top / "out" / "confirm" / WINNERS
        while not file.exists() or not any(look for _, look in looks(world)):
            world.step(world.running()[0])
        world.step(world.running()[0])
        world.kill_driver()
        assert len(looks(world)) < len(whole)
        world.finish()
        assert looks(world) == whole
        found = analysis.load(world.results())
    assert expected.confirmation
    assert found.confirmation
    columns = ["learning_rate", "seed", "test_loss"]
    before, after = (
        each.confirmation.lanes[columns].sort_values(columns).to_numpy()
        for each in (expected, found)  # type: ignore[union-attr]
    )
    assert np.array_equal(before, after)


def test_a_limit_that_is_raised_later_continues_the_looks(tmp_path: Path) -> None:
    with World(tmp_path, TABLES | {"confirm": {"top": 1, "seeds": 3}}) as world:
        world.finish()
        assert {look for _, look in looks(world)} == {0}
        spec = world.results() / "spec.toml"
        text = spec.read_text()
        assert "seeds = 3\n" in text
        spec.write_text(text.replace("[confirm]\n", "[confirm]\nmost_seeds = 6\n"))
        world.finish()
        assert [each for each in looks(world) if each[1]] == [("sgd", 1), ("gradient-descent", 1)]


def test_the_error_is_shared_out_among_looks() -> None:
    rng = np.random.default_rng(0)
    scores = paired_scores(np.exp(rng.normal(0, 1, (3, 10)) + np.array([[0.0], [0.2], [1.6]])), "loss")
    one, five = compare_with_best(scores), compare_with_best(scores, looks=5)
    for alone, shared in zip(one, five, strict=True):
        assert shared.p == pytest.approx(min(1.0, 5 * alone.p))
        assert shared.contender == (alone.p > 0.01)
        assert shared.gain.low <= alone.gain.low
    assert not one[2].contender


def test_the_key_is_checked_planned_and_given_by_an_option() -> None:
    with pytest.raises(SpecError, match=r"most_seeds = 12 adds no batch to 10 seeds; valid: 20 or more"):
        check(changed(confirm={"seeds": 10, "most_seeds": 12}))
    spec = check(changed(confirm={"seeds": 10, "most_seeds": 35}))
    assert spec.confirm
    assert spec.confirm.looks == 3
    assert set(spec.confirm_seeds(1)).isdisjoint(spec.confirm_seeds(0))
    plan = describe(spec, probed(spec))
    assert "then up to 2 times 10 more for contenders, until one wins: 3 looks, each at p < 0.017" in plan
    assert until_significant(spec).confirm == spec.confirm
    usual = until_significant(check(changed(confirm={"seeds": 8})))
    assert usual.confirm
    assert usual.confirm.most_seeds == 40
    with pytest.raises(SpecError, match="confirm = false: --until-significant adds fresh seeds"):
        until_significant(check(changed(confirm=False)))
    found = CliRunner().invoke(main, ["run", "--help"])
    assert "--until-significant" in found.output


def with_looks(study: analysis.Results) -> analysis.Results:
    study.spec["confirm"] = {"seeds": 10, "most_seeds": 50}
    assert looks_of(study) == (10, 5)
    return study


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("studies", [4, pytest.param(500, marks=pytest.mark.nightly)])
def test_equal_optimizers_are_told_apart_at_any_look_in_at_most_one_study_of_twenty(studies: int) -> None:
    rng, apart, wins, last = np.random.default_rng(4), 0, 0, 0
    for _ in range(studies):
        found = compared(with_looks(simulated(rng, EQUAL, fresh_seeds=50)[0]))
        apart += len(found.contenders) < len(OPTIMIZERS)
        wins += found.winner is not None
        last += found.looks == 5
    print(f"any excluded {apart}, winners {wins}, all five looks made {last}, of {studies} studies")
    assert apart <= max(1, 0.05 * studies)
    assert wins <= max(1, 0.05 * studies)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("studies", [2, pytest.param(200, marks=pytest.mark.nightly)])
def test_a_factor_of_two_and_a_smaller_one_are_found(studies: int) -> None:
    rng, named, wrong, seeds = np.random.default_rng(5), {2.0: 0, 1.4: 0}, 0, {2.0: 0, 1.4: 0}
    once = dict(named)
    for factor in named:
        for _ in range(studies):
            study = with_looks(simulated(rng, EQUAL | {"adam": -5.0 - math.log(factor)}, fresh_seeds=50)[0])
            once[factor] += analysis.compare(study, analysis.cells(study), once=True).winner is not None
            found = compared(study)
            named[factor] += found.winner is not None and found.winner.name == "adam"
            wrong += found.winner is not None and found.winner.name != "adam"
            seeds[factor] += found.seeds
    print(json.dumps({"named": named, "after ten seeds": once, "wrong": wrong, "seeds": seeds, "studies": studies}))
    assert named[2.0] >= 0.95 * studies
    assert wrong == 0
    if studies > 10:
        assert named[1.4] > once[1.4]


def test_a_baseline_without_rows_stops_no_look(tmp_path: Path) -> None:
    with World(tmp_path, TABLES) as world:
        world.finish()
        results = analysis.load(world.results())
    added = {"name": "ours", "optimizer": "sgd", "learning_rate": 0.01, "batch_size": 20}
    later = replace(results, spec={**results.spec, "baseline": [added]})
    compared = analysis.compare(later, analysis.cells(later))
    assert (compared.looks, compared.baselines[0].reason) == (3, "not confirmed on fresh seeds")


def test_looks_that_were_made_are_not_taken_back(tmp_path: Path) -> None:
    with World(tmp_path, TABLES) as world:
        world.finish()
        file = world.folder / "spec.toml"
        assert looks_made(world.folder) == 3
        spec = with_values(recorded(world.folder), "confirm", most_seeds=None)
        with pytest.raises(SpecError, match=r"confirm.most_seeds: 3 looks were made already, so it must be at least 9"):
            _refuse_edits(spec, file.parent)
