from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from study import plan
from study.progress import status
from study.results.provenance import write_provenance
from study.spec import check
from tests.test_spec import changed
from trainables.storage import write_text


def test_more_lanes_take_more_memory_and_more_updates_more_time() -> None:
    few = check(changed(lanes__seeds=1, budget__epochs=1))
    many = check(changed(lanes__seeds=40, budget__epochs=1))
    long = check(changed(lanes__seeds=1, budget__epochs=100))
    small, large, lengthy = (plan.probe(spec, 32, 16, 2) for spec in (few, many, long))
    assert small.updates == 313
    assert lengthy.updates == 31_300
    assert large.memory_bytes > 2 * small.memory_bytes
    assert lengthy.memory_bytes == small.memory_bytes
    assert small.seconds
    assert lengthy.seconds
    assert lengthy.seconds > 3 * small.seconds  # 100 times as long; both are measured, maybe on a busy machine


def test_a_budget_in_seconds_is_that_of_one_network() -> None:
    spec = check(changed(budget={"trials": 4, "seconds": 60.0}))
    probes = plan.probed(spec)
    assert "batch size 1 (stochastic): 60 s of one network a lane" in plan.describe(spec, probes)
    assert re.search(r"time +about \d", plan.describe(spec, probes))
    assert all(6_000 < probe.updates < 6_000_000 for probe in probes if probe.batch_size == 1)


def test_a_plan_says_which_budgets_min_updates_makes_longer() -> None:
    spec = check(changed(search__batch_size=[32, "full"], budget={"trials": 4, "epochs": 2, "min_updates": 60}))
    text = plan.describe(spec, plan.probed(spec))
    assert "batch size 32 (mini-batch): 626 updates a lane = 2 epochs\n" in text
    assert "batch size 10,000 (batch): 60 updates a lane = 60 epochs, by min_updates\n" in text


def test_a_plan_says_how_many_rates_may_be_added() -> None:
    grid = {"learning_rate": {"low": 1e-3, "high": 0.1, "count": 5}, "seeds": 2}
    lanes: dict[str, dict[str, object]] = {
        "grows": grid | {"extensions": 1, "refine": 2},
        "fixed": grid | {"extensions": 0, "refine": 0},
        "one": {"learning_rate": {"low": 0.1, "high": 0.1, "count": 1}},
    }
    plans = {name: check(changed(lanes=each, budget={"trials": 4, "seconds": 60.0})) for name, each in lanes.items()}
    texts = {name: plan.describe(spec, plan.probed(spec)) for name, spec in plans.items()}
    assert "then up to 2 refinements: two rates are added around the best one" in texts["grows"]
    assert "up to 140% more if rates are added" in texts["grows"]  # 3 and 4 of 5
    for name in ("fixed", "one"):
        assert "around the best one" not in texts[name]
        assert "more if rates are added" not in texts[name]


@pytest.mark.parametrize(
    ("model", "data"), [("linear", "digits"), ("cnn", "digits"), ("mlp", "mnist"), ("quadratic", "quadratic")]
)
def test_every_family_has_a_plan_without_loading_its_data(model: str, data: str) -> None:
    size = {} if model in ("linear", "quadratic") else {"width": {"low": 4, "high": 8}, "depth": 1}
    search = {**size, "batch_size": [32], "optimizer": "adam"}
    spec = check(changed(workload={"data": data, "model": model, "standardize": data != "quadratic"}, search=search))
    assert f"{data}: " in plan.describe(spec, plan.probed(spec))


def test_a_plan_shows_the_call_of_a_user_model() -> None:
    own = {
        "data": "digits",
        "model": "tests.test_adapting:Listless",
        "model_args": {"p_drop": [0.1, 0.2], "n_heads": 2},
    }
    search = {"width": [8, 16], "batch_size": [32], "optimizer": "adam"}
    spec = check(changed(workload=own, search=search, confirm={}))
    call = "Listless(in_dim=64, p_drop=model.p_drop, n_heads=2, hidden=width, num_classes=10, bias=True)"
    assert f"  model   tests.test_adapting:{call}\n" in plan.describe(spec, plan.probed(spec))
    for shipped in ("mlp", "torchvision:resnet18"):
        named = spec.model_copy(update={"workload": spec.workload.model_copy(update={"model": shipped})})
        assert not list(plan.model_call(named))


