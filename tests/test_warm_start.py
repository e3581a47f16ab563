"""Warm starts: the sampler knows an earlier study's trials, and nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest

import analysis
import study
from analysis.report import warnings
from analysis.schema import Outcome
from study import plan
from study.errors import SpecError, StorageError
from study.spec import Spec, check
from study.tuning import warm_start
from study.tuning.samplers import sampler
from study.tuning.space import Space
from tests.fakes.world import World
from tests.test_histories import TINY, check_same, computed
from tests.test_outcomes import search
from tests.test_spec import changed

KNOWN = 30


def spec(**changes: Any) -> Spec:
    space = {"width": {"low": 8, "high": 64}, "depth": 1, "batch_size": [32, "full"], "optimizer": ["sgd", "adam"]}
    beta = {"adam": {"beta1": {"low": 0.5, "high": 0.9}}}
    return check(changed(search=space | {"settings": beta}, **changes))


def knowledge() -> warm_start.Known:
    """Of width 20 +- 12 the middle is best, by far; beta1 matters little."""
    cells, values = [], []
    for number in range(KNOWN):
        width, name = 8 + number % 25, ("sgd", "adam")[number % 2]
        own = {"adam.beta1": 0.5 + number / 100} if name == "adam" else {}
        cells.append(
            {"optimizer": name, "batch_size": (32, "full")[number // 2 % 2], "width": width, "depth": 1, **own}
        )
        values.append([abs(width - 20) / 10 + number / 1000])
    return warm_start.Known(KNOWN, tuple(cells), tuple(values))


def proposed(here: Spec, folder: Path) -> list[int]:
    """The widths of eight trials of a new study, of which 20 is best."""
    own, widths = optuna.create_study(), []
    for number in range(8):
        searcher = search(here, warm_start.warmed(own, Space(here, "", ""), folder))
        config = searcher.suggest("a")
        assert config
        assert config["trial"] == number
        widths.append(config["width"])
        searcher.end(number, Outcome.COMPLETED, {"value": abs(config["width"] - 20) / 10})
    assert [trial.number for trial in own.trials] == list(range(8))
    return widths


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_samplers_use_earlier_trials_and_the_study_does_not_hold_them(name: str, tmp_path: Path) -> None:
    tuning = {"sampler": name, "fair": False}
    warm_start.write(tmp_path, knowledge())
    cold, warm = spec(tuning=tuning), spec(tuning=tuning | {"warm_start": "earlier"})
    close = [sum(abs(width - 20) <= 4 for width in proposed(each, tmp_path)) for each in (cold, warm)]
    assert close[0] <= 2
    assert close[1] >= 4


def test_nsga2_breeds_from_earlier_trials(tmp_path: Path) -> None:
    here = spec(tuning={"sampler": "nsga2", "warm_start": "earlier", "fair": False})
    whole = knowledge()
    warm_start.write(tmp_path, warm_start.Known(60, whole.cells * 2, whole.values * 2))
    own = optuna.create_study()
    warm = warm_start.warmed(own, Space(here, "", ""), tmp_path)
    warm.sampler = sampler(here, 0)
    trial = warm.ask()
    assert Space(here, "", "").suggest(trial)["width"] in range(8, 33)  # a parent's, or a mutation
    assert own.trials[0].system_attrs["NSGAIISampler:generation"] == 1


def small(**changes: Any) -> dict[str, Any]:
    return TINY | {"tuning": {"sampler": "tpe"}, "budget": {"trials": 4, "updates": 2}} | changes


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a study of four trials."""
    with World(tmp_path_factory.mktemp("earlier"), small()) as world:
        world.finish()
        return world.results()


def test_a_study_starts_with_an_earlier_one_and_resumes_without_it(tmp_path: Path, earlier: Path) -> None:
    earlier = shutil.copytree(earlier, tmp_path / "earlier")
    warm = small(tuning={"sampler": "tpe", "warm_start": str(earlier)})
    found: list[Any] = []
    for name in ("whole", "killed"):
        with World(tmp_path / name, warm) as world:
            if name == "killed":
                world.start()
                world.step(world.running()[0])
                world.kill_driver()
                shutil.move(earlier, tmp_path / "elsewhere")
            world.finish()
            found.append(computed(world))
            loaded = analysis.load(world.results())
            assert list(loaded.trials["trial"]) == [0, 1, 2, 3]
            assert loaded.provenance["warm_start"] == str(earlier)
            known = json.loads((world.results() / warm_start.FILE).read_text())
            assert known["completed"] == len(known["cells"]) == 4
            table = analysis.cells(loaded)
            report = "\n".join(warnings.warnings(loaded, table, analysis.winners_curse(loaded, table)))
            assert f"The sampler also knew the trials of {earlier}" in report
    check_same(found[1], found[0])


def test_a_study_without_what_its_sampler_knew_does_not_go_on(tmp_path: Path) -> None:
    here = spec(tuning={"sampler": "tpe", "warm_start": "earlier"})
    with pytest.raises(StorageError, match="the earlier trials of the warm start cannot be read"):
        warm_start.warmed(optuna.create_study(), Space(here, "", ""), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"trials": 4, "updates": 3}}, "has budget.updates = 2, not 3; its values do not compare"),
        ({"workload": {"data": "cubic", "model": "linear"}}, "has workload.data = linear, not cubic"),
        (
            {"search": {"batch_size": 20, "optimizer": ["sgd", "adam"]}},
            "none of its 4 completed trials has a cell of this search; leave it out",
        ),
        ({"missing": True}, "no such folder; give the results folder that"),
        (
            {"tuning": {"sampler": "random"}},
            "the sampler random does not look at trials; valid with it: tpe, gp",
        ),
    ],
)
def test_what_is_no_warm_start_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path, earlier: Path
) -> None:
    place, given = str(earlier), small(**changes)
    if given.pop("missing", False):
        place = str(tmp_path / "nowhere")
    with pytest.raises(SpecError, match=r"tuning\.warm_start") as caught:
        study.run(given | {"tuning": given["tuning"] | {"warm_start": place}}, tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_lanes_of_the_earlier_study_are_told(earlier: Path) -> None:
    def read(lanes: dict[str, Any]) -> Spec:
        warm = {"sampler": "tpe", "warm_start": str(earlier)}
        return check(small(tuning=warm, lanes=small()["lanes"] | lanes))

    assert warm_start.read(read({"seeds": 7})).lanes == ()
    other = read({"rates": 9, "schedule": "cosine"})
    lanes = ("lanes.rates 2, not 9", "lanes.schedule None, not cosine")
    assert warm_start.read(other).lanes == lanes
    assert plan._known(other).endswith(f"; values may not be comparable, because it had {', '.join(lanes)}")


def test_trials_outside_the_space_are_left_out(earlier: Path) -> None:
    narrow = small(search={"batch_size": ["full", 50], "optimizer": "sgd"})
    known = warm_start.read(check(narrow | {"tuning": {"sampler": "tpe", "warm_start": str(earlier)}}))
    assert (known.completed, len(known.cells)) == (4, 2)
    assert {cell["optimizer"] for cell in known.cells} == {"sgd"}
