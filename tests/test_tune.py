"""The trainables, driven as Ray Tune drives them, without a cluster."""

from __future__ import annotations

import errno
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.rates import rate_table
from trainables.config import TrialConfig
from trainables.lanes.rates import Measure, beyond, tuned
from trainables.lanes.rows import lane_rows
from trainables.lanes.stack import Stack, grid
from trainables.lanes.trial import grid_lanes
from trainables.rules import RULES
from trainables.tune import TRAINABLES, CNNTrainable, LaneTrainable, MLPTrainable, Payload

CONFIG: dict[str, Any] = {
    "optimizer": "adam",
    "batch_size": 32,
    "width": 8,
    "depth": 1,
    "data": "linear",
    "model": "mlp",
    "rates": (1e-3, 1e-1, 3),
    "seeds": (0, 1),
    "budget": {"epochs": 4},
    "dtype": "float64",
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def numbers(trainable: LaneTrainable, steps: int) -> list[Any]:
    """What so many steps report, times aside."""
    results = [trainable.train() for _ in range(steps)]
    return [
        (r["value"], r["learning_rate"], r["update"], [(p.update, p.lanes, p.values) for p in r["payload"].points])
        for r in results
    ]


def test_a_trial_reports_once_an_epoch_and_is_then_done() -> None:
    trainable = MLPTrainable(CONFIG)
    results = [trainable.train() for _ in range(4)]
    assert [r["done"] for r in results] == [False, False, False, True]
    assert [r["outcome"] for r in results] == ["running"] * 3 + ["completed"]
    assert [r["epoch"] for r in results] == [1, 2, 3, 4]
    assert [r["examples"] for r in results] == [100, 200, 300, 400]
    rows = results[-1]["payload"].lanes
    assert [(row["learning_rate"], row["seed"]) for row in rows] == [
        (pytest.approx(rate), seed) for rate in (1e-3, 1e-2, 1e-1) for seed in (0, 1)
    ]
    assert all(row["test_loss"] > 0 and row["test_accuracy"] is None for row in rows)
    assert all(row["test_loss"] is None for row in results[0]["payload"].lanes)


def test_a_reused_actor_gives_the_numbers_of_a_new_one() -> None:
    other = {**CONFIG, "optimizer": "momentum", "batch_size": 16, "width": 4, "data": "cubic"}
    reused = MLPTrainable(CONFIG)
    reused.train()
    assert reused.reset(dict(other))
    assert numbers(reused, 1) == numbers(MLPTrainable(other), 1)


def test_a_saved_trial_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = (MLPTrainable(CONFIG) for _ in range(3))
    undisturbed = numbers(whole, 4)
    begun = numbers(first, 2)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    first.save_checkpoint(str(folder))
    assert "payload" not in first._last_result  # it would travel with every checkpoint
    second.load_checkpoint(str(folder))
    assert begun + numbers(second, 2) == undisturbed
    assert torch.equal(second.run.stack.parameters, whole.run.stack.parameters)


def test_a_trial_whose_lanes_all_diverge_says_so_and_has_no_value() -> None:
    result = MLPTrainable({**CONFIG, "optimizer": "sgd", "rates": (1e200, 1e201, 2)}).train()
    assert result["done"]
    assert result["outcome"] == "diverged"
    assert math.isnan(result["value"])
    assert result["learning_rate"] is None
    assert all(row["validation_loss"] is None and row["diverged_update"] for row in result["payload"].lanes)


def test_a_trial_does_not_wait_for_numbers_next_to_nothing() -> None:
    """A momentum that decays to a denormal number takes several times as long from then on, for nothing."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")
    tiny, found = torch.tensor([1e-300], dtype=torch.float64), []

    class Telling(MLPTrainable):
        def _step(self) -> dict[str, Any]:
            found.append((tiny * 1e-10).item())
            return super()._step()

    trainable = Telling({"optimizer": "momentum", "batch_size": 500, "width": 4, "depth": 1})
    trainable.train()
    trainable.stop()
    assert found == [0]
    assert (tiny * 1e-10).item() > 0  # and whoever else computes here, has them


def test_a_trial_resumed_with_another_build_of_the_kernel_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CONFIG, "checkpoint": str(tmp_path / "checkpoints" / "0.pt"), "budget": {"epochs": 4}}
    trainable = MLPTrainable(config)
    trainable.train()
    trainable.cleanup()
    monkeypatch.setattr("trainables.engines.native.identity", lambda dtype: "the new one")
    result = MLPTrainable(config).train()
    assert result["report"] == 2
    assert "resumed with another build of the native kernel (the new one, before " in result["warning"]


def test_each_family_has_its_trainable() -> None:
    assert TRAINABLES["mlp"] is TRAINABLES["linear"] is TRAINABLES["quadratic"] is MLPTrainable
    assert TRAINABLES["cnn"] is CNNTrainable
    assert (
        "CNNTrainable trains cnn and deepobs-2c2d and deepobs-3c3d, not 'mlp'" in CNNTrainable(CONFIG).train()["error"]
    )
    cnn = {**CONFIG, "data": "digits", "model": "cnn", "model_args": {"kernel": 3}, "metric": "accuracy"}
    result = CNNTrainable({**cnn, "width": 2}).train()
    assert 0 < result["value"] <= 1


def test_a_trial_says_how_it_was_made_and_what_it_gave_up() -> None:
    config = {**CONFIG, "rates": (1e-4, 1e-1, 4), "budget": {"epochs": 8}, "halving": True, "every_update": True}
    trainable = MLPTrainable(config)
    results = [trainable.train() for _ in range(8)]
    assert (results[-1]["engine"], results[-1]["lanes_at_once"], results[-1]["lanes"]) == ("native", 8, 8)
    rows = results[-1]["payload"].lanes
    # 4 rates are halved after 2 and 4 of 8 epochs of 4 updates.
    assert sorted(row["stopped_update"] or 32 for row in rows) == [8] * 4 + [16] * 2 + [32] * 2
    assert [row["updates"] for row in rows] == [row["stopped_update"] or 32 for row in rows]
    updates = [when[0] for r in results for trace in r["payload"].traces for when, *_ in trace.updates()]
    assert updates == list(range(1, 33))
    assert not any(key[0] == "batch" for r in results for point in r["payload"].points for key in point.values)
    survivor = {row["learning_rate"] for row in rows if row["stopped_update"] is None}
    assert {results[-1]["learning_rate"]} == survivor


@pytest.mark.parametrize("settings", [{"momentum": 0.5}, {"beta1": 0.8}])
def test_settings_are_the_optimizers(settings: dict[str, float]) -> None:
    optimizer = "momentum" if "momentum" in settings else "adam"
    result = MLPTrainable({**CONFIG, "optimizer": optimizer, "settings": settings}).train()
    assert result["outcome"] == "running"
    other = MLPTrainable({**CONFIG, "optimizer": "sgd", "settings": settings}).train()
    assert other["outcome"] == "failed"
    assert "sgd has no setting" in other["error"]


@pytest.mark.parametrize("optimizer", ["ASGD", pytest.param("LBFGS", marks=pytest.mark.long)])
def test_an_optimizer_without_a_rule_trains_and_resumes(optimizer: str, tmp_path: Path) -> None:
    config = {**CONFIG, "optimizer": optimizer}
    whole, first, second = (MLPTrainable(config) for _ in range(3))
    expected = numbers(whole, 4)
    found = numbers(first, 2)
    first.save_checkpoint(str(tmp_path))
    second.load_checkpoint(str(tmp_path))
    assert found + numbers(second, 2) == expected


def test_the_default_grid_is_the_rules_range() -> None:
    found = grid_lanes(TrialConfig.of({"optimizer": "sgd", "batch_size": 1, "seeds": (7,), "surprise": 1}))
    assert (found[0].learning_rate, found[-1].learning_rate) == pytest.approx(RULES["sgd"].rates)
    assert len(found) == 8


def stack_with(metric: str, values: list[list[float]], losses: list[list[float]] | None = None) -> Stack:
    """A stack whose last validation values are those, rates x seeds; losses decide between equal accuracies."""
    configurations = grid(0.01, 1.0, len(values), range(len(values[0])))
    empty = torch.zeros(len(configurations), 1)
    stack = Stack(RULES["sgd"], configurations, list(range(len(configurations))), empty, {}, [])
    if losses:
        stack.last["validation", "loss"] = np.array(losses).flatten()
    stack.last["validation", metric] = np.array(values).flatten()
    return stack


def tuned_rate(stacks: list[Stack], measure: Measure) -> tuple[float | None, float]:
    """The tuned rate, and the metric there."""
    setting, value = tuned(stacks, measure)
    return setting and setting.learning_rate, value


def test_a_trial_ends_once_no_rate_counts() -> None:
    # Of two seeds at one rate, one diverges: the cell has no tuned rate, and never will.
    trainable = MLPTrainable({**CONFIG, "rates": (1e-2, 1e-2, 1), "budget": {"epochs": 4}})
    trainable.train()
    trainable.run.stack.parameters[0] = math.inf
    result = trainable.train()
    assert (result["done"], result["outcome"], result["finished"]) == (True, "diverged", False)
    assert [bool(row["diverged_update"]) for row in result["payload"].lanes] == [True, False]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_trial_and_the_analysis_agree_on_the_best_mean(metric: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        # Coarse values, and the same ones in another order, so that rates often tie.
        values = random.choice([0.1, 0.3, 0.7, 0.701, 0.703], (4, 3))
        values[1] = random.permutation(values[0])
        values[random.random((4, 3)) < 0.1] = math.nan
        losses = values if metric == "loss" else random.choice([0.0, 1e-30, 0.5], (4, 1)) * np.ones(3)
        values[2:] *= random.choice([1.0, 1e-20]) if metric == "loss" else 1.0
        stack = stack_with(metric, values.tolist(), losses.tolist())
        frame = pd.DataFrame(
            {
                "trial": 0,
                "cell": 0,
                "lane": range(12),
                "recipe": "",
                "seed": [lane.seed for lane in stack.lanes],
                "learning_rate": [lane.learning_rate for lane in stack.lanes],
                "outcome": np.where(np.isnan(values.flatten()), "diverged", "completed"),
                "stopped_update": None,
                "validation_loss": losses.flatten(),
                f"validation_{metric}": values.flatten(),
            }
        )
        rate, value = tuned_rate([stack], Measure(metric, 1000, 1e-10))
        table = rate_table(frame, metric, 1000, 1e-10)
        theirs = table.index[table["best"]]
        if rate is None:
            assert math.isnan(value)
            assert theirs.empty
        else:
            assert rate == table["learning_rate"][theirs[0]]


def test_a_rate_counts_only_if_every_seed_survived() -> None:
    stack = stack_with("loss", [[0.5, 0.5], [0.1, math.nan], [0.3, 0.6]])
    rate, value = tuned_rate([stack], Measure("loss", 100))
    assert rate == pytest.approx(1.0)
    assert value == pytest.approx(math.sqrt(0.18))
    assert tuned_rate([stack_with("loss", [[math.nan, 0.1]])], Measure("loss", 100))[0] is None


# Far below the good rates of sgd on these data, which are about 0.1: two extensions of one rate each do not reach 1.
FAR: dict[str, Any] = {
    **CONFIG,
    "optimizer": "sgd",
    "rates": (1e-4, 1e-3, 2),
    "extensions": 2,
    "budget": {"epochs": 2},
    "every_update": True,
    "checkpoint_seconds": 0.0,
}
REPORTS = 6  # of that trial


def course(payloads: list[Payload]) -> list[Any]:
    """What a driver keeps of some payloads, seconds aside: the curves, every update's losses, and the last lanes."""
    kept: list[Payload] = []
    for payload in payloads:
        kept = [payload] if payload.whole else [*kept, payload]
    points = [(p.update, p.examples, p.epoch, p.lanes, p.values) for payload in kept for p in payload.points]
    traces = [(t.first, t.lanes, t.progress[:, :2].tolist(), t.losses.tolist()) for p in kept for t in p.traces]
    rows = [{name: value for name, value in row.items() if "seconds" not in name} for row in kept[-1].lanes]
    return [points, traces, rows]


def told(results: list[dict[str, Any]]) -> list[Any]:
    """What some results say, times aside."""
    names = ["value", "learning_rate", "outcome", "finished", "report", "extensions", "refinements", "extending"]
    names += ["update", "examples", "epoch", "lanes", "engine", "lanes_at_once", "parameters", "done"]
    return [[result[name] for name in names] for result in results]


def to_the_end(trainable: LaneTrainable) -> list[dict[str, Any]]:
    results = [trainable.train()]
    while not results[-1]["done"]:
        results.append(trainable.train())
    return results


@pytest.fixture(scope="module")
def far() -> list[dict[str, Any]]:
    """The results of that trial where nothing disturbs it."""
    return to_the_end(MLPTrainable(FAR))


@pytest.mark.parametrize("stop_after", range(1, REPORTS))
def test_a_trial_goes_on_from_its_own_file_bit_for_bit(
    stop_after: int, tmp_path: Path, far: list[dict[str, Any]]
) -> None:
    config = {**FAR, "checkpoint": str(tmp_path / "made" / "trial.pt")}
    first = MLPTrainable(config)
    begun = [first.train() for _ in range(stop_after)]
    assert not any(result["should_checkpoint"] for result in begun)
    assert [result["payload"].whole for result in begun] == [True] + [False] * (stop_after - 1)
    # Another process may have other places for its data and other threads.
    second = MLPTrainable({**config, "data_folder": str(tmp_path), "checkpoint_seconds": 1e9})
    rest = to_the_end(second)
    assert not any("warning" in result for result in begun + rest)
    assert told(begun + rest) == told(far)
    assert begun[0]["started"] == rest[0]["started"]
    before, now = rest[-1]["stints"]
    assert begun[-1]["stints"][0]["started"] == before["started"] < before["ended"] <= now["started"] < now["ended"]
    assert rest[-1]["wall_seconds"] == sum(stint["ended"] - stint["started"] for stint in (before, now))
    assert [result["payload"].whole for result in rest] == [True] + [False] * (len(rest) - 1)
    # The driver that saw it all and one that lost its memory know the same.
    expected = course([result["payload"] for result in far])
    assert course([result["payload"] for result in begun + rest]) == expected
    assert course([result["payload"] for result in rest]) == expected
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["trial.pt"]


@pytest.mark.parametrize("optimizer", ["ASGD", pytest.param("LBFGS", marks=pytest.mark.long)])
def test_an_optimizer_without_a_rule_goes_on_from_its_own_file(optimizer: str, tmp_path: Path) -> None:
    config = {**CONFIG, "optimizer": optimizer, "budget": {"epochs": 3}, "rates": (1e-6, 1e-5, 2), "extensions": 1}
    whole = numbers(MLPTrainable(config), 6)
    config |= {"checkpoint": str(tmp_path / "trial.pt"), "checkpoint_seconds": 0.0}
    for stop_after in (2, 4):
        begun = numbers(MLPTrainable(config), stop_after)
        rest = numbers(MLPTrainable(config), 6 - stop_after)
        assert [n[:3] for n in begun + rest] == [n[:3] for n in whole]
        assert rest[0][3] == [point for report in whole[: stop_after + 1] for point in report[3]]
        (tmp_path / "trial.pt").unlink()


def test_ray_tunes_checkpoints_hold_extensions_too(tmp_path: Path, far: list[dict[str, Any]]) -> None:
    first, second = MLPTrainable(FAR), MLPTrainable(FAR)
    begun = [first.train() for _ in range(3)]
    assert all(result["should_checkpoint"] for result in begun)
    first.save_checkpoint(str(tmp_path))
    second.load_checkpoint(str(tmp_path))
    rest = to_the_end(second)
    assert told(begun + rest) == told(far)
    # Nothing is kept in memory of what was told before.
    assert not any(result["payload"].whole for result in rest)
    assert first.buffer.points == second.buffer.points == []


def test_time_between_workers_does_not_count(tmp_path: Path) -> None:
    config = {**FAR, "checkpoint": str(tmp_path / "trial.pt")}
    began = time.monotonic()
    trainable = MLPTrainable(config)
    time.sleep(1.0)  # a long first part
    first = trainable.train()["wall_seconds"]
    time.sleep(0.5)
    second = MLPTrainable(config).train()["wall_seconds"]
    assert 1 < first < second < time.monotonic() - began - 0.5


@pytest.mark.parametrize("keep", [0, 1, 30, 0.1, 0.5, 0.9, -1, "garbage", "flipped", "folder", "other zip"])
def test_a_damaged_file_is_ignored(keep: float | str, tmp_path: Path, far: list[dict[str, Any]]) -> None:
    file = tmp_path / "trial.pt"
    config = {**FAR, "checkpoint": str(file), "checkpoint_seconds": 1e9}
    first = MLPTrainable(config)
    first.train()
    first.cleanup()
    raw = bytearray(file.read_bytes())
    if keep == "folder":
        file.unlink()
        file.mkdir()
    elif keep == "other zip":
        torch.save({"trial": TrialConfig.of(config).identity(), "stacks": [{}]}, file)
    elif keep == "flipped":
        place = raw.find(first.run.stack.parameters[0].numpy().tobytes())
        assert place > 0
        raw[place] ^= 1
        file.write_bytes(raw)
    elif isinstance(keep, str):
        file.write_bytes(np.random.default_rng(0).bytes(5000))
    else:
        file.write_bytes(raw[: int(keep * len(raw)) if 0 < keep < 1 else int(keep)])
    results = to_the_end(MLPTrainable(config))
    assert str(file) in results[0]["warning"]
    assert "starts again from the beginning" in results[0]["warning"]
    assert not any("warning" in result for result in results[1:])
    assert told(results) == told(far)
    assert course([result["payload"] for result in results]) == course([result["payload"] for result in far])


@pytest.mark.parametrize("other", [{"seeds": (0, 2)}, {"extensions": 1}, {"refine": 1}, {"trial": 7}])
def test_a_file_of_another_trial_is_ignored(other: dict[str, Any], tmp_path: Path) -> None:
    config = {**FAR, "checkpoint": str(tmp_path / "trial.pt")}
    MLPTrainable({**config, **other}).train()
    result = MLPTrainable(config).train()
    assert "belongs to another trial" in result["warning"]
    assert (result["report"], result["update"]) == (1, 4)
    # It has been replaced by now.
    assert "warning" not in MLPTrainable(config).train()


@contextmanager
def failing_writes(how: str, file: Path) -> Iterator[None]:
    """A disk that is full, or a place that cannot be written to."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        if how == "replace":
            patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        elif how == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        else:
            file.parent.write_text("a file where the folder should be")
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("how", ["replace", "full", "no folder"])
def test_a_failing_write_harms_nothing(how: str, tmp_path: Path, far: list[dict[str, Any]]) -> None:
    file = tmp_path / "made" / "trial.pt"
    trainable = MLPTrainable({**FAR, "checkpoint": str(file)})
    results = [trainable.train()] if how != "no folder" else []
    before = file.read_bytes() if results else b""
    with failing_writes(how, file):
        results += [trainable.train() for _ in range(REPORTS - 1 - len(results))]
    results += to_the_end(trainable)
    assert told(results) == told(far)
    assert course([result["payload"] for result in results]) == course([result["payload"] for result in far])
    # It is tried again from time to time, not at every report: a store may take long to say that it cannot.
    failed = results[1 if before else 0 : -1]
    assert f"the checkpoint {file} could not be written" in failed[0]["warning"]
    assert all("could not be written" in result.get("warning", "could not be written") for result in failed)
    assert "warning" not in results[-1]
    if before:
        assert file.read_bytes() == before
        assert [each.name for each in file.parent.iterdir()] == ["trial.pt"]


def test_what_is_cut_off_in_mid_course_is_kept(tmp_path: Path, far: list[dict[str, Any]]) -> None:
    file = tmp_path / "trial.pt"
    config = {**FAR, "checkpoint": str(file), "checkpoint_seconds": 1e9}
    begun: list[dict[str, Any]] = []
    for count in (1, 2, 2):
        trainable = MLPTrainable(config)
        trainable.cleanup()
        assert file.exists() == bool(begun)  # nothing was done yet
        begun += [trainable.train() for _ in range(count)]
        trainable.stop()
    last = MLPTrainable(config)
    begun += to_the_end(last)
    assert told(begun) == told(far)
    assert course([begun[-1]["payload"]]) == course([result["payload"] for result in far])
    file.unlink()
    last.cleanup()
    assert not file.exists()  # it has ended


def test_a_step_that_was_cut_off_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trial.pt"
    trainable = MLPTrainable({**FAR, "checkpoint": str(file), "checkpoint_seconds": 1e9})
    trainable.train()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainable.run.engine, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainable.train()
    trainable.cleanup()
    assert not file.exists()


def test_a_trial_that_fails_keeps_its_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "trial.pt"
    trainable = MLPTrainable({**FAR, "checkpoint": str(file)})
    trainable.train()
    before = file.read_bytes()
    monkeypatch.setattr(trainable.run.engine, "advance", None)
    result = trainable.train()
    assert (result["outcome"], result["payload"]) == ("failed", Payload([], [], [], whole=False))
    assert result["wall_seconds"] > 0
    trainable.cleanup()
    assert file.read_bytes() == before


def test_a_reused_actor_leaves_the_file_of_the_trial_before(tmp_path: Path) -> None:
    one, other = ({**FAR, "trial": number, "checkpoint": str(tmp_path / f"{number}.pt")} for number in (1, 2))
    trainable = MLPTrainable(one)
    trainable.train()
    trainable.reset(dict(other))
    first = trainable.train()
    assert first["report"] == 1
    assert course([first["payload"]]) == course([MLPTrainable(FAR).train()["payload"]])
    trainable.reset(dict(one))
    again = trainable.train()
    assert (again["report"], again["payload"].whole) == (2, True)
    assert again["payload"].points[0].update == 0


def test_the_grid_follows_a_best_rate_that_lies_outside_it(far: list[dict[str, Any]]) -> None:
    assert [result["report"] for result in far] == [1, 2, 2, 2, 2, 2]
    assert [result["extensions"] for result in far] == [0, 1, 1, 2, 2, 2]
    assert [result["extending"] for result in far] == [False, True, True, True, True, False]
    assert [result["outcome"] for result in far] == ["running"] * 5 + ["completed"]
    assert [result["finished"] for result in far] == [result["done"] for result in far] == [False] * 5 + [True]
    # A rate counts once it has had the whole budget.
    assert [result["learning_rate"] for result in far] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-2, 1e-2, 1e-1])
    values = [result["value"] for result in far]
    assert values == sorted(values, reverse=True)
    assert [result["lanes"] for result in far] == [4, 4, 6, 6, 8, 8]
    assert {(result["update"], result["examples"], result["epoch"]) for result in far[1:]} == {(8, 200, 2.0)}
    seconds = [result["train_seconds"] for result in far]
    assert seconds == sorted(seconds)
    rows = far[-1]["payload"].lanes
    assert [row["lane"] for row in rows] == list(range(8))
    assert [row["learning_rate"] for row in rows[::2]] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert [row["seed"] for row in rows] == [0, 1] * 4
    assert [row["round"] for row in rows] == ["grid"] * 4 + ["extension 1"] * 2 + ["extension 2"] * 2
    assert all(row["updates"] == 8 and row["test_loss"] > 0 for row in rows)
    assert sum(row["train_seconds_share"] for row in rows) == pytest.approx(seconds[-1])


def test_an_extension_leaves_the_numbers_of_the_grid_alone(far: list[dict[str, Any]]) -> None:
    alone = to_the_end(MLPTrainable({**FAR, "extensions": 0}))
    assert (len(alone), alone[-1]["outcome"], alone[-1]["extending"]) == (2, "completed", False)
    points, traces, rows = course([result["payload"] for result in far])
    main_points, main_traces, main_rows = course([result["payload"] for result in alone])
    assert points[: len(main_points)] == main_points
    assert traces[: len(main_traces)] == main_traces
    assert rows[:4] == main_rows
    # A lane is in no point twice, and those of extensions have numbers of their own.
    assert {lane for point in points[len(main_points) :] for lane in point[3]} == {4, 5, 6, 7}
    seen = [(point[0], lane) for point in points for lane in point[3]]
    assert len(seen) == len(set(seen))
    # They are what a grid of those rates has.
    directly = MLPTrainable({**FAR, "rates": (1e-2, 1e-1, 2), "extensions": 0})
    own = course([result["payload"] for result in to_the_end(directly)])[2]
    assert [row["test_loss"] for row in own] == pytest.approx([row["test_loss"] for row in rows[4:]], rel=1e-9)


def test_networks_that_have_had_their_budget_are_forgotten(tmp_path: Path) -> None:
    trainable = MLPTrainable({**FAR, "optimizer": "momentum", "checkpoint": str(tmp_path / "trial.pt")})
    for kept in ([4], [0], [0, 2], [0, 0], [0, 0, 2]):
        trainable.train()
        state = torch.load(tmp_path / "trial.pt", weights_only=True)
        assert [len(stack["parameters"]) for stack in state["stacks"]] == kept
        assert [len(stack["state"].get("momentum_buffer", ())) for stack in state["stacks"]] == kept
        assert [len(stack.parameters) for stack in trainable.run.stacks] == kept


def test_the_grid_grows_downwards_too() -> None:
    config = {**CONFIG, "rates": (1.0, 100.0, 3), "budget": {"epochs": 2}, "extensions": 4}
    results = to_the_end(MLPTrainable(config))
    assert (len(results), results[-1]["extensions"]) == (4, 1)
    assert results[-1]["learning_rate"] == pytest.approx(0.1)
    rates = [row["learning_rate"] for row in results[-1]["payload"].lanes[::2]]
    assert rates == pytest.approx([1.0, 10.0, 100.0, 0.1, 0.01])


@pytest.mark.parametrize(
    ("rates", "tuned_rate"),
    [
        ((1e-2, 1.0, 3), 1e-1),  # within
        ((1e-101, 1e99, 3), 1e-1),  # the rate above diverges, which has been tried all the same
        ((1e-1, 1e-1, 1), 1e-1),  # one rate has no spacing
        ((1e-1, 1e-1, 3), 1e-1),  # nor have equal ones
    ],
)
def test_the_grid_grows_where_the_best_rate_lies_on_its_edge_only(rates: Any, tuned_rate: float) -> None:
    config = {**FAR, "rates": rates}
    results = to_the_end(MLPTrainable(config))
    assert results[-1]["learning_rate"] == pytest.approx(tuned_rate)
    assert (len(results), results[-1]["extensions"]) == (2, 0)


def test_an_extension_that_diverges_ends_the_search_and_not_the_trial() -> None:
    # From 0.1 a step of 1e150 leads where every lane diverges at once.
    results = to_the_end(MLPTrainable({**FAR, "rates": (1e-151, 1e-1, 2), "extensions": 5}))
    last = results[-1]
    assert (last["outcome"], last["extensions"], last["learning_rate"]) == ("completed", 1, 1e-1)
    assert [bool(row["diverged_update"]) for row in last["payload"].lanes] == [False] * 4 + [True] * 2
    assert last["value"] == results[1]["value"]


def test_a_grid_that_diverges_is_not_extended() -> None:
    results = to_the_end(MLPTrainable({**FAR, "rates": (1e200, 1e201, 2)}))
    assert [result["outcome"] for result in results] == ["diverged"]
    assert (results[0]["extensions"], results[0]["extending"]) == (0, False)


def test_extensions_are_halved_as_the_grid_is() -> None:
    config = {**FAR, "rates": (1e-4, 1e-2, 5), "budget": {"epochs": 4}, "halving": True, "extensions": 1}
    results = to_the_end(MLPTrainable(config))
    rows = results[-1]["payload"].lanes
    assert len(rows) == 16
    assert sorted({row["learning_rate"] for row in rows if row["stopped_update"] is None}) == [
        pytest.approx(1e-2),
        results[-1]["learning_rate"],
    ]
    assert all(row["stopped_update"] in (None, 4, 8) for row in rows)


@pytest.mark.parametrize(
    ("rates", "tried", "best", "expected"),
    [
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1], 1e-1, [1.0, 10.0]),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1], 1e-3, [1e-4, 1e-5]),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1], 1e-2, []),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1, 1.0, 10.0], 10.0, [1e2, 1e3]),
        ([1e-3, 1e-2, 1e-1], [1e-3, 1e-2, 1e-1, 1.0, 10.0], 1e-1, []),
        ([0.1, 0.4], [0.1, 0.4], 0.4, [1.6]),
        ([1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 2.0, 4.0, 8.0, 16.0], 1.0, [0.5, 0.25, 0.125]),
        ([0.1], [0.1], 0.1, []),
        ([0.1, 0.1], [0.1, 0.1], 0.1, []),
        ([1e-300, 1e300], [1e-300, 1e300], 1e300, []),
        ([1e100, 1e200, 1e300], [1e100, 1e200, 1e300], 1e300, []),
        ([1e-300, 1e-200, 1e-100], [1e-300, 1e-200, 1e-100], 1e-300, []),
        ([1e-300, 1e-296, 1e-292], [1e-300, 1e-296, 1e-292], 1e-300, [1e-304]),
    ],
)
def test_rates_beyond_the_edge(rates: list[float], tried: list[float], best: float, expected: list[float]) -> None:
    assert beyond(rates, tried, best) == pytest.approx(expected, rel=1e-12)


def test_lanes_are_numbered_through_all_stacks() -> None:
    rows = lane_rows([stack_with("loss", [[0.5], [0.6]]), stack_with("loss", [[0.7], [math.nan]])])
    assert [(row["lane"], row["validation_loss"]) for row in rows] == [(0, 0.5), (1, 0.6), (2, 0.7), (3, None)]