def test_the_status_of_a_study_that_has_just_begun(tmp_path: Path) -> None:
    spec = check(changed())
    write_text(tmp_path / "spec.toml", spec.to_toml())
    write_provenance(tmp_path, spec, [{"command": "", "started": "", "ended": None}], finished=False)
    assert status.status(tmp_path).splitlines() == [
        f"good: interrupted; `study resume {tmp_path}` continues it",
        "  trials  0 of 4: none ended yet",
        "  lanes   0, 0 diverged",
        "  cost    0 CPU-hours",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"budget__trials": 1}, ["1 trial for 2 optimizers: at most 1 can be compared"]),
        (
            {"budget__trials": 4},
            ["4 trials for 2 optimizers x 3 batch sizes: at most 4 of 6 pairs can be compared"],
        ),
        ({"budget__trials": 6}, []),
        ({"budget__trials": 7}, ["7 trials for 2 optimizers: 1 of them gets one trial more than the others"]),
        ({"budget__trials": 7, "tuning": {"fair": False}}, []),
        (
            {"budget__trials": 16, "tuning": {"scheduler": "asha"}},
            [
                "asha compares only trials with the same optimizer and batch size, and 16 trials for 2 optimizers x "
                "3 batch sizes are too few to stop many"
            ],
        ),
        ({"budget__trials": 18, "tuning": {"scheduler": "asha"}}, []),
        ({"budget__trials": 4, "search__batch_size": {"low": 1, "high": 64}}, []),
        ({"budget__trials": 500, "tuning": {"sampler": "grid"}}, []),  # a grid ends with its 12 cells
    ],
)
def test_warnings_tell_what_a_spec_is_too_small_for(changes: dict[str, Any], expected: list[str]) -> None:
    assert list(plan.warnings(check(changed(**changes)))) == expected


def test_warnings_and_the_confirmation_are_part_of_the_plan() -> None:
    spec = check(changed(budget={"trials": 4, "seconds": 60.0}, confirm={"top": 2, "seeds": 5}))
    text = plan.describe(spec, plan.probed(spec))
    assert "  warning 4 trials for 2 optimizers x 3 batch sizes" in text
    # Top 2, one more optimizer, two more regimes: 5, but only 4 cells are tried; each winner takes as long as a trial.
    assert "the 2 best cells, and the best of each optimizer and regime: at most 4, each on 5 fresh seeds" in text
    found = re.findall(
        r"time +about ([\d.]+) (\w+) on this machine, of which ([\d.]+) (\w+) for the confirmation", text
    )[0]
    all_of_it, confirmed = (float(found[i]) * {"s": 1, "min": 60, "h": 3600}[found[i + 1]] for i in (0, 2))
    assert all_of_it == pytest.approx(2 * confirmed, rel=0.1)


def test_a_plan_shows_baselines_and_enqueued_cells() -> None:
    ours = {"name": "ours", "optimizer": "momentum", "learning_rate": 1e-3, "batch_size": 32, "width": 16, "depth": 2}
    first = {"optimizer": "adam", "batch_size": "full", "width": 8}
    spec = check(changed(confirm={"top": 1}, baseline=[ours], enqueue=[first] * 3))
    text = plan.describe(spec, plan.probed(spec))
    assert 'baseline "ours": momentum, batch size 32, width 16, depth 2 at learning rate 0.001\n' in text
    assert text.count("first adam, batch size full, width 8\n") == 3
    assert "3 enqueued cells of adam, whose share is 2 of 4 trials" in text
    assert "at most 5, each on 10 fresh seeds" in text  # 1 + 1 optimizer + 2 regimes + the baseline
